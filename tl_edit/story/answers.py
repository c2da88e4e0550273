"""What a model answers, for people to read."""

from typing import NamedTuple

from tl_edit import forward, tokens
from tl_edit.evaluate import RecordScores
from tl_edit.host import Model
from tl_edit.request import EditRequest


def top_answers(model: Model, prompt: str, k: int = 5, *, prepend_bos: bool | None = None) -> list[tuple[int, float]]:
    """The ids of the ``k`` likeliest next tokens of ``prompt`` with their probabilities."""
    top = forward.next_log_probs(model, prompt, prepend_bos=prepend_bos).exp().topk(k)
    return list(zip(map(int, top.indices), map(float, top.values), strict=True))


def as_object(model: Model, request: EditRequest, token: int) -> str | None:
    """The token as a true object; None where it is none, such as a full stop or the rest of a word.

    As an object it would get the space that stands before objects, and be another token, which the model does
    not say.
    """
    says = model.tokenizer.decode([token]).strip()
    if says in ("", request.target_new):
        return None
    try:
        target = tokens.target_tokens(model, request.prompt, says)
    except ValueError:
        return None
    return says if target.tolist() == [token] else None


class Asked(NamedTuple):
    """One prompt of a record, and what the model says next before and after an edit."""

    group: str
    prompt: str
    wanted: str
    """What it should say after the edit."""
    before: str
    after: str
    good: bool
    """Whether it says that."""


def asked(before: RecordScores, after: RecordScores) -> list[Asked]:
    """All prompts of a record, as tables list them."""
    request = before.record.request
    groups = (
        ("the prompt", before.efficacy, after.efficacy, request.target_new),
        ("paraphrase", before.paraphrase, after.paraphrase, request.target_new),
        ("neighbor", before.neighborhood, after.neighborhood, request.target_true or ""),
    )
    rows: list[Asked] = []
    for group, olds, news, wanted in groups:
        for was, now in zip(olds, news, strict=True):
            good = bool(now.says_true) if group == "neighbor" else now.says_new
            rows.append(Asked(group, was.prompt, wanted, was.prediction, now.prediction, good))
    for was, now in zip(before.other_facts, after.other_facts, strict=True):
        rows.append(Asked("same subject", was.prompt, was.answer, was.prediction, now.prediction, now.kept))
    return rows
