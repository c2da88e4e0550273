"""The fast engine of the search: only the tail of the model, of the prompts and of the vocabulary's use is computed.

Delta changes nothing in the layers up to its own and nothing before the lookup position. So the residual stream there
is computed once, and so are the keys and values of the earlier positions in the later layers; every evaluation runs the
later layers from the lookup position on, and unembeds only where probabilities are read. For a row of T positions of
which S follow the lookup one, in a model of L layers, an evaluation at layer l costs ``S (L - l - 1)`` of ``T L``.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.blocks import (
    TOUCHED,
    Blocks,
    CannotCallBlocksError,
    PackedBlocks,
    RaggedBlocks,
    Tails,
    Touch,
    blocks_of,
    tolerance,
)
from tl_edit.forward import at_least_float32
from tl_edit.host import Model
from tl_edit.values.engine import Engine
from tl_edit.values.plain import PlainEngine
from tl_edit.values.rows import Piece, Row, pieces
from tl_edit.values.settings import Site

Past = tuple[Tensor, Tensor]

A_CALL = 128
"""Positions that take as long as one more call of every block does beside its work; roughly."""


@torch.no_grad()
def blocks_for(model: Model, rows: Sequence[Row]) -> Blocks:
    """Blocks that can be called on all of ``rows``.

    Raises:
        CannotCallBlocksError: Why there are none.
    """
    longest = max(rows, key=lambda row: len(row.tokens))
    return blocks_of(model, tokens.pad(model, [longest.tokens]), max(1, min(row.lookup for row in rows)))


def tail_engine(
    model: Model, layer: int, sites: Sequence[Site], rows: Sequence[Row], max_rows: int, blocks: Blocks
) -> "TailEngine":
    """The engine for these blocks."""
    kind = RaggedTail if isinstance(blocks, PackedBlocks) else FramedTail
    return kind(model, layer, sites, rows, max_rows, blocks)


class TailEngine(Engine):
    """What is computed once, and where delta goes in."""

    @torch.no_grad()
    def __init__(
        self,
        model: Model,
        layer: int,
        sites: Sequence[Site],
        rows: Sequence[Row],
        max_rows: int,
        blocks: Blocks,
    ) -> None:
        super().__init__()
        self.model, self.layer, self.sites = model, layer, tuple(sites)
        self.rows, self.max_rows, self.blocks = list(rows), max_rows, blocks
        self._index = {id(row): i for i, row in enumerate(self.rows)}
        self.depth = host.n_layers(model)
        batch = tokens.pad(model, [row.tokens[: row.reads[-1] + 1] for row in self.rows])
        # Added to the block output, delta can go in between two blocks.
        self.between = self._reaches_the_stream_unchanged(batch)
        self.first = layer + 1 if self.between else layer
        self.resid = self._resid(batch)
        self.pasts = list(self._pasts(max(row.lookup for row in self.rows)))
        self.prepare()

    def prepare(self) -> None:
        """What an engine of one kind needs beside; called once."""

    def _resid(self, batch: tokens.TokenBatch) -> Float[Tensor, "row pos d_model"]:
        """The residual stream before the first layer of an evaluation."""
        if isinstance(self.blocks, PackedBlocks):
            resid = forward.activations(self.model, batch, [host.resid_pre_name(0)])[host.resid_pre_name(0)]
            for layer in range(self.first):
                with self.blocks.layer(layer) as block:
                    resid = block(resid, self.blocks.past(len(resid)))
            return resid
        name = host.resid_post_name(self.layer) if self.between else host.resid_pre_name(self.layer)
        return forward.activations(self.model, batch, [name])[name]

    def _reaches_the_stream_unchanged(self, batch: tokens.TokenBatch) -> bool:
        """Whether what is added at the site is added to the block output: not where a norm or a factor follows."""
        if self.sites == ("resid_post",):
            return True
        contribution, value = f"blocks.{self.layer}.hook_mlp_out", host.value_name(self.model, self.layer)
        if self.sites != ("value",) or contribution not in host.hook_points(self.model):
            return False
        if contribution == value:
            return True
        read = forward.activations(self.model, batch.take([0]), [contribution, value])
        return torch.equal(read[contribution], read[value])

    def _pasts(self, length: int) -> Iterable[Past]:
        """By layer from the first: keys and values of the first ``length`` positions of all rows."""
        resid = self.resid[:, : max(1, length)]
        for layer in range(self.first, self.depth):
            past = self.blocks.past(len(resid))
            with self.blocks.layer(layer) as block:
                resid = block(resid, past)
            keys, values = past.added
            yield keys.narrow(self.blocks.dim, 0, length), values.narrow(self.blocks.dim, 0, length)

    def indices(self, piece: Piece) -> Int[Tensor, " row"]:
        """Which of all rows a piece has."""
        return torch.tensor([self._index[id(row)] for row in piece.rows])

    def spot_check(self, delta: Float[Tensor, "request site d_model"]) -> None:
        """Repeat the bare prompt and the KL prompt of the first request as whole passes.

        Raises:
            CannotCallBlocksError: If the model says something else than this engine found.
        """
        own = [row for row in self.rows if row.request == self.rows[0].request]
        piece = Piece.of([own[0], own[-1]])
        with torch.no_grad():
            plain = PlainEngine(self.model, self.layer, self.sites, piece.rows, self.max_rows).logits(piece, delta)
            found = self.logits(piece, delta)
        log_probs = [torch.log_softmax(at_least_float32(logits), dim=-1) for logits in (found, plain)]
        off = float((log_probs[0] - log_probs[1]).abs().max())
        # Numbers that are not finite are told to the user as such.
        if off > tolerance(self.resid.dtype, plain):
            raise CannotCallBlocksError(f"its blocks, called alone, are off by {off:.1e} nats at the end of a search")

    @abstractmethod
    def pieces(self, requests: Sequence[int]) -> Iterable[Piece]:
        """See `Engine.pieces`."""

    def touch(
        self, delta: Float[Tensor, "request site d_model"], piece: Piece, where: tuple[Tensor, ...]
    ) -> tuple[Touch | None, Sequence[str]]:
        """What adds delta within the block of its own layer, at ``where`` of its outputs; and what it must see."""
        if self.between:
            return None, TOUCHED
        added = {
            "mlp_out" if site == "resid_post" else site: delta[piece.owner, i] for i, site in enumerate(self.sites)
        }

        def add(kind: str, out: Tensor) -> Tensor | None:
            return None if kind not in added else out.index_put(where, added[kind].to(out), accumulate=True)

        return add, tuple(added)


@dataclass(frozen=True, eq=False)
class _Packed:
    """A piece as `RaggedTail` runs it."""

    layout: Tails
    states: Float[Tensor, "n d_model"]
    pasts: list[Past]
    reads: Int[Tensor, " read"]


class RaggedTail(TailEngine):
    """With packed weights, rows side by side."""

    description = "blocks (packed weights)"

    def prepare(self) -> None:
        """See `TailEngine.prepare`."""
        if not isinstance(self.blocks, PackedBlocks):
            raise CannotCallBlocksError("its blocks are not packed")
        self.ragged = RaggedBlocks(self.model, self.first)
        self._pieces: dict[tuple[int, ...], list[Piece]] = {}
        self._packed: dict[int, _Packed] = {}

    def pieces(self, requests: Sequence[int]) -> Iterable[Piece]:
        """See `Engine.pieces`."""
        key = tuple(requests)
        if key not in self._pieces:
            wanted = set(requests)
            rows = [row for row in self.rows if row.request in wanted]
            # Only the last choice of requests is needed again.
            self._pieces, self._packed = {key: list(pieces(rows, self.max_rows, from_lookup=True))}, {}
        return self._pieces[key]

    @torch.no_grad()
    def _pack(self, piece: Piece) -> _Packed:
        device, chosen = self.resid.device, self.indices(piece)
        sizes = [row.reads[-1] + 1 - row.lookup for row in piece.rows]
        layout = Tails(piece.lookup.to(device), sizes)
        longest = max(row.lookup for row in piece.rows)
        pasts = [(keys[chosen, :, :longest], values[chosen, :, :longest]) for keys, values in self.pasts]
        states = self.resid[chosen.to(device)[layout.row], layout.positions]
        reads = layout.at(piece.read_row.to(device), piece.read_pos.to(device))
        return _Packed(layout, states, pasts, reads)

    def logits(self, piece: Piece, delta: Float[Tensor, "request site d_model"]) -> Float[Tensor, "read d_vocab"]:
        """See `Engine.logits`."""
        if id(piece) not in self._packed:
            self._packed[id(piece)] = self._pack(piece)
        packed = self._packed[id(piece)]
        states, begin = packed.states, packed.layout.beginnings
        if self.between:
            states = states.index_add(0, begin, delta[piece.owner, 0].to(states))
        touch, _ = self.touch(delta, piece, (begin,))
        for layer in range(self.first, self.depth):
            own = layer == self.layer
            # The last block is needed where it is read; delta goes in at a lookup, which may not be.
            only = packed.reads if layer == self.depth - 1 and not own else None
            block, past = self.ragged.layer(layer), packed.pasts[layer - self.first]
            states = block(states, packed.layout, past, only=only, touch=touch if own else None)
        if self.layer == self.depth - 1:  # then no block was asked for the reads alone
            states = states[packed.reads]
        return self.blocks.unembed(states[None])[0]


class FramedTail(TailEngine):
    """With the model's own blocks, on rows in frames that begin at the first of their lookup positions."""

    description = "blocks (the model's own blocks)"

    def pieces(self, requests: Sequence[int]) -> Iterable[Piece]:
        """See `Engine.pieces`. Rows with lookups far apart go into frames of their own."""
        wanted = set(requests)
        rows = [row for row in self.rows if row.request in wanted]
        return [piece for frame in _frames(rows) for piece in pieces(frame, self.max_rows)]

    def logits(self, piece: Piece, delta: Float[Tensor, "request site d_model"]) -> Float[Tensor, "read d_vocab"]:
        """See `Engine.logits`."""
        device, chosen = self.resid.device, self.indices(piece)
        start = int(piece.lookup.min())
        end = 1 + int(piece.read_pos.max())
        states = self.resid[chosen, start:end]
        where = (torch.arange(len(chosen), device=device), (piece.lookup - start).to(device))
        if self.between:
            states = states.index_put(where, delta[piece.owner, 0].to(states), accumulate=True)
        touch, kinds = self.touch(delta, piece, where)
        for layer in range(self.first, self.depth):
            keys, values = (part[chosen] for part in self.pasts[layer - self.first])
            past = self.blocks.past(len(chosen), (keys, values), start)
            own = touch if layer == self.layer else None
            with self.blocks.layer(layer, own, kinds) as block:
                states = block(states, past)
        read = states[piece.read_row.to(device), (piece.read_pos - start).to(device)]
        return self.blocks.unembed(read[None])[0]


def _frames(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows, split by their lookup positions so that calls and positions together cost least."""
    ordered = sorted(rows, key=lambda row: row.lookup)
    # By the number of first rows: the least cost of them, and where their last frame begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for stop in range(1, len(ordered) + 1):
        end, choices = 0, list[tuple[int, int]]()
        for start in range(stop - 1, -1, -1):
            row = ordered[start]
            end = max(end, row.lookup + row.tail)
            choices.append((best[start][0] + A_CALL + (stop - start) * (end - row.lookup), start))
        best.append(min(choices))
    frames: list[list[Row]] = []
    stop = len(ordered)
    while stop:
        start = best[stop][1]
        frames.append(ordered[start:stop])
        stop = start
    return frames
