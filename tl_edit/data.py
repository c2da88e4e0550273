"""Records: a request with the prompts that judge it."""

from dataclasses import dataclass

from tl_edit.request import EditRequest, as_several


@dataclass(frozen=True)
class EditRecord:
    """A request and the prompts that tell whether its edit worked and what else moved."""

    request: EditRequest
    paraphrase_prompts: tuple[str, ...] = ()
    """Other wordings of the request's prompt; the new object should follow."""
    neighborhood_prompts: tuple[str, ...] = ()
    """Prompts about other subjects whose true object is the request's ``target_true``; it should stay."""
    other_facts: tuple[tuple[str, str], ...] = ()
    """Prompts about the same subject with their true answers (its essence); these should stay."""

    def __post_init__(self) -> None:
        """Check the prompts.

        Raises:
            ValueError: If a list of prompts is one string, a prompt is empty or ends in a space, or an other fact is
                not a pair.
        """
        for name in ("paraphrase_prompts", "neighborhood_prompts"):
            prompts = getattr(self, name)
            if isinstance(prompts, str):
                raise ValueError(f"EditRecord: {name} is one string; expected several; write ({prompts!r},).")
            object.__setattr__(self, name, tuple(_checked(prompt, name) for prompt in prompts))
        pairs = tuple(tuple(pair) for pair in self.other_facts)
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                "EditRecord: other_facts holds something else than pairs; expected (prompt, answer) pairs."
            )
        object.__setattr__(
            self, "other_facts", tuple((_checked(prompt, "other_facts"), answer) for prompt, answer in pairs)
        )


def _checked(prompt: object, name: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip() or prompt.endswith(" "):
        raise ValueError(
            f"EditRecord: {name} holds {prompt!r}; expected a text that does not end in a space, which is added before "
            "the object; drop it."
        )
    return prompt


def as_records(records: object, operation: str) -> tuple[EditRecord, ...]:
    """One record or several as a tuple, checked; see `as_several`."""
    example = "EditRecord(request, paraphrase_prompts=..., neighborhood_prompts=...)"
    return as_several(records, EditRecord, operation, example=example)
