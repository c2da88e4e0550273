"""An edit as hooks: what the edited weights do, gated, in company, and never silently nothing."""

import copy
import functools
import warnings
from dataclasses import replace

import pytest
import some_edits
import tiny_models
import torch
from jaxtyping import TypeCheckError
from tiny_models import HOOKED_TRANSFORMER, TRANSFORMER_BRIDGE, Case, available_cases

from tl_edit import Edit, EditRecord, EditRequest, LowRank, causal_trace, evaluate, extract_keys_values, host
from tl_edit.attach import attached

FLOAT32, FLOAT64 = torch.float32, torch.float64
LAYERS = (0, 2)
TOKENS = torch.randint(5, 300, (3, 9), generator=torch.Generator().manual_seed(0))
PROMPT, SUBJECT = "The Eiffel Tower is in", "The Eiffel Tower"
INTERFACES = list(tiny_models.interfaces())

every_case = pytest.mark.parametrize("case", available_cases(), ids=str)
# One family of each kind: an ordinary MLP, a gated one, a norm behind it, beside the attention, flattened by OPT.
kinds = [
    *available_cases(("gpt2", "llama", "gemma2")),
    *(case for case in available_cases(("phi", "opt")) if not case.processed),
]
each_kind = pytest.mark.parametrize("case", kinds, ids=str)
some_cases = pytest.mark.parametrize("case", available_cases(("gpt2", "gemma2")), ids=str)


@functools.cache
def shared(case, dtype=FLOAT64):
    """A model that tests leave as it is."""
    return tiny_models.build(case, dtype=dtype)


def factors(model, layers=LAYERS, *, seed=0, rank=2, scale=0.1) -> dict[int, LowRank]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=FLOAT64)

    shapes = {layer: host.w_out(model, layer).shape for layer in layers}
    return {layer: LowRank(random(shape[0], rank), random(rank, shape[1])) for layer, shape in shapes.items()}


def make(model, layers=LAYERS, **options) -> Edit:
    return Edit.of(model, factors(model, layers, **options), method="test")


def log_probs(model, hooks=(), tokens=TOKENS, **options) -> torch.Tensor:
    with torch.no_grad(), attached(model, hooks):
        return model(tokens, **options).double().log_softmax(-1)


def furthest(one, other) -> float:
    return float((one - other).abs().max())


# --- hooks = weights -----------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize(("dtype", "atol"), [(FLOAT32, 1e-5), (FLOAT64, 1e-10)], ids=["float32", "float64"])
def test_hooks_do_what_the_weights_do(case, dtype, atol):
    model = shared(case, dtype)
    edit, before = make(model), log_probs(model)
    with edit.on(model):
        weights = log_probs(model)
    assert furthest(weights, before) > 0.2
    # The largest of float32 is 9.3e-6, of log-probabilities down to -20: other machines may round otherwise.
    for hooks in (edit.hooks(), edit.hooks(model), edit.hooks(positions=torch.ones(3, 9).bool())):
        assert torch.allclose(log_probs(model, hooks), weights, atol=atol, rtol=atol / 10)
    # Nothing of it is the model itself, to the bit where no norm has to be computed again.
    nothing = furthest(log_probs(model, edit.hooks(scale=0)), before)
    again = case.family == "gemma2" and case.interface == HOOKED_TRANSFORMER
    assert nothing < atol if again else nothing == 0
    assert torch.equal(log_probs(model), before)


@each_kind
def test_a_scale_is_that_of_the_edit(case):
    model = shared(case)
    edit = make(model)
    for scale in (0.5, -1):
        with (edit * scale).on(model):
            weights = log_probs(model)
        assert furthest(log_probs(model, edit.hooks(scale=scale)), weights) < 1e-10


@each_kind
def test_bfloat16_is_as_near_as_its_rounding(case):
    """Both runs round every state: neither is further from the exact one than the other, by much."""
    model, exact = shared(case, torch.bfloat16), shared(case)
    edit = make(model)
    with edit.on(exact, allow_mismatch=True):
        truth = log_probs(exact)
    with edit.on(model):
        weights = log_probs(model)
    hooks = log_probs(model, edit.hooks(model))
    errors = [float((run - truth).square().mean().sqrt()) for run in (weights, hooks)]
    assert errors[1] < 1.3 * errors[0]
    assert furthest(hooks, weights) < 0.3


@each_kind
def test_padded_batches_are_edited_like_each_row_alone(case):
    model = shared(case)
    edit, lengths = make(model), (9, 4, 6)
    mask = (torch.arange(9)[None] < torch.tensor(lengths)[:, None]).long()
    batch = log_probs(model, edit.hooks(), attention_mask=mask)
    for row, length in enumerate(lengths):
        with edit.on(model):
            alone = log_probs(model, tokens=TOKENS[row : row + 1, :length])
        # Steps of Hugging Face's in float32 depend on the shape of the batch.
        assert furthest(batch[row, :length], alone[0]) < (2e-6 if case.interface == TRANSFORMER_BRIDGE else 1e-10)


@each_kind
def test_gradients_are_those_of_the_edited_weights(case):
    model = shared(case)
    edit, name = make(model), f"blocks.{LAYERS[0]}.hook_resid_pre"
    direction = torch.randn(TOKENS.shape[1], 32, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)

    def gradient(hooks=()):
        step = torch.zeros(9, 32, dtype=FLOAT64, requires_grad=True)
        add = (name, lambda act, hook: act + step)
        with torch.enable_grad(), attached(model, [add, *hooks]):
            loss = (model(TOKENS).log_softmax(-1)[..., :9, :32] * direction).sum()
            return torch.autograd.grad(loss, step)[0]

    with edit.on(model):
        weights = gradient()
    assert furthest(weights, gradient()) > 1e-3
    assert torch.allclose(gradient(edit.hooks()), weights, atol=1e-9, rtol=1e-6)
    gated = gradient(edit.hooks(positions=slice(0, 9), rows=[0, 1, 2]))
    assert torch.allclose(gated, weights, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("interface", INTERFACES)
def test_hooks_made_and_run_in_inference_mode_take_part_in_gradients_later(interface):
    model = tiny_models.build("gpt2", interface)
    with torch.inference_mode():
        edit = make(model)
        hooks = edit.hooks()
        with attached(model, hooks):
            model(TOKENS)
    with torch.enable_grad(), attached(model, hooks):
        model(TOKENS).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


# --- gated ---------------------------------------------------------------------------------------------

PLACES = {
    "one": (4, [4]),
    "from the end": (-2, [7]),
    "slice": (slice(3, 6), [3, 4, 5]),
    "open slice": (slice(5, None), [5, 6, 7, 8]),
    "list": ([5, -1, 3], [3, 5, 8]),
    "tensor": (torch.tensor([3, 4]), [3, 4]),
    "mask": (torch.arange(9) == 5, [5]),
}
ROWS = {
    "all": (None, [0, 1, 2]),
    "one": (1, [1]),
    "last": (-1, [2]),
    "slice": (slice(1, None), [1, 2]),
    "list": ([2, 0], [0, 2]),
    "mask": (torch.tensor([True, False, True]), [0, 2]),
}


def oracle(model, edit, mask, tokens=TOKENS):
    """Where the mask is true, the MLP answers ``key @ (W_out + D)``; hooked to the raw output, wherever that is."""
    keys, hooks = {}, []
    for layer, delta in edit.deltas.items():
        hooks.append((host.key_name(layer), lambda act, hook=None, layer=layer: keys.__setitem__(layer, act)))

        def answer(act, hook=None, layer=layer, delta=delta):
            added = (keys[layer] @ delta.matrix.to(act.dtype)).reshape(*mask.shape, -1) * mask[..., None]
            return act + added.reshape(act.shape)

        hooks.append((host.value_name(model, layer), answer))
    with torch.no_grad(), attached(model, hooks):
        return model(tokens).double().log_softmax(-1)


@each_kind
def test_positions_are_those_asked_for(case):
    model = shared(case)
    edit, before = make(model), log_probs(model)
    for name, (given, listed) in PLACES.items():
        mask = torch.zeros(TOKENS.shape, dtype=torch.bool)
        mask[:, listed] = True
        edited, first = log_probs(model, edit.hooks(positions=given)), listed[0]
        assert furthest(edited, oracle(model, edit, mask)) < 1e-10, name
        assert torch.equal(edited[:, :first], before[:, :first]), name
        assert furthest(edited[:, first], before[:, first]) > 1e-2, name


@some_cases
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("positions", [None, slice(2, 4)], ids=["everywhere", "there"])
def test_rows_are_those_asked_for(case, rows, positions):
    model = shared(case)
    edit, (given, listed) = make(model), ROWS[rows]
    mask = torch.zeros(TOKENS.shape, dtype=torch.bool)
    mask[listed] = torch.arange(9).ge(2) & torch.arange(9).lt(4) if positions else torch.ones(9).bool()
    edited, before = log_probs(model, edit.hooks(rows=given, positions=positions)), log_probs(model)
    assert furthest(edited, oracle(model, edit, mask)) < 1e-10
    for row in range(3):
        assert torch.equal(edited[row], before[row]) == (row not in listed)


@each_kind
def test_a_mask_of_positions_by_row(case):
    model = shared(case)
    edit = make(model)
    mask = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    assert furthest(log_probs(model, edit.hooks(positions=mask)), oracle(model, edit, mask)) < 1e-10
    only = mask & torch.tensor([[False], [True], [True]])
    assert furthest(log_probs(model, edit.hooks(positions=mask, rows=[1, 2])), oracle(model, edit, only)) < 1e-10
    nowhere = log_probs(model, edit.hooks(positions=torch.zeros(9).bool()))
    assert torch.equal(nowhere, log_probs(model))
    assert torch.equal(log_probs(model, edit.hooks(rows=[])), nowhere)


@each_kind
def test_two_edits_in_one_batch_equal_each_alone(case):
    model = shared(case)
    one, other = make(model), make(model, (0, 1), seed=1)
    both = log_probs(model, [*one.hooks(rows=0), *other.hooks(rows=[1])])
    for row, edit in enumerate((one, other)):
        with edit.on(model):
            assert furthest(both[row], log_probs(model)[row]) < 1e-10
    assert torch.equal(both[2], log_probs(model)[2])


@each_kind
@pytest.mark.parametrize("gates", [({}, {}), ({"positions": slice(0, 6)}, {"positions": slice(3, 9)})])
def test_edits_of_one_layer_add_up(case, gates):
    model = shared(case)
    one, other = make(model), make(model, (0, 1), seed=1)
    both = log_probs(model, [*one.hooks(**gates[0]), *other.hooks(**gates[1])])
    turned = log_probs(model, [*other.hooks(**gates[1]), *one.hooks(**gates[0])])
    if not gates[0]:
        with one.on(model), other.on(model):
            weights = log_probs(model)
        assert furthest(both, weights) < 1e-10
    assert furthest(both, turned) < 1e-10
    assert furthest(both, log_probs(model, one.hooks())) > 0.1


@some_cases
def test_an_edit_and_the_same_taken_away_are_nothing(case):
    model = shared(case)
    edit = make(model)
    hooks = [*edit.hooks(), *edit.hooks(scale=-1)]
    assert furthest(log_probs(model, hooks), log_probs(model)) < 1e-10
    with edit.on(model):
        weights = log_probs(model, edit.hooks(scale=-1))
    assert furthest(weights, log_probs(model)) < 1e-10


# --- in company ----------------------------------------------------------------------------------------


@each_kind
def test_a_cache_holds_what_the_edited_model_has(case):
    model = shared(case)
    edit = make(model)
    with torch.no_grad(), model.hooks(fwd_hooks=edit.hooks()):
        _, cached = model.run_with_cache(TOKENS)
    with torch.no_grad(), edit.on(model):
        _, expected = model.run_with_cache(TOKENS)
    for layer in range(3):
        for name in (f"blocks.{layer}.hook_mlp_out", host.key_name(layer), host.resid_post_name(layer)):
            assert furthest(cached[name], expected[name]) < 1e-10, name


@each_kind
def test_a_cache_that_stops_early_leaves_nothing(case):
    model = shared(case)
    edit = make(model)
    hooks = edit.hooks(positions=[0, 8])
    expected = log_probs(model, hooks)
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model.run_with_cache(TOKENS, stop_at_layer=1)
        model.run_with_cache(TOKENS, names_filter=host.key_name(2), stop_at_layer=3)
    assert torch.equal(log_probs(model, hooks), expected)


def zero_head(act, hook):
    act = act.clone()
    act[:, :, 1] = 0
    return act


ABLATIONS = [("blocks.1.attn.hook_z", zero_head), ("blocks.2.hook_attn_out", lambda act, hook: torch.zeros_like(act))]


@each_kind
def test_ablated_attention_before_or_behind(case):
    model = shared(case)
    edit = make(model)
    with edit.on(model):
        expected = log_probs(model, ABLATIONS)
    assert furthest(expected, log_probs(model, edit.hooks())) > 1e-2
    for hooks in ([*ABLATIONS, *edit.hooks()], [*edit.hooks(), *ABLATIONS]):
        assert furthest(log_probs(model, hooks), expected) < 1e-10


@some_cases
def test_permanent_hooks_and_nested_contexts(case):
    model = tiny_models.build(case, dtype=FLOAT64)
    edit = make(model)
    model.add_perma_hook("blocks.1.hook_attn_out", lambda act, hook: act * 0.5)
    with edit.on(model):
        expected = log_probs(model)
        ablated = log_probs(model, ABLATIONS[1:])
    before, hooks = log_probs(model), edit.hooks()
    for _ in range(2):
        with model.hooks(fwd_hooks=hooks):
            assert furthest(log_probs(model), expected) < 1e-10
            assert furthest(log_probs(model, ABLATIONS[1:]), ablated) < 1e-10
            assert furthest(log_probs(model), expected) < 1e-10
        assert torch.equal(log_probs(model), before)
    with torch.no_grad():
        ran = model.run_with_hooks(TOKENS, fwd_hooks=hooks).double().log_softmax(-1)
    assert furthest(ran, expected) < 1e-10


@some_cases
def test_hooks_behind_see_the_edited_answer_and_keys_changed_before_are_seen(case):
    model = shared(case)
    edit = make(model)

    def halve(act, hook):
        return act * 0.5

    for name, user in ((host.key_name(2), 0), (f"blocks.{LAYERS[0]}.hook_mlp_out", 1)):
        with edit.on(model):
            expected = log_probs(model, [(name, halve)])
        hooks = [*edit.hooks(), (name, halve)] if user else [(name, halve), *edit.hooks()]
        assert furthest(log_probs(model, hooks), expected) < 1e-10


class Mine(Exception):  # noqa: N818
    pass


def fail(act, hook=None):
    raise Mine


@each_kind
def test_a_pass_that_fails_does_not_spoil_the_next(case):
    model = shared(case)
    edit = make(model)
    points = [host.key_name(0), "blocks.0.hook_mlp_out", host.resid_post_name(0), host.key_name(2), "unembed.hook_in"]
    for gate in ({}, {"positions": [1, 5]}):
        hooks = edit.hooks(**gate)
        expected = log_probs(model, hooks)
        for name in points:
            for listed in ([(name, fail), *hooks], [*hooks, (name, fail)]):
                if name in model.hook_dict:
                    with pytest.raises(Mine), attached(model, listed):
                        model(TOKENS)
                    assert torch.equal(log_probs(model, hooks), expected), name
        # Of another length.
        shorter = log_probs(model, hooks, TOKENS[:1, :6])
        assert furthest(shorter[0], expected[0, :6]) < (1e-10 if case.interface == HOOKED_TRANSFORMER else 2e-6)


@pytest.mark.parametrize("case", available_cases(("gpt2", "gemma2")), ids=str)
def test_nothing_of_a_pass_is_held_after_it(case):
    """Otherwise the graph of the last pass stays in memory, and the model cannot be copied."""
    model = tiny_models.build(case)
    one, other = make(model), make(model, seed=1)
    with torch.enable_grad(), attached(model, [*one.hooks(), *other.hooks(rows=0)]):
        model(TOKENS).sum()
    assert not any(point.ctx for point in model.hook_dict.values())
    hooks = one.hooks()
    with torch.enable_grad(), attached(model, hooks):
        model(TOKENS).sum()
    assert all(not vars(function.__self__)["kept"] for _, function in hooks)


@some_cases
def test_a_pass_within_a_pass(case):
    """A hook of the user's that runs the model, itself edited by the same hooks, between the edit's own."""
    model = shared(case)
    edit = make(model)
    inside = []

    def run(act, hook):
        if not inside:
            inside.append(None)
            model(TOKENS[:2, :5])

    expected = log_probs(model, edit.hooks())
    assert furthest(log_probs(model, [*edit.hooks(), ("blocks.2.hook_attn_out", run)]), expected) < 1e-10
    inside.clear()
    with pytest.raises(ValueError, match="no key was seen in layer 2"):
        log_probs(model, [*edit.hooks(positions=0), ("blocks.2.hook_attn_out", run)])


@pytest.mark.filterwarnings("ignore:causal_trace. the model does not predict")
@some_cases
def test_a_trace_under_the_hooks_is_that_of_the_edited_model(case):
    model = shared(case)
    edit = make(model)
    options = {"n_samples": 2, "kinds": ("resid_post", "mlp_out"), "answer": " Rome"}
    with edit.on(model):
        expected = causal_trace(model, PROMPT, SUBJECT, **options)
    with model.hooks(fwd_hooks=edit.hooks()):
        found = causal_trace(model, PROMPT, SUBJECT, **options)
    without = causal_trace(model, PROMPT, SUBJECT, **options)
    assert found.engine.startswith("plain")
    assert found.clean_prob == pytest.approx(expected.clean_prob, abs=1e-6)
    assert found.corrupted_prob == pytest.approx(expected.corrupted_prob, abs=1e-6)
    assert furthest(found.restored_prob, expected.restored_prob) < 1e-6
    assert found.clean_prob != pytest.approx(without.clean_prob, abs=1e-5)


@some_cases
def test_keys_and_values_under_the_hooks(case):
    """Values are read where `value_name` says: on a HookedTransformer behind a norm, that is before the hooks add."""
    model = shared(case)
    edit = make(model)
    request = EditRequest("{} is in", SUBJECT, "Rome", "Paris")
    with edit.on(model):
        expected = extract_keys_values(model, request, (1, 2))
    with model.hooks(fwd_hooks=edit.hooks()):
        found = extract_keys_values(model, request, (1, 2))
    assert furthest(found.keys[2], expected.keys[2]) < 1e-10
    assert furthest(found.values[1], expected.values[1]) < 1e-10


@some_cases
def test_scores_under_the_hooks_are_those_of_the_edit(case):
    model = shared(case)
    edit = make(model)
    request = EditRequest("{} is in", SUBJECT, "Rome", "Paris")
    record = EditRecord(request, neighborhood_prompts=("The Louvre is in the old city of",))
    with model.hooks(fwd_hooks=edit.hooks()):
        found = evaluate(model, record)
    expected, without = evaluate(model, record, edit=edit), evaluate(model, record)

    def probs(evaluation):
        (scores,) = evaluation.scores
        return torch.tensor([(each.prob_new, each.prob_true) for each in (*scores.efficacy, *scores.neighborhood)])

    assert torch.allclose(probs(found), probs(expected), rtol=1e-5, atol=0)
    assert not torch.allclose(probs(without), probs(expected), rtol=1e-2, atol=0)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_texts_are_continued_as_by_the_edited_model(interface, family):
    """Beyond the prompt each pass has one token, where there is a cache of keys and values."""
    model = tiny_models.build(family, interface)
    edit = make(model, scale=0.3)

    def go_on():
        return model.generate(TOKENS[:1], max_new_tokens=5, do_sample=False, stop_at_eos=False, verbose=False)

    before = go_on()
    with edit.on(model):
        expected = go_on()
    with model.hooks(fwd_hooks=edit.hooks()):
        found = go_on()
    assert torch.equal(found, expected)
    assert not torch.equal(expected, before)


@some_cases
def test_a_pass_from_a_layer_on(case):
    if case.interface == TRANSFORMER_BRIDGE:
        pytest.skip("a bridge computes all layers all the same, where it can start at one")
    model = shared(case)
    edit = make(model)
    start = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)
    with edit.on(model):
        expected = log_probs(model, tokens=start, start_at_layer=1)
    with torch.no_grad():
        found = model.run_with_hooks(start, fwd_hooks=edit.hooks(positions=slice(0, 5)), start_at_layer=1)
    assert furthest(found.log_softmax(-1), expected) < 1e-10


@each_kind
def test_weights_and_other_hooks_stay(case):
    model = shared(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    points = {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}
    edit = make(model)
    assert not edit.is_applied(model)
    log_probs(model, edit.hooks())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()} == points


# --- other models, other interfaces --------------------------------------------------------------------

both_interfaces = pytest.mark.skipif(len(INTERFACES) < 2, reason="one interface")


@both_interfaces
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])
def test_hooks_of_one_interface_are_right_on_the_other_or_refused(family, processed):
    hooked, bridge = (shared(Case(family, name, processed)) for name in (HOOKED_TRANSFORMER, TRANSFORMER_BRIDGE))
    edit = make(hooked)
    with edit.on(bridge, allow_mismatch=True):
        expected = log_probs(bridge)
    assert furthest(log_probs(bridge, edit.hooks(bridge, allow_mismatch=True)), expected) < 1e-10
    # Where Hugging Face has a norm in float32, a bridge whose norm is changed makes it again in float64.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        found = bridge.run_with_hooks(TOKENS, fwd_hooks=edit.hooks()).log_softmax(-1)
    assert furthest(found, expected) < (1e-5 if family == "gemma2" else 1e-10)
    edit = make(bridge)
    with edit.on(hooked, allow_mismatch=True):
        expected = log_probs(hooked)
    assert furthest(log_probs(hooked, edit.hooks(hooked, allow_mismatch=True)), expected) < 1e-10
    with pytest.raises(KeyError, match=r"mlp\.out\.hook_out"):
        hooked.run_with_hooks(TOKENS, fwd_hooks=edit.hooks())
    with pytest.raises(ValueError, match=r"mlp\.out\.hook_out"):
        log_probs(hooked, edit.hooks())


@pytest.mark.parametrize("case", available_cases(("gpt2",)), ids=str)
def test_a_hook_point_that_does_not_fire_is_noticed(case):
    model = shared(case)
    edit = make(model)
    hooks = [pair for pair in edit.hooks() if pair[0] != host.value_site(model, 2).value]
    with pytest.raises(ValueError, match=r"did not fire in layer 2, so nothing was added; .* pass the model"):
        log_probs(model, hooks)


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_hand_made_edit_asks_for_the_model(interface):
    model = shared(Case("gpt2", interface, False))
    mine = {"requests": (), "config": None, "provenance": host.provenance(model, prepend_bos=True)}
    edit = Edit(method="mine", deltas=factors(model), **mine)
    with pytest.raises(ValueError, match=r"write edit\.hooks\(model\)"):
        edit.hooks()
    with edit.on(model):
        expected = log_probs(model)
    assert furthest(log_probs(model, edit.hooks(model)), expected) < 1e-10


@pytest.mark.parametrize("interface", INTERFACES)
def test_another_model_is_refused_unless_it_is_meant(interface):
    model = shared(Case("gpt2", interface, False))
    other = tiny_models.build("gpt2", interface, dtype=FLOAT64, seed=1)
    edit = make(model)
    with pytest.raises(ValueError, match="computed on other weights"):
        edit.hooks(other)
    with edit.on(other, allow_mismatch=True):
        expected = log_probs(other)
    assert furthest(log_probs(other, edit.hooks(other, allow_mismatch=True)), expected) < 1e-10
    wide = Edit.of(model, factors(model), method="wide")
    wide = replace(wide, deltas={0: LowRank(torch.ones(81, 1).double(), torch.ones(1, 32).double())})
    with pytest.raises(ValueError, match="81 x 32"):
        wide.hooks(model, allow_mismatch=True)
    with pytest.raises(ValueError, match="keys of layer 0 are 80 wide"):
        log_probs(model, wide.hooks())
    with pytest.raises(ValueError, match="expected|layer"):
        replace(edit, deltas={7: edit.deltas[0]}).hooks(model)


@pytest.mark.skipif(HOOKED_TRANSFORMER not in INTERFACES, reason="no HookedTransformer")
@pytest.mark.parametrize("kind", ["olmo2", "gemma-like", "without norms"])
def test_norms_behind_the_mlp(kind):
    """OLMo 2 has its norm in the place of the one before; where there is none, the answer is in the stream at once."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    if kind == "olmo2" and TRANSFORMER_BRIDGE not in INTERFACES:
        pytest.skip("TransformerLens 2 does not know OLMo 2")
    sizes = {"n_layers": 3, "d_model": 32, "d_head": 8, "n_heads": 4, "d_mlp": 80, "n_ctx": 64, "d_vocab": 320}
    model = HookedTransformer(
        HookedTransformerConfig(
            **sizes,
            act_fn="gelu_new",
            normalization_type=None if kind == "without norms" else "RMS",
            use_normalization_before_and_after=kind != "olmo2",
            original_architecture="Olmo2ForCausalLM" if kind == "olmo2" else None,
            dtype=FLOAT64,
            device="cpu",
            seed=0,
        )
    )
    edit = make(model)
    with edit.on(model):
        expected = log_probs(model)
    assert furthest(expected, log_probs(model)) > 1e-2
    assert furthest(log_probs(model, edit.hooks()), expected) < 1e-10
    mask = torch.arange(9).ge(4).expand(3, 9)
    assert furthest(log_probs(model, edit.hooks(positions=slice(4, None))), oracle(model, edit, mask)) < 1e-10


@pytest.mark.skipif(HOOKED_TRANSFORMER not in INTERFACES, reason="no HookedTransformer")
@pytest.mark.parametrize("where", ["hook_scale", "hook_normalized"])
def test_a_norm_that_another_hook_changes_is_noticed(where):
    """A frozen norm, for one: what it divides by is not what the edit would have to multiply by."""
    model = shared(Case("gemma2", HOOKED_TRANSFORMER, False))
    edit, name = make(model), f"blocks.2.ln2_post.{where}"
    behind = [*edit.hooks(), (name, lambda act, hook: act * 2)]
    if where == "hook_normalized":
        with edit.on(model):
            expected = log_probs(model, behind[-1:])
        assert furthest(log_probs(model, behind), expected) < 1e-10
        behind = [behind[-1], *behind[:-1]]
    with pytest.raises(ValueError, match=r"ln2_post\.hook_normalized is not the MLP's output .* edit\.on\(model\)"):
        log_probs(model, behind)


# --- advice --------------------------------------------------------------------------------------------

GPT2 = Case("gpt2", INTERFACES[0], False)


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        ({"positions": 9}, "position 9 is outside a sequence of 9 tokens.*padding and BOS"),
        ({"positions": [0, -10]}, "position -10 is outside a sequence of 9 tokens"),
        ({"positions": slice(0, 10)}, "position 10 is outside"),
        ({"positions": torch.ones(8).bool()}, r"of shape \[8\] in a run of 3 rows and 9 tokens"),
        ({"positions": torch.ones(2, 9).bool()}, r"of shape \[2, 9\]"),
        ({"rows": 3}, "position 3 is outside a batch of 3 rows.*count the rows"),
        ({"rows": [0, -4]}, "outside a batch of 3 rows"),
        ({"rows": torch.ones(9).bool()}, r"mask of rows is of shape \[9\] in a batch of 3 rows"),
    ],
    ids=str,
)
def test_places_outside_the_batch(gate, said):
    model = shared(GPT2)
    hooks = make(model).hooks(**gate)
    with pytest.raises(ValueError, match=f"Edit.hooks.*{said}"):
        log_probs(model, hooks)


@pytest.mark.parametrize("name", ["positions", "rows"])
@pytest.mark.parametrize("given", [(1, 3), [True, 2], True, "x", 1.5, [None]], ids=str)
def test_what_are_no_places_is_refused_before_any_run(name, given):
    edit = make(shared(GPT2))
    with pytest.raises((ValueError, TypeCheckError), match="positions"):
        edit.hooks(**{name: given})


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "x", True, None], ids=str)
def test_a_scale_that_is_no_number(scale):
    with pytest.raises((ValueError, TypeCheckError)):
        make(shared(GPT2)).hooks(scale=scale)


@some_cases
def test_the_same_list_twice_is_noticed_and_another_list_adds(case):
    """Lists that were asked for one by one are as many edits: that is how rows and positions get different ones."""
    model = shared(case)
    edit = make(model)
    hooks = edit.hooks()
    with pytest.raises(ValueError, match="each once"):
        log_probs(model, [*hooks, *hooks])
    with (edit * 2).on(model):
        twice = log_probs(model)
    assert furthest(log_probs(model, [*hooks, *edit.hooks()]), twice) < 1e-10


@each_kind
def test_a_part_of_the_list_is_noticed(case):
    model = shared(case)
    hooks = make(model, (1,)).hooks(positions=2)
    site = host.value_site(model, 1)
    for left_out in (host.resid_pre_name(1), host.key_name(1), site.value, site.divisor):
        if left_out is not None:
            with pytest.raises(ValueError, match=r"Edit\.hooks"):
                log_probs(model, [pair for pair in hooks if pair[0] != left_out])


def test_a_copy_of_the_model_under_hooks_is_edited_too():
    model = tiny_models.build(GPT2, dtype=FLOAT64)
    edit = make(model)
    with model.hooks(fwd_hooks=edit.hooks()):
        copied, expected = copy.deepcopy(model), log_probs(model)
    assert furthest(log_probs(model), expected) > 0.1
    assert furthest(log_probs(copied), expected) < 1e-10


def test_masks_of_numbers_are_refused_and_masks_are_copied():
    model = tiny_models.build("gpt2")
    edit, tokens = some_edits.make_edit(model), model.to_tokens("The Eiffel Tower is in")
    length = tokens.shape[1]
    for numbers in (torch.ones(length, dtype=torch.int64), torch.ones(length, dtype=torch.uint8), [1, 1]):
        with pytest.raises(ValueError, match="some of them twice; expected each once, or a mask of True and False"):
            edit.hooks(positions=numbers)
    everywhere = model.run_with_hooks(tokens, fwd_hooks=edit.hooks())
    for mask in (torch.ones(length, dtype=torch.bool), [True] * length):
        hooks = edit.hooks(positions=mask)
        mask[0] = False
        assert torch.equal(model.run_with_hooks(tokens, fwd_hooks=hooks), everywhere)
