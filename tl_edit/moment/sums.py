"""All that one process adds up, at every layer, and what comes of the sums of all processes."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.host import Model
from tl_edit.moment.engine import Engine
from tl_edit.moment.gram import Gram
from tl_edit.moment.sample import SIZE, Sample, marks
from tl_edit.moment.texts import OPERATION, Row
from tl_edit.processes import Processes


class Sums:
    """All that has been added up, at every layer."""

    def __init__(self, model: Model, layers: Sequence[int], seed: int, split_halves: bool) -> None:
        self.model, self.seed = model, seed
        self.engine = Engine(model, layers)
        self.grams: dict[int, list[Gram]] = {
            layer: [Gram(layer, host.w_out(model, layer).shape[0]) for _ in range(1 + split_halves)] for layer in layers
        }
        """By layer: of all tokens, or of each of two halves."""
        self.sample = Sample(list(self.grams))

    @property
    def count(self) -> int:
        """Tokens that were counted."""
        return sum(gram.count for gram in next(iter(self.grams.values())))

    def add(self, rows: Sequence[Row], batch: tokens.TokenBatch) -> None:
        """Run a batch and add its keys."""
        counted = batch.attention_mask.bool().cpu()
        counted[:, 0] &= torch.tensor([row.skipped == 0 for row in rows])
        found = torch.zeros(counted.shape, dtype=torch.int64)
        for i, row in enumerate(rows):
            found[i, : len(row.tokens)] = marks(self.seed, row.number, len(row.tokens))
        where = counted.nonzero()[self.sample.wanted(found[counted])]
        sampled: dict[int, Tensor] = {}

        def take(keys: Tensor, layer: int) -> None:
            sampled[layer] = forward.at_least_float32(keys[where[:, 0], where[:, 1]]).cpu()
            grams = self.grams[layer]
            for half, gram in enumerate(grams):
                # By the number of the text, so that the halves do not depend on batches and processes.
                own = torch.tensor([row.number % len(grams) == half for row in rows])
                gram.add(_flat(keys, counted & own[:, None]))

        self.engine.show(batch, {layer: partial(take, layer=layer) for layer in self.grams})
        self.sample.add(found[where[:, 0], where[:, 1]], sampled)

    def flush(self) -> None:
        """Bring all sums to float64, so that the state between two windows does not depend on what is done there."""
        for grams in self.grams.values():
            for gram in grams:
                gram.flush()

    def results(self, own: Processes, emptied: bool) -> dict[int, dict[str, Any]]:
        """By layer: the fields of a `SecondMoment` that come from all processes' sums, which are used up.

        Args:
            own: This process.
            emptied: Whether there was a text of which the settings left nothing.

        Raises:
            ValueError: If no token was counted.
        """
        counts = [own.total(gram.count) for gram in next(iter(self.grams.values()))]
        total = sum(counts)
        if own.total(int(emptied)) and not total:
            raise ValueError(
                f"{OPERATION}: the settings leave no tokens to count, though texts have some; expected at least one; "
                "pass a larger max_length, or count_bos=True."
            )
        if not total:
            raise ValueError(f"{OPERATION}: texts hold no tokens; expected a sample of ordinary text; pass more of it.")
        self._join_samples(own)
        return {layer: self._result(layer, own, counts, total) for layer in list(self.grams)}

    def _result(self, layer: int, own: Processes, counts: list[int], total: int) -> dict[str, Any]:
        matrices = [gram.whole() for gram in self.grams.pop(layer)]
        for matrix in matrices:
            own.add_up(matrix)
        half: dict[str, Any] = {}
        if len(matrices) == 2:
            half = {"half_matrix": matrices[0] / max(1, counts[0]), "half_count": counts[0]}
            matrices[0] += matrices[1]
        return {
            "matrix": matrices[0].div_(total),
            "count": total,
            "sample_keys": self.sample.keys[layer],
            **half,
        }

    def _join_samples(self, own: Processes) -> None:
        """Make the sample that of all processes."""
        if own.world == 1:
            return
        mine, joined = self.sample, Sample(list(self.grams))
        missing = SIZE - len(mine.marks)
        all_marks = own.gather(torch.nn.functional.pad(mine.marks, (0, missing), value=-1))
        all_keys: dict[int, list[Tensor]] = {}
        for layer, grams in self.grams.items():
            width = len(grams[0].upper)
            dtype = next(cast(torch.nn.Module, self.model).parameters()).dtype
            empty = torch.zeros(0, width, dtype=torch.promote_types(dtype, torch.float32))
            keys = mine.keys.get(layer, empty)
            all_keys[layer] = own.gather(torch.nn.functional.pad(keys, (0, 0, 0, missing)))
        for rank, found in enumerate(all_marks):
            real = found >= 0
            joined.add(found[real], {layer: all_keys[layer][rank][real] for layer in self.grams})
        self.sample = joined


def _flat(keys: Float[Tensor, "batch pos d_mlp"], counted: Tensor) -> Float[Tensor, "token d_mlp"]:
    """The keys that count, one after another, in at least float32; without a copy where it is all of them."""
    if counted.all():
        return forward.at_least_float32(keys.flatten(0, 1))
    return forward.at_least_float32(keys[counted.to(keys.device)])
