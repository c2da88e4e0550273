"""EMMET, AlphaEdit and PMET on a model: each keeps its own promise."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from test_memit_edit import CONFIG, REQUESTS, TEXTS, moments_of, same, weights

import tl_edit.memit.loop as loop
from tl_edit import (
    AlphaEditConfig,
    EditRequest,
    EMMETConfig,
    KeyCache,
    MEMITConfig,
    PMETConfig,
    SecondMoments,
    ValueSearch,
    alpha_edit,
    emmet_edit,
    extract_keys_values,
    host,
    memit_edit,
    optimize_values,
    pmet_edit,
    second_moment,
)
from tl_edit.memit.algebra import null_space

pytestmark = pytest.mark.filterwarnings("ignore:.*no value was found that makes the target:UserWarning")

COMMON = {"layers": (0, 1), "n_prefixes": 0, "v_num_grad_steps": 5}
EMMET = EMMETConfig(**COMMON)
ALPHA = AlphaEditConfig(**COMMON, nullspace_threshold=0.5, relative_threshold=True, weight=0.1)
PMET = PMETConfig(**COMMON, stop_kl=None)
ALL = [(emmet_edit, EMMET), (alpha_edit, ALPHA), (pmet_edit, PMET)]
QUIET = {"progress": False, "apply": False}


@pytest.fixture(scope="module")
def double():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    return model, moments_of(model)


class TestEMMET:
    def test_damped_it_is_memit(self, double):
        model, moments = double
        emmet = emmet_edit(model, REQUESTS, moments, config=replace(EMMET, damping=7.0), **QUIET)
        memit = memit_edit(model, REQUESTS, moments, config=MEMITConfig(**COMMON, mom2_update_weight=7.0), **QUIET)
        for layer in (0, 1):
            torch.testing.assert_close(emmet.deltas[layer].matrix, memit.deltas[layer].matrix, rtol=1e-7, atol=1e-10)
        assert emmet.diagnostics["damping"] == {0: 7.0, 1: 7.0}

    def test_one_request_is_never_damped(self, double):
        model, moments = double
        damped, free = (
            emmet_edit(model, REQUESTS[0], moments, config=replace(EMMET, damping=damping), **QUIET)
            for damping in (9.0, 0.0)
        )
        assert damped.fingerprint == free.fingerprint

    def test_requests_that_share_a_key_are_refused_and_nothing_is_written(self, double):
        model, moments = double
        before = weights(model)
        twice = [REQUESTS[0], EditRequest("{} is made of", "The Eiffel Tower", "wood")]
        with pytest.raises(ValueError, match="emmet_update: the key of request 1 depends on the keys before it"):
            emmet_edit(model, twice, moments, config=EMMET, progress=False)
        assert same(model, before)


class TestAlphaEdit:
    def test_common_directions_are_not_moved(self, double):
        model, moments = double
        edit = alpha_edit(model, REQUESTS, moments, config=ALPHA, **QUIET)
        for layer in (0, 1):
            basis = null_space(moments[layer].matrix, 0.5, relative=True)
            kept = torch.eye(80).double() - basis @ basis.T
            assert float((kept @ edit.deltas[layer].matrix).abs().max()) < 1e-10
            assert edit.diagnostics["null_dimensions"][layer] == basis.shape[1]
            assert 0 < edit.diagnostics["null_share"][layer] < 1

    def test_the_cache_holds_the_keys_of_the_edited_model(self):
        model = tiny_models.build("gpt2", dtype=torch.float64)
        moments, cache = moments_of(model), KeyCache()
        alpha_edit(model, REQUESTS[:2], moments, config=ALPHA, cache=cache, progress=False)
        keys = extract_keys_values(model, REQUESTS[:2], [0, 1]).keys
        for layer in (0, 1):
            torch.testing.assert_close(cache.gram(moments[layer], "test"), keys[layer].T @ keys[layer])
        assert repr(cache) == "KeyCache(2 requests, layers [0, 1])"
        free = alpha_edit(model, REQUESTS[2], moments, config=ALPHA, **QUIET)
        held = alpha_edit(model, REQUESTS[2], moments, config=ALPHA, cache=cache, **QUIET)
        moved = [float((keys[0] @ edit.deltas[0].matrix).norm()) for edit in (held, free)]
        assert moved[0] < moved[1]
        assert cache.n_requests == 2, "apply=False remembers nothing"
        alpha_edit(model, REQUESTS[2], moments, config=ALPHA, cache=cache, progress=False)
        assert cache.n_requests == 3

    def test_a_failure_leaves_the_cache_as_it_was(self, monkeypatch):
        model, cache = tiny_models.build("gpt2"), KeyCache()
        moments, before = moments_of(model), weights(model)
        real, calls = host.write_w_out, []

        def write(*args):
            calls.append(1)
            real(*args)
            if len(calls) == 5:
                raise RuntimeError("injected")

        monkeypatch.setattr(host, "write_w_out", write)
        with pytest.raises(RuntimeError, match="injected"):
            alpha_edit(model, REQUESTS, moments, config=ALPHA, cache=cache, progress=False)
        monkeypatch.undo()
        assert cache.n_requests == 0
        assert same(model, before)

    def test_a_cache_of_another_model_is_refused(self, double):
        model, moments = double
        cache = KeyCache()
        cache.add({0: torch.ones(1, 9)}, moments)
        with pytest.raises(ValueError, match=r"alpha_edit: the cache holds keys of layer 0 with d_mlp 9; .*new KeyC"):
            alpha_edit(model, REQUESTS, moments, config=ALPHA, cache=cache, progress=False)

    def test_a_cache_of_a_model_of_the_same_shape_is_refused(self, double):
        model, moments = double
        cache, other = KeyCache(), tiny_models.build("gpt2", seed=5)
        alpha_edit(other, REQUESTS[0], moments_of(other), config=ALPHA, cache=cache, progress=False)
        with pytest.raises(ValueError, match=r"holds keys of layer 0 of a model that computes other keys; .*KeyC"):
            alpha_edit(model, REQUESTS, moments, config=ALPHA, cache=cache, progress=False)
        assert cache.n_requests == 1

    def test_moments_of_few_tokens_are_warned_of(self):
        model = tiny_models.build("gpt2")
        few = second_moment(model, TEXTS, [0, 1], max_tokens=90, progress=False)
        with pytest.warns(UserWarning, match=r"layer 0 is of 90 tokens for 80 dimensions; expected 800 or more"):
            alpha_edit(model, REQUESTS[0], few, config=ALPHA, **QUIET)

    def test_a_threshold_below_every_eigenvalue_is_refused(self, double):
        model, moments = double
        before = weights(model)
        config = replace(ALPHA, nullspace_threshold=1e-12)
        with pytest.raises(ValueError, match="no eigenvalue of the second moment is below"):
            alpha_edit(model, REQUESTS, moments, config=config, progress=False)
        assert same(model, before)

    def test_the_null_space_is_computed_once(self, double, monkeypatch):
        model, moments = double
        cache, calls, real = KeyCache(), [], torch.linalg.eigh
        monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (calls.append(1), real(matrix))[1])
        for _ in range(2):
            alpha_edit(model, REQUESTS, moments, config=ALPHA, cache=cache, **QUIET)
        assert len(calls) == 2, "once for each layer"


class TestPMET:
    def test_the_mlps_part_is_written_by_the_square_root_of_the_layers_left(self, double):
        model, moments = double
        edit = pmet_edit(model, REQUESTS, moments, config=PMET, **QUIET)
        goals = optimize_values(model, REQUESTS, 1, site=("value", "attn_out"), search=PMET)
        now = extract_keys_values(model, REQUESTS, [1]).values[1]
        expected = (torch.stack([goal.v_star for goal in goals]) - now) / 2**0.5
        torch.testing.assert_close(edit.deltas[0].right, expected, rtol=1e-7, atol=1e-10)

    def test_both_sites_and_the_published_stop_reach_the_search(self, double, monkeypatch):
        model, moments = double
        seen = {}

        def search(*args, **others):
            seen.update(others)
            return optimize_values(*args, **others)

        monkeypatch.setattr(loop, "optimize_values", search)
        pmet_edit(model, REQUESTS[:1], moments, config=PMETConfig(**COMMON), **QUIET)
        assert (seen["site"], seen["search"].stop_kl) == (("value", "attn_out"), 0.01)


@pytest.mark.parametrize(("edit", "config"), ALL, ids=lambda value: getattr(value, "__name__", ""))
class TestAll:
    def test_they_write_and_undo(self, edit, config):
        for interface in tiny_models.interfaces():
            model = tiny_models.build("gpt2", interface)
            moments, before = moments_of(model), weights(model)
            made = edit(model, REQUESTS, moments, config=config, progress=False)
            assert made.is_applied(model)
            assert not any(torch.equal(host.w_out(model, layer), before[layer]) for layer in (0, 1))
            made.undo(model)
            assert same(model, before)

    def test_settings_of_another_method_are_refused(self, edit, config, double):
        model, moments = double
        with pytest.raises((ValueError, TypeError), match=r"(?s)type MEMITConfig; expected|Type-check"):
            edit(model, REQUESTS, moments, config=CONFIG)

    def test_without_published_settings_layers_are_enough(self, edit, config, double, monkeypatch):
        model, _ = double
        seen = {}

        def search(*args, search, **others):
            seen["search"] = search
            return optimize_values(*args, search=ValueSearch(v_num_grad_steps=2), **others)

        monkeypatch.setattr(loop, "optimize_values", search)
        identity = SecondMoments.identity(model, [1])
        try:
            made = edit(model, REQUESTS[0], identity, layers=[1], prefixes=(), **QUIET)
        except ValueError as error:
            # All eigenvalues of the identity are the mean.
            assert edit is alpha_edit and "no eigenvalue" in str(error)  # noqa: PT017, PT018
        else:
            assert made.config == replace(type(config)(), layers=(1,))
            assert seen["search"].layers == (1,)


class TestBeforeTheSearch:
    """What can be known before hours of search is said before it."""

    @pytest.fixture(autouse=True)
    def no_search(self, monkeypatch):
        def search(*_args, **_others):
            raise AssertionError("values were sought")

        monkeypatch.setattr(loop, "optimize_values", search)

    def test_a_singular_moment_of_enough_tokens(self):
        model = tiny_models.build("gpt2")
        moments = second_moment(model, TEXTS[:1] * 200, [0, 1], progress=False)
        assert moments[0].count > moments[0].d_mlp
        with pytest.raises(ValueError, match="singular"):
            memit_edit(model, REQUESTS, moments, config=CONFIG, progress=False)

    def test_no_direction_below_the_threshold(self, double):
        model, moments = double
        with pytest.raises(ValueError, match="no eigenvalue"):
            alpha_edit(model, REQUESTS, moments, config=replace(ALPHA, nullspace_threshold=1e-12), progress=False)

    def test_keys_that_depend_on_one_another(self, double):
        model, moments = double
        same_key = [EditRequest("{} is in", "Rome", "Paris"), EditRequest("{} likes", "Rome", "chess")]
        with pytest.raises(ValueError, match="key of request 1 depends on the keys before it"):
            emmet_edit(model, same_key, moments, config=replace(EMMET, damping=0.0), prefixes=(), progress=False)

    def test_one_fact_written_in_two_ways(self, double):
        model, moments = double
        twice = [EditRequest("The {} is in", "Louvre", "Rome"), EditRequest("{} is in", "The Louvre", "London")]
        with pytest.raises(ValueError, match=r"1 of 1 fact is asked for more than once: request 0 .* and request 1"):
            memit_edit(model, twice, moments, config=CONFIG, progress=False)

    def test_weights_that_are_not_finite(self):
        model = tiny_models.build("gpt2")
        moments = moments_of(model)
        with torch.no_grad():
            next(iter(model.parameters()))[:] = float("nan")
        with pytest.raises(ValueError, match=r"keys at layer 0 are not finite; expected numbers; look for weights"):
            memit_edit(model, REQUESTS, moments, config=CONFIG, progress=False)
