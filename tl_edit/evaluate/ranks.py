"""Rank correlation, and how sure it is."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """A rank correlation with its interval."""

    value: float
    """From -1 to 1; NaN where one side is constant."""
    interval: tuple[float, float]
    """Bootstrap interval of 95 % over records."""
    n: int
    """Records."""

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def spearman(first: Float[Tensor, " n"], second: Float[Tensor, " n"]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where one is constant or not finite."""
    if len(first) < 3 or not (first.isfinite().all() and second.isfinite().all()):
        return None
    a, b = (ranks - ranks.mean() for ranks in (_ranks(first), _ranks(second)))
    size = float((a @ a * (b @ b)).sqrt())
    return float(a @ b) / size if size > 0 else None


def over_records(
    statistic: Callable[[Int[Tensor, " record"]], float], n: int, *, n_resamples: int = 500, seed: int = 0
) -> Correlation:
    """A statistic of chosen records, on all of ``n``, with the percentiles of resampling them.

    Args:
        statistic: Takes the numbers of records, some perhaps several times.
        n: How many records there are.
        n_resamples: Draws with replacement.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = [statistic(torch.randint(n, (n,), generator=generator)) for _ in range(n_resamples if n > 1 else 0)]
    found = torch.tensor([value for value in drawn if not math.isnan(value)], dtype=torch.float64)
    low = high = math.nan
    if len(found):
        low, high = (float(found.quantile(level)) for level in (0.025, 0.975))
    return Correlation(value=statistic(torch.arange(n)), interval=(low, high), n=n)


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """From 1 on; equal values share the mean of theirs."""
    values = values.contiguous()
    ordered = values.sort().values
    # Equal values take the places from the first to the last of them.
    first, after = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (first + after + 1).double() / 2
