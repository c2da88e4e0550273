"""ROME: its algebra as theorems, and an editor that leaves no trace when it fails."""

import warnings
from dataclasses import replace

import pytest
import tiny_models
import tiny_tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_edit.rome as rome_module
from tl_edit import (
    EditRequest,
    MEMITConfig,
    ROMEConfig,
    SecondMoments,
    attach,
    extract_keys_values,
    host,
    memit_edit,
    optimize_value,
    rome_edit,
    rome_update,
    second_moment,
)
from tl_edit.edit import Edit

REQUEST = EditRequest("{} is in the city of", "The Eiffel Tower", "Rome", "Paris")
CONFIG = ROMEConfig(layer=1, n_prefixes=0, v_num_grad_steps=5)
TEXTS = [f"{text} {other}" for text in tiny_tokenizers.CORPUS for other in tiny_tokenizers.CORPUS]


def problem(seed: int, d_mlp: int = 12, d_model: int = 5):
    """A random second moment, keys, value and weights, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    half = random(d_mlp, 2 * d_mlp)
    return half @ half.T / (2 * d_mlp), random(d_mlp), random(d_mlp), random(d_mlp, d_model), random(d_model)


class TestTheorems:
    @given(st.integers(0, 10_000))
    @settings(max_examples=40, deadline=None)
    def test_the_key_answers_v_star(self, seed):
        C, key, other, W, v_star = problem(seed)
        for direction_key in (None, other):
            update = rome_update(torch.linalg.cholesky(C), key, key @ W, v_star, direction_key=direction_key)
            assert torch.allclose(key @ (W + update.matrix), v_star, rtol=1e-8, atol=1e-9)

    @given(st.integers(0, 10_000))
    @settings(max_examples=40, deadline=None)
    def test_no_other_change_that_works_disturbs_less(self, seed):
        C, key, other, W, v_star = problem(seed)
        update = rome_update(torch.linalg.cholesky(C), key, key @ W, v_star).matrix
        cost = torch.trace(update.T @ C @ update)
        harmless = torch.outer(other - key * (other @ key) / (key @ key), v_star)
        assert torch.allclose(key @ harmless, torch.zeros(5).double(), atol=1e-9)
        for size in (1e-3, 1.0, -1.0):
            rival = update + size * harmless
            assert torch.trace(rival.T @ C @ rival) >= cost * (1 - 1e-12)

    def test_the_change_has_rank_one_and_a_direction_of_unit_length(self):
        C, key, _, W, v_star = problem(0)
        update = rome_update(torch.linalg.cholesky(C), key, key @ W, v_star)
        assert torch.linalg.matrix_rank(update.matrix) == 1
        assert float(update.left.norm()) == pytest.approx(1.0)

    def test_the_scale_of_the_second_moment_does_not_matter(self):
        C, key, _, W, v_star = problem(1)
        one, seven = (rome_update(torch.linalg.cholesky(c * C), key, key @ W, v_star).matrix for c in (1, 7))
        assert torch.allclose(one, seven, rtol=1e-10)

    def test_with_the_identity_it_is_least_squares(self):
        _, key, _, W, v_star = problem(2)
        update = rome_update(torch.eye(12).double(), key, key @ W, v_star).matrix
        assert torch.allclose(update, torch.outer(key, v_star - key @ W) / (key @ key))

    def test_orthogonal_key_and_direction_are_refused(self):
        with pytest.raises(ValueError, match="inner product 0"):
            rome_update(
                torch.eye(2).double(),
                torch.tensor([1.0, 0.0]).double(),
                torch.zeros(3).double(),
                torch.ones(3).double(),
                direction_key=torch.tensor([0.0, 1.0]).double(),
            )


@pytest.fixture(scope="module", params=tiny_models.available_cases(), ids=str)
def setting(request):
    model = tiny_models.build(request.param)
    return model, second_moment(model, TEXTS, [1], progress=False)


class TestVariants:
    """Which key reads v* afterwards, and the guard against edits that ruin the model."""

    PREFIXES = ("It is a fact. {}", "My favourite city. {}", "Rome is a city. {}")

    @pytest.fixture(scope="class")
    def double(self):
        model = tiny_models.build("gpt2", dtype=torch.float64)
        return model, second_moment(model, TEXTS, [1], progress=False)

    @pytest.mark.parametrize("variant", ["ROME", "r-ROME", "p-ROME"])
    def test_the_key_that_reads_v_star_and_the_direction(self, double, variant):
        model, moments = double
        config = replace(CONFIG, variant=variant)
        edit = rome_edit(model, REQUEST, moments, config=config, prefixes=self.PREFIXES, apply=False)
        v_star = optimize_value(model, REQUEST, 1, prefixes=self.PREFIXES, search=CONFIG).v_star
        read = extract_keys_values(model, REQUEST, [1], prefixes=self.PREFIXES)
        delta = edit.deltas[1].matrix
        bare = read.values[1][0] + read.keys[1][0] @ delta
        mean = read.mean_values[1][0] + read.mean_keys[1][0] @ delta
        exact, other = (mean, bare) if variant == "r-ROME" else (bare, mean)
        torch.testing.assert_close(exact, v_star, rtol=1e-9, atol=1e-10)
        assert not torch.allclose(other, v_star, rtol=1e-3, atol=1e-3)
        of = (read.keys if variant == "p-ROME" else read.mean_keys)[1][0]
        direction = torch.linalg.solve(moments[1].matrix, of)
        torch.testing.assert_close(edit.deltas[1].left[:, 0], direction / direction.norm(), rtol=1e-8, atol=1e-10)
        assert edit.method == variant

    def test_without_prefixes_all_are_one(self, double):
        model, moments = double
        edits = [
            rome_edit(model, REQUEST, moments, config=replace(CONFIG, variant=variant), prefixes=(), apply=False)
            for variant in ("ROME", "r-ROME", "p-ROME")
        ]
        for edit in edits[1:]:
            torch.testing.assert_close(edit.deltas[1].matrix, edits[0].deltas[1].matrix)
        assert edits[0].diagnostics["divisor_ratio"] == pytest.approx(1.0)

    @pytest.fixture
    def at_odds(self, double, monkeypatch):
        """The bare prompt's key is nearly orthogonal to the direction of the mean key."""
        model, moments = double
        read = extract_keys_values(model, REQUEST, [1], prefixes=self.PREFIXES)
        mean = read.mean_keys[1][0]
        direction = torch.linalg.solve(moments[1].matrix, mean)
        across = torch.randn(80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        across -= direction * (across @ direction) / (direction @ direction)
        key = across * mean.norm() / across.norm() + 1e-3 * mean
        twisted = replace(read, keys={1: key[None]})
        monkeypatch.setattr(rome_module, "extract_keys_values", lambda *_args, **_kwargs: twisted)
        return lambda **settings: rome_edit(
            model, REQUEST, moments, config=replace(CONFIG, **settings), prefixes=self.PREFIXES, apply=False
        )

    def test_a_disabling_edit_is_warned_of(self, at_odds):
        with pytest.warns(UserWarning, match=r"likely to disable the model: divisor_ratio is 0.001 .*variant='r-ROME'"):
            edit = at_odds()
        assert edit.diagnostics["divisor_ratio"] == pytest.approx(1e-3, rel=1e-6)

    def test_it_may_be_refused_or_allowed(self, at_odds, recwarn):
        with pytest.raises(ValueError, match="rome_edit: the edit .* is likely to disable the model"):
            at_odds(disabling_edit="refuse")
        at_odds(disabling_edit="allow")
        assert not [each for each in recwarn if "disable" in str(each.message)]

    def test_one_key_throughout_cannot_disable(self, at_odds, recwarn):
        edit = at_odds(variant="r-ROME", disabling_edit="refuse")
        assert edit.diagnostics["disturbance"] < 0.5
        assert not [each for each in recwarn if "disable" in str(each.message)]

    def test_a_change_that_moves_typical_values_far_is_warned_of_in_every_variant(self, double, monkeypatch):
        model, moments = double
        monkeypatch.setattr(rome_module, "MOST_DISTURBANCE", 1e-6)
        with pytest.warns(UserWarning, match=r"at most 1e-06; lower clamp_norm_factor, or choose another layer"):
            rome_edit(model, REQUEST, moments, config=replace(CONFIG, variant="p-ROME"), apply=False)

    def test_the_disturbance_is_what_typical_values_move_by(self, double):
        model, moments = double
        edit = rome_edit(model, REQUEST, moments, config=CONFIG, apply=False)
        delta, value = edit.deltas[1].matrix, extract_keys_values(model, REQUEST, [1]).values[1][0]
        moved = torch.trace(delta.T @ moments[1].matrix @ delta).sqrt() / value.norm()
        assert edit.diagnostics["disturbance"] == pytest.approx(float(moved))

    @pytest.mark.parametrize("bad", [{"variant": "R-ROME"}, {"disabling_edit": "no"}])
    def test_other_words_are_refused(self, bad):
        with pytest.raises((ValueError, TypeError), match=r"(?s)expected one of|Type-check"):
            ROMEConfig(**bad)


def weights(model) -> list[torch.Tensor]:
    return [host.w_out(model, layer).clone() for layer in range(host.n_layers(model))]


def test_the_edit_makes_the_layer_answer_v_star(setting):
    """Hook and weight agree: after the edit the key reads v* where v0 was, in every family and mode."""
    model, moments = setting
    before = weights(model)
    edit = rome_edit(model, REQUEST, moments, config=CONFIG)
    moved = edit.diagnostics["delta_ratio"]
    tokens, lookup = model.to_tokens(REQUEST.prompt), model.to_tokens("The Eiffel Tower").shape[1] - 1
    after = read_value(model, tokens, lookup)
    edit.undo(model)
    v0 = read_value(model, tokens, lookup)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    assert float((after - v0).norm() / v0.norm()) == pytest.approx(moved, rel=1e-3)


def read_value(model, tokens, position):
    store = []

    def read(act, hook):
        store.append(act.detach().reshape(1, tokens.shape[1], -1)[0, position].clone())

    with torch.no_grad(), attach.attached(model, [(host.value_name(model, 1), read)]):
        model(tokens)
    return store[0]


def test_the_target_becomes_likelier_and_the_diagnostics_say_how():
    model = tiny_models.build("gpt2")
    moments = second_moment(model, TEXTS, [1], progress=False)
    tokens = model.to_tokens(REQUEST.prompt)
    target = model.to_tokens(f"{REQUEST.prompt} Rome")[0, tokens.shape[1]]
    edit = rome_edit(model, REQUEST, moments, config=replace(CONFIG, v_num_grad_steps=20), apply=False)
    with torch.no_grad():
        before = model(tokens)[0, -1].softmax(-1)[target]
        with edit.on(model):
            after = model(tokens)[0, -1].softmax(-1)[target]
    assert after > 1.5 * before
    assert edit.diagnostics["losses"][-1] < edit.diagnostics["losses"][0]
    assert edit.diagnostics["key_cosine"] == pytest.approx(1.0)
    assert edit.diagnostics["relative_norm"] == pytest.approx(
        float(edit.deltas[1].matrix.norm() / host.w_out(model, 1).double().norm())
    )
    assert edit.config.layer == 1
    assert edit.provenance.prepend_bos is True


def test_a_search_that_finds_no_value_is_warned_of():
    model = tiny_models.build("gpt2")
    moments = second_moment(model, TEXTS, [1], progress=False)
    with pytest.warns(UserWarning, match=r"rome_edit: for .* no value was found .*raise clamp_norm_factor"):
        rome_edit(model, REQUEST, moments, config=replace(CONFIG, v_num_grad_steps=1), apply=False)


def test_apply_false_only_computes():
    model = tiny_models.build("gpt2")
    before = weights(model)
    edit = rome_edit(model, REQUEST, second_moment(model, TEXTS, [1], progress=False), config=CONFIG, apply=False)
    assert not edit.is_applied(model)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_generated_prefixes_are_recorded_and_repeatable():
    model = tiny_models.build("gpt2")
    moments = second_moment(model, TEXTS, [1], progress=False)
    config = replace(CONFIG, n_prefixes=2, prefix_lengths=(4,), seed=3)
    first, again = (rome_edit(model, REQUEST, moments, config=config, apply=False) for _ in range(2))
    other = rome_edit(model, REQUEST, moments, config=replace(config, seed=4), apply=False)
    assert len(first.diagnostics["prefixes"]) == 2
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


@pytest.mark.skipif("TransformerBridge" not in tiny_models.interfaces(), reason="TransformerLens has no bridge")
def test_a_second_bridge_over_the_same_model_is_edited():
    from test_host import two_bridges

    _, model = two_bridges("gpt2")
    moments = second_moment(model, TEXTS, [1], progress=False)
    tokens, before = model.to_tokens(REQUEST.prompt), weights(model)
    with torch.no_grad():
        unedited = model(tokens)
        edit = rome_edit(model, REQUEST, moments, config=CONFIG)
        assert not torch.allclose(model(tokens), unedited, atol=1e-3)
        edit.undo(model)
        assert torch.equal(model(tokens), unedited)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_prefixes_from_a_generator_reach_every_step():
    """Reading the keys must not use them up before the search."""
    model = tiny_models.build("gpt2")
    moments = second_moment(model, TEXTS, [1], progress=False)
    prefixes = ("It is a fact. {}", "My favourite city. {}")
    listed = rome_edit(model, REQUEST, moments, config=CONFIG, prefixes=prefixes, apply=False)
    once = rome_edit(model, REQUEST, moments, config=CONFIG, prefixes=(text for text in prefixes), apply=False)
    assert once.diagnostics["prefixes"] == prefixes
    assert once.fingerprint == listed.fingerprint


class TestNothingIsLost:
    """An exception at any point leaves weights, flags, mode and hooks as they were."""

    @pytest.fixture(params=list(tiny_models.interfaces()))
    def model(self, request):
        return tiny_models.build("gpt2", request.param)

    @pytest.mark.parametrize("step", ["keys", "search", "first step", "solve", "write"])
    def test_injected_failure(self, model, step, monkeypatch):
        moments = second_moment(model, TEXTS, [1], progress=False)
        calls: list[torch.Tensor] = []
        hook = model.hook_dict["blocks.0.hook_resid_post"]
        hook.add_hook(lambda act, hook: calls.append(act))
        for parameter in list(model.parameters())[::2]:
            parameter.requires_grad_(False)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        flags = [parameter.requires_grad for parameter in model.parameters()]
        mode, grad = model.training, torch.is_grad_enabled()

        def fail(*_args, **_kwargs):
            raise RuntimeError("injected")

        def write_then_fail(model, layer, new, write=host.write_w_out, done=[]):  # noqa: B006
            write(model, layer, new)
            if not done:
                done.append(True)
                raise RuntimeError("injected")

        target, name, failure = {
            "keys": (rome_module, "extract_keys_values", fail),
            "search": (torch.optim.Adam, "__init__", fail),
            "first step": (torch.autograd, "grad", fail),
            "solve": (torch, "cholesky_solve", fail),
            "write": (host, "write_w_out", write_then_fail),
        }[step]
        monkeypatch.setattr(target, name, failure)
        with pytest.raises(RuntimeError, match="injected"):
            rome_edit(model, REQUEST, moments, config=CONFIG)
        monkeypatch.undo()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert (model.training, torch.is_grad_enabled()) == (mode, grad)
        assert [len(point.fwd_hooks) for point in set(model.hook_dict.values())].count(1) == 1
        calls.clear()
        model(model.to_tokens("Paris"))
        assert len(calls) == 1, "the user's hook still fires"

    def test_a_user_hook_that_fails_mid_search_is_no_harm(self, model):
        moments = second_moment(model, TEXTS, [1], progress=False)
        before = weights(model)
        fired = []

        def moody(act, hook):
            fired.append(1)
            if len(fired) == 4:
                raise RuntimeError("mine")

        with model.hooks([("blocks.2.hook_resid_post", moody)]), pytest.raises(RuntimeError, match="mine"):
            rome_edit(model, REQUEST, moments, config=CONFIG)
        assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


@pytest.mark.parametrize("editor", [rome_edit, memit_edit])
def test_a_moment_without_bos_is_warned_of_where_prompts_have_one(editor):
    model = tiny_models.build("gpt2")
    config = CONFIG if editor is rome_edit else MEMITConfig(layers=(1,), share=0.5, n_prefixes=0, v_num_grad_steps=2)
    for made, asked in ((False, True), (False, False), (True, True), (True, False)):
        moments = second_moment(model, TEXTS, [1], prepend_bos=made, progress=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            editor(model, REQUEST, moments, config=config, prefixes=(), prepend_bos=asked, apply=False)
        about = [warning for warning in caught if "begin with a BOS" in str(warning.message)]
        assert bool(about) is (asked and not made)


class TestBadInput:
    @pytest.fixture(scope="class")
    def model(self):
        return tiny_models.build("gpt2")

    @pytest.fixture(scope="class")
    def moments(self, model):
        return second_moment(model, TEXTS, [1], progress=False)

    def test_no_layer(self, model, moments):
        with pytest.raises(ValueError, match=r"no published settings for .*known are .*gpt2-xl.*ROMEConfig\(layer=1\)"):
            rome_edit(model, REQUEST, moments)
        with pytest.raises(ValueError, match="no layer is set.*0 to 2"):
            rome_edit(model, REQUEST, moments, config=ROMEConfig())

    def test_layer_without_moment(self, model, moments):
        with pytest.raises(ValueError, match=r"for layers \[1\]; the edit is at layer 2.*layers=\[2\]"):
            rome_edit(model, REQUEST, moments, layer=2, prefixes=())

    def test_moment_of_another_width(self, model):
        other = tiny_models.build("llama")
        identity = SecondMoments.identity(other, [1])[1]
        with pytest.raises(ValueError, match="d_mlp 9; .* has d_mlp 80"):
            rome_edit(model, REQUEST, replace(identity, matrix=torch.eye(9).double()), layer=1, prefixes=())

    def test_moment_of_another_model(self, model):
        moment = second_moment(tiny_models.build("gpt_neox"), TEXTS, [1], progress=False)
        with pytest.raises(ValueError, match=r"was computed on .*neox.*; this model is .*gpt2"):
            rome_edit(model, REQUEST, moment, layer=1, prefixes=())

    def test_too_few_tokens(self, model):
        moments = second_moment(model, TEXTS, [1], max_tokens=20, progress=False)
        with pytest.raises(ValueError, match="singular after 20 tokens"):
            rome_edit(model, REQUEST, moments, config=CONFIG)

    @pytest.mark.parametrize("prefix", ["no placeholder", "{} and {}"])
    def test_malformed_prefix(self, model, moments, prefix):
        with pytest.raises(ValueError, match="placeholders; expected exactly one"):
            rome_edit(model, REQUEST, moments, layer=1, prefixes=[prefix])

    @pytest.mark.parametrize("family", tiny_models.UNEDITABLE_FAMILIES)
    def test_models_without_a_dense_mlp(self, family, moments):
        with pytest.raises(ValueError, match=r"mixture of experts|no MLP"):
            rome_edit(tiny_models.build(family), REQUEST, moments, layer=1)


def test_published_settings():
    model = tiny_models.build("gpt2")
    for name, layer, clamp, steps in (
        ("gpt2-xl", 17, 4.0, 20),
        ("gpt2-medium", 8, 3.0, 20),
        ("Qwen/Qwen2-7B", 5, 4.0, 25),
    ):
        model.cfg.model_name = name
        config = ROMEConfig.for_model(model)
        assert (config.layer, config.clamp_norm_factor, config.v_num_grad_steps) == (layer, clamp, steps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_half_precision_models_are_edited_and_restored(interface, dtype):
    model = tiny_models.build("gpt2", interface, dtype=dtype)
    moments = second_moment(model, TEXTS, [1], progress=False)
    before = weights(model)
    edit = rome_edit(model, REQUEST, moments, config=CONFIG)
    assert isinstance(edit, Edit)
    assert host.w_out(model, 1).dtype == dtype
    assert not torch.equal(host.w_out(model, 1), before[1])
    edit.undo(model)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="n_prefixes is -1; expected"):
        ROMEConfig(n_prefixes=-1)
