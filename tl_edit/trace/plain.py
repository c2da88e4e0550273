"""The plain engine of causal tracing: every restored run goes through the whole model, with hooks.

It is what the definition says and works on every model and with every hook that is on it; many runs share a pass.
"""

import torch
from einops import rearrange  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import forward
from tl_edit.host import HookFn, NamedHook, n_layers
from tl_edit.tokens import TokenBatch
from tl_edit.trace.plan import Branch, Kind, Readings, Task, hook_name, put_back, sources

LOGITS_AT_A_TIME = 2**26
"""Numbers in the logits of one pass, which are computed at every position."""


def plain(task: Task) -> Readings:
    """Trace ``task`` run by run."""
    clean, corrupted = _states(task, task.batch, ()), _states(task, task.corruption.batch, task.corruption.hooks)
    low = _read(task, 1, [])
    samples, length = low.shape[0], task.batch.tokens.shape[1]
    size = samples * length
    at_once = max(1, min(task.max_rows // size, LOGITS_AT_A_TIME // (size * int(task.model.cfg.d_vocab))))
    table = low.expand(len(task.branches), len(task.positions), *low.shape).clone()
    for i, branch in enumerate(tqdm(task.branches, desc="causal trace", disable=not task.progress)):
        for first in range(0, len(task.positions), at_once):
            positions = torch.tensor(task.positions[first : first + at_once]).repeat_interleave(samples)
            cells = len(positions) // samples
            hooks = [
                (hook_name(branch.kind, layer), _put_back(clean[branch.kind, layer], positions))
                for layer in branch.layers
            ]
            hooks += _severed(task, branch, corrupted, positions)
            read = _read(task, cells, hooks)
            table[i, first : first + cells] = rearrange(read, "(cell sample) m -> cell sample m", cell=cells)
    return Readings(corrupted=low, restored=table)


def _states(task: Task, batch: TokenBatch, hooks: tuple[NamedHook, ...]) -> dict[tuple[Kind, int], Tensor]:
    """The states that are put back, of one run."""
    keys: list[tuple[Kind, int]] = [(kind, layer) for kind in sources(task) for layer in range(n_layers(task.model))]
    found = forward.activations(task.model, batch, [hook_name(*key) for key in keys], hooks)
    return {key: found[hook_name(*key)] for key in keys}


def _severed(
    task: Task, branch: Branch, corrupted: dict[tuple[Kind, int], Tensor], positions: Tensor
) -> list[NamedHook]:
    if task.severed is None or branch.kind != "resid_post":
        return []
    return [
        (hook_name(task.severed, layer), _put_back(corrupted[task.severed, layer], positions))
        for layer in range(branch.end, n_layers(task.model))
    ]


def _put_back(states: Tensor, positions: Tensor) -> HookFn:
    """A hook that puts row i back at ``positions[i]``, from the one row of ``states`` or from its rows in turn."""
    rows = torch.arange(len(positions))
    return put_back(len(rows), rows, positions, states[rows % len(states), positions])


def _read(task: Task, cells: int, hooks: list[NamedHook]) -> Tensor:
    """Measures of so many cells' corrupted runs, with ``hooks`` that restore; [cell * sample, measure]."""
    batch = task.corruption.batch.take(list(range(task.corruption.samples)) * cells)
    logits = forward.logits(task.model, batch, [*task.corruption.hooks, *hooks])
    return task.readout(logits[:, -task.readout.length :])
