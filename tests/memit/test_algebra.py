"""MEMIT's algebra and its relatives' as theorems, in float64 and without a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_edit import alpha_update, emmet_update, memit_update, rome_update
from tl_edit.memit.algebra import null_space, rarity

seeds = given(st.integers(0, 10_000))
some = settings(max_examples=25, deadline=None)


def problem(seed: int, n: int = 4, d_mlp: int = 12, d_model: int = 5):
    """A random second moment, keys and residuals, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    half = random(d_mlp, 2 * d_mlp)
    return half @ half.T / (2 * d_mlp), random(n, d_mlp), random(n, d_model)


def naive(C, K, R, weight):
    """The normal equations, solved as they are written."""
    return torch.linalg.solve(weight * C + K.T @ K, K.T @ R)


def cost(D, C, K, R, weight):
    return float(((R - K @ D) ** 2).sum() + weight * torch.trace(D.T @ C @ D))


class TestMEMIT:
    @seeds
    @some
    def test_dual_primal_and_the_normal_equations_agree(self, seed):
        for n in (1, 4, 9, 30):
            C, K, R = problem(seed, n)
            factor = torch.linalg.cholesky(C)
            expected = naive(C, K, R, 3.0)
            for form in ("dual", "primal", "auto"):
                for known in (None, factor):
                    update = memit_update(C, K, R, weight=3.0, factor=known, form=form)
                    torch.testing.assert_close(update.matrix, expected, rtol=1e-8, atol=1e-10)
                    assert update.right.shape[0] == min(n, 5)

    @seeds
    @some
    def test_one_request_is_romes_update_as_the_weight_vanishes(self, seed):
        C, K, R = problem(seed, 1)
        rome = rome_update(torch.linalg.cholesky(C), K[0], torch.zeros(5).double(), R[0]).matrix
        q = float(K[0] @ torch.linalg.solve(C, K[0]))
        for weight in (1e-2, 1e-4, 1e-6):
            distance = float((memit_update(C, K, R, weight=weight).matrix - rome).norm() / rome.norm())
            # The primal system is nearly singular for small weights, which costs digits.
            assert distance == pytest.approx(weight / (q + weight), rel=1e-3, abs=1e-7)

    @seeds
    @some
    def test_one_request_moves_by_its_share(self, seed):
        C, K, R = problem(seed, 1)
        for weight in (0.1, 10.0):
            q = float(K[0] @ torch.linalg.solve(C, K[0])) / weight
            moved = K @ memit_update(C, K, R, weight=weight).matrix
            torch.testing.assert_close(moved, q / (1 + q) * R)

    @seeds
    @some
    def test_nothing_else_costs_less(self, seed):
        C, K, R = problem(seed)
        update = memit_update(C, K, R, weight=2.0).matrix
        least = cost(update, C, K, R, 2.0)
        for size in (1e-3, 0.1, 1.0):
            other = update + size * torch.randn(update.shape, dtype=torch.float64)
            assert cost(other, C, K, R, 2.0) > least

    def test_the_order_of_requests_does_not_matter(self):
        C, K, R = problem(1, 7)
        order = torch.randperm(7)
        for form in ("dual", "primal"):
            one, two = (memit_update(C, K[i], R[i], weight=1.0, form=form).matrix for i in (order, order.argsort()))
            torch.testing.assert_close(one, two)

    def test_a_request_twice_is_one_of_twice_the_weight(self):
        C, K, R = problem(2, 1)
        twice = memit_update(C, K.repeat(2, 1), R.repeat(2, 1), weight=2.0).matrix
        torch.testing.assert_close(twice, memit_update(C, K, R, weight=1.0).matrix)

    def test_scaling_laws(self):
        """Weight and moment count as a product; residuals scale the change, keys and weight scale it down."""
        C, K, R = problem(3)
        update = memit_update(C, K, R, weight=6.0).matrix
        torch.testing.assert_close(memit_update(6 * C, K, R, weight=1.0).matrix, update)
        torch.testing.assert_close(memit_update(C, K, 7 * R, weight=6.0).matrix, 7 * update)
        torch.testing.assert_close(memit_update(C, 5 * K, R, weight=25 * 6.0).matrix, update / 5)
        torch.testing.assert_close(memit_update(25 * C, 5 * K, R, weight=6.0).matrix, update / 5)

    def test_badly_conditioned_moments_are_solved_well(self):
        torch.manual_seed(0)
        Q = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0]
        C, K, R = Q @ torch.diag(torch.logspace(-7, 0, 60).double()) @ Q.T, torch.randn(3, 60), torch.randn(3, 8)
        expected = naive(C, K.double(), R.double(), 2.0)
        for form in ("dual", "primal"):
            found = memit_update(C, K, R, weight=2.0, form=form).matrix
            assert float((found - expected).norm() / expected.norm()) < 1e-7

    def test_keys_may_make_a_singular_moment_solvable(self):
        """Only the primal can: the dual needs a factor of the moment itself."""
        C, K, R = torch.zeros(2, 2).double(), torch.eye(2).double(), torch.ones(2, 3).double()
        torch.testing.assert_close(memit_update(C, K, R, weight=1.0).matrix, R)
        for form, keys in (("dual", K), ("primal", K[:1])):
            with pytest.raises(ValueError, match=r"second moment is not positive definite; .*second_moment\(...\)"):
                memit_update(C, keys, R[: len(keys)], weight=1.0, form=form)

    @pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
    def test_impossible_weights_are_refused(self, weight):
        C, K, R = problem(0)
        with pytest.raises(ValueError, match="weight is .*; expected a finite number above 0; .*15000"):
            memit_update(C, K, R, weight=weight)

    def test_numbers_that_are_not_finite_are_refused(self):
        C, K, R = problem(0)
        K[1, 2] = float("nan")
        with pytest.raises(ValueError, match="keys holds numbers that are not finite"):
            memit_update(C, K, R, weight=1.0)


class TestEMMET:
    @seeds
    @some
    def test_every_value_is_met_exactly(self, seed):
        for n in (1, 4, 9):
            C, K, R = problem(seed, n)
            update = emmet_update(torch.linalg.cholesky(C), K, R)
            torch.testing.assert_close(K @ update.matrix, R, rtol=1e-6, atol=1e-7)
            assert update.right.shape[0] == min(n, 5)

    @seeds
    @some
    def test_no_other_change_that_meets_them_disturbs_less(self, seed):
        C, K, R = problem(seed)
        update = emmet_update(torch.linalg.cholesky(C), K, R).matrix
        harmless = torch.linalg.svd(K)[2][4:].T @ torch.randn(8, 5, dtype=torch.float64)
        for size in (1e-3, 1.0):
            rival = update + size * harmless
            torch.testing.assert_close(K @ rival, R, rtol=1e-6, atol=1e-7)
            assert torch.trace(rival.T @ C @ rival) >= torch.trace(update.T @ C @ update) * (1 - 1e-10)

    def test_with_damping_it_is_memits_and_with_one_request_romes(self):
        C, K, R = problem(5)
        factor = torch.linalg.cholesky(C)
        damped = emmet_update(factor, K, R, damping=4.0).matrix
        torch.testing.assert_close(damped, memit_update(C, K, R, weight=4.0).matrix)
        rome = rome_update(factor, K[0], torch.zeros(5).double(), R[0]).matrix
        torch.testing.assert_close(emmet_update(factor, K[:1], R[:1]).matrix, rome)

    def test_dependent_keys_are_refused_by_number(self):
        C, K, R = problem(6)
        K[2] = K[0] + 2 * K[1]
        with pytest.raises(ValueError, match=r"key of request 2 depends on the keys before it; .*damping above 0"):
            emmet_update(torch.linalg.cholesky(C), K, R)
        assert emmet_update(torch.linalg.cholesky(C), K, R, damping=1e-3).matrix.isfinite().all()


class TestAlphaEdit:
    @seeds
    @some
    def test_what_is_kept_is_not_moved_at_all(self, seed):
        C, K, R = problem(seed)
        values, vectors = torch.linalg.eigh(C)
        basis = null_space(C, float(values[7]))
        assert basis.shape == (12, 7)
        update = alpha_update(basis, K, R, weight=0.5)
        assert float((vectors[:, 7:].T @ update.matrix).abs().max()) < 1e-10

    @seeds
    @some
    def test_it_is_the_programs_unsymmetric_system(self, seed):
        C, K, R = problem(seed)
        earlier = problem(seed + 1)[1]
        basis = null_space(C, float(torch.linalg.eigvalsh(C)[7]))
        P, cache = basis @ basis.T, earlier.T @ earlier
        expected = torch.linalg.solve(P @ (K.T @ K + cache) + 0.5 * torch.eye(12).double(), P @ K.T @ R)
        update = alpha_update(basis, K, R, weight=0.5, cache=cache)
        torch.testing.assert_close(update.matrix, expected, rtol=1e-7, atol=1e-9)

    def test_remembered_keys_move_less(self):
        C, K, R = problem(8)
        earlier = problem(9)[1]
        basis = null_space(C, 10.0, relative=True)
        free, held = (
            alpha_update(basis, K, R, weight=0.1, cache=cache).matrix for cache in (None, 100 * earlier.T @ earlier)
        )
        assert float((earlier @ held).norm()) < 0.05 * float((earlier @ free).norm())

    def test_more_requests_than_dimensions_give_at_most_rank_d_model(self):
        C, K, R = problem(10, n=30)
        basis = null_space(C, 10.0, relative=True)
        assert alpha_update(basis, K, R, weight=0.1).left.shape == (12, 5)

    def test_the_threshold_may_count_in_mean_eigenvalues(self):
        C, _, _ = problem(11)
        for factor in (1.0, 7.0):
            assert null_space(factor * C, 0.5, relative=True).shape == null_space(C, 0.5, relative=True).shape
        with pytest.raises(ValueError, match=r"no eigenvalue .* below 1e-09 .*raise nullspace_threshold"):
            null_space(C, 1e-9)


def test_rarity_is_one_on_average():
    torch.manual_seed(0)
    keys = torch.randn(500, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    factor = torch.linalg.cholesky(keys.T @ keys / 500)
    assert float(rarity(factor, keys).mean()) == pytest.approx(1.0)


@pytest.mark.parametrize("update", [memit_update, alpha_update])
def test_shapes_that_do_not_fit_are_refused(update):
    C, K, R = problem(0)
    for matrix, keys, residuals in ((C, K[:2], R), (C, K[:, :3], R), (C, K[:0], R[:0])):
        with pytest.raises((ValueError, TypeError), match=r"(?s)shapes are|expected|Type-check"):
            update(matrix, keys, residuals, weight=1.0)


def test_matrices_that_look_alike_are_told_apart():
    """A second moment for its factor, a factor the other way round: both would give a plausible wrong change."""
    C, K, R = problem(0, 2)
    factor = torch.linalg.cholesky(C)
    for call in (
        lambda: emmet_update(C, K, R),
        lambda: emmet_update(factor.T, K, R),
        lambda: memit_update(C, K, R, weight=1.0, factor=factor.T),
        lambda: memit_update(C, K, R, weight=1.0, factor=C),
    ):
        with pytest.raises(ValueError, match="is not lower triangular; expected the lower Cholesky factor"):
            call()
    with pytest.raises(ValueError, match="second moment is not symmetric"):
        memit_update(factor, K, R, weight=1.0)
    with pytest.raises(ValueError, match="null_basis has no columns"):
        alpha_update(C[:, :0], K, R)
