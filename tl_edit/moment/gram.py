"""Sums of ``k k^T`` over many keys: products in float32 where the keys are, sums in float64 on the CPU.

The product costs more than the transformer block that makes the keys, and it is symmetric, so only the blocks on
and above the diagonal are computed: 1.6 times as fast as all of it (8 blocks; 4 and 16 are 8 and 1 % slower at a width
of 3072). One float32 sum takes at most `PARTIAL` keys and is then added to the float64 sum, which is right to about
1e-7 for any number of keys; the published program adds 44 million keys in float32.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

BLOCKS = 8
PARTIAL = 2**14
"""Keys summed in their own precision before they are added to the float64 sum."""


class Gram:
    """The sum of ``k k^T`` of one layer. It takes 12 ``d_mlp``^2 bytes: 3.2 GB at a width of 16384."""

    def __init__(self, layer: int, d_mlp: int) -> None:
        self.layer = layer
        self.count = 0
        self.upper: Float[Tensor, "d_mlp d_mlp"] = torch.zeros(d_mlp, d_mlp, dtype=torch.float64)
        """Blocks on and above the diagonal; nothing below."""
        self._partial: Tensor | None = None
        self._waiting = 0

    def add(self, keys: Float[Tensor, "token d_mlp"]) -> None:
        """Add these keys, of float32 or float64."""
        for part in cast(Sequence[Tensor], keys.split(PARTIAL)):
            if self._waiting + len(part) > PARTIAL:
                self.flush()
            if self._partial is None:
                self._partial = torch.zeros(self.upper.shape, dtype=keys.dtype, device=keys.device)
            for rows, columns in self._blocks():
                self._partial[rows, columns].addmm_(part[:, rows].T, part[:, columns])
            self._waiting += len(part)
            self.count += len(part)

    def flush(self) -> None:
        """Add what waits in float32 to the float64 sum.

        Raises:
            ValueError: If it is not finite.
        """
        if self._partial is None or not self._waiting:
            return
        for rows, columns in self._blocks():
            block = self._partial[rows, columns]
            if not torch.isfinite(block).all():
                raise ValueError(
                    f"second_moment: keys of layer {self.layer} are not finite; expected finite activations; load the "
                    "model in float32 or bfloat16 (float16 overflows on some models)."
                )
            self.upper[rows, columns] += block.cpu()
        self._partial.zero_()
        self._waiting = 0

    def whole(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """The sum, with what is below the diagonal filled in; the same tensor as `upper`."""
        self.flush()
        self._partial = None
        for rows, columns in self._blocks():
            square = self.upper[rows, rows]
            square.copy_(square.triu() + square.triu(1).T)
            right = slice(rows.stop, columns.stop)
            self.upper[right, rows] = self.upper[rows, right].T
        return self.upper

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows, and the columns from their diagonal block to the right end."""
        width = len(self.upper)
        step = -(-width // BLOCKS)
        for start in range(0, width, step):
            yield slice(start, min(start + step, width)), slice(start, width)
