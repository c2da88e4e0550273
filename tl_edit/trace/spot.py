"""The spot check: a few of the runs that the fast engine composed are made once more as whole passes.

That blocks can be called alone is checked on the clean prompt before anything is traced. Whether the parts fit together
in a corrupted and restored run can only be seen in one: a layer that mixes positions in a way of its own, or that does
something else where activations are large, shows here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tl_edit import forward
from tl_edit.blocks import Blocks, CannotCallBlocksError, tolerance
from tl_edit.host import NamedHook, n_layers, resid_post_name, resid_pre_name
from tl_edit.trace.plan import Branch, Kind, LayerStates, Readings, Task, hook_name, put_back

SMALLEST = 1e-300
"""Probabilities below have lost digits or are 0; both engines' are taken for this."""


@dataclass(frozen=True, eq=False)
class _Cell:
    """One restored state, and the probability that the fast engine gave the answer."""

    branch: Branch
    pos: int
    expected: float


def spot_check(task: Task, blocks: Blocks, layers: Sequence[LayerStates], readings: Readings) -> None:
    """Repeat, for one sample, the corrupted run and a few restored runs of each kind.

    Raises:
        CannotCallBlocksError: If one differs from what the fast engine found.
    """
    sample = task.corruption.samples - 1
    cells = _cells(task, readings, sample)
    batch = task.corruption.batch.take([sample] * (1 + len(cells)))
    states = layers[0].pre[1 + sample]

    def corrupt(act: Tensor, hook: object = None) -> Tensor:
        return states.expand(act.shape).clone()

    hooks = [(resid_pre_name(0), corrupt), *_restoring(task, layers, cells, sample)]
    # What follows the last block was checked on the clean prompt, and is only needed at the last positions.
    after = resid_post_name(n_layers(task.model) - 1)
    resid = forward.activations(task.model, batch, [after], hooks)[after]
    logits = blocks.unembed(resid[:, -task.readout.length :])
    found = task.readout(logits)[:, 0]
    alone = [float(readings.corrupted[sample, 0]), *(cell.expected for cell in cells)]
    expected = torch.tensor(alone, dtype=torch.float64)
    off = float((found.clamp(min=SMALLEST).log() - expected.clamp(min=SMALLEST).log()).abs().max())
    # Numbers that are not finite are told to the user as such.
    if off > task.readout.length * tolerance(states.dtype, logits):
        raise CannotCallBlocksError(f"its blocks, called alone, are off by {off:.1e} nats in a corrupted run")


def _cells(task: Task, readings: Readings, sample: int) -> list[_Cell]:
    """Of each kind the strongest state, and the strongest of the lowest layer; and one where nothing may happen."""
    effect = (readings.restored[:, :, sample, 0] - readings.corrupted[sample, 0]).abs()
    chosen: dict[tuple[int, int], None] = {}
    for kind in dict.fromkeys(branch.kind for branch in task.branches):
        rows = [i for i, branch in enumerate(task.branches) if branch.kind == kind]
        lowest = min(rows, key=lambda i: task.branches[i].first)
        for some in (rows, [lowest]):
            row, column = divmod(int(effect[some].nan_to_num().argmax()), len(task.positions))
            chosen[some[row], column] = None
    cells = [
        _Cell(task.branches[row], task.positions[column], float(readings.restored[row, column, sample, 0]))
        for row, column in chosen
    ]
    if task.corruption.first > 0:
        cells.append(_Cell(task.branches[0], task.corruption.first - 1, float(readings.corrupted[sample, 0])))
    return cells


def _restoring(task: Task, layers: Sequence[LayerStates], cells: Sequence[_Cell], sample: int) -> list[NamedHook]:
    """Hooks that put the states of all cells back, cell i in row 1 + i."""
    found: dict[str, list[tuple[int, int, Tensor]]] = {}

    def restore(row: int, kind: Kind, layer: int, pos: int, run: int) -> None:
        found.setdefault(hook_name(kind, layer), []).append((row, pos, layers[layer].of(kind)[run, pos]))

    for row, cell in enumerate(cells, start=1):
        for layer in cell.branch.layers:
            restore(row, cell.branch.kind, layer, cell.pos, 0)
        if task.severed is not None:
            for layer in range(cell.branch.end, n_layers(task.model)):
                restore(row, task.severed, layer, cell.pos, 1 + sample)
    hooks: list[NamedHook] = []
    for name, several in found.items():
        rows, positions, states = zip(*several, strict=True)
        hooks.append((name, put_back(1 + len(cells), torch.tensor(rows), torch.tensor(positions), torch.stack(states))))
    return hooks
