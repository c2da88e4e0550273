"""Rank correlation by hand, and its interval."""

import math
import random

import pytest
import torch

from tl_edit.evaluate.ranks import over_records, spearman


def test_spearman():
    def of(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    assert spearman(of(1, 2, 30), of(5, 6, 7)) == pytest.approx(1)
    assert spearman(of(1, 2, 30), of(7, 6, 5)) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4.
    assert spearman(of(1, 2, 2, 3), of(1, 2, 3, 4)) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    # By the formula without ties, 1 - 6 sum d^2 / (n (n^2 - 1)).
    first, second = random.Random(0).sample(range(9), 9), random.Random(1).sample(range(9), 9)
    squares = sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
    assert spearman(of(*first), of(*second)) == pytest.approx(1 - 6 * squares / (9 * 80))
    assert spearman(of(1, 1, 1), of(1, 2, 3)) is None
    assert spearman(of(1, 2, float("nan")), of(1, 2, 3)) is None


def test_the_interval_of_a_correlation_covers_it():
    drawn = random.Random(2)
    x = torch.tensor([drawn.gauss(0, 1) for _ in range(80)], dtype=torch.float64)
    y = x + torch.tensor([drawn.gauss(0, 1) for _ in range(80)], dtype=torch.float64)
    found = over_records(lambda chosen: spearman(x[chosen], y[chosen]), 80)
    low, high = found.interval
    assert low < found.value < high
    assert 0.2 < high - low < 0.5, "about 3.9 (1 - rho^2) / sqrt(n)"
    assert found.value == spearman(x, y)
    assert over_records(lambda chosen: spearman(x[chosen], y[chosen]), 80) == found
    assert str(found).startswith("+0.")


def test_an_interval_without_values_is_none():
    found = over_records(lambda chosen: math.nan, 5)
    assert math.isnan(found.value)
    assert math.isnan(found.interval[0])
