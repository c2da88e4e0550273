"""The spot check: a few of the runs that the fast engine composed are made once more as whole passes.

That blocks can be called alone is checked on the clean prompt before anything is traced. Whether the parts fit together
in a corrupted and restored run can only be seen in one: a layer that mixes positions in a way of its own, or that does
something else where activations are large, shows here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import forward
from tl_edit.blocks import Blocks, CannotCallBlocksError, tolerance
from tl_edit.host import HookFn, NamedHook, n_layers, resid_post_name, resid_pre_name
from tl_edit.tokens import TokenBatch
from tl_edit.trace.plan import Branch, Kind, LayerStates, Readings, Task, hook_name

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
    once = task.corruption.batch
    rows = [sample] * (1 + len(cells))
    batch = TokenBatch(
        tokens=once.tokens[rows], attention_mask=once.attention_mask[rows], lengths=once.lengths[:1] * len(rows)
    )
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
    values: dict[str, list[tuple[int, int, Tensor]]] = {}

    def put_back(row: int, kind: Kind, layer: int, pos: int, run: int) -> None:
        state = layers[layer].of(kind)[run, pos]
        values.setdefault(hook_name(kind, layer), []).append((row, pos, state))

    for row, cell in enumerate(cells, start=1):
        for layer in cell.branch.layers:
            put_back(row, cell.branch.kind, layer, cell.pos, 0)
        if task.severed is not None:
            for layer in range(cell.branch.end, n_layers(task.model)):
                put_back(row, task.severed, layer, cell.pos, 1 + sample)
    return [(name, _put_back(states, 1 + len(cells))) for name, states in values.items()]


def _put_back(states: Sequence[tuple[int, int, Float[Tensor, " d_model"]]], rows: int) -> HookFn:
    def hook(act: Tensor, hook: object = None) -> Tensor:
        # Some Hugging Face MLPs see [batch * pos, d_model].
        out = act.reshape(rows, -1, act.shape[-1]).clone()
        for row, pos, state in states:
            out[row, pos] = state.to(out)
        return out.reshape(act.shape)

    return hook
