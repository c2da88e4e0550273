"""Prompts with one answer each, and what a model thinks of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import forward, tokens
from tl_edit.attach import foreign_hook
from tl_edit.host import Model, NamedHook


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One prompt with one answer."""

    prompt: str
    answer: str
    before: Int[Tensor, " _"]
    """Tokens of the prompt."""
    target: Int[Tensor, " _"]
    """Tokens of the answer."""

    @classmethod
    def of(cls, model: Model, prompt: str, answer: str, *, prepend_bos: bool) -> "Question":
        """Tokenised; ValueError as `tokens.target_tokens` raises it."""
        return cls(
            prompt=prompt,
            answer=answer,
            before=tokens.encode(model, prompt, prepend_bos=prepend_bos),
            target=tokens.target_tokens(model, prompt, answer, prepend_bos=prepend_bos),
        )

    @property
    def row(self) -> Int[Tensor, " _"]:
        """What is run: all tokens but the last, which is only predicted."""
        return torch.cat([self.before, self.target[:-1]])


@dataclass(frozen=True, eq=False)
class Opinion:
    """What the model thinks of a question."""

    log_probs: tuple[float, ...]
    """Of each of the answer's tokens, behind those before it."""
    hits: tuple[bool, ...]
    """Whether each of them is the likeliest."""
    predicted: int
    """The likeliest token after the prompt."""
    following: Float[Tensor, " d_vocab"] | None = None
    """Log-probabilities of the token after the prompt, on the CPU, where they were asked for."""

    @classmethod
    def of(
        cls, log_probs: Float[Tensor, "target d_vocab"], target: Int[Tensor, " target"], *, whole: bool = False
    ) -> "Opinion":
        """Of the log-probabilities at the answer's places."""
        likeliest = log_probs.argmax(dim=-1).cpu()
        there = log_probs.gather(-1, target.to(log_probs.device)[:, None])[:, 0]
        return cls(
            log_probs=tuple(map(float, there.cpu())),
            hits=tuple(map(bool, likeliest == target)),
            predicted=int(likeliest[0]),
            following=log_probs[0].cpu() if whole else None,
        )

    @property
    def prob(self) -> float:
        """Of the answer: geometric mean over its tokens, as published."""
        return math.exp(math.fsum(self.log_probs) / len(self.log_probs))

    @property
    def says(self) -> bool:
        """Whether each of the answer's tokens is the likeliest."""
        return all(self.hits)


@torch.no_grad()
def opinions(
    model: Model, questions: Sequence[Question], hooks: Sequence[NamedHook] = (), *, whole: Sequence[bool] | None = None
) -> list[Opinion]:
    """What the model thinks of each question, in one pass with ``hooks`` attached; a row of the batch is a question.

    Args:
        model: A HookedTransformer or TransformerBridge.
        questions: They run as they stand, each a row, padded to the longest.
        hooks: Attached during the pass.
        whole: Of which to keep the distribution after the prompt; None for none.
    """
    batch = tokens.pad(model, [question.row for question in questions])
    logits = forward.logits(model, batch, hooks)
    found: list[Opinion] = []
    for i, question in enumerate(questions):
        start = len(question.before) - 1
        log_probs = forward.log_probs(model, logits[i, start : start + len(question.target)])
        found.append(Opinion.of(log_probs, question.target, whole=whole is not None and whole[i]))
    return found


def batches(model: Model, questions: Sequence[Question], size: int, *, unpadded: bool = False) -> Iterable[list[int]]:
    """Which questions run together: where the model carries hooks of the user's, those of one length.

    A hook may count positions from the end, where padding would be.
    """
    lengths = [len(question.row) for question in questions]
    return tokens.chunks(lengths, size, one_length=unpadded or foreign_hook(model) is not None)
