"""Means over records, how sure they are, and whether two methods differ.

Records are the unit of everything: a record's prompts are averaged first, and resampling draws whole records, since
prompts of one record are not independent of each other.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

Statistic = Callable[[Tensor], Tensor]
"""From [... side column record] to [...]."""

_AT_ONCE = 4_000_000
"""Entries that resampling holds at a time."""


@dataclass(frozen=True, eq=False, repr=False)
class Metric:
    """A mean over records, each of which counts once; or the harmonic mean of several such means, as the score S."""

    columns: Float[Tensor, "column record"]
    """Each record's value (float64), NaN where a record does not have it. Of several columns, all rates of one kind,
    the harmonic mean of their means is taken."""

    @classmethod
    def over(cls, values: Iterable[float]) -> "Metric | None":
        """The mean of ``values``, NaN being none; None where there are none, which is not zero."""
        column = torch.tensor(list(values), dtype=torch.float64)
        return cls(column[None]) if bool((~column.isnan()).any()) else None

    @classmethod
    def harmonic(cls, parts: "Sequence[Metric | None]") -> "Metric | None":
        """The harmonic mean of metrics over the same records; None where one of them is absent."""
        there = [part for part in parts if part is not None]
        return cls(torch.cat([part.columns for part in there])) if len(there) == len(parts) else None

    @property
    def mean(self) -> float:
        """The mean, or harmonic mean of means."""
        return float(_statistic(self.columns))

    @property
    def per_record(self) -> Float[Tensor, " record"]:
        """Each record's own value; of several columns their harmonic mean. NaN where a record does not have it."""
        return _statistic(self.columns.T[:, :, None])

    @property
    def n(self) -> int:
        """Records that have the metric; of several columns, the least of their counts."""
        return int((~self.columns.isnan()).sum(dim=1).min())

    @property
    def standard_error(self) -> float:
        """Of the mean, over records, by leaving each out in turn; NaN for a single one.

        For a plain mean this is the standard deviation over the root of n.
        """
        return _jackknife(self.columns[None], _only)

    def interval(self, level: float = 0.95, *, n_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
        """Bootstrap interval (percentiles over resampled records); NaN for a single record.

        Where all records have the same value it has no width, which says little: of 50 successes in 50 the true rate
        may well be 0.94.

        Args:
            level: Probability to cover, between 0 and 1.
            n_resamples: Draws of as many records as there are, with replacement.
            seed: Seed of the draws.

        Raises:
            ValueError: For another level, number or seed.
        """
        share, draws = cast(object, level), cast(object, n_resamples)
        if not isinstance(share, float | int) or not 0 < share < 1 or type(draws) is not int or draws < 1:
            raise ValueError(
                f"interval: level is {share!r} and n_resamples is {draws!r}; expected a level between 0 and 1 and at "
                "least one resample; the defaults are 0.95 and 2000."
            )
        _check_seed(seed, "interval")
        return _bootstrap(self.columns[None], _only, level, n_resamples, seed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metric) and torch.equal(self.columns.nan_to_num(-1e9), other.columns.nan_to_num(-1e9))

    def __hash__(self) -> int:
        return hash((self.mean, self.n))

    def percent(self) -> str:
        """A rate in per cent, with its standard error."""
        error = "" if math.isnan(self.standard_error) else f" ± {100 * self.standard_error:.1f}"
        return f"{100 * self.mean:.1f}{error}"

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.3f}"
        return f"{self.mean:.3f}{error}"

    def __repr__(self) -> str:
        return f"Metric(mean {self.mean:.4g}, standard error {self.standard_error:.2g}, n {self.n})"


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Whether two methods differ on the same records."""

    difference: float
    """Of the first metric from the second."""
    standard_error: float
    interval: tuple[float, float]
    """Bootstrap interval of 95 % over records."""
    p_value: float
    """Two-sided permutation test: how often the difference is as large where each record's results are swapped between
    the methods at random. Exact where all ways to swap were tried."""
    n: int

    def __str__(self) -> str:
        low, high = self.interval
        shown = f"{self.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"{shown}, p = {self.p_value:.2g}, n = {self.n}"


def paired_test(first: Metric, second: Metric, *, n_permutations: int = 10_000, seed: int = 0) -> PairedTest:
    """Compare two metrics over the same records in the same order.

    Raises:
        ValueError: If they are not over as many records and columns, or the seed is no integer.
    """
    if first.columns.shape != second.columns.shape:
        raise ValueError(
            f"paired_test: {first!r} and {second!r} are over {list(first.columns.shape)} and "
            f"{list(second.columns.shape)} (columns, records); expected the same metric over the same records; "
            "evaluate both methods on the same records."
        )
    _check_seed(seed, "paired_test")
    both = torch.stack([first.columns, second.columns])
    # What only one of them has cannot be paired.
    both = both.masked_fill(both.isnan().any(dim=0), math.nan)
    both = both[..., ~both.isnan().all(dim=(0, 1))]
    observed = float(_difference(both))
    return PairedTest(
        difference=observed,
        standard_error=_jackknife(both, _difference),
        interval=_bootstrap(both, _difference, 0.95, 2000, seed),
        p_value=_permutation(both, observed, n_permutations, seed),
        n=Metric(both[0]).n if both.shape[-1] else 0,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's step-down rule; NaN is none."""
    order = sorted((i for i, value in enumerate(p_values) if not math.isnan(value)), key=lambda i: p_values[i])
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _statistic(columns: Float[Tensor, "*draw column record"]) -> Float[Tensor, "*draw"]:
    """The mean of one column; the harmonic mean of the means of several, 0 where one of them is."""
    means = columns.nanmean(dim=-1)
    if means.shape[-1] == 1:
        return means[..., 0]
    harmonic = means.shape[-1] / (1 / means).sum(dim=-1)
    # NaN stays NaN; what has a rate of zero is zero.
    return torch.where((means == 0).any(dim=-1), torch.zeros_like(harmonic), harmonic)


def _only(sides: Float[Tensor, "*draw side column record"]) -> Float[Tensor, "*draw"]:
    return _statistic(sides[..., 0, :, :])


def _difference(sides: Float[Tensor, "*draw side column record"]) -> Float[Tensor, "*draw"]:
    return _statistic(sides[..., 0, :, :]) - _statistic(sides[..., 1, :, :])


def _present(sides: Float[Tensor, "side column record"]) -> Float[Tensor, "side column _"]:
    """Without the records that have nothing."""
    return sides[..., ~sides.isnan().all(dim=(0, 1))]


def _jackknife(sides: Float[Tensor, "side column record"], statistic: Statistic) -> float:
    sides = _present(sides)
    n = sides.shape[-1]
    if n < 2:
        return math.nan
    counts = (~sides.isnan()).sum(dim=-1, keepdim=True)
    sums = sides.nansum(dim=-1, keepdim=True)
    # The means without each record, as a draw of one "record" that has them.
    without = (sums - sides.nan_to_num(0.0)) / (counts - (~sides.isnan()).long())
    left_out = statistic(without.permute(2, 0, 1)[..., None])
    left_out = left_out[~left_out.isnan()]
    n = len(left_out)
    return math.nan if n < 2 else float(((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt())


def _bootstrap(
    sides: Float[Tensor, "side column record"], statistic: Statistic, level: float, n_resamples: int, seed: int
) -> tuple[float, float]:
    sides = _present(sides)
    n = sides.shape[-1]
    if n < 2:
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    drawn: list[Tensor] = []
    for size in _portions(n_resamples, sides.numel()):
        chosen = torch.randint(n, (size, n), generator=generator)
        drawn.append(statistic(sides[:, :, chosen].permute(2, 0, 1, 3)))
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=sides.dtype)
    low, high = torch.nanquantile(torch.cat(drawn), edges)
    return float(low), float(high)


def _permutation(both: Float[Tensor, "side column record"], observed: float, n_permutations: int, seed: int) -> float:
    n = both.shape[-1]
    if n == 0:
        return math.nan
    slack = 1e-12 * max(1.0, abs(observed))
    exact = n < 63 and 2**n <= n_permutations
    total = 2**n if exact else n_permutations
    generator = torch.Generator().manual_seed(seed)
    extreme, done = 0, 0
    for size in _portions(total, both.numel()):
        if exact:
            numbers = torch.arange(done, done + size)
            swap = (numbers[:, None] >> torch.arange(n)) & 1 == 1
        else:
            swap = torch.randint(2, (size, n), generator=generator) == 1
        swapped = torch.where(swap[:, None, None], both.flip(0), both)
        extreme += int((_difference(swapped).abs() >= abs(observed) - slack).sum())
        done += size
    return extreme / total if exact else (extreme + 1) / (total + 1)


def _check_seed(seed: object, operation: str) -> None:
    if type(seed) is not int:
        raise ValueError(f"{operation}: seed is {seed!r}; expected an integer; the default is 0.")


def _portions(total: int, width: int) -> Iterator[int]:
    """``total`` in parts that fit into memory."""
    size = max(1, _AT_ONCE // max(1, width))
    for start in range(0, total, size):
        yield min(size, total - start)
