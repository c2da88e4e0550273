"""The places of a corpus at which memories are strongest, kept while the texts stream by.

Of each memory only the best places so far are held, with a few tokens before each. The order is total, by the
coefficient, then the earlier text, then the earlier position, so that it depends neither on batches nor on the order
in which texts come.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MOST_POSITIONS = 2**24
"""Positions of a text that can be told apart."""
NONE = 2**62
"""A place that is none, behind all others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """A batch of texts, earlier texts first."""

    tokens: Int[Tensor, "batch pos"]
    counted: Bool[Tensor, "batch pos"]
    """Which tokens are counted: no padding, and no BOS."""
    texts: Int[Tensor, " batch"]
    """Where each stands among the user's."""
    lengths: Int[Tensor, " batch"]


@dataclass(eq=False)
class _Best:
    """The best places so far, best first."""

    coefficient: Float[Tensor, "memory trigger"]
    place: Int[Tensor, "memory trigger"]
    following: Int[Tensor, "memory trigger"]
    tokens: Int[Tensor, "memory trigger window"]
    around: Float[Tensor, "memory trigger window"]


class TopPlaces:
    """The strongest places of the memories of one layer."""

    def __init__(self, n_memories: int, n_triggers: int, window: int, one_per_text: bool) -> None:
        self._shape, self._window, self._one_per_text = (n_memories, n_triggers), window, one_per_text
        self._best: _Best | None = None

    @torch.no_grad()
    def add(self, acts: Float[Tensor, "batch pos memory"], rows: Rows) -> None:
        """Take in the coefficients of a batch; they are not kept."""
        best = self._best = self._best or self._nothing(acts)
        masked = acts.masked_fill(~rows.counted[..., None], -torch.inf)
        if self._one_per_text:
            # Of equal positions the first.
            value, pos = (each.T for each in masked.max(dim=1))
            row = torch.arange(len(acts), device=acts.device).expand_as(pos)
        else:
            flat = masked.flatten(0, 1)
            index = first_largest(flat.T, self._shape[1])
            value, row, pos = flat.T.gather(1, index), index // acts.shape[1], index % acts.shape[1]
        place = rows.texts[row] * MOST_POSITIONS + pos
        place = place.masked_fill(value == -torch.inf, NONE)
        # Only memories with something new are touched; what is no number is, too, to be refused in the end.
        touched = (~(value < best.coefficient[:, -1:])).any(dim=1).nonzero()[:, 0]
        if len(touched):
            self._merge(best, acts, rows, touched, *(each[touched] for each in (value, place, row, pos)))

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Coefficients, texts, positions, following tokens, tokens and coefficients before; on the CPU.

        Where there are no more places, the coefficient is NaN and all else -1.
        """
        best = self._best
        if best is None:
            raise RuntimeError("no batch was added")
        none = best.place == NONE
        return (
            best.coefficient.masked_fill(none, torch.nan).cpu(),
            (best.place // MOST_POSITIONS).masked_fill(none, -1).cpu(),
            (best.place % MOST_POSITIONS).masked_fill(none, -1).cpu(),
            best.following.cpu(),
            best.tokens.cpu(),
            best.around.cpu(),
        )

    def _nothing(self, acts: Float[Tensor, "batch pos memory"]) -> _Best:
        shape, long = self._shape, torch.long
        return _Best(
            coefficient=acts.new_full(shape, -torch.inf),
            place=acts.new_full(shape, NONE, dtype=long),
            following=acts.new_full(shape, -1, dtype=long),
            tokens=acts.new_full((*shape, self._window), -1, dtype=torch.int32),
            around=acts.new_full((*shape, self._window), torch.nan),
        )

    def _merge(
        self,
        best: _Best,
        acts: Float[Tensor, "batch pos memory"],
        rows: Rows,
        touched: Int[Tensor, " some"],
        value: Float[Tensor, "some n"],
        place: Int[Tensor, "some n"],
        row: Int[Tensor, "some n"],
        pos: Int[Tensor, "some n"],
    ) -> None:
        """The best of what there was and what is new, for some of the memories."""
        n_triggers = self._shape[1]
        values = torch.cat([best.coefficient[touched], value], dim=1)
        places = torch.cat([best.place[touched], place], dim=1)
        chosen = _order(values, places)[:, :n_triggers]
        old = chosen.clamp(max=n_triggers - 1)
        following = best.following[touched].gather(1, old)
        wide = old[..., None].expand(-1, -1, self._window)
        tokens, around = (each[touched].gather(1, wide) for each in (best.tokens, best.around))
        which, rank = (chosen >= n_triggers).nonzero(as_tuple=True)
        taken = chosen[which, rank] - n_triggers
        found = self._around(acts, rows, touched[which], row[which, taken], pos[which, taken])
        following[which, rank], tokens[which, rank], around[which, rank] = found
        best.coefficient[touched], best.place[touched] = values.gather(1, chosen), places.gather(1, chosen)
        best.following[touched], best.tokens[touched], best.around[touched] = following, tokens, around

    def _around(
        self,
        acts: Float[Tensor, "batch pos memory"],
        rows: Rows,
        memory: Int[Tensor, " new"],
        row: Int[Tensor, " new"],
        pos: Int[Tensor, " new"],
    ) -> tuple[Int[Tensor, " new"], Int[Tensor, "new window"], Float[Tensor, "new window"]]:
        """The token behind some places, the tokens up to them, and the coefficients at these."""
        last = pos + 1 >= rows.lengths[row]
        following = rows.tokens[row, (pos + 1).clamp(max=acts.shape[1] - 1)].masked_fill(last, -1)
        columns = pos[:, None] + torch.arange(1 - self._window, 1, device=acts.device)
        outside, inside = columns < 0, columns.clamp(min=0)
        tokens = rows.tokens[row[:, None], inside].masked_fill(outside, -1).to(torch.int32)
        around = acts[row[:, None], inside, memory[:, None]]
        unseen = outside | ~rows.counted[row[:, None], inside]
        return following, tokens, around.masked_fill(unseen, torch.nan)


def first_largest(values: Float[Tensor, "row n"], k: int) -> Int[Tensor, "row k"]:
    """Where the ``k`` largest of each row are, largest first; of equal ones the first."""
    n = values.shape[1]
    k = min(k, n)
    largest = values.topk(min(k + 1, n), dim=1)
    # Which of equal ones are taken is up to the device; equal within those taken, or at the edge, is sorted whole.
    index = largest.indices[:, :k]
    equal = (largest.values[:, 1:] == largest.values[:, :-1]).any(dim=1).nonzero()[:, 0]
    if len(equal):
        index = index.clone()
        index[equal] = values[equal].argsort(dim=1, descending=True, stable=True)[:, :k]
    return index


def _order(values: Float[Tensor, "row n"], places: Int[Tensor, "row n"]) -> Int[Tensor, "row n"]:
    """The order by larger value, then earlier place."""
    by_place = places.argsort(dim=1, stable=True)
    sort = cast(Callable[..., Tensor], values.gather(1, by_place).argsort)
    return by_place.gather(1, sort(dim=1, descending=True, stable=True))
