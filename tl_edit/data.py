"""Records: a request with the prompts that judge it."""

from dataclasses import dataclass

from tl_edit.request import EditRequest


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
