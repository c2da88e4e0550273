"""Algebra of edits: what the weights would give."""

import pytest
import tiny_models
import torch
from some_edits import make_edit, random_deltas, weights

from tl_edit import Edit, EditRequest, LowRank, ROMEConfig, host


@pytest.fixture(scope="module")
def model():
    return tiny_models.build("gpt2", dtype=torch.float64)


@pytest.fixture
def pair(model):
    return make_edit(model, (0, 1), seed=1, rank=3), make_edit(model, (1, 2), seed=2, rank=2)


def change(model, edit) -> list[torch.Tensor]:
    """What an edit does to the weights, measured."""
    before = weights(model)
    with edit.on(model):
        return [after - was for after, was in zip(weights(model), before, strict=True)]


def close(found, expected) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("scale", [0.5, 2, -1, 0, 0.3, 1e-3])
def test_scaling_scales_the_change(model, pair, scale):
    expected = [scale * part for part in change(model, pair[0])]
    assert close(change(model, pair[0] * scale), expected)
    assert close(change(model, scale * pair[0]), expected)


def test_sums_and_differences(model, pair):
    first, second = (change(model, edit) for edit in pair)
    plus, minus = pair[0] + pair[1], pair[0] - pair[1]
    assert close(change(model, plus), [a + b for a, b in zip(first, second, strict=True)])
    assert close(change(model, minus), [a - b for a, b in zip(first, second, strict=True)])
    assert close(change(model, -pair[0]), [-part for part in first])
    assert close(change(model, sum(pair)), change(model, plus))
    assert close(change(model, pair[0] - pair[0]), [torch.zeros_like(part) for part in first])
    assert plus.ranks == {0: 3, 1: 5, 2: 2}


def test_layers_and_truncation(model, pair):
    edit = pair[0]
    assert tuple(edit.layers([1]).deltas) == (1,)
    assert close(
        change(model, edit.layers([1])),
        [part if layer == 1 else 0 * part for layer, part in enumerate(change(model, edit))],
    )
    assert close(change(model, edit.layers([0]) + edit.layers([1])), change(model, edit))
    for rank in (1, 2, 3, 7):
        cut = edit.truncate(rank)
        for layer, delta in cut.deltas.items():
            u, sizes, v = torch.linalg.svd(edit.deltas[layer].matrix, full_matrices=False)
            best = u[:, :rank] * sizes[:rank] @ v[:rank]
            assert torch.allclose(delta.matrix, best, rtol=0, atol=1e-12)
            assert delta.rank == min(rank, 3)


def test_norms_are_those_of_the_matrices(pair):
    for edit in (*pair, pair[0] + pair[1], pair[0] * -2, pair[0].truncate(1)):
        for layer, norm in edit.norms.items():
            assert norm == pytest.approx(float(edit.deltas[layer].matrix.norm()), rel=1e-10)


def test_a_sum_never_takes_more_room_than_the_matrix(model):
    edits = [make_edit(model, (1,), seed=seed, rank=20) for seed in range(5)]
    total = sum(edits)
    _, d_model = host.w_out(model, 1).shape
    assert total.ranks == {1: d_model}
    assert torch.allclose(total.deltas[1].matrix, sum(edit.deltas[1].matrix for edit in edits), atol=1e-12)
    wide = LowRank(torch.randn(4, 3).double(), torch.randn(3, 9).double())
    assert (wide + wide).rank == 4
    assert torch.allclose((wide + wide).matrix, 2 * wide.matrix)


def test_what_is_derived_says_so(model, pair):
    first, second = pair
    assert (first * 0.5).method == "0.5 * test"
    assert (-first).method == "-1 * test"
    assert (first + second).method == "test"
    other = Edit.of(
        model,
        random_deltas(model, seed=3),
        method="mine",
        requests=(EditRequest("{} is", "Rome", "red"),),
        config=ROMEConfig(layer=1),
        diagnostics={"divisor": 1.0},
        statistics={1: "a note"},
        seed=5,
    )
    both = first + other
    assert both.method == "test + mine"
    assert (both * 2).method == "2 * (test + mine)"
    assert both.layers([1]).method == "(test + mine).layers([1])"
    assert first.truncate(1).method == "test.truncate(1)"
    assert both.requests == (*first.requests, *other.requests)
    assert both.config == (None, ROMEConfig(layer=1))
    assert (other + other * 2).config == ROMEConfig(layer=1)
    assert both.provenance.seed is None
    assert both.statistics == {1: "a note"}
    assert both.diagnostics == {}, "those of a part do not hold for the sum"
    assert (other * 2).diagnostics == {}
    assert both.base.weights.keys() == {0, 1}


def test_edits_differ_by_their_fingerprints(model, pair):
    first, second = pair
    made = [first, second, first * 2, -first, first + second, second + first, first.layers([0]), first.truncate(1)]
    assert len({edit.fingerprint for edit in made}) == len(made)
    assert (first * 2).fingerprint == (first * 2).fingerprint


def test_wrong_algebra_is_refused(model, pair):
    first, second = pair
    for scale in (float("nan"), float("inf"), True):
        with pytest.raises(ValueError, match="the scale is .*; expected a finite number"):
            first * scale
    for layers in ([], [5], [1.0], [0, 7]):
        with pytest.raises(Exception, match=r"expected some of \[0, 1\]|[Tt]ype-check"):
            first.layers(layers)
    with pytest.raises(ValueError, match="rank is 0; expected an integer of 1 or more"):
        first.truncate(0)
    with pytest.raises(TypeError):
        first + 1
    with pytest.raises(TypeError):
        first - 1
    narrow = Edit.of(tiny_models.build("gpt2", seed=1, dtype=torch.float64), first.deltas, method="other")
    with pytest.raises(ValueError, match="computed on different weights of layer 0; expected edits of one model"):
        first + narrow
    other = LowRank(torch.ones(7, 1).double(), torch.ones(1, 32).double())
    with pytest.raises(ValueError, match=r"layer 1 are of shape \[80, 32\] and \[7, 32\]"):
        first + Edit(method="x", deltas={1: other}, requests=(), config=None, provenance=second.provenance)


def test_wrong_changes_are_refused(model):
    good = random_deltas(model)[1]
    for deltas, words in (
        ({}, "expected at least one"),
        ({-1: good}, "each an integer of 0 or more"),
        ({9: good}, "layer 9"),
        ({1: LowRank(good.right.T, good.left.T)}, "32 x 80; W_out of .* is 80 x 32"),
        ({1: LowRank(good.left * float("nan"), good.right)}, "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            Edit.of(model, deltas, method="mine")


def test_the_callers_tensors_do_not_reach_an_edit():
    model = tiny_models.build("gpt2")
    deltas = random_deltas(model)
    edit = Edit.of(model, deltas, method="mine").apply(model)
    deltas[1].left.mul_(100)
    assert float(edit.deltas[1].left.abs().max()) < 5
    edit.undo(model)


def test_edits_are_equal_by_what_they_change(model, pair):
    first, second = pair
    again = Edit.of(model, first.deltas, method=first.method)
    assert again == first
    assert again in (second, first)
    assert len({first, again, second}) == 2
    assert first != second
    assert first != first.method


def test_sums_are_named_by_their_parts(model, pair):
    a = Edit.of(model, random_deltas(model, seed=5), method="A")
    b = Edit.of(model, random_deltas(model, seed=6), method="B")
    assert ((a + b) * 0.5 + (b + a) * 0.5).method == "0.5 * (A + B) + 0.5 * (B + A)"
    assert (a - b + b).method == "A + -1 * B + B"
    assert (a / 2).method == "0.5 * A"
    with pytest.raises(ValueError, match="the divisor is 0"):
        a / 0
    assert tuple((a + pair[0]).layers({0, 1}).deltas) == (0, 1)
