"""Means, errors, intervals and tests on numbers worked out by hand."""

import itertools
import math
import random

import pytest
import torch

from tl_edit.evaluate import Metric, paired_test
from tl_edit.evaluate.metric import holm


def several(*columns: list[float]) -> Metric:
    return Metric(torch.tensor(columns, dtype=torch.float64))


def test_absent_values_do_not_count():
    metric = Metric.over([1.0, math.nan, 0.0, math.nan])
    assert (metric.mean, metric.n) == (0.5, 2)
    assert Metric.over([math.nan]) is None
    assert Metric.over([]) is None


def test_the_error_of_a_mean_is_the_textbook_one():
    values = [random.Random(0).random() for _ in range(17)]
    expected = torch.tensor(values, dtype=torch.float64).std() / math.sqrt(17)
    assert Metric.over(values).standard_error == pytest.approx(float(expected), rel=1e-12)
    with_gaps = [*values[:5], math.nan, *values[5:], math.nan]
    assert Metric.over(with_gaps).standard_error == pytest.approx(float(expected), rel=1e-12)
    assert math.isnan(Metric.over([0.3]).standard_error)


def test_the_harmonic_mean_of_means():
    metric = Metric.harmonic([Metric.over([1.0, 0.5]), Metric.over([0.25, 0.25]), Metric.over([1.0, math.nan])])
    assert metric.mean == pytest.approx(3 / (1 / 0.75 + 1 / 0.25 + 1))
    assert metric.n == 1
    assert Metric.harmonic([Metric.over([1.0]), None]) is None


def test_the_harmonic_mean_is_zero_where_a_rate_is():
    assert several([0.0, 0.0], [1.0, 1.0]).mean == 0.0


def test_the_error_of_the_score_by_leaving_out_each_record():
    rows = [[1.0, 0.5, 1.0, 0.0], [0.5, 0.5, 1.0, 1.0], [0.2, 0.9, 0.7, 0.4]]
    metric = several(*rows)

    def score(kept: list[int]) -> float:
        return 3 / sum(1 / (sum(row[i] for i in kept) / len(kept)) for row in rows)

    left_out = [score([i for i in range(4) if i != j]) for j in range(4)]
    middle = sum(left_out) / 4
    expected = math.sqrt(3 / 4 * sum((value - middle) ** 2 for value in left_out))
    assert metric.standard_error == pytest.approx(expected, rel=1e-12)


def test_the_interval_has_the_percentiles_of_all_resamples():
    """Of three records there are 27 resamples, equally likely: their percentiles are known."""
    values = [0.0, 1.0, 4.0]
    means = sorted(sum(each) / 3 for each in itertools.product(values, repeat=3))
    assert Metric.over(values).interval(0.6, n_resamples=20_000) == pytest.approx((means[5], means[21]), abs=1e-12)


def test_the_interval_covers_as_often_as_it_says():
    """Of 200 samples of 60 records with a true rate of 0.3, close to 95 % of the intervals hold it."""
    drawn = random.Random(3)
    held = 0
    for seed in range(200):
        low, high = Metric.over([float(drawn.random() < 0.3) for _ in range(60)]).interval(n_resamples=400, seed=seed)
        held += low <= 0.3 <= high
    assert 0.89 <= held / 200 <= 0.99


def test_intervals_repeat_with_their_seed():
    metric = several(*([random.Random(i).random() for i in range(40 * j, 40 * j + 40)] for j in range(2)))
    assert metric.interval(seed=1) == metric.interval(seed=1)
    assert metric.interval(seed=1) != metric.interval(seed=2)
    assert math.isnan(Metric.over([1.0]).interval()[0])


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 0.0}, {"n_resamples": 0}])
def test_an_interval_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="expected a level between 0 and 1"):
        Metric.over([0.0, 1.0]).interval(**wrong)


def test_a_paired_test_by_hand():
    """Differences 1, 1, 1: of the eight ways to swap signs, two are as extreme."""
    found = paired_test(Metric.over([1.0, 2.0, 3.0]), Metric.over([0.0, 1.0, 2.0]))
    assert found.difference == 1.0
    assert found.p_value == pytest.approx(2 / 8)
    assert found.standard_error == pytest.approx(0.0, abs=1e-12)
    assert (found.interval, found.n) == (pytest.approx((1.0, 1.0)), 3)


def test_drawn_permutations_come_close_to_all_of_them():
    drawn = random.Random(5)
    first = [drawn.random() for _ in range(12)]
    second = [value - 0.1 + 0.3 * drawn.random() for value in first]
    exact = paired_test(Metric.over(first), Metric.over(second), n_permutations=2**12)
    sampled = paired_test(Metric.over(first), Metric.over(second), n_permutations=4000)
    assert sampled.p_value == pytest.approx(exact.p_value, abs=0.03)
    signs = itertools.product((1, -1), repeat=12)
    differences = [a - b for a, b in zip(first, second, strict=True)]
    sums = [abs(sum(s * d for s, d in zip(sign, differences, strict=True))) for sign in signs]
    assert exact.p_value == pytest.approx(sum(s >= abs(sum(differences)) - 1e-12 for s in sums) / 2**12)


def test_scores_are_compared_by_swapping_whole_records():
    good = several([1.0] * 8, [1.0] * 8, [0.9] * 8)
    bad = several([0.5] * 8, [0.5] * 8, [0.9] * 8)
    found = paired_test(good, bad)
    assert found.difference == pytest.approx(good.mean - bad.mean)
    assert found.p_value == pytest.approx(2 / 2**8)


def test_equal_methods_do_not_differ():
    metric = several([0.2, 0.9, 0.4], [0.3, 0.2, 0.8])
    found = paired_test(metric, metric)
    assert (found.difference, found.p_value) == (0.0, 1.0)


def test_records_that_only_one_has_are_left_out_of_the_pairs():
    found = paired_test(Metric.over([1.0, 5.0, 2.0]), Metric.over([0.0, math.nan, 1.0]))
    assert (found.difference, found.n) == (1.0, 2)


def test_a_chance_difference_has_a_p_value_that_is_uniform():
    drawn = random.Random(11)
    low = 0
    for seed in range(200):
        first, second = ([drawn.gauss(0, 1) for _ in range(20)] for _ in range(2))
        low += paired_test(Metric.over(first), Metric.over(second), n_permutations=300, seed=seed).p_value < 0.1
    assert 0.04 <= low / 200 <= 0.17


def test_metrics_over_other_records_are_not_compared():
    with pytest.raises(ValueError, match=r"paired_test: .*expected the same metric over the same records"):
        paired_test(Metric.over([1.0, 0.0]), Metric.over([1.0, 0.0, 1.0]))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)


def test_metrics_show_themselves():
    metric = Metric.over([0.0, 1.0, 1.0, 1.0])
    assert repr(metric) == "Metric(mean 0.75, standard error 0.25, n 4)"
    assert metric == Metric.over([0.0, 1.0, 1.0, 1.0])
    assert metric != Metric.over([1.0, 0.0, 1.0, 1.0])
    assert len({metric, Metric.over([0.0, 1.0, 1.0, 1.0])}) == 1
