"""The ends of colour scales."""

from collections.abc import Sequence

from torch import Tensor


def largest(tables: Sequence[Tensor]) -> float:
    """The largest size of a value, 0 where there is none; infinities have the colour at the end and do not set it."""
    finite = [table[table.isfinite()] for table in tables]
    return max((float(values.abs().max()) for values in finite if values.numel()), default=0.0)
