"""Perplexity of texts, edited and unedited."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from tl_edit import forward, tokens
from tl_edit.attach import foreign_hook
from tl_edit.counted import counted
from tl_edit.evaluate.questions import READ_AT_ONCE
from tl_edit.host import Model, NamedHook


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How much likelier or less likely texts became."""

    n_tokens: tuple[int, ...]
    """Predicted tokens of each text: all but the first."""
    nll_before: tuple[float, ...]
    """Of each text, unedited: sum over its tokens, in nats."""
    nll_after: tuple[float, ...]
    """The same, edited."""

    @property
    def perplexity_before(self) -> float:
        """Over the tokens of all texts, unedited."""
        return perplexity(math.fsum(self.nll_before) / sum(self.n_tokens))

    @property
    def perplexity_after(self) -> float:
        """Over the tokens of all texts, edited."""
        return perplexity(math.fsum(self.nll_after) / sum(self.n_tokens))

    @property
    def ratios(self) -> list[float]:
        """Of each text, its perplexity edited over unedited."""
        rows = zip(self.n_tokens, self.nll_before, self.nll_after, strict=True)
        return [perplexity((after - before) / n) for n, before, after in rows]


def perplexity(nll: float) -> float:
    """Of a mean negative log-likelihood in nats; infinite where no number holds it."""
    return math.exp(nll) if nll < 700 else math.inf


def as_texts(texts: object, operation: str) -> tuple[str, ...]:
    """One text or several.

    Raises:
        ValueError: If there is none, or something else among them.
    """
    if isinstance(texts, str) and re.fullmatch(r"\S+\.(txt|json|jsonl|csv|parquet)", texts):
        raise ValueError(
            f"{operation}: texts is {texts!r}, the name of a file; expected texts; pass read_texts({texts!r})."
        )
    listed: tuple[object, ...] = (texts,)
    if isinstance(texts, Iterable) and not isinstance(texts, str | dict):
        listed = tuple(cast(Iterable[object], texts))
    elif not isinstance(texts, str):
        listed = ()
    checked = [text for text in listed if isinstance(text, str) and text.strip()]
    if not checked or len(checked) < len(listed):
        wrong = next((text for text in listed if not isinstance(text, str) or not text.strip()), None)
        found = f"holds {wrong!r}" if listed else f"is of type {type(cast(object, texts)).__name__} and has none"
        raise ValueError(
            f"{operation}: texts {found}; expected one text or several, none of them empty; pass e.g. "
            "read_texts('texts.txt')[:100]."
        )
    return tuple(checked)


@torch.no_grad()
def nlls(
    model: Model,
    texts: Sequence[str],
    hooks: Sequence[NamedHook] = (),
    *,
    prepend_bos: bool,
    batch_size: int,
    max_tokens: int | None = None,
    unpadded: bool = False,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Predicted tokens of each text, and their negative log-likelihood in nats.

    Args:
        model: A HookedTransformer or TransformerBridge.
        texts: Cut at the model's context.
        hooks: Attached during the passes.
        prepend_bos: Whether a BOS comes before; then all tokens of the text are predicted, otherwise all but the first.
        batch_size: Rows per forward pass, fewer where their logits do not fit into memory well.
        max_tokens: Of each text take so many, as the published programs do.
        unpadded: Whether rows of a batch must be of one length.

    Raises:
        ValueError: If a text has a single token.
    """
    limit = min(int(model.cfg.n_ctx), max_tokens or int(model.cfg.n_ctx))
    rows = [model.to_tokens(text, prepend_bos=prepend_bos, truncate=False)[0].cpu()[:limit] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) < 2:
            raise ValueError(
                f"perplexity: {text!r} has {counted(len(row), 'token')}; expected at least 2, as the first is not "
                "predicted; leave it out."
            )
    found = [0.0] * len(rows)
    lengths = [len(row) for row in rows]
    # Rows of like length together: less padding.
    order = sorted(range(len(rows)), key=lambda i: lengths[i])
    one_length = unpadded or foreign_hook(model) is not None
    for chunk in forward.batches(model, [lengths[i] for i in order], batch_size, one_length=one_length):
        numbers = [order[i] for i in chunk]
        batch = tokens.pad(model, [rows[i] for i in numbers])
        logits = forward.logits(model, batch, hooks)
        for place, i in enumerate(numbers):
            for first in range(0, lengths[i] - 1, READ_AT_ONCE):
                part = slice(first, min(first + READ_AT_ONCE, lengths[i] - 1))
                log_probs = forward.log_probs(model, logits[place, part])
                said = log_probs.gather(-1, batch.tokens[place, 1:][part, None].to(log_probs.device))
                found[i] -= float(said.cpu().double().sum())
    return tuple(length - 1 for length in lengths), tuple(found)
