"""Keys and values of requests, against one plain run per prompt."""

import dataclasses
import functools

import pytest
import torch
from tiny_models import (
    D_MLP,
    D_MODEL,
    TRANSFORMER_BRIDGE,
    Case,
    available_cases,
    build,
    default_tokenizer,
    interfaces,
)

from tl_edit import attach, host, keys, tokens
from tl_edit.keys import KeysValues, extract_keys_values
from tl_edit.request import EditRequest

REQUESTS = (
    EditRequest("{} is in the city of", "The Eiffel Tower", "Rome", "Paris"),
    EditRequest("The mother tongue of {} is", "Danielle Darrieux", "German"),
    EditRequest("The sport of {}", "LeBron James", "football"),
    EditRequest("The capital 北京 and {} are in", "Zürich", "Rome"),
)
PREFIXES = ("It was. {}", "The café in Paris, where nobody can say anything. {}")
LAYERS = (0, 2)
FIELDS = ("keys", "values", "mean_keys", "mean_values")
shared = functools.cache(build)

each_interface = pytest.mark.parametrize("interface", interfaces())
each_kind = pytest.mark.parametrize("case", available_cases(["gpt2", "gemma2"]), ids=str)
each_case = pytest.mark.parametrize("case", available_cases(["gpt2", "llama", "gemma2", "opt", "phi"]), ids=str)


@functools.cache
def extracted(case):
    return extract_keys_values(shared(case), REQUESTS, LAYERS, prefixes=PREFIXES)


def naive(model, request, prefix):
    """By layer: key and value of one whole prompt, from TransformerLens' own cache and the weights."""
    prompt = tokens.tokenize_request(model, request, prefix=prefix)
    names = [f"blocks.{layer}.mlp.hook_post" for layer in LAYERS]
    with torch.no_grad():
        _, cache = model.run_with_cache(prompt.tokens[None], names_filter=names)
    found = {}
    for layer, name in zip(LAYERS, names, strict=True):
        mlp = model.blocks[layer].mlp
        bias = mlp.out.original_component.bias if host.interface(model) == TRANSFORMER_BRIDGE else mlp.b_out
        key = cache[name][0, prompt.subject_last]
        found[layer] = (key, key @ mlp.W_out.detach() + (0 if bias is None else bias.detach()))
    return found


def assert_same(first: KeysValues, second: KeysValues, tolerance=2e-5):
    for field in FIELDS:
        ours, theirs = getattr(first, field), getattr(second, field)
        assert ours.keys() == theirs.keys()
        for layer in ours:
            torch.testing.assert_close(ours[layer], theirs[layer], atol=tolerance, rtol=tolerance)


@each_case
def test_keys_and_values_are_those_of_a_plain_run_and_means_those_over_prefixes(case):
    found = extracted(case)
    for i, request in enumerate(REQUESTS):
        runs = [naive(shared(case), request, prefix) for prefix in ("{}", *PREFIXES)]
        for layer in LAYERS:
            key, value = runs[0][layer]
            mean_key, mean_value = (
                torch.stack(acts).mean(0) for acts in zip(*(run[layer] for run in runs), strict=True)
            )
            for field, expected in zip(FIELDS, (key, value, mean_key, mean_value), strict=True):
                torch.testing.assert_close(getattr(found, field)[layer][i], expected, atol=2e-5, rtol=2e-5)
        assert (mean_key - key).abs().max() > 0.01


@each_case
def test_the_mean_value_is_the_value_of_the_mean_key(case):
    model, found = shared(case), extracted(case)
    weight = host.w_out(model, 2)
    difference = found.mean_values[2] - found.values[2]
    torch.testing.assert_close(difference, (found.mean_keys[2] - found.keys[2]) @ weight, atol=5e-5, rtol=0)


@each_interface
def test_the_result_tells_what_was_asked(interface):
    model, found = shared(Case("gpt2", interface, False)), extracted(Case("gpt2", interface, False))
    assert (found.requests, found.layers, found.prefixes) == (REQUESTS, LAYERS, PREFIXES)
    assert found.prepend_bos is True
    assert found.positions == tuple(tokens.tokenize_request(model, request).subject_last for request in REQUESTS)
    assert {layer: tuple(act.shape) for layer, act in found.keys.items()} == dict.fromkeys(LAYERS, (4, D_MLP))
    assert {layer: tuple(act.shape) for layer, act in found.mean_values.items()} == dict.fromkeys(LAYERS, (4, D_MODEL))
    assert repr(found) == "KeysValues(4 requests, layers [0, 2], mean over 3 contexts)"
    for field in FIELDS:
        for act in getattr(found, field).values():
            assert (act.device.type, act.dtype, act.requires_grad) == ("cpu", torch.float32, False)
            assert act.is_contiguous()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.prepend_bos = False


@each_interface
def test_one_request_may_stand_alone(interface):
    model = shared(Case("gpt2", interface, False))
    alone, listed = extract_keys_values(model, REQUESTS[1], [1]), extract_keys_values(model, [REQUESTS[1]], [1])
    assert alone.requests == listed.requests == (REQUESTS[1],)
    assert_same(alone, listed, 0)


@each_interface
def test_without_prefixes_the_means_are_the_bare_prompts(interface):
    model = shared(Case("gpt2", interface, False))
    for prefixes in (None, (), []):
        found = extract_keys_values(model, REQUESTS, [1], prefixes=prefixes)
        assert found.prefixes == ()
        assert torch.equal(found.mean_keys[1], found.keys[1])
        assert torch.equal(found.mean_values[1], found.values[1])


@pytest.mark.parametrize("batch_size", [1, 5])
@each_kind
def test_the_batch_size_is_irrelevant(case, batch_size):
    found = extract_keys_values(shared(case), REQUESTS, LAYERS, prefixes=PREFIXES, batch_size=batch_size)
    assert_same(found, extracted(case))


@each_interface
def test_the_order_of_layers_and_requests_is_kept_and_irrelevant(interface):
    case = Case("gpt2", interface, False)
    found = extract_keys_values(shared(case), REQUESTS[::-1], LAYERS[::-1], prefixes=PREFIXES)
    assert (found.layers, found.requests) == (LAYERS[::-1], REQUESTS[::-1])
    for layer in LAYERS:
        torch.testing.assert_close(found.keys[layer].flip(0), extracted(case).keys[layer], atol=2e-5, rtol=2e-5)


@each_kind
def test_other_requests_and_other_layers_do_not_matter(case):
    found = extract_keys_values(shared(case), REQUESTS[2], [2], prefixes=PREFIXES)
    for field in FIELDS:
        expected = getattr(extracted(case), field)[2][2:3]
        torch.testing.assert_close(getattr(found, field)[2], expected, atol=2e-5, rtol=2e-5)


@each_kind
def test_what_follows_the_subject_does_not_matter(case):
    model = shared(case)
    longer = EditRequest("{} is in the city of Paris, the capital of", "The Eiffel Tower", "Rome")
    assert_same(extract_keys_values(model, longer, [1]), extract_keys_values(model, REQUESTS[0], [1]))


@pytest.mark.parametrize("bos", [True, False])
@each_interface
def test_the_bos_is_recorded_and_matters(interface, bos):
    model = shared(Case("gpt2", interface, False))
    found = extract_keys_values(model, REQUESTS, [1], prepend_bos=bos)
    other = extract_keys_values(model, REQUESTS, [1], prepend_bos=not bos)
    assert found.prepend_bos is bos
    assert [a - b for a, b in zip(found.positions, other.positions, strict=True)] == [1 if bos else -1] * 4
    assert (found.keys[1] - other.keys[1]).abs().max() > 0.01


@each_interface
def test_the_models_default_decides_about_the_bos(interface):
    model = build("gpt2", interface)
    model.cfg.default_prepend_bos = False
    found = extract_keys_values(model, REQUESTS, [1])
    assert found.prepend_bos is False
    assert_same(found, extract_keys_values(model, REQUESTS, [1], prepend_bos=False), 0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@each_interface
def test_the_padding_side_of_the_tokenizer_is_irrelevant(interface, family):
    case, tokenizer = Case(family, interface, False), default_tokenizer(family)
    tokenizer.padding_side = "left"
    model = build(case, tokenizer=tokenizer)
    assert model.tokenizer.padding_side == "left"
    assert_same(extract_keys_values(model, REQUESTS, LAYERS, prefixes=PREFIXES), extracted(case))


@each_interface
def test_processing_leaves_keys_and_shifts_values_by_their_mean(interface):
    raw, processed = (extracted(Case("gpt2", interface, flag)) for flag in (False, True))
    torch.testing.assert_close(raw.keys[2], processed.keys[2], atol=1e-4, rtol=1e-4)
    centred = raw.values[2] - raw.values[2].mean(-1, keepdim=True)
    torch.testing.assert_close(processed.values[2], centred, atol=1e-4, rtol=1e-4)


@each_case
def test_both_interfaces_hold_the_same_keys(case):
    reference = Case(case.family, next(iter(interfaces())), False)
    torch.testing.assert_close(extracted(case).keys[2], extracted(reference).keys[2], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@each_interface
def test_other_dtypes_are_kept(interface, family, dtype):
    model = build(family, interface, dtype=dtype)
    found = extract_keys_values(model, REQUESTS, LAYERS, prefixes=PREFIXES)
    expected = extracted(Case(family, interface, False))
    limit = {torch.bfloat16: 0.1, torch.float16: 0.015, torch.float64: 1e-5}[dtype]
    for layer in LAYERS:
        for field in FIELDS:
            act = getattr(found, field)[layer]
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert act.dtype == (wide if field.startswith("mean") else dtype)
            assert (act.float() - getattr(expected, field)[layer]).abs().mean() < limit


def test_the_mean_is_summed_in_float64_and_rounded_once():
    # In float32, 2^24 + 1 is 2^24.
    over_prefixes = torch.tensor([2.0**24, 1.0, 1.0, 1.0])[None, :, None]
    assert torch.equal(keys._mean(over_prefixes), torch.tensor([[(2**24 + 3) / 4]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_mean_of_a_half_precision_model_is_kept_in_float32(dtype):
    # 1 + 2^-12 is in neither of the two types.
    over_prefixes = torch.tensor([1.0, 1 + 2.0**-7])[None, :, None].to(dtype).repeat(1, 16, 1)
    over_prefixes[0, 2:] = 1.0
    assert torch.equal(keys._mean(over_prefixes), torch.tensor([[1 + 2.0**-12]]))


# --- what it leaves alone, and what it does not compute ------------------------------------------------


@each_case
def test_the_model_is_left_as_it_was(case):
    model = shared(case)
    ids = tokens.encode(model, "Paris is in")[None]
    with torch.no_grad():
        before = model(ids)
    flags = [(parameter.requires_grad, parameter._version) for parameter in model.parameters()]
    hooks = {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}
    extract_keys_values(model, REQUESTS, LAYERS)
    assert [(parameter.requires_grad, parameter._version) for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks
    with torch.no_grad():
        assert torch.equal(model(ids), before)


@pytest.mark.parametrize(("batch_size", "passes"), [(64, 1), (5, 3), (1, 12)])
@each_interface
def test_one_pass_per_batch_serves_all_layers_and_stops_at_the_last(interface, batch_size, passes, monkeypatch):
    # What counts here are hooks, too, and would make the batches those of a hooked model.
    monkeypatch.setattr(attach, "foreign_hook", lambda model: None)
    model, fired = (
        build("gpt2", interface),
        dict.fromkeys(["hook_embed", "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"], 0),
    )

    def count(name):
        def hook(act, hook):
            fired[name] += 1

        return hook

    for name in fired:
        model.hook_dict[name].add_hook(count(name))
    extract_keys_values(model, REQUESTS, [1, 0], prefixes=PREFIXES, batch_size=batch_size)
    assert list(fired.values()) == [passes, 0, 0]


@each_interface
def test_positions_after_the_subject_are_not_computed(interface, monkeypatch):
    shapes, run = [], keys.activations

    def spy(model, batch, names):
        shapes.append(tuple(batch.tokens.shape))
        return run(model, batch, names)

    monkeypatch.setattr(keys, "activations", spy)
    found = extract_keys_values(build("gpt2", interface), REQUESTS, [1])
    assert shapes == [(4, max(found.positions) + 1)]


def naive_batches(model, hook):
    """By prompt: the key that the user's own run of it shows, with the hook on."""
    for request in REQUESTS:
        for prefix in ("{}", *PREFIXES):
            prompt = tokens.tokenize_request(model, request, prefix=prefix)
            store = []
            read = ("blocks.1.mlp.hook_post", lambda act, hook, store=store: store.append(act))
            with torch.no_grad():
                model.run_with_hooks(prompt.tokens[None], fwd_hooks=[("blocks.0.hook_resid_post", hook), read])
            yield store[0][0, prompt.subject_last]


@pytest.mark.parametrize("batch_size", [64, 1])
@pytest.mark.parametrize("position", [-1, -6, 5])
@each_interface
def test_hooks_that_count_positions_act_as_in_the_users_own_run(interface, position, batch_size):
    """Also from the end, which a cut prompt or padding would move."""
    model = build("gpt2", interface)

    def hook(act, hook):
        act = act.clone()
        # Not by a constant, which the next LayerNorm would take out.
        act[:, position] = act[:, position].flip(-1)
        return act

    expected = torch.stack(list(naive_batches(model, hook))).reshape(4, 3, D_MLP)
    model.hook_dict["blocks.0.hook_resid_post"].add_hook(hook)
    found = extract_keys_values(model, REQUESTS, [1], prefixes=PREFIXES, batch_size=batch_size)
    torch.testing.assert_close(found.keys[1], expected[:, 0], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found.mean_keys[1], expected.mean(1), atol=2e-5, rtol=2e-5)


@each_interface
def test_hooks_of_the_user_take_part(interface):
    model = build("gpt2", interface)
    plain = extract_keys_values(model, REQUESTS, [1])
    model.hook_dict["blocks.0.hook_resid_post"].add_hook(lambda act, hook: act * 0.5 + 1)
    changed = extract_keys_values(model, REQUESTS, [1])
    assert (changed.keys[1] - plain.keys[1]).abs().max() > 0.01
    assert len(model.hook_dict["blocks.0.hook_resid_post"].fwd_hooks) == 1


@each_interface
def test_gradients_may_be_off_or_in_inference_mode(interface):
    case = Case("gpt2", interface, False)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_same(extract_keys_values(shared(case), REQUESTS, LAYERS, prefixes=PREFIXES), extracted(case), 0)


# --- refusals ------------------------------------------------------------------------------------------


@each_interface
def test_no_requests_are_refused(interface):
    with pytest.raises(
        ValueError, match=r"extract_keys_values needs at least one EditRequest; found none; pass \[EditRequest"
    ):
        extract_keys_values(shared(Case("gpt2", interface, False)), [], [1])


@pytest.mark.parametrize(("layers", "found"), [([], "found none"), ([3], "got layer 3"), ([0, -1], "got layer -1")])
@each_interface
def test_wrong_layers_are_refused(interface, layers, found):
    with pytest.raises(ValueError, match=f"extract_keys_values .*{found}"):
        extract_keys_values(shared(Case("gpt2", interface, False)), REQUESTS, layers)


@pytest.mark.parametrize("family", ["mixtral", "attn_only"])
@each_interface
def test_models_without_a_w_out_are_refused(interface, family):
    with pytest.raises(ValueError, match=r"extract_keys_values: layer 1 .*(MoE|attention-only)"):
        extract_keys_values(shared(Case(family, interface, False)), REQUESTS, [1])


@pytest.mark.parametrize("prefix", ["It was.", "{} and {}", ""])
@each_interface
def test_malformed_prefixes_are_refused(interface, prefix):
    with pytest.raises(ValueError, match=r"^prefix .* placeholders; expected exactly one"):
        extract_keys_values(shared(Case("gpt2", interface, False)), REQUESTS, [1], prefixes=["It was. {}", prefix])


@pytest.mark.parametrize("batch_size", [0, -1])
@each_interface
def test_a_batch_size_below_one_is_refused(interface, batch_size):
    with pytest.raises(ValueError, match=f"extract_keys_values: batch_size {batch_size}; expected 1 or more"):
        extract_keys_values(shared(Case("gpt2", interface, False)), REQUESTS, [1], batch_size=batch_size)


@each_interface
def test_a_prompt_that_is_too_long_is_refused(interface):
    with pytest.raises(ValueError, match="has a context of 128; shorten the text"):
        extract_keys_values(shared(Case("gpt2", interface, False)), REQUESTS, [1], prefixes=["Paris " * 200 + "{}"])


@each_interface
def test_a_model_without_a_tokenizer_is_refused(interface):
    model = build("gpt2", interface)
    model.tokenizer = None
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        extract_keys_values(model, REQUESTS, [1])


@pytest.mark.skipif(TRANSFORMER_BRIDGE not in interfaces(), reason="TransformerLens has no bridge")
def test_active_dropout_is_refused():
    model = build("gpt2", TRANSFORMER_BRIDGE).train()
    with pytest.raises(
        ValueError, match=r"extract_keys_values needs a deterministic model; found active dropout \(p = 0\.1\)"
    ):
        extract_keys_values(model, REQUESTS, [1])


def test_the_cosines_are_those_of_the_mean_keys_and_are_drawn():
    model = build("gpt2")
    requests = [EditRequest("{} is in", name, "Rome") for name in ("The Eiffel Tower", "<b>", "The Louvre")]
    found = extract_keys_values(model, requests, [0, 1], prefixes=("It was. {}",))
    keys = found.mean_keys[1].double()
    expected = torch.stack([torch.cosine_similarity(keys, key[None]) for key in keys])
    assert torch.allclose(found.cosines(1), expected, atol=1e-12)
    assert "&lt;b&gt; is in → Rome" in found._repr_html_()
    assert "<td" in found._repr_html_()
    with pytest.raises(ValueError, match=r"no layer 2; expected one of \[0, 1\]; read it with"):
        found.cosines(2)
    pytest.importorskip("matplotlib")
    axis = found.plot(layer=1)
    assert axis.get_title() == "mean keys of layer 1"
    assert [label.get_text() for label in axis.get_yticklabels()][1] == "1: <b>"
    each = found.plot()
    assert [axis.get_title() for axis in each] == ["layer 0", "layer 1"]
    assert torch.allclose(torch.tensor(each[1].collections[0].get_array()), expected, atol=1e-12)
    with pytest.raises(ValueError, match="1 axes for 2 heatmaps; .* or choose with layer="):
        found.plot(axis)
    many = dataclasses.replace(found, layers=tuple(range(6)), mean_keys=dict.fromkeys(range(6), keys))
    assert many.plot()[0].figure.get_suptitle() == "mean keys (the first 4 of 6 layers; others by layer=)"
    one = extract_keys_values(model, requests[:1], [0])
    assert repr(one) == "KeysValues(1 request, layers [0], mean over 1 context)"
