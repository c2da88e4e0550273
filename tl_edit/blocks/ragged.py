"""Packed blocks on rows that begin at positions of their own, side by side in one matrix.

Where only what follows some position of each row can change, and the position differs from row to row, padding all
rows to one frame computes much that is known or never read. Here the positions of all rows lie one after another,
``[n d_model]``, which is all that norms, projections and MLPs need to know; only attention looks at rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange  # pyright: ignore[reportUnknownVariableType]
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit.blocks.base import Touch
from tl_edit.blocks.packed import PackedBlock, PackedBlocks

KEPT_BYTES = 2**30
"""Packed weights that are kept from call to call; of larger models each block is packed anew."""


class Layout:
    """Which positions of which rows lie side by side: of each row those from its first on."""

    def __init__(self, first: Int[Tensor, " row"], sizes: Sequence[int]) -> None:
        """``first``: how many positions of each row come before; ``sizes``: how many lie here."""
        lengths = torch.tensor(list(sizes), device=first.device)
        self.first, self.width = first, max(sizes)
        self.row = torch.repeat_interleave(lengths)
        self.beginnings = lengths.cumsum(0) - lengths
        """Where each row begins."""
        column = torch.arange(len(self.row), device=first.device) - self.beginnings[self.row]
        self.positions = first[self.row] + column
        """The position of each in its row."""
        self._flat = self.row * self.width + column

    def at(self, rows: Int[Tensor, " _"], positions: Int[Tensor, " _"]) -> Int[Tensor, " _"]:
        """Where these positions of these rows lie."""
        return self.beginnings[rows] + positions - self.first[rows]

    def frame(self, states: Float[Tensor, "n head d_head"]) -> Float[Tensor, "row head pos d_head"]:
        """The states in rows, padded on the right with zeros."""
        places = len(self.first) * self.width
        if len(states) < places:
            states = states.new_zeros(places, *states.shape[1:]).index_copy(0, self._flat, states)
        return rearrange(states, "(row pos) head h -> row head pos h", pos=self.width)

    def side_by_side(self, framed: Float[Tensor, "row head pos d_head"]) -> Float[Tensor, "n _"]:
        """Rows as they lie, without their padding."""
        flat = rearrange(framed, "row head pos h -> (row pos) (head h)")
        return flat if len(self._flat) == len(flat) else flat[self._flat]


class RaggedBlock:
    """One packed block, called on positions side by side."""

    def __init__(self, packed: PackedBlock) -> None:
        self.packed = packed

    def __call__(
        self,
        resid: Float[Tensor, "n d_model"],
        layout: Layout,
        past: tuple[Float[Tensor, "row head past d_head"], Float[Tensor, "row head past d_head"]],
        *,
        only: Int[Tensor, " _"] | None = None,
        touch: Touch | None = None,
    ) -> Float[Tensor, "_ d_model"]:
        """The block output, of all positions or of those in ``only``.

        ``past`` holds the keys and values before; of row i the first ``layout.first[i]`` positions count.
        """
        block, attention = self.packed, self.packed.attention
        query, key, value = (part[0] for part in attention.project(block.norm_1(resid)[None]))
        if attention.rotary:
            query, key = (self._rotated(part, layout.positions) for part in (query, key))
        keys = torch.cat([past[0], layout.frame(key)], dim=2)
        values = torch.cat([past[1], layout.frame(value)], dim=2)
        mixed = attention.mix(layout.frame(query), keys, values, self._seen(layout, past[0].shape[2]))
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

    def _seen(self, layout: Layout, past: int) -> Tensor:
        """Which keys each query sees, [row 1 query key]."""
        columns = torch.arange(layout.width, device=layout.first.device)
        before = torch.arange(past, device=layout.first.device)
        first = layout.first[:, None]
        here = (first + columns)[:, :, None]
        # A past position beyond the row's own past is nobody's.
        known = torch.where(before < first, before, torch.iinfo(torch.long).max)
        there = torch.cat([known, first + columns], dim=1)[:, None]
        return self.packed.attention.seen(here, there)[:, None]


class RaggedBlocks:
    """The blocks of a model from one on, packed once where memory allows."""

    def __init__(self, blocks: PackedBlocks, first: int) -> None:
        self.blocks, self.first = blocks, first
        cfg, modules = blocks.model.cfg, list(blocks.model.blocks)[first:]
        size = len(modules) * 3 * cfg.d_model * cfg.n_heads * cfg.d_head * torch.finfo(cfg.dtype).bits // 8
        self._kept = [RaggedBlock(PackedBlock(module)) for module in modules] if size < KEPT_BYTES else []

    def layer(self, layer: int) -> RaggedBlock:
        """Block ``layer``."""
        if self._kept:
            return self._kept[layer - self.first]
        return RaggedBlock(PackedBlock(self.blocks.model.blocks[layer]))
