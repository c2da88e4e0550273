"""The ways to ask many questions: as trees of what they share, or in rows; see `Asker`."""

from collections.abc import Container, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.blocks import CannotCallBlocksError, TreeBlocks, forests
from tl_edit.evaluate.questions import Opinion, Question, Reading
from tl_edit.host import Model, NamedHook

NODES = 2048
"""Nodes of trees that one call of a block computes; more would only take more memory."""
A_CALL = 128
"""Positions that take as long as one more forward pass does beside its work; roughly."""

Row = tuple[int, ...]
Asked = Mapping[int, Question]
"""Questions by their numbers."""


def in_trees(
    trees: TreeBlocks, asked: Asked, batch_size: int, whole: Container[int], first: int | None
) -> Iterator[dict[int, Opinion]]:
    """Opinions by number, forest by forest; the one with question ``first`` comes first."""
    model, numbers = trees.model, list(asked)
    rows = [as_row(asked[i]) for i in numbers]
    size = min(NODES, batch_size * max(map(len, rows)))
    at_first = None if first is None else numbers.index(first)
    for forest in forests(rows, size=size, device=host.device_of(model), first=at_first):
        here = [numbers[at] for at in forest.paths]
        reading = Reading([asked[i] for i in here], list(forest.paths.values()))
        states = trees.states(forest, torch.tensor(reading.places, device=forest.tokens.device))

        def logits(part: slice, states: Tensor = states) -> Tensor:
            return trees.unembed(states[part])

        yield dict(zip(here, reading.opinions(model, logits, [i in whole for i in here]), strict=True))


def in_rows(
    model: Model,
    asked: Asked,
    hooks: Sequence[NamedHook],
    batch_size: int,
    whole: Container[int],
    *,
    beginnings: bool = False,
    one_length: bool = False,
    trimmed: bool = False,
    first: int | None = None,
) -> Iterator[dict[int, Opinion]]:
    """Opinions by number, batch by batch; the one with question ``first`` comes first.

    Equal rows run once.

    Args:
        model: The model that is asked.
        asked: The questions.
        hooks: Attached during the passes.
        batch_size: Most rows of a pass; fewer where their logits are more than `forward.LOGIT_BYTES`.
        whole: Of which to keep the distribution after the prompt.
        beginnings: Whether rows that others begin with are not run, either.
        one_length: Whether rows that run together must be of one length.
        trimmed: Whether logits are computed only where they are read.
        first: The number of a question.

    Raises:
        CannotCallBlocksError: If logits cannot be trimmed.
    """
    runs = _serving({i: as_row(question) for i, question in asked.items()}, beginnings=beginnings)
    reads = {row: sum(len(asked[i].target) for i in numbers) if trimmed else 0 for row, numbers in runs.items()}
    plan = _chunks(reads, batch_size, forward.most_logits(model), one_length=one_length)
    for chunk in sorted(plan, key=lambda rows: not any(first in runs[row] for row in rows)):
        batch = tokens.pad(model, [torch.tensor(row) for row in chunk])
        width = batch.tokens.shape[1]
        here = [(at, i) for at, row in enumerate(chunk) for i in runs[row]]
        paths = [range(at * width, (at + 1) * width) for at, _ in here]
        reading = Reading([asked[i] for _, i in here], paths)
        if trimmed:
            logits = forward.logits_at(model, batch, torch.tensor(reading.places))
            if logits is None:
                raise CannotCallBlocksError("the logits of some places cannot be had alone")
        else:
            logits = forward.logits(model, batch, hooks).flatten(0, 1)[reading.places]
        opinions = reading.opinions(model, logits.__getitem__, [i in whole for _, i in here])
        yield {i: opinion for (_, i), opinion in zip(here, opinions, strict=True)}


def as_row(question: Question) -> Row:
    """The tokens that are run."""
    return tuple(map(int, question.row))


def _serving(rows: Mapping[int, Row], *, beginnings: bool) -> dict[Row, list[int]]:
    """The rows that are run, each with the numbers that it serves; with ``beginnings`` also those it begins with."""
    serves: dict[Row, Row] = {}
    last: Row = ()
    # In the order of a dictionary, a row that begins others stands right before one of them.
    for row in sorted(set(rows.values()), reverse=True):
        last = last if beginnings and last[: len(row)] == row else row
        serves[row] = last
    runs: dict[Row, list[int]] = {}
    for i, row in rows.items():
        runs.setdefault(serves[row], []).append(i)
    return runs


def _chunks(reads: Mapping[Row, int], size: int, most: int, *, one_length: bool) -> Iterator[list[Row]]:
    """Which rows run together: at most ``size``, with at most ``most`` logits, or one row.

    ``reads``: logits of each row; zero stands for all positions, padding included.
    """
    groups: dict[int, list[Row]] = {}
    for row in reads:
        groups.setdefault(len(row), []).append(row)
    for lengths in [[length] for length in groups] if one_length else _alike({n: len(groups[n]) for n in groups}):
        chunk: list[Row] = []
        used = 0
        for row in [row for length in lengths for row in groups[length]]:
            logits = reads[row] or lengths[-1]
            if chunk and (len(chunk) == size or used + logits > most):
                yield chunk
                chunk, used = [], 0
            chunk.append(row)
            used += logits
        yield chunk


def _alike(counts: Mapping[int, int]) -> list[list[int]]:
    """Lengths of rows, of each so many, in groups that make calls and padding together cost least."""
    known = sorted(counts)
    # By the number of first lengths: the least cost of their rows, and where their last group begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for stop in range(1, len(known) + 1):
        n, choices = 0, list[tuple[int, int]]()
        for start in range(stop - 1, -1, -1):
            n += counts[known[start]]
            choices.append((best[start][0] + A_CALL + n * known[stop - 1], start))
        best.append(min(choices))
    groups: list[list[int]] = []
    stop = len(known)
    while stop:
        start = best[stop][1]
        groups.append(known[start:stop])
        stop = start
    return groups
