"""Asking many questions in the fastest way that gives the model's own numbers.

As trees (`blocks.tree`), what several questions begin with is computed once: the prompt before its two answers, the
edited statement before each prompt behind it. Where the model's blocks cannot be called so, or hooks must see whole
passes, questions are rows of forward passes; `Asker.engine` says which it was, and why. Both ways unembed only where
an answer's token is predicted, but with hooks.

Nothing is taken on trust: on first use one row is run as always, and where the numbers differ, the next simpler way is
gone.
"""

from collections.abc import Container, Iterator, Sequence

import torch

from tl_edit import forward, tokens
from tl_edit.attach import foreign_hook
from tl_edit.blocks import CannotCallBlocksError, TreeBlocks, check_common, tolerance, why_not
from tl_edit.evaluate.questions import Opinion, Question, Reading
from tl_edit.evaluate.ways import Asked, as_row, in_rows, in_trees
from tl_edit.host import Model, NamedHook

FEW = 3
"""So many rows are run as they stand: to check another way takes one more."""


class Asker:
    """Asks a model questions, once or many times; which way its numbers can be had is found out the first time.

    Between two times weights may change, and hooks come and go, but not what the model computes with them.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.engine = ""
        """How questions were asked last; empty before."""
        self._trusts_trees = False
        self._why_rows = ""
        self._trims: bool | None = None

    @torch.no_grad()
    def __call__(
        self,
        asked: Asked,
        hooks: Sequence[NamedHook] = (),
        *,
        batch_size: int,
        unpadded: bool = False,
        whole: Container[int] = (),
    ) -> dict[int, Opinion]:
        """What the model thinks of each question, by its number.

        Args:
            asked: Questions by number.
            hooks: Attached during all passes; they see rows as they stand, equal ones once.
            batch_size: Rows per forward pass, fewer where their logits are more than `forward.LOGIT_BYTES`. Trees that
                are computed together have as many nodes as so many of the longest rows have tokens, at most
                `ways.NODES`.
            unpadded: Whether rows that run together must be of one length; so they are where the model carries hooks.
            whole: Of which to keep the distribution after the prompt.

        Raises:
            ValueError: If a probability is not a number.
        """
        if not asked:
            return {}
        stranger = foreign_hook(self.model)
        reason = self._why_not_trees(asked, hooks, stranger)
        if not reason:
            try:
                found = self._in_trees(asked, batch_size, whole)
            except Exception as error:  # whatever an unknown architecture raises
                if forward.is_out_of_memory(error):
                    raise
                self._why_rows = reason = why_not(error)
            else:
                self.engine = "trees (packed weights)"
                return found
        self.engine = f"rows ({reason})"
        if hooks or stranger is not None or not _looks_back(self.model):
            one_length = unpadded or stranger is not None
            return _joined(in_rows(self.model, asked, hooks, batch_size, whole, one_length=one_length))
        return self._in_free_rows(asked, batch_size, whole)

    def _why_not_trees(self, asked: Asked, hooks: Sequence[NamedHook], stranger: str | None) -> str:
        """Why these are asked in rows; empty where they are not."""
        if hooks:
            return "hooks are given"
        if stranger is not None:
            return f"a hook is attached at {stranger}"
        if self._why_rows:
            return self._why_rows
        if not _looks_back(self.model):
            return "its attention is not causal"
        try:
            check_common(self.model)
        except Exception as error:  # whatever an unknown architecture lacks
            return why_not(error)
        return "a few questions" if not self._trusts_trees and _few(asked) else ""

    def _in_trees(self, asked: Asked, batch_size: int, whole: Container[int]) -> dict[int, Opinion]:
        """All opinions.

        Raises:
            CannotCallBlocksError: If one is not the model's own.
        """
        # Packed anew each time: an edit of the user's may change any weight.
        trees = TreeBlocks(self.model)
        if self._trusts_trees:
            return _joined(in_trees(trees, asked, batch_size, whole, None))
        number = self._longest(asked)
        way = in_trees(trees, asked, batch_size, whole, number)
        found = self._checked(way, asked[number], number)
        self._trusts_trees = True
        return found

    def _in_free_rows(self, asked: Asked, batch_size: int, whole: Container[int]) -> dict[int, Opinion]:
        """All opinions, of rows that no hook sees; their logits are trimmed where that pays and is right."""
        if self._trims or (self._trims is None and not _few(asked)):
            number = None if self._trims else min(asked, key=lambda i: len(asked[i].row))
            way = in_rows(self.model, asked, (), batch_size, whole, beginnings=True, trimmed=True, first=number)
            try:
                found = _joined(way) if number is None else self._checked(way, asked[number], number)
            except Exception as error:  # whatever a module of the user's does
                if forward.is_out_of_memory(error):
                    raise
                self._trims = False
            else:
                self._trims = True
                return found
        return _joined(in_rows(self.model, asked, (), batch_size, whole, beginnings=True))

    def _longest(self, asked: Asked) -> int:
        """The number of the longest question whose logits fit into `forward.LOGIT_BYTES`, or of the shortest."""
        most = forward.most_logits(self.model)
        lengths = {i: len(question.row) for i, question in asked.items()}
        return max(lengths, key=lambda i: lengths[i] if lengths[i] <= most else -lengths[i])

    def _checked(self, way: Iterator[dict[int, Opinion]], question: Question, number: int) -> dict[int, Opinion]:
        """All opinions, of which that on one question, with its number, is compared with an ordinary pass of its row.

        Raises:
            CannotCallBlocksError: If they differ.
        """
        ordinary = forward.logits(self.model, tokens.pad(self.model, [question.row]))
        reading = Reading([question], [range(len(question.row))])
        own = ordinary[0, reading.places]
        (expected,) = reading.opinions(self.model, own.__getitem__, [False])
        found: dict[int, Opinion] = {}
        for opinions in way:
            found |= opinions
            if number in opinions:
                pairs = zip(found[number].log_probs, expected.log_probs, strict=True)
                off = max(0.0 if a == b else abs(a - b) for a, b in pairs)  # both may be minus infinity
                if not off <= tolerance(own.dtype, own):
                    raise CannotCallBlocksError(f"answers are off by {off:.1e} nats from an ordinary pass")
        return found


def _joined(way: Iterator[dict[int, Opinion]]) -> dict[int, Opinion]:
    return {i: opinion for opinions in way for i, opinion in opinions.items()}


def _few(asked: Asked) -> bool:
    """Whether these are so few rows that another way does not pay."""
    return len({as_row(question) for question in asked.values()}) <= FEW


def _looks_back(model: Model) -> bool:
    """Whether attention is causal."""
    return getattr(model.cfg, "attention_dir", "causal") == "causal"
