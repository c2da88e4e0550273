"""What a model answers, for people to read."""

from tl_edit import forward, tokens
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


def visible(token: str) -> str:
    """A token as text that shows its line breaks."""
    return token.replace("\n", "↵").strip() or "␣"
