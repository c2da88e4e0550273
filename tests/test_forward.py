"""Running part of a model: what is read, where the pass ends, and that nothing is left behind."""

import contextlib
import dataclasses
import functools

import pytest
import torch
from tiny_models import D_MLP, D_MODEL, WINDOW, Case, available_cases, build, interfaces

from tl_edit import EditRecord, EditRequest, causal_trace, evaluate, generate_prefixes, host
from tl_edit.forward import activations, at_least_float32, last_log_probs, log_probs, logits
from tl_edit.hooks import shift
from tl_edit.tokens import TokenBatch

NAMES = [host.EMBED, "blocks.0.hook_mlp_out", host.key_name(1), host.resid_post_name(1)]
LATER = ["blocks.2.hook_resid_pre", "blocks.2.hook_resid_post", host.key_name(2)]
shared = functools.cache(build)

each_interface = pytest.mark.parametrize("interface", interfaces())
each_case = pytest.mark.parametrize("case", available_cases(["gpt2", "gemma2", "opt", "phi"]), ids=str)


def batch(rows=3, pos=6):
    ids = torch.randint(5, 300, (rows, pos), generator=torch.Generator().manual_seed(1))
    lengths = tuple(pos - row for row in range(rows))
    mask = (torch.arange(pos)[None] < torch.tensor(lengths)[:, None]).long()
    return TokenBatch(tokens=ids, attention_mask=mask, lengths=lengths)


def cached(model, name):
    with torch.no_grad():
        mask = torch.ones_like(batch().attention_mask)  # without it a bridge takes a token for padding
        _, cache = model.run_with_cache(batch().tokens, names_filter=name, attention_mask=mask)
    return cache[name]


class Watch:
    """A hook that notes that it fired."""

    def __init__(self):
        self.fired = 0

    def __call__(self, act, hook=None):
        self.fired += 1


# --- activations ---------------------------------------------------------------------------------------


@each_case
def test_activations_are_those_of_run_with_cache(case):
    model = shared(case)
    read = activations(model, batch(), NAMES)
    assert read.keys() == set(NAMES)
    for name in NAMES:
        expected = cached(model, name)
        assert expected.shape[-1] == (D_MLP if "post" in name and "mlp" in name else D_MODEL)
        torch.testing.assert_close(read[name], expected, atol=1e-6, rtol=1e-6)


@each_case
def test_the_value_is_read_where_there_is_no_hook_point_for_it(case):
    model = shared(case)
    name = host.value_name(model, 1)
    read = activations(model, batch(), [host.key_name(1), name])
    change = read[name] - read[host.key_name(1)] @ host.w_out(model, 1)
    torch.testing.assert_close(change, change[:1, :1].expand_as(change), atol=2e-5, rtol=0)


@each_case
def test_the_pass_ends_after_the_last_of_the_names(case):
    model = shared(case)
    before, after, head = Watch(), Watch(), Watch()
    watching = [("blocks.0.hook_resid_pre", before), *((name, after) for name in LATER)]
    handle = model.unembed.register_forward_hook(lambda *_: head(None))
    try:
        activations(model, batch(), NAMES, watching)
        assert (before.fired, after.fired, head.fired) == (1, 0, 0)
        activations(model, batch(), [LATER[1]], watching)
        assert (before.fired, after.fired, head.fired) == (2, 3, 0)
        model(batch().tokens)
        assert head.fired == 1
    finally:
        handle.remove()


@each_interface
def test_names_may_repeat_and_come_in_any_order(interface):
    model = shared(Case("gpt2", interface, False))
    expected = activations(model, batch(), NAMES)
    read = activations(model, batch(), [*NAMES[::-1], NAMES[0]])
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in NAMES)


@each_case
def test_activations_are_read_with_the_given_hooks_attached(case):
    model = shared(case)
    name = host.value_name(model, 1)
    push = (name, shift(torch.ones(D_MODEL), 2))
    plain, pushed = activations(model, batch(), [name]), activations(model, batch(), [name], [push])
    expected = plain[name].clone()
    expected[:, 2] += 1
    assert torch.equal(pushed[name], expected)
    earlier = activations(model, batch(), [LATER[0]], [push])[LATER[0]]
    assert (earlier - activations(model, batch(), [LATER[0]])[LATER[0]]).abs().amax() > 0.1


def snapshot(model):
    modules = dict(model.named_modules())
    points = {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}
    hooks = {name: list(module._forward_hooks) for name, module in modules.items()}
    modes = {name: module.training for name, module in modules.items()}
    flags = {name: (p.requires_grad, p.grad, p._version) for name, p in model.named_parameters()}
    side = model.tokenizer.padding_side
    return points, hooks, modes, flags, side


@each_case
def test_stopping_early_leaves_the_model_as_it_was(case):
    model = shared(case)
    with torch.no_grad():
        expected = model(batch().tokens)
    before = snapshot(model)
    for names in ([host.EMBED], [host.value_name(model, 0)], ["blocks.1.hook_attn_out"], [LATER[2]]):
        activations(model, batch(), names)
    assert snapshot(model) == before
    with torch.no_grad():
        assert torch.equal(model(batch().tokens), expected)
        assert torch.equal(model.run_with_cache(batch().tokens)[0], expected)


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.enable_grad, torch.inference_mode])
@each_case
def test_every_grad_mode_will_do_and_is_left_as_it_was(case, mode):
    model = shared(case)
    expected = activations(model, batch(), NAMES)
    with mode():
        state = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        read = activations(model, batch(), NAMES)
        last = last_log_probs(model, batch())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == state
    for name in NAMES:
        assert torch.equal(read[name], expected[name])
        assert not read[name].requires_grad
    assert torch.equal(last, last_log_probs(model, batch()))
    assert not last.requires_grad


@each_interface
def test_reading_keeps_no_graph(interface):
    modes = []
    note = (host.EMBED, lambda act, hook=None: modes.append(torch.is_grad_enabled()))
    activations(shared(Case("gpt2", interface, False)), batch(), NAMES, [note])
    last_log_probs(shared(Case("gpt2", interface, False)), batch(), [note])
    assert modes == [False, False]


@each_interface
def test_it_works_with_gradients_disabled_globally(interface):
    model = shared(Case("gpt2", interface, False))
    expected = activations(model, batch(), NAMES)
    torch.set_grad_enabled(False)
    try:
        assert torch.equal(activations(model, batch(), NAMES)[NAMES[-1]], expected[NAMES[-1]])
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


@each_interface
def test_what_is_read_is_a_copy(interface):
    model = shared(Case("gpt2", interface, False))
    first = activations(model, batch(), NAMES)
    for act in first.values():
        act.zero_()
    assert activations(model, batch(), NAMES)[NAMES[-1]].abs().max() > 0.1


@each_interface
def test_a_hook_point_that_does_not_fire_is_named(interface):
    model = shared(Case("phi", interface, False))
    # One has to be switched on in the configuration, the other is for positions that are added.
    silent = {"HookedTransformer": "blocks.1.hook_mlp_in", "TransformerBridge": "hook_pos_embed"}[interface]
    assert silent in model.hook_dict
    model(batch().tokens)
    before = snapshot(model)
    with pytest.raises(ValueError, match=rf"reading activations: \['{silent}'\] did not fire .*; see model\.hook_dict"):
        activations(model, batch(), [host.EMBED, silent])
    assert snapshot(model) == before


@each_interface
def test_an_unknown_name_is_refused_before_anything_runs(interface):
    model, watch = shared(Case("gpt2", interface, False)), Watch()
    with pytest.raises(ValueError, match=r"'blocks\.1\.hook_resid_pots' is not a hook point"):
        activations(model, batch(), ["blocks.1.hook_resid_pots"], [(host.EMBED, watch)])
    assert watch.fired == 0


@each_interface
def test_an_error_in_a_hook_comes_out_and_the_hooks_come_off(interface):
    model = shared(Case("gpt2", interface, False))
    model(batch().tokens)
    before = snapshot(model)[:2]

    def fail(act, hook=None):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        activations(model, batch(), NAMES, [("blocks.1.hook_resid_pre", fail)])
    with pytest.raises(RuntimeError, match="mine"):
        logits(model, batch(), [("blocks.1.hook_resid_pre", fail)])
    assert snapshot(model)[:2] == before


@each_interface
def test_an_activation_without_a_sequence_gets_its_axis_back(interface):
    model = shared(Case("gpt2", interface, False))
    expected = activations(model, batch(), [host.key_name(1)])[host.key_name(1)]
    # As some Hugging Face MLPs see it.
    flatten = (host.key_name(1), lambda act, hook=None: act.reshape(-1, D_MLP))
    read = activations(model, batch(), [host.key_name(1)], [flatten])[host.key_name(1)]
    assert torch.equal(read, expected)


# --- logits --------------------------------------------------------------------------------------------


@each_case
def test_logits_are_the_models_own(case):
    model = shared(case)
    with torch.no_grad():
        found = logits(model, batch())
        for row, length in enumerate(batch().lengths):
            alone = model(batch().tokens[row : row + 1, :length])[0]
            torch.testing.assert_close(found[row, :length], alone, atol=2e-5, rtol=1e-5)
    assert found.shape == (3, 6, model.cfg.d_vocab)


@each_case
def test_last_log_probs_are_those_after_each_rows_last_real_token(case):
    model = shared(case)
    last = last_log_probs(model, batch())
    with torch.no_grad():
        for row, length in enumerate(batch().lengths):
            alone = model(batch().tokens[row : row + 1, :length]).log_softmax(-1)[0, -1]
            torch.testing.assert_close(last[row], alone, atol=2e-5, rtol=0)
    torch.testing.assert_close(last.exp().sum(-1), torch.ones(3), atol=1e-5, rtol=0)


@each_case
def test_padding_beyond_a_sliding_window_is_numbers(case):
    """Masked, these positions see no key; Hugging Face's Gemma 2 then has no number in float64, and soon none."""
    model, length = build(case, dtype=torch.float64), 3 * WINDOW
    ids = torch.randint(5, 300, (2, length), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(length)[None] < torch.tensor([length, 4])[:, None]).long()
    padded = TokenBatch(tokens=ids, attention_mask=mask, lengths=(length, 4))
    with torch.no_grad():
        assert torch.isfinite(logits(model, padded)).all()
        alone = model(ids[1:, :4])
        torch.testing.assert_close(logits(model, padded)[1:, :4], alone, atol=2e-5, rtol=1e-5)


@pytest.mark.skipif("HookedTransformer" not in interfaces(), reason="bridges have causal models only")
def test_a_model_that_looks_ahead_gets_the_mask():
    model = build(Case("gpt2", "HookedTransformer", False))
    hidden = dataclasses.replace(batch(1), attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]), lengths=(4,))
    name = host.resid_post_name(1)

    def read(of):
        return activations(model, of, [name])[name][0, 3]

    assert torch.equal(read(hidden), read(batch(1)))
    for block in model.blocks:
        block.attn.cfg.attention_dir = "bidirectional"
    model.cfg.attention_dir = "bidirectional"
    assert (read(hidden) - read(batch(1))).abs().max() > 0.01


@each_case
def test_gradients_flow_through_logits_if_they_are_enabled(case):
    model = shared(case)
    vector = torch.zeros(D_MODEL, requires_grad=True)
    hooks = [(host.value_name(model, 1), shift(vector, 2))]
    loss = logits(model, batch(), hooks)[0, -1].log_softmax(-1)[7]
    (gradient,) = torch.autograd.grad(loss, vector)
    assert gradient.abs().max() > 1e-4
    with torch.no_grad():
        assert not logits(model, batch(), hooks).requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@each_interface
def test_hooks_change_logits_and_are_gone_afterwards(interface):
    model = shared(Case("gpt2", interface, False))
    hooks = [(host.value_name(model, 1), shift(torch.arange(D_MODEL).float(), 2))]
    before = last_log_probs(model, batch())
    assert (last_log_probs(model, batch(), hooks) - before).abs().max() > 0.1
    assert torch.equal(last_log_probs(model, batch()), before)


# --- dtypes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@each_interface
def test_activations_keep_the_models_dtype_and_log_probs_have_at_least_float32(interface, dtype):
    model, reference = build("gpt2", interface, dtype=dtype), shared(Case("gpt2", interface, False))
    read = activations(model, batch(), NAMES)
    assert {act.dtype for act in read.values()} == {dtype}
    last = last_log_probs(model, batch())
    assert last.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(last.exp().sum(-1), torch.ones_like(last[:, 0]), atol=1e-5, rtol=0)
    error = (last - last_log_probs(reference, batch())).abs().mean()
    assert error < {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-5}[dtype]


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_half_precision_is_widened_and_float64_kept(dtype, wide):
    assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == wide


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_probabilities_that_are_not_finite_are_refused(bad):
    """Everything that reads probabilities asks here: traces, evaluations, prefixes."""
    model = build("gpt2")
    host.write_w_out(model, 2, torch.full((D_MLP, D_MODEL), bad))
    record = EditRecord(EditRequest("{} is in", "The Eiffel Tower", "Rome"))
    for call in (
        lambda: last_log_probs(model, batch()),
        lambda: causal_trace(model, "The Eiffel Tower is in", "The Eiffel Tower"),
        lambda: evaluate(model, record),
        lambda: generate_prefixes(model, lengths=(4,), n_per_length=2),
    ):
        with pytest.raises(ValueError, match=r"not finite; expected .*; load the model in float32"):
            call()


def test_a_token_that_is_ruled_out_has_probability_zero():
    model = build("gpt2")
    found = log_probs(model, torch.tensor([[0.0, -torch.inf]]))
    assert found.exp().tolist() == [[1.0, 0.0]]
