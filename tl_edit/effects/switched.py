"""Probabilities of records with several edits on or off, through hooks, many combinations in one batch."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from tqdm.auto import tqdm

from tl_edit import host
from tl_edit.data import EditRecord
from tl_edit.edit import Edit, LowRank
from tl_edit.edit.as_hooks import named_hooks
from tl_edit.evaluate import Question, batches, opinions
from tl_edit.host import Model, NamedHook

About = Literal["new", "true"]
ABOUT = get_args(About)

Asked = tuple[tuple[int, ...], int, About]
"""Which edits are on, ascending; which record; which of its objects."""


def asking(on: Iterable[int], i: int, about: About) -> Asked:
    """Whatever order the edits that are on are named in, and how often."""
    return tuple(sorted(set(on))), i, about


def measured(
    model: Model,
    edits: Sequence[Edit],
    records: Sequence[EditRecord],
    wanted: Iterable[Asked],
    prepend_bos: bool,
    batch_size: int,
    *,
    progress: bool,
) -> dict[Asked, float]:
    """The probabilities that are wanted; NaN where a record does not name its true object."""
    questions = {
        (i, about): Question.of(model, record.request.prompt, answer, prepend_bos=prepend_bos)
        for i, record in enumerate(records)
        for about, answer in zip(ABOUT, (record.request.target_new, record.request.target_true), strict=True)
        if answer is not None
    }
    found = dict.fromkeys(wanted, math.nan)
    # Rows with the same edits on stand together, and share their hooks.
    listed = sorted(asked for asked in found if asked[1:] in questions)
    together = list(batches(model, [questions[asked[1:]] for asked in listed], batch_size))
    for indices in tqdm(together, desc="switching edits", disable=not progress):
        chunk = [listed[i] for i in indices]
        hooks = _hooks(model, edits, [on for on, _, _ in chunk])
        for asked, opinion in zip(chunk, opinions(model, [questions[each[1:]] for each in chunk], hooks), strict=True):
            found[asked] = opinion.prob
    return found


def _hooks(model: Model, edits: Sequence[Edit], rows: Sequence[tuple[int, ...]]) -> list[NamedHook]:
    """Hooks that switch on in each row of a batch the edits that are named for it.

    Edits of one row go in as their sum: one set of hooks for each combination, and one sum, whatever their order.
    """
    hooks: list[NamedHook] = []
    sites = {layer: host.value_site(model, layer) for layer in {layer for edit in edits for layer in edit.deltas}}
    for on in filter(None, dict.fromkeys(rows)):
        here = [row for row, each in enumerate(rows) if each == on]
        deltas = _summed([edits[i] for i in on])
        hooks += named_hooks(deltas, sites, scale=1.0, positions=None, rows=here)
    return hooks


def _summed(edits: Sequence[Edit]) -> dict[int, LowRank]:
    """Their changes by layer as one, in few steps."""
    layers = sorted({layer for edit in edits for layer in edit.deltas})
    parts = {layer: [edit.deltas[layer] for edit in edits if layer in edit.deltas] for layer in layers}
    return {
        layer: LowRank(torch.cat([part.left for part in several], dim=1), torch.cat([part.right for part in several]))
        for layer, several in parts.items()
    }
