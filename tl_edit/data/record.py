"""Records: a request with the prompts and texts that judge it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from tl_edit import show
from tl_edit.request import EditRequest, as_several

PROMPTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
FACTS = ("other_facts", "unrelated_facts")
TEXTS = ("reference_texts", "essence_texts")
LABELS = ("name", "relation_id")
"""The fields of an `EditRecord` beside the request, by what they hold."""


_SHOWN = 5
"""Prompts and texts of each kind that a table shows."""


class KnownFact(NamedTuple):
    """A prompt, its subject, and the answer that the model must know for the fact to count."""

    prompt: str
    subject: str
    answer: str | None = None
    """None takes whatever the model says."""


@dataclass(frozen=True)
class EditRecord:
    """A request, and the prompts and texts that tell whether its edit worked and what else moved."""

    request: EditRequest
    paraphrase_prompts: tuple[str, ...] = ()
    """Other wordings of the request's prompt; the new object should follow."""
    neighborhood_prompts: tuple[str, ...] = ()
    """Prompts about other subjects whose true object is the request's ``target_true``; it should stay."""
    other_facts: tuple[tuple[str, str], ...] = ()
    """Prompts about the same subject with their true answers (its essence); these should stay."""
    unrelated_facts: tuple[tuple[str, str], ...] = ()
    """Prompts about something else with answers of their own (zsRE's locality questions); these should stay."""
    attribute_prompts: tuple[str, ...] = ()
    """Prompts about other subjects whose true object is ``target_new`` (CounterFact has them)."""
    generation_prompts: tuple[str, ...] = ()
    """Beginnings of texts about the subject, for the model to go on from (fluency and consistency)."""
    reference_texts: tuple[str, ...] = ()
    """Texts about things of which ``target_new`` is true; generated texts should resemble them (RS)."""
    essence_texts: tuple[str, ...] = ()
    """Texts about the subject; their perplexity should not rise (the published programs' essence score)."""
    name: str = ""
    """What the record is called in its data set, e.g. CounterFact's case_id."""
    relation_id: str = ""
    """The relation in its data set, e.g. Wikidata's P103."""

    def __post_init__(self) -> None:
        """Check the request and the prompts.

        Raises:
            ValueError: If the request is none, a list of prompts is one string or no list, a prompt is empty or ends in
                a space, or an other fact is not a pair of a prompt and an answer.
        """
        if not isinstance(cast(object, self.request), EditRequest):
            raise ValueError(
                f"EditRecord: request is of type {type(self.request).__name__}; expected EditRequest; write "
                "EditRequest('{} is in the city of', 'The Eiffel Tower', 'Rome')."
            )
        for name in PROMPTS:
            prompts = self._several(name)
            object.__setattr__(self, name, tuple(_checked(prompt, name) for prompt in prompts))
        for name in FACTS:
            object.__setattr__(self, name, tuple(_pair(fact, name) for fact in self._several(name)))
        for name in TEXTS:
            object.__setattr__(self, name, tuple(_text(text, name) for text in self._several(name)))
        for name in LABELS:
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"EditRecord: {name} is {getattr(self, name)!r}; expected a string; write str(...).")

    def _repr_html_(self) -> str:
        """A table of the first prompts and texts of each kind."""
        rows: list[tuple[str, str]] = [("name", self.name)] * bool(self.name) + [("request", str(self.request))]
        for name in (*PROMPTS, *FACTS, *TEXTS):
            several: tuple[object, ...] = getattr(self, name)
            said = [" → ".join(cast(tuple[str, str], each)) if name in FACTS else str(each) for each in several]
            left_out = f" and {len(said) - _SHOWN:,} more" if len(said) > _SHOWN else ""
            if said:
                rows.append((name.replace("_", " "), " | ".join(said[:_SHOWN]) + left_out))
        return show.table(rows)

    def _several(self, name: str) -> tuple[object, ...]:
        """The field as a tuple, whatever listed it."""
        values = getattr(self, name)
        if isinstance(values, str):
            raise ValueError(f"EditRecord: {name} is one string; expected several; write ({values!r},).")
        if isinstance(values, dict) or not isinstance(values, Iterable):
            kind = type(cast(object, values)).__name__
            raise ValueError(f"EditRecord: {name} is of type {kind}; expected a list or tuple; write () for none.")
        return tuple(cast(Iterable[object], values))


def _pair(fact: object, name: str) -> tuple[str, str]:
    """A prompt and its answer; a string of two characters is none."""
    pair = tuple(cast(Sequence[object], fact)) if isinstance(fact, tuple | list) else ()
    if len(pair) != 2 or not isinstance(pair[1], str) or not pair[1].strip():
        raise ValueError(
            f"EditRecord: {name} holds {fact!r}; expected (prompt, answer) pairs of strings; write e.g. "
            "(('The Eiffel Tower was built by', 'Gustave Eiffel'),)."
        )
    return _checked(pair[0], name), pair[1]


def _checked(prompt: object, name: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip() or prompt.endswith(" "):
        raise ValueError(
            f"EditRecord: {name} holds {prompt!r}; expected a text that does not end in a space, which is added before "
            "the object; drop it."
        )
    return prompt


def _text(text: object, name: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"EditRecord: {name} holds {text!r}; expected texts of some words; drop it.")
    return text


def as_records(records: object, operation: str) -> tuple[EditRecord, ...]:
    """One record or several as a tuple, checked; see `as_several`."""
    example = "EditRecord(request, paraphrase_prompts=..., neighborhood_prompts=...)"
    return as_several(records, EditRecord, operation, example=example)
