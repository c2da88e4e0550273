"""The hook factories, alone and in the user's own runs on both interfaces."""

import functools

import numpy as np
import pytest
import torch
from tiny_models import D_MODEL, Case, available_cases, build, interfaces

from tl_edit import attach, host, tokens
from tl_edit.hooks import capture, corrupt_subject, gaussian_draws, restore, shift

PROMPT, SUBJECT = "The mother tongue of Danielle Darrieux is", "Danielle Darrieux"
RESID = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
EMBED = "hook_embed"
shared = functools.cache(build)

each_interface = pytest.mark.parametrize("interface", interfaces())
each_case = pytest.mark.parametrize("case", available_cases(["gpt2", "llama", "opt", "phi"]), ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


def acts(batch=4, pos=7, width=D_MODEL, dtype=torch.float32, seed=0):
    return torch.randn(batch, pos, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def asked(model):
    prompt = tokens.tokenize_prompt(model, PROMPT, SUBJECT)
    return prompt.tokens[None], prompt.subject_span


def log_probs(logits):
    return logits.double().log_softmax(-1)


# --- noise ---------------------------------------------------------------------------------------------


@each_dtype
def test_the_noise_is_numpys_stream_added_in_float64_and_rounded_once(dtype):
    act = acts(dtype=dtype)
    draws = np.random.RandomState(5).randn(4, 3, D_MODEL)
    expected = act.clone()
    expected[:, 2:5] = torch.from_numpy(act[:, 2:5].double().numpy() + 0.7 * draws).to(dtype)
    assert torch.equal(corrupt_subject((2, 5), noise_std=0.7, seed=5)(act), expected)


def test_the_published_seed_is_the_default():
    assert torch.equal(corrupt_subject((2, 5))(acts()), corrupt_subject((2, 5), noise=3.0, seed=1)(acts()))
    assert float(gaussian_draws((1,), seed=1)) == pytest.approx(1.6243453636632417, abs=0)


def test_the_same_seed_gives_the_same_draws_and_another_seed_others():
    hook = corrupt_subject((2, 5), seed=3)
    once, again = hook(acts()), hook(acts())
    assert torch.equal(once, again)
    assert torch.equal(once, corrupt_subject((2, 5), seed=3)(acts()))
    assert not torch.equal(once, corrupt_subject((2, 5), seed=4)(acts()))


def test_draws_leave_the_global_random_state_alone():
    np.random.seed(0)
    expected = np.random.RandomState(0).rand()
    state = torch.get_rng_state()
    corrupt_subject((2, 5))(acts())
    assert np.random.rand() == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_every_row_gets_its_own_draw():
    noise = corrupt_subject((2, 5), noise_std=1.0)(acts()) - acts()
    differences = (noise[:, None] - noise[None]).abs().amax((-1, -2))
    assert (differences + torch.eye(4)).min() > 0.1


def test_more_rows_go_on_in_the_same_stream():
    many, few = (corrupt_subject((2, 5))(acts(1).expand(rows, -1, -1)) for rows in (10, 3))
    assert torch.equal(many[:3], few)


@pytest.mark.parametrize("noise", [3.0, 0.5])
def test_noise_is_a_multiple_of_the_spread_of_each_rows_own_subject(noise):
    act = acts(2)
    act[1] *= 7
    out = corrupt_subject((2, 5), noise=noise)(act)
    for row in range(2):
        std = float(act[row, 2:5].double().std())
        draws = gaussian_draws((2, 3, D_MODEL), seed=1)[row]
        torch.testing.assert_close(out[row, 2:5].double(), act[row, 2:5] + noise * std * draws, atol=1e-5, rtol=1e-5)


def test_noise_std_is_absolute_and_overrides_noise():
    act = acts()
    weak, strong = corrupt_subject((2, 5), noise=99.0, noise_std=0.5), corrupt_subject((2, 5), noise_std=1.0)
    torch.testing.assert_close(2 * (weak(act) - act), strong(act) - act)
    torch.testing.assert_close(weak(100 * act) - 100 * act, weak(act) - act, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{"noise": 0.0}, {"noise_std": 0.0}, {"noise": 3.0, "noise_std": 0.0}])
@each_dtype
def test_no_noise_changes_nothing(settings, dtype):
    act = acts(dtype=dtype)
    assert torch.equal(corrupt_subject((2, 5), **settings)(act), act)


def test_only_the_subject_of_the_given_rows_is_corrupted():
    out = corrupt_subject((2, 5), rows=slice(1, 3))(acts())
    changed = (out != acts()).any(-1)
    expected = torch.zeros(4, 7, dtype=torch.bool)
    expected[1:3, 2:5] = True
    assert torch.equal(changed, expected)


def test_skipped_rows_take_no_draws():
    kept = corrupt_subject((2, 5), rows=slice(1, None))(acts(4))
    alone = corrupt_subject((2, 5))(acts(4)[1:])
    assert torch.equal(kept[1:], alone)


@pytest.mark.parametrize(
    "hook",
    [
        corrupt_subject((2, 5)),
        restore(acts(seed=9), [1, 3]),
        shift(torch.ones(D_MODEL), 2),
        capture({}, "act"),
        capture({}, "act", 2),
    ],
    ids=["corrupt_subject", "restore", "shift", "capture", "capture-one"],
)
def test_the_given_activation_is_left_alone(hook):
    act = acts()
    hook(act)
    assert torch.equal(act, acts())


@pytest.mark.parametrize("span", [(3, 3), (4, 2), (-2, 1), (-3, -1)])
def test_empty_and_negative_spans_are_refused_when_made(span):
    with pytest.raises(ValueError, match=r"corrupt_subject: span .* is empty; expected \(first, one past last\)"):
        corrupt_subject(span)


@pytest.mark.parametrize("settings", [{"noise": -1.0}, {"noise_std": -0.5}, {"noise": 3.0, "noise_std": -1e-9}])
def test_negative_noise_is_refused_when_made(settings):
    with pytest.raises(ValueError, match=r"noise_std .*; expected 0 or more"):
        corrupt_subject((2, 5), **settings)


# --- restoring, shifting, capturing --------------------------------------------------------------------

POSITIONS = {
    "one": (3, [3]),
    "last": (-1, [6]),
    "first": (0, [0]),
    "list": ([5, 1], [5, 1]),
    "range": (range(2, 5), [2, 3, 4]),
    "slice": (slice(2, 5), [2, 3, 4]),
    "slice-to-the-end": (slice(-2, None), [5, 6]),
    "every-second": (slice(None, None, 2), [0, 2, 4, 6]),
    "all": (slice(None), list(range(7))),
    "whole-slice": (slice(0, 7), list(range(7))),
    "none": ([], []),
}
each_position = pytest.mark.parametrize(("positions", "listed"), POSITIONS.values(), ids=POSITIONS)


@each_position
@pytest.mark.parametrize("clean_rows", [1, 4])
def test_restore_puts_back_exactly_the_given_positions(positions, listed, clean_rows):
    clean = acts(clean_rows, seed=9)
    expected = acts()
    for position in listed:
        expected[:, position] = clean[:, position]
    assert torch.equal(restore(clean, positions)(acts()), expected)


@pytest.mark.parametrize("clean_rows", [1, 4])
def test_restore_takes_each_row_from_its_own_clean_row(clean_rows):
    clean = acts(clean_rows, seed=9)
    expected = acts()
    expected[1:3, 2] = clean.expand(4, -1, -1)[1:3, 2]
    assert torch.equal(restore(clean, 2, rows=slice(1, 3))(acts()), expected)


def test_restore_casts_to_the_runs_dtype():
    out = restore(acts(seed=9, dtype=torch.float64), 2)(acts(dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[:, 2], acts(seed=9)[:, 2].bfloat16())


def test_restore_keeps_further_axes():
    act, clean = torch.zeros(2, 7, 3, 5), torch.ones(1, 7, 3, 5)
    out = restore(clean, 4)(act)
    assert out[:, 4].all()
    assert out.sum() == 2 * 15


@each_position
def test_shift_adds_at_exactly_the_given_positions(positions, listed):
    vector, expected = torch.arange(D_MODEL).float(), acts()
    for position in listed:
        expected[:, position] += vector
    assert torch.equal(shift(vector, positions)(acts()), expected)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((D_MODEL,), slice(None)), ((4, 1, D_MODEL), slice(None)), ((2, D_MODEL), slice(None)), ((2, 1, 1), slice(1, 3))],
)
def test_shift_takes_one_vector_or_one_per_row_or_position(shape, rows):
    vector = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    expected = acts()
    expected[rows, [1, 4]] += vector
    assert torch.equal(shift(vector, [1, 4], rows=rows)(acts()), expected)


@each_dtype
def test_gradients_flow_to_the_shift_and_through_the_activation(dtype):
    vector = torch.zeros(D_MODEL, requires_grad=True)
    act = acts(dtype=dtype).requires_grad_()
    weight = acts(seed=3, dtype=dtype)
    out = shift(vector, [1, 4])(act)
    (out * weight).sum().backward()
    torch.testing.assert_close(vector.grad, weight[:, [1, 4]].float().sum((0, 1)), rtol=0.02, atol=0.1)
    assert torch.equal(act.grad, weight)


@each_position
def test_capture_keeps_the_position_axis(positions, listed):
    store = {}
    assert capture(store, "mine", positions)(acts()) is None
    assert torch.equal(store["mine"], acts()[:, listed])


def test_what_is_captured_is_a_detached_copy():
    store, act = {}, acts().requires_grad_()
    capture(store, "all")(act)
    assert not store["all"].requires_grad
    with torch.no_grad():
        act.zero_()
    assert torch.equal(store["all"], acts())


FACTORIES = {
    "restore": lambda positions: restore(acts(seed=9), positions),
    "shift": lambda positions: shift(torch.ones(D_MODEL), positions),
    "capture": lambda positions: capture({}, "act", positions),
}


@pytest.mark.parametrize("positions", [7, -8, [1, 9], slice(5, 9), slice(8, None), slice(-9, 2), slice(7, 30)])
@pytest.mark.parametrize(("name", "factory"), FACTORIES.items(), ids=FACTORIES)
def test_positions_outside_the_sequence_are_refused(name, factory, positions):
    with pytest.raises(
        ValueError, match=rf"{name}: position -?\d+ is outside a sequence of 7 tokens; expected 0 to 6; was"
    ):
        factory(positions)(acts())


@pytest.mark.parametrize(("name", "factory"), FACTORIES.items(), ids=FACTORIES)
def test_an_activation_without_a_sequence_is_refused(name, factory):
    with pytest.raises(
        ValueError, match=rf"{name}: the activation is of shape \[28, 32\]; expected \[batch, pos, width\]"
    ):
        factory(2)(acts().reshape(28, D_MODEL))


@each_interface
@pytest.mark.parametrize("name", ["hook_pattern", "hook_attn_scores"])
@pytest.mark.parametrize("what", ["capture", "restore"])
def test_an_attention_pattern_is_refused(interface, name, what):
    """Its axis 1 is the head, which a position would index silently."""
    model = shared(Case("gpt2", interface, False))
    ids, _ = asked(model)
    hook = capture({}, "act", 2) if what == "capture" else restore(torch.zeros(1, 4, 9, 9), 2)
    with pytest.raises(
        ValueError, match=rf"{what}: .* an attention pattern .*; expected \[batch, pos.* axis 1; choose"
    ):
        model.run_with_hooks(ids, fwd_hooks=[(f"blocks.1.attn.{name}", hook)])


@pytest.mark.parametrize("span", [(5, 8), (6, 9), (7, 8)])
def test_a_span_outside_the_sequence_is_refused_when_run(span):
    with pytest.raises(ValueError, match=r"corrupt_subject: position .* is outside a sequence of 7 tokens"):
        corrupt_subject(span)(acts())


def test_positions_outside_the_clean_run_are_refused():
    with pytest.raises(
        ValueError, match=r"restore \(clean activations\): position 5 is outside a sequence of 4 tokens"
    ):
        restore(acts(pos=4), 5)(acts())


@pytest.mark.parametrize("positions", [-1, slice(None), [0, -2]])
def test_positions_that_mean_another_token_in_the_clean_run_are_refused(positions):
    with pytest.raises(ValueError, match=r"restore: .* expected the same positions.*; capture the clean run again"):
        restore(acts(pos=4), positions)(acts())


def test_a_clean_run_of_a_shorter_text_serves_for_its_own_positions():
    clean = acts(1, pos=4, seed=9)
    assert torch.equal(restore(clean, [0, 3])(acts())[:, [0, 3]], clean[:, [0, 3]].expand(4, -1, -1))


@pytest.mark.parametrize("clean_rows", [2, 3, 5])
def test_another_number_of_clean_rows_is_refused(clean_rows):
    with pytest.raises(
        ValueError, match=rf"clean activations \[{clean_rows}, 7, 32\] in a run of \[4, 7, 32\]; .*one clean row"
    ):
        restore(acts(clean_rows), 2)(acts())


# --- in the user's own runs ----------------------------------------------------------------------------


def in_run_with_hooks(model, ids, hooks):
    return model.run_with_hooks(ids, fwd_hooks=hooks)


def in_context(model, ids, hooks):
    with model.hooks(fwd_hooks=hooks):
        return model(ids)


def in_ours(model, ids, hooks):
    with attach.attached(model, hooks):
        return model(ids)


each_way = pytest.mark.parametrize("run", [in_run_with_hooks, in_context, in_ours], ids=lambda run: run.__name__)


@pytest.mark.parametrize(
    ("case", "run"),
    [
        *((case, in_run_with_hooks) for case in available_cases(["gpt2", "llama", "opt", "phi"])),
        *((Case("gpt2", name, False), run) for name in interfaces() for run in (in_context, in_ours)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@torch.no_grad()
def test_restoring_everything_gives_the_clean_run_and_nothing_the_corrupted_one(case, run):
    model = shared(case)
    ids, span = asked(model)
    clean = {}
    clean_logits = run(model, ids, [(name, capture(clean, name)) for name in [EMBED, *RESID]])
    assert torch.equal(clean_logits, model(ids))
    rows = ids.expand(3, -1)
    corrupt = (EMBED, corrupt_subject(span))
    corrupted = log_probs(run(model, rows, [corrupt]))
    expected = log_probs(clean_logits)
    assert (corrupted - expected).abs().amax((1, 2)).min() > 0.1
    for name in [EMBED, RESID[1]]:
        whole = run(model, rows, [corrupt, (name, restore(clean[name], slice(None)))])
        torch.testing.assert_close(log_probs(whole), expected.expand(3, -1, -1), atol=2e-5, rtol=0)
        nothing = run(model, rows, [corrupt, (name, restore(clean[name], []))])
        assert torch.equal(log_probs(nothing), corrupted)
        row = run(model, rows, [corrupt, (name, restore(clean[name], slice(None), rows=slice(1, 2)))])
        torch.testing.assert_close(log_probs(row)[1], expected[0], atol=2e-5, rtol=0)
        assert torch.equal(log_probs(row)[[0, 2]], corrupted[[0, 2]])


@each_case
@torch.no_grad()
def test_the_draws_are_the_same_behind_both_interfaces(case):
    model, reference = shared(case), shared(Case(case.family, next(iter(interfaces())), False))
    ids, span = asked(model)
    hooks = [(EMBED, corrupt_subject(span, noise_std=0.5))]
    expected = log_probs(in_run_with_hooks(reference, ids.expand(2, -1), hooks))
    actual = log_probs(in_run_with_hooks(model, ids.expand(2, -1), hooks))
    # Processing may move embeddings by their mean, which no layer sees.
    torch.testing.assert_close(actual, expected, atol=1e-3 if case.processed else 1e-4, rtol=0)


@each_way
@each_case
def test_a_shift_at_the_value_site_is_seen_and_differentiable(case, run):
    model = shared(case)
    ids, span = asked(model)
    vector = torch.zeros(D_MODEL, requires_grad=True)
    logits = run(model, ids, [(host.value_name(model, 1), shift(vector, span[1] - 1))])
    torch.testing.assert_close(logits, model(ids), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[0, -1, 5], vector)
    assert gradient.abs().max() > 1e-4
    assert all(parameter.grad is None for parameter in model.parameters())


@each_interface
@torch.no_grad()
def test_captured_activations_are_those_of_run_with_cache(interface):
    model = shared(Case("gpt2", interface, False))
    ids, _ = asked(model)
    _, cache = model.run_with_cache(ids)
    store = {}
    in_run_with_hooks(model, ids, [(name, capture(store, name, [0, -1])) for name in RESID])
    for name in RESID:
        torch.testing.assert_close(store[name], cache[name][:, [0, -1]], atol=1e-6, rtol=0)


@each_interface
@torch.no_grad()
def test_hooks_leave_earlier_positions_alone(interface):
    model = shared(Case("gpt2", interface, False))
    ids, (start, end) = asked(model)
    clean, corrupted = (
        log_probs(model(ids)),
        log_probs(in_run_with_hooks(model, ids, [(EMBED, corrupt_subject((start, end)))])),
    )
    torch.testing.assert_close(corrupted[:, :start], clean[:, :start], atol=1e-5, rtol=0)
    assert (corrupted[:, start:end] - clean[:, start:end]).abs().amax(-1).min() > 0.1


@each_interface
def test_a_position_outside_the_prompt_is_refused_in_a_run(interface):
    model = build("gpt2", interface)
    ids, _ = asked(model)
    before = model(ids)
    with pytest.raises(ValueError, match="restore: position 99 is outside"):
        in_run_with_hooks(model, ids, [(RESID[0], restore(torch.zeros(1, 100, D_MODEL), 99))])
    assert torch.equal(model(ids), before)


def test_a_tuple_of_positions_is_refused_as_ambiguous():
    act = torch.zeros(1, 8, 3)
    for hook in (shift(torch.ones(3), (2, 5)), restore(act, (2, 5)), capture({}, "x", (2, 5))):
        with pytest.raises(ValueError, match=r"slice\(\*\(2, 5\)\) for the span"):
            hook(act)


@pytest.mark.parametrize("position", [np.int64(3), torch.tensor(3), [np.int64(3)], torch.tensor([3]), np.array([3])])
def test_positions_of_other_libraries_are_taken(position):
    store = {}
    capture(store, "x", position)(acts())
    assert torch.equal(store["x"], acts()[:, [3]])


@pytest.mark.parametrize("mask", [torch.tensor([True, False]), [True, False], True], ids=str)
def test_what_is_not_a_position_is_refused(mask):
    with pytest.raises(ValueError, match=r"capture: positions are .*; expected integers.*; for a mask write"):
        capture({}, "x", mask)(acts())
