"""The fast engine of causal tracing: compute only what can differ.

Restoring a state of layer l at position t changes nothing in the layers up to l and nothing before t. So each
branch starts from the corrupted run after its first layer, at position t, and takes the keys and values of earlier
positions from the corrupted run. Layer by layer all branches that have begun go on as one batch (a wavefront), so
that a whole trace is one sweep over the blocks. Branches with the same first layer share their way until the first
of them leaves its window. Only the last positions are unembedded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import forward
from tl_edit.blocks import Block, Blocks, Past, Touch
from tl_edit.host import n_layers, resid_pre_name
from tl_edit.trace.plan import Branch, Kind, LayerStates, Readings, Task, sources
from tl_edit.trace.spot import spot_check

ROWS_PER_CALL = 2048
"""Positions per call of a block; more would only take more memory."""
LOGIT_ROWS = 256


@dataclass(eq=False)
class _Stem:
    """Branches that are still one: the same kind and first layer; ``ends`` are where their windows end."""

    kind: Kind
    first: int
    ends: list[int]

    def pinned(self, layer: int) -> bool:
        """Whether the window is still on in ``layer``."""
        return max(self.ends) > layer


@dataclass(eq=False)
class _Front:
    """One restored position, some samples: the states of every stem from this position on."""

    pos: int
    samples: slice
    """Among the corrupted runs."""
    states: list[Float[Tensor, "sample pos d_model"]] = field(default_factory=list[Tensor])

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.samples.stop - self.samples.start

    @property
    def rows(self) -> slice:
        """The samples among the rows of the base pass, whose first is the clean run."""
        return slice(self.samples.start + 1, self.samples.stop + 1)


@dataclass(eq=False)
class _Pins:
    """States to put back in the running call, at its first position, or everywhere."""

    length: int = 0
    """Positions of the call; the last block may compute fewer, without the first."""
    values: dict[Kind, tuple[Tensor | None, Tensor]] = field(default_factory=dict[Kind, tuple[Tensor | None, Tensor]])
    """By kind: in which rows (None: everywhere), and what."""

    def put_back(self, kind: str, out: Tensor) -> Tensor | None:
        """The output with the states put back; None where there is nothing to do."""
        found = self.values.get(cast(Kind, kind))
        if found is None or out.shape[1] < self.length:
            return None
        rows, value = found
        if rows is None:
            return value.expand_as(out)
        new = out.clone()
        new[rows, 0] = value
        return new


def wavefront(task: Task, blocks: Blocks) -> Readings:
    """Trace ``task`` in one sweep; see the module.

    Raises:
        CannotCallBlocksError: If some of the runs, made as whole passes, come out otherwise.
    """
    sweep = _Sweep(task, blocks)
    corrupted = sweep.read(sweep.layers[-1].post[1:, -task.readout.length :])
    restored = corrupted.expand(len(task.branches), len(task.positions), *corrupted.shape).clone()
    index = {branch: i for i, branch in enumerate(task.branches)}
    column = {pos: i for i, pos in enumerate(task.positions)}
    chunks = list(sweep.chunks())
    bar = tqdm(total=len(chunks) * sweep.depth, desc="causal trace", disable=not task.progress)
    for fronts in chunks:
        stems = sweep.run(fronts, bar)
        for front in fronts:
            for stem, value in zip(stems, sweep.read_front(front), strict=True):
                row = index[Branch(stem.kind, stem.first, stem.ends[0])]
                restored[row, column[front.pos], front.samples] = value
        for front in fronts:
            front.states.clear()
    bar.close()
    readings = Readings(corrupted=corrupted, restored=restored)
    spot_check(task, blocks, sweep.layers, readings)
    return readings


class _Sweep:
    """The base pass, and the sweeps over it."""

    def __init__(self, task: Task, blocks: Blocks) -> None:
        self.task, self.blocks, self.pins = task, blocks, _Pins()
        self.depth = n_layers(task.model)
        self.length = task.batch.tokens.shape[1]
        self.layers = list(self._base_pass())

    def _base_pass(self) -> Iterator[LayerStates]:
        """The clean and the corrupted runs, block by block."""
        task, blocks, first = self.task, self.blocks, resid_pre_name(0)
        corrupted = forward.activations(task.model, task.corruption.batch, [first], task.corruption.hooks)
        resid = torch.cat([blocks.ordinary.resid, corrupted[first]])
        kinds: list[Kind] = [kind for kind in sources(task) if kind != "resid_post"]
        for layer in range(self.depth):
            outs: dict[Kind, Tensor] = {}
            past = blocks.past(len(resid))
            with blocks.layer(layer, _keeper(outs, kinds)) as block:
                post = block(resid, past)
            keys, values = past.added
            yield LayerStates(resid, post, (keys[1:], values[1:]), outs)
            resid = post

    def chunks(self) -> Iterator[list[_Front]]:
        """Fronts that are in memory together."""
        chunk: list[_Front] = []
        used = 0
        for pos in self.task.reached:
            each = len(self.task.branches) * (self.length - pos)
            several = max(1, self.task.max_rows // each)
            for first in range(0, self.task.corruption.samples, several):
                stop = min(first + several, self.task.corruption.samples)
                size = each * (stop - first)
                if chunk and used + size > self.task.max_rows:
                    yield chunk
                    chunk, used = [], 0
                chunk.append(_Front(pos, slice(first, stop)))
                used += size
        if chunk:
            yield chunk

    def run(self, fronts: Sequence[_Front], bar: Any) -> list[_Stem]:
        """Sweep all branches of some fronts to the end; the stems in the order of their states."""
        stems: list[_Stem] = []
        for layer in range(self.depth):
            for i, stem in enumerate(list(stems)):
                if layer in stem.ends and len(stem.ends) > 1:
                    stem.ends.remove(layer)
                    stems.append(_Stem(stem.kind, stem.first, [layer]))
                    for front in fronts:
                        front.states.append(front.states[i])
            beginning = self._stems_from(layer)
            with self.blocks.layer(layer, self.pins.put_back) as block:
                begun = {stem.kind: self._begun(block, layer, stem.kind) for stem in beginning}
                for front in fronts:
                    self._advance(block, layer, front, stems)
                    front.states += self._begin(layer, front, [begun[stem.kind] for stem in beginning])
            stems += beginning
            bar.update()
        return stems

    def _stems_from(self, layer: int) -> list[_Stem]:
        ends: dict[Kind, list[int]] = {}
        for branch in self.task.branches:
            if branch.first == layer:
                ends.setdefault(branch.kind, []).append(branch.end)
        return [_Stem(kind, layer, of_kind) for kind, of_kind in ends.items()]

    def _advance(self, block: Block, layer: int, front: _Front, stems: Sequence[_Stem]) -> None:
        """Run the stems through one block, some at a time."""
        at_once = max(1, ROWS_PER_CALL // (front.size * (self.length - front.pos)))
        for first in range(0, len(stems), at_once):
            piece = slice(first, first + at_once)
            resid = torch.cat(front.states[piece])
            self._pin(layer, front, stems[piece], self.length - front.pos)
            last = self.task.readout.length if layer == self.depth - 1 else None
            front.states[piece] = torch.split(block(resid, self._past(layer, front, len(resid)), last), front.size)

    def _begun(self, block: Block, layer: int, kind: Kind) -> Float[Tensor, "sample pos d_model"]:
        """The corrupted runs after a block in which states of ``kind`` are put back.

        They are put back at every position at once: what attention reads in this block is as it was, and all that
        follows it works on each position alone, so each position comes out as if it were the only one.
        """
        kept = self.layers[layer]
        if kind == "resid_post":
            return kept.post[:1].expand_as(kept.post[1:])
        self.pins.length, self.pins.values = 0, {kind: (None, kept.outs[kind][:1])}
        pieces = torch.split(kept.pre[1:], max(1, ROWS_PER_CALL // self.length))
        return torch.cat([block(piece, self.blocks.past(len(piece))) for piece in pieces])

    def _begin(self, layer: int, front: _Front, begun: Sequence[Tensor]) -> list[Tensor]:
        """The states of a front after a block in which something is put back at its position."""
        kept = self.layers[layer]
        states: list[Tensor] = []
        for out in begun:
            state = kept.post[front.rows, front.pos :].clone()
            state[:, 0] = out[front.samples, front.pos]
            states.append(state[:, -self.task.readout.length :] if layer == self.depth - 1 else state)
        return states

    def _pin(self, layer: int, front: _Front, stems: Sequence[_Stem], length: int) -> None:
        """What the hooks put back in the next call of ``layer``, of so many positions."""
        self.pins.length, self.pins.values = length, {}
        for kind, out in self.layers[layer].outs.items():
            clean = [i for i, stem in enumerate(stems) if stem.kind == kind and stem.pinned(layer)]
            severed = [i for i, stem in enumerate(stems) if stem.kind == "resid_post" and kind == self.task.severed]
            value = out[0, front.pos] if clean else out[front.rows, front.pos].repeat(len(severed), 1)
            rows = [i * front.size + sample for i in clean or severed for sample in range(front.size)]
            if rows:
                self.pins.values[kind] = (torch.tensor(rows), value)

    def _past(self, layer: int, front: _Front, rows: int) -> Past:
        """Keys and values of the corrupted run before the front."""
        keys, values = self.layers[layer].past
        return self.blocks.past(rows, (keys[front.samples], values[front.samples]), front.pos)

    def read_front(self, front: _Front) -> Sequence[Float[Tensor, "sample measure"]]:
        """The measures of every stem."""
        return torch.split(self.read(torch.cat(front.states)), front.size)

    def read(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch measure"]:
        """The measures after the last block, some rows at a time."""
        rows = max(1, LOGIT_ROWS // self.task.readout.length)
        return torch.cat([self.task.readout(self.blocks.unembed(piece)) for piece in torch.split(resid, rows)])


def _keeper(outs: dict[Kind, Tensor], kinds: Sequence[Kind]) -> Touch:
    def keep(kind: str, out: Tensor) -> None:
        if kind in kinds:
            outs[cast(Kind, kind)] = out

    return keep
