"""Prompts with one answer each, and what a model thinks of them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import forward, tokens
from tl_edit.attach import foreign_hook
from tl_edit.host import Model, NamedHook

READ_AT_ONCE = 256
"""Places whose probabilities are in memory at a time."""


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

    @property
    def log_prob(self) -> float:
        """Of the answer: mean over its tokens, as published."""
        return math.fsum(self.log_probs) / len(self.log_probs)

    @property
    def prob(self) -> float:
        """Of the answer: geometric mean over its tokens."""
        return math.exp(self.log_prob)

    @property
    def says(self) -> bool:
        """Whether each of the answer's tokens is the likeliest."""
        return all(self.hits)


class Reading:
    """Where the answers of some questions are predicted: each place once, however many questions read it."""

    def __init__(self, questions: Sequence[Question], paths: Sequence[Sequence[int]]) -> None:
        """``paths``: of each question, the places of the tokens of its row; there may be more behind them."""
        index: dict[int, int] = {}
        ends = [(len(question.before) - 1, len(question.row)) for question in questions]
        self._asked = [
            [index.setdefault(place, len(index)) for place in path[start:stop]]
            for path, (start, stop) in zip(paths, ends, strict=True)
        ]
        self._targets = [question.target for question in questions]
        self.places = list(index)

    def opinions(
        self, model: Model, logits: Callable[[slice], Float[Tensor, "read d_vocab"]], whole: Sequence[bool]
    ) -> list[Opinion]:
        """What the model thinks of each question.

        Args:
            model: The model that is asked.
            logits: Gives those of a slice of ``places``.
            whole: Of which questions to keep the distribution after the prompt.

        Raises:
            ValueError: If a probability is not a number.
        """
        place = torch.tensor([place for places in self._asked for place in places])
        token = torch.cat(self._targets)
        likeliest = torch.empty(len(self.places), dtype=torch.long)
        said = torch.empty(len(place), dtype=torch.float64)
        following: dict[int, Tensor] = {}
        for start in range(0, len(self.places), READ_AT_ONCE):
            log_probs = forward.log_probs(model, logits(slice(start, start + READ_AT_ONCE)))
            stop = start + len(log_probs)
            likeliest[start:stop] = log_probs.argmax(dim=-1).cpu()
            here = ((place >= start) & (place < stop)).nonzero()[:, 0]
            where = (each[here].to(log_probs.device) for each in (place - start, token))
            said[here] = log_probs[tuple(where)].cpu().double()
            for i, places in enumerate(self._asked):
                if whole[i] and start <= places[0] < stop:
                    following[i] = log_probs[places[0] - start].to("cpu", copy=True)
        hits = likeliest[place] == token
        found: list[Opinion] = []
        start = 0
        for i, places in enumerate(self._asked):
            own = slice(start, start + len(places))
            log_probs, right = tuple(map(float, said[own])), tuple(map(bool, hits[own]))
            found.append(Opinion(log_probs, right, int(likeliest[places[0]]), following.get(i)))
            start += len(places)
        return found


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
    width = batch.tokens.shape[1]
    reading = Reading(questions, [range(i * width, (i + 1) * width) for i in range(len(questions))])
    logits = forward.logits(model, batch, hooks).flatten(0, 1)[reading.places]
    return reading.opinions(model, lambda part: logits[part], whole or [False] * len(questions))


def batches(model: Model, questions: Sequence[Question], size: int, *, unpadded: bool = False) -> Iterable[list[int]]:
    """Which questions run together: at most ``size``, and no more than there is room for the logits of.

    Where the model carries hooks of the user's, they are of one length: a hook may count positions from the end, where
    padding would be.
    """
    lengths = [len(question.row) for question in questions]
    return forward.batches(model, lengths, size, one_length=unpadded or foreign_hook(model) is not None)
