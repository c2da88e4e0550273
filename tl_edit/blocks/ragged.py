"""Packed blocks on rows that begin at positions of their own, side by side in one matrix.

Where only what follows some position of each row can change, and the position differs from row to row, padding all
rows to one frame computes much that is known or never read. Here the positions of all rows lie one after another,
``[n d_model]``, which is all that norms, projections and MLPs need to know; only attention looks at rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange  # pyright: ignore[reportUnknownVariableType]
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_edit.blocks.base import Touch
from tl_edit.blocks.packed import PackedBlock, looks_back
from tl_edit.host import Model

KEPT_BYTES = 2**30
"""Packed weights that are kept from call to call; of larger models each block is packed anew."""


class Layout(ABC):
    """Which positions of which rows lie side by side, and which of them attention sees."""

    positions: Int[Tensor, " n"]
    """The position of each in its row, as rotary embeddings count."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        """``sizes``: how many positions of each row lie here."""
        lengths = torch.tensor(list(sizes), device=device)
        self.rows, self.width = len(lengths), max(sizes)
        self.row = torch.repeat_interleave(lengths)
        self.beginnings = lengths.cumsum(0) - lengths
        """Where each row begins."""
        self.columns = torch.arange(len(self.row), device=device) - self.beginnings[self.row]
        self.flat = self.row * self.width + self.columns
        """Where each lies in a frame, counted row by row."""

    @abstractmethod
    def seen(self, past: int, window: int | None) -> Bool[Tensor, "row 1 query key"]:
        """Which keys each query of a frame sees: ``past`` earlier ones, then those of the frame.

        ``window``: of local attention; None for global.
        """

    def frame(self, states: Float[Tensor, "n head d_head"]) -> Float[Tensor, "row head pos d_head"]:
        """The states in rows, padded on the right with zeros."""
        places = self.rows * self.width
        if len(states) < places:
            states = states.new_zeros(places, *states.shape[1:]).index_copy(0, self.flat, states)
        return rearrange(states, "(row pos) head h -> row head pos h", pos=self.width)

    def side_by_side(self, framed: Float[Tensor, "row head pos d_head"]) -> Float[Tensor, "n _"]:
        """Rows as they lie, without their padding."""
        flat = rearrange(framed, "row head pos h -> (row pos) (head h)")
        return flat if len(self.flat) == len(flat) else flat[self.flat]


class Tails(Layout):
    """Of each row the positions from its first on; those before are given as keys and values."""

    def __init__(self, first: Int[Tensor, " row"], sizes: Sequence[int]) -> None:
        """``first``: how many positions of each row come before; ``sizes``: how many lie here."""
        super().__init__(sizes, first.device)
        self.first = first
        self.positions = first[self.row] + self.columns

    def at(self, rows: Int[Tensor, " _"], positions: Int[Tensor, " _"]) -> Int[Tensor, " _"]:
        """Where these positions of these rows lie."""
        return self.beginnings[rows] + positions - self.first[rows]

    def seen(self, past: int, window: int | None) -> Bool[Tensor, "row 1 query key"]:
        """See `Layout.seen`."""
        columns = torch.arange(self.width, device=self.first.device)
        before = torch.arange(past, device=self.first.device)
        first = self.first[:, None]
        here = (first + columns)[:, :, None]
        # A past position beyond the row's own past is nobody's.
        known = torch.where(before < first, before, torch.iinfo(torch.long).max)
        there = torch.cat([known, first + columns], dim=1)[:, None]
        return looks_back(here, there, window)[:, None]


class RaggedBlock:
    """One packed block, called on positions side by side."""

    def __init__(self, packed: PackedBlock) -> None:
        self.packed = packed

    def __call__(
        self,
        resid: Float[Tensor, "n d_model"],
        layout: Layout,
        past: tuple[Float[Tensor, "row head past d_head"], Float[Tensor, "row head past d_head"]] | None = None,
        *,
        only: Int[Tensor, " _"] | None = None,
        touch: Touch | None = None,
    ) -> Float[Tensor, "_ d_model"]:
        """The block output, of all positions or of those in ``only``.

        ``past`` holds the keys and values before, of which the layout says what counts.
        """
        block, attention = self.packed, self.packed.attention
        query, key, value = (part[0] for part in attention.project(block.norm_1(resid)[None]))
        if attention.rotary:
            query, key = (self._rotated(part, layout.positions) for part in (query, key))
        keys, values = layout.frame(key), layout.frame(value)
        before = 0 if past is None else past[0].shape[2]
        if past is not None:
            keys, values = (torch.cat(parts, dim=2) for parts in zip(past, (keys, values), strict=True))
        mixed = attention.mix(layout.frame(query), keys, values, layout.seen(before, attention.window))
        mixed = layout.side_by_side(mixed)
        if only is not None:
            resid, mixed = resid[only], mixed[only]
        block.touch = touch
        try:
            return block.finish(resid, attention.leave(mixed))
        finally:
            block.touch = None

    def _rotated(self, states: Float[Tensor, "n head d_head"], positions: Int[Tensor, " n"]) -> Tensor:
        """Rotary embedding, each state at its own position."""
        attn: Any = self.packed.attention.attn
        turned, rest = states[..., : attn.cfg.rotary_dim], states[..., attn.cfg.rotary_dim :]
        cos, sin = (angles[positions][:, None].to(states.dtype) for angles in (attn.rotary_cos, attn.rotary_sin))
        return torch.cat([turned * cos + attn.rotate_every_two(turned) * sin, rest], dim=-1)


class RaggedBlocks:
    """The blocks of a model from one on, packed once where memory allows."""

    def __init__(self, model: Model, first: int) -> None:
        self.model, self.first = model, first
        cfg, modules = model.cfg, list(model.blocks)[first:]
        size = len(modules) * 3 * cfg.d_model * cfg.n_heads * cfg.d_head * torch.finfo(cfg.dtype).bits // 8
        self._kept = [RaggedBlock(PackedBlock(module)) for module in modules] if size < KEPT_BYTES else []

    def layer(self, layer: int) -> RaggedBlock:
        """Block ``layer``."""
        if self._kept:
            return self._kept[layer - self.first]
        return RaggedBlock(PackedBlock(self.model.blocks[layer]))
