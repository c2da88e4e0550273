"""Edits on their way out: into a Hugging Face model of the same checkpoint, or not at all."""

import contextlib
import copy
from dataclasses import replace

import pytest
import some_edits
import tiny_models
import torch
import transformers
from interrupts import Interrupts
from jaxtyping import TypeCheckError

from tl_edit import Edit, EditRequest, applied_edits, export, forward, host, to_hugging_face

CASES = tiny_models.available_cases()
TWO_FAMILIES = tiny_models.available_cases(("gpt2", "llama"))
INTERFACES = list(tiny_models.interfaces())
REQUESTS = (
    EditRequest("{} is in", "The Eiffel Tower", "Rome", "Paris"),
    EditRequest("The mother tongue of {} is", "Danielle Darrieux", "Welsh"),
)
W_OUT = "transformer.h.{}.mlp.c_proj.weight"
"""Of GPT-2."""
FLOAT = torch.float32
REFUSED = (ValueError, TypeCheckError)
WHERE, WHEN = ("tl_edit/export.py",), "_default_tolerance"
"""What is interrupted, from where on: then everything is ready to be written."""


def make_edit(model, layers=(1,), seed=0, scale=0.3) -> Edit:
    """Of rank 2, with two requests, and without a base: it fits models of any weights."""
    edit = some_edits.make_edit(model, layers, seed, scale, rank=2)
    return replace(edit, requests=REQUESTS, base=None)


def build(case, dtype=FLOAT):
    """A model with two edits on layers 0, 1 and 2; a third between them was undone."""
    model = tiny_models.build(case, dtype=dtype)
    edits = [make_edit(model, layers, seed) for seed, layers in enumerate([(1, 2), (1,), (0, 1)])]
    for edit in edits:
        edit.apply(model)
    edits[1].undo(model)
    return model, [edits[0], edits[2]]


def build_hf(family="gpt2", dtype=FLOAT, **options):
    d_vocab = len(tiny_models.default_tokenizer(family))
    return tiny_models.build_hf(family, d_vocab, dtype=dtype, **options)


def gpt2(interface=INTERFACES[0], layers=(1,), **options):
    model = tiny_models.build("gpt2", interface, **options)
    make_edit(model, layers).apply(model)
    return model


def bits(hf_model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in hf_model.state_dict().items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def by_hand(weight, edits, layer, transposed) -> torch.Tensor:
    """The Hugging Face weight with the edits of ``layer``, in its own orientation, each rounded once."""
    for edit in edits:
        if layer in edit.deltas:
            change = edit.deltas[layer].left @ edit.deltas[layer].right
            weight = (weight.double() + (change.T if transposed else change)).to(weight.dtype)
    return weight


def log_probs(model, ids) -> torch.Tensor:
    with torch.no_grad():
        found = model(ids)
        return getattr(found, "logits", found).double().log_softmax(-1)


def check_untouched(model, hf_model, words, before=None):
    """The export is refused with these words, and every bit of ``hf_model`` stays."""
    before = bits(hf_model) if before is None else before
    with pytest.raises(ValueError, match=words) as raised:
        to_hugging_face(model, hf_model)
    assert same(bits(hf_model), before)
    text = str(raised.value)
    assert text.startswith("to_hugging_face")
    assert "expected" in text
    assert ";" in text
    return text


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_raw_weights_get_the_edits_and_both_models_agree(case):
    model, edits = build(case)
    hf_model = build_hf(case.family)
    before, ids = bits(hf_model), torch.arange(5, 45)[None]
    unedited, weights = log_probs(hf_model, ids), [host.w_out(model, layer).clone() for layer in range(3)]
    found = to_hugging_face(model, hf_model)

    after = bits(hf_model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(found.parameters.values())
    assert list(found.parameters) == [0, 1, 2]
    transposed = case.family != "gpt2"
    for layer, name in found.parameters.items():
        assert f".{layer}." in name
        assert torch.equal(after[name], by_hand(before[name], edits, layer, transposed))
    assert found.edits == tuple(edits)
    edited = log_probs(hf_model, ids)
    torch.testing.assert_close(edited, log_probs(model, ids), atol=1e-4, rtol=0)
    assert (edited - unedited).abs().max() > 1
    assert found.max_difference < 1e-4
    assert applied_edits(model) == edits
    assert all(torch.equal(host.w_out(model, layer), weight) for layer, weight in enumerate(weights))


@pytest.mark.parametrize(
    ("dtype", "hf_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float32, torch.float64),
        (torch.float64, torch.float64),
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.float16, torch.bfloat16),
    ],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
@pytest.mark.parametrize(
    "case", [case for case in TWO_FAMILIES if case.family == "gpt2" or not case.processed], ids=str
)
def test_every_dtype_is_rounded_as_a_model_of_that_dtype_would(case, dtype, hf_dtype):
    model, edits = build(case, dtype)
    hf_model = build_hf(case.family, hf_dtype)
    before = bits(hf_model)
    found = to_hugging_face(model, hf_model)
    for layer, name in found.parameters.items():
        weight = hf_model.get_parameter(name)
        assert weight.dtype == hf_dtype
        assert torch.equal(weight, by_hand(before[name], edits, layer, case.family != "gpt2"))
    other = build_hf(case.family, hf_dtype, seed=1)
    check_untouched(model, other, "no weight of hf_model is W_out of layer 0")


def test_a_weight_off_by_one_rounding_is_another_checkpoint():
    """Raw and in the same dtype, so that nothing but the edits can have changed a bit."""
    model, hf_model = gpt2(), build_hf()
    weight = hf_model.get_parameter(W_OUT.format(1))
    with torch.no_grad():
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
    check_untouched(model, hf_model, f"closest, {W_OUT.format(1)}, differs by .*e-0[789] of its norm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", TWO_FAMILIES, ids=str)
def test_one_entry_that_differs_by_more_than_rounding_is_enough(case, dtype):
    model, _ = build(case, dtype)
    hf_model = build_hf(case.family)
    name = "model.layers.0.mlp.down_proj.weight" if case.family == "llama" else W_OUT.format(0)
    with torch.no_grad():
        # The weights and their edits are of the size of one.
        hf_model.get_parameter(name)[3, 4] += 10 * torch.finfo(dtype).eps
    check_untouched(model, hf_model, "no weight of hf_model is W_out of layer 0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.skipif("HookedTransformer" not in INTERFACES, reason="no HookedTransformer in this TransformerLens")
def test_weights_may_be_centred_and_nothing_else(dtype):
    """Then a HookedTransformer does not tell that it is processed."""
    model, hf_model = tiny_models.build("gpt2", "HookedTransformer", dtype=dtype), build_hf(dtype=dtype)
    rest = ("fold_ln", "center_unembed", "refactor_factored_attn_matrices")
    model.process_weights_(**dict.fromkeys(rest, False), center_writing_weights=True)
    assert not host.is_processed(model)
    assert host.w_out(model, 1).mean(-1).abs().max() < 1e-6
    make_edit(model).apply(model)
    assert to_hugging_face(model, hf_model).max_difference < 1e-4


def test_below_the_least_normal_number_rounding_is_absolute():
    def small(dtype):
        hf_model = build_hf(dtype=FLOAT)
        with torch.no_grad():
            hf_model.get_parameter(W_OUT.format(1)).mul_(1e-6)
        return hf_model.to(dtype)

    case, tokenizer = tiny_models.Case("gpt2", INTERFACES[0], False), tiny_models.default_tokenizer("gpt2")
    model = tiny_models.boot(small(torch.float16), tokenizer, case, torch.float16)
    edit = make_edit(model)
    edit.deltas[1].left[1:] = 0
    edit.apply(model)
    assert to_hugging_face(model, small(FLOAT)).parameters == {1: W_OUT.format(1)}


def test_what_is_saved_and_loaded_says_what_the_edited_model_says(tmp_path):
    model, hf_model = gpt2(layers=(0, 2)), build_hf()
    to_hugging_face(model, hf_model)
    hf_model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert same(bits(loaded), bits(hf_model))
    ids = torch.arange(5, 45)[None]
    torch.testing.assert_close(log_probs(loaded, ids), log_probs(model, ids), atol=1e-4, rtol=0)
    assert (log_probs(loaded, ids) - log_probs(build_hf(), ids)).abs().max() > 1
    # A loaded model may keep many weights in one storage.
    build_hf().save_pretrained(tmp_path / "fresh")
    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fresh").eval()
    to_hugging_face(model, fresh)
    assert same(bits(fresh), bits(hf_model))


@pytest.mark.parametrize("interface", INTERFACES)
def test_weights_side_by_side_in_one_storage_are_not_shared(interface):
    model, hf_model = gpt2(interface, layers=(0, 1)), build_hf()
    names = [W_OUT.format(layer) for layer in range(3)]
    flat = torch.cat([hf_model.get_parameter(name).flatten() for name in names]).detach()
    for name, part in zip(names, flat.chunk(3), strict=True):
        parameter = hf_model.get_parameter(name)
        parameter.data = part.view(parameter.shape)
    assert len({hf_model.get_parameter(name).untyped_storage().data_ptr() for name in names}) == 1
    before = bits(hf_model)
    to_hugging_face(model, hf_model)
    changed = [name for name, value in before.items() if not torch.equal(hf_model.state_dict()[name], value)]
    assert changed == names[:2]


@pytest.mark.parametrize("interface", INTERFACES)
def test_flags_mode_and_hooks_stay_and_no_grad_does_no_harm(interface):
    model, hf_model = gpt2(interface), build_hf()
    hf_model.requires_grad_(False).lm_head.requires_grad_(True)
    for module in hf_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for config in (module for module in hf_model.modules() if hasattr(module, "attn_dropout")):
        assert config.attn_dropout.p == 0.0
    hf_model.train()
    calls = []
    handle = hf_model.transformer.h[0].register_forward_hook(lambda *_: calls.append(1))
    flags = {name: parameter.requires_grad for name, parameter in hf_model.named_parameters()}
    assert len(set(flags.values())) == 2
    with torch.no_grad():
        to_hugging_face(model, hf_model)
    assert {name: parameter.requires_grad for name, parameter in hf_model.named_parameters()} == flags
    assert hf_model.training
    assert calls
    assert list(hf_model.transformer.h[0]._forward_hooks) == [handle.id]
    assert all(parameter.grad is None for parameter in hf_model.parameters())


def test_what_is_compared(monkeypatch):
    """The prompts of the edits, each once, with the BOS they were computed with, and a sentence."""
    model, hf_model, seen = tiny_models.build("gpt2"), build_hf(), []
    first = make_edit(model, seed=1)
    first.apply(model)
    second = make_edit(model, seed=2)
    bare = replace(second, provenance=replace(second.provenance, prepend_bos=False), requests=REQUESTS[:1])
    bare.apply(model)
    hf_model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append((inputs["input_ids"][0].tolist(), *facts(inputs["attention_mask"]))),
        with_kwargs=True,
    )

    def facts(mask):
        return mask.min().item(), torch.is_grad_enabled()

    def ids(text, bos):
        return model.to_tokens(text, prepend_bos=bos)[0].tolist(), 1, False

    found = to_hugging_face(model, hf_model)
    expected = [ids(request.prompt, True) for request in REQUESTS] + [ids(REQUESTS[0].prompt, False)]
    assert seen == [*expected, ids(export.SENTENCE, False)]
    assert found.n_tokens == sum(len(row) for row, *_ in seen)
    seen.clear()
    again = build_hf()
    again.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"][0, 0].item()), with_kwargs=True
    )
    to_hugging_face(model, again, prepend_bos=True)
    assert set(seen) == {model.tokenizer.bos_token_id}
    monkeypatch.setattr(export, "MOST_PROMPTS", 1)
    assert to_hugging_face(model, build_hf()).n_tokens == len(expected[0][0]) + len(ids(export.SENTENCE, False)[0])


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2",)), ids=str)
def test_without_a_tokenizer_random_tokens_are_compared(case):
    model, hf_model = gpt2(case.interface, processed=case.processed), build_hf()
    model.tokenizer = None
    found = to_hugging_face(model, hf_model)
    assert found.n_tokens == 96
    assert 0 <= found.max_difference < 1e-4


def test_the_result_says_it_in_a_line():
    model = gpt2(layers=(0, 2))
    found = to_hugging_face(model, build_hf())
    text = repr(replace(found, max_difference=1.234e-6, n_tokens=50))
    assert text == (
        f"HuggingFaceExport(1 edits in {W_OUT.format(0)}, {W_OUT.format(2)}; log-probabilities differ by at most "
        "1.2e-06 nats at 50 tokens)"
    )


# --- refusals ------------------------------------------------------------------------------------------


def test_what_is_no_hugging_face_model_is_refused():
    model = gpt2()
    for wrong, words in {"gpt2": "type str", None: "type NoneType", 5: "type int"}.items():
        with pytest.raises(REFUSED, match=rf"hf_model is of {words}|hf_model"):
            to_hugging_face(model, wrong)
    check_untouched(model, torch.nn.Linear(2, 2), "Linear without a config")
    check_untouched(model, tiny_models.build("gpt2"), "taken over by TransformerLens")
    check_untouched(model, build_hf().transformer, "gives no logits.*AutoModelForCausalLM")


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), True, "1"])
def test_a_tolerance_that_is_none_is_refused(wrong):
    with pytest.raises(REFUSED, match="tolerance"):
        to_hugging_face(gpt2(), build_hf(), tolerance=wrong)


def test_a_model_without_edits_is_refused():
    model = tiny_models.build("gpt2")
    check_untouched(model, build_hf(), r"no edits are applied.*edit.apply\(model\)")
    edit = make_edit(model).apply(model)
    to_hugging_face(model, build_hf())
    edit.undo(model)
    check_untouched(model, build_hf(), "no edits are applied")


def test_weights_changed_from_outside_are_refused():
    model = gpt2()
    host.write_w_out(model, 1, host.w_out(model, 1) + 1)
    check_untouched(model, build_hf(), "layer 1 was changed from outside")


@pytest.mark.parametrize("case", TWO_FAMILIES, ids=str)
def test_edits_are_not_written_twice(case):
    model, _ = build(case)
    hf_model = build_hf(case.family)
    to_hugging_face(model, hf_model)
    check_untouched(model, hf_model, "holds the edits of layer 0 already.*fresh")
    make_edit(model, seed=9).apply(model)
    check_untouched(model, hf_model, "holds the edits of layer 0 already.*fresh")


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.skipif("TransformerBridge" not in INTERFACES, reason="no bridge in this TransformerLens")
def test_the_model_inside_a_bridge_is_refused(processed):
    hf_model = build_hf()
    case = tiny_models.Case("gpt2", "TransformerBridge", processed)
    bridge = tiny_models.boot(hf_model, tiny_models.default_tokenizer("gpt2"), case, FLOAT)
    make_edit(bridge).apply(bridge)
    check_untouched(bridge, hf_model, "taken over by TransformerLens.*fresh")
    check_untouched(bridge, bridge.original_model, "taken over by TransformerLens.*fresh")
    # Nor is that of another bridge, whose ledger would not know.
    other = tiny_models.build("gpt2", "TransformerBridge")
    check_untouched(bridge, other.original_model, "taken over by TransformerLens.*fresh")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("interface", INTERFACES)
def test_a_model_over_the_same_memory_is_refused(interface, family):
    model, hf_model = tiny_models.build(family, interface), build_hf(family)
    make_edit(model).apply(model)
    weight = hf_model.get_parameter("model.layers.1.mlp.down_proj.weight" if family == "llama" else W_OUT.format(1))
    weight.data = host.w_out(model, 1).T if family == "llama" else host.w_out(model, 1)
    check_untouched(model, hf_model, "the very memory of the model's W_out.*fresh")


def test_shared_weights_are_refused():
    """As in ALBERT: writing one layer would write another."""

    def shared():
        hf_model = build_hf()
        hf_model.transformer.h[2].mlp = hf_model.transformer.h[1].mlp
        return hf_model

    tokenizer = tiny_models.default_tokenizer("gpt2")
    model = tiny_models.boot(shared(), tokenizer, tiny_models.Case("gpt2", INTERFACES[0], False), FLOAT)
    if host.w_out(model, 1).data_ptr() != host.w_out(model, 2).data_ptr():
        make_edit(model).apply(model)
        check_untouched(model, shared(), rf"{W_OUT.format(1)} of hf_model is shared with {W_OUT.format(2)}")
    # As a view of other weights, which no name tells.
    model, hf_model = gpt2(), build_hf()
    hf_model.register_buffer("copy", hf_model.get_parameter(W_OUT.format(1))[:3, 2:].detach())
    check_untouched(model, hf_model, rf"{W_OUT.format(1)} of hf_model is shared with copy")


def test_other_layers_widths_and_vocabularies_are_refused():
    model = gpt2()
    check_untouched(model, build_hf(n_layers=4), r"no list of 3 blocks.*found lists of 4 \(transformer.h\)")
    wide = transformers.GPT2Config(n_embd=32, n_head=4, n_layer=3, n_inner=96, vocab_size=50)
    wide = transformers.GPT2LMHeadModel(wide).eval()
    words = r"no linear layer of the width of W_out, \[80, 32\].*h.1.mlp.c_proj.weight \[96, 32\]"
    check_untouched(model, wide, words)
    more = build_hf()
    more.resize_token_embeddings(len(model.tokenizer) + 3)
    check_untouched(model, more, "the same vocabulary")


def test_another_checkpoint_is_refused_by_its_closest_weight():
    words = f"closest, {W_OUT.format(1)}, differs by 1.4 of its norm.*same revision"
    check_untouched(gpt2(), build_hf(seed=1), words)


def test_two_weights_that_fit_are_refused():
    tokenizer = tiny_models.default_tokenizer("llama")
    hf_models = [build_hf("llama"), build_hf("llama")]
    for hf_model in hf_models:
        hf_model.model.layers[1].twin = copy.deepcopy(hf_model.model.layers[1].mlp.down_proj)
    model = tiny_models.boot(hf_models[0], tokenizer, tiny_models.Case("llama", INTERFACES[0], False), FLOAT)
    make_edit(model).apply(model)
    check_untouched(model, hf_models[1], "down_proj.weight, model.layers.1.twin.weight of hf_model all hold")


@pytest.mark.parametrize("interface", INTERFACES)
def test_weights_that_cannot_be_written_are_refused(interface):
    model = gpt2(interface)
    with torch.device("meta"):
        meta = transformers.GPT2LMHeadModel(build_hf().config).eval()
    with pytest.raises(ValueError, match="on the meta device.*device_map"):
        to_hugging_face(model, meta)
    quantised = build_hf()
    place = quantised.transformer.h[1].mlp.c_proj
    place.weight = torch.nn.Parameter(place.weight.to(torch.int8), requires_grad=False)
    check_untouched(model, quantised, r"torch.int8 \(quantised\).*unquantised")
    frozen = build_hf()
    with torch.inference_mode():
        frozen.transformer.h[1].mlp.c_proj.weight = torch.nn.Parameter(frozen.transformer.h[1].mlp.c_proj.weight + 0)
    check_untouched(model, frozen, r"made under torch.inference_mode\(\)")


def test_edits_too_large_for_the_dtype_are_refused():
    model, hf_model = tiny_models.build("gpt2"), build_hf(dtype=torch.float16)
    make_edit(model, scale=300.0).apply(model)
    check_untouched(model, hf_model, "would not be finite in torch.float16.*bfloat16")


def test_active_dropout_is_refused_in_either_model():
    model, hf_model = gpt2(), build_hf()
    hf_model.train()
    check_untouched(model, hf_model, r"active dropout \(p = 0.1\) at .*hf_model.eval\(\)")
    hf_model.eval()
    model.extra = torch.nn.Dropout(0.5)
    check_untouched(model, hf_model, r"active dropout.* call model.eval\(\)")


# --- the check, and what an exception leaves -----------------------------------------------------------


@pytest.mark.parametrize("case", TWO_FAMILIES, ids=str)
def test_models_that_disagree_elsewhere_put_every_bit_back(case):
    model, _ = build(case)
    hf_model = build_hf(case.family)
    with torch.no_grad():
        next(hf_model.parameters())[:] *= 1.01
    check_untouched(model, hf_model, r"differ by [\d.]+ nats; expected at most 0.001; hf_model is as it was before")
    found = to_hugging_face(model, hf_model, tolerance=100.0)
    assert found.max_difference > 0.01
    with pytest.raises(ValueError, match="expected at most 1e-09"):
        to_hugging_face(model, build_hf(case.family, torch.float64), tolerance=1e-9)


def test_what_is_not_a_number_is_a_disagreement():
    model, hf_model = gpt2(), build_hf()
    hf_model.lm_head.register_forward_hook(lambda _, __, logits: logits * float("nan"))
    check_untouched(model, hf_model, "differ by nan nats")


def test_a_difference_at_one_token_of_one_text_counts():
    model, hf_model, calls = gpt2(), build_hf(), []

    def disturb(_, __, logits):
        calls.append(1)
        changed = logits.clone()
        changed[0, 2, 7] += 0.5 if len(calls) == 1 else 0.0
        return changed

    hf_model.lm_head.register_forward_hook(disturb)
    check_untouched(model, hf_model, r"differ by 0\.[45]\d* nats")
    assert len(calls) == 3


def test_tokens_that_both_exclude_do_not_differ():
    model, hf_model = gpt2(), build_hf()
    hf_model.lm_head.register_forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor(7), -torch.inf))
    check_untouched(model, hf_model, "differ by inf nats")
    name = "unembed.hook_out" if "unembed.hook_out" in model.hook_dict else "unembed"
    if name == "unembed":
        forward_hook = model.unembed.register_forward_hook
        forward_hook(lambda _, __, logits: logits.index_fill(-1, torch.tensor(7), -torch.inf))
    else:
        model.hook_dict[name].add_hook(lambda logits, hook: logits.index_fill(-1, torch.tensor(7), -torch.inf))
    assert to_hugging_face(model, hf_model).max_difference < 1e-4


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_hook_on_the_model_is_named_as_the_cause(interface):
    model, hf_model = gpt2(interface), build_hf()
    model.hook_dict["blocks.2.hook_mlp_out"].add_hook(lambda act, hook: act * 0)
    assert "a hook at " in check_untouched(model, hf_model, "log-probabilities of both models differ")


@pytest.mark.parametrize("agree", [True, False])
def test_an_interrupt_at_any_line_leaves_all_or_nothing(agree, monkeypatch):
    """Also one while the weights are put back after a check that failed."""
    model, hf_model, n, happened = gpt2(layers=(0, 1)), build_hf(), 0, True
    before = bits(hf_model)
    logits = hf_model(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
    monkeypatch.setattr(forward, "logits", lambda *_: logits)
    hf_model.forward = lambda **_: transformers.modeling_outputs.CausalLMOutput(logits=logits + (0 if agree else noise))
    noise = torch.randn(logits.shape)
    monkeypatch.setattr(export, "_rows", lambda *_: [torch.zeros(1, dtype=torch.long)])
    written = False
    while happened:
        result = None
        with (
            contextlib.suppress(KeyboardInterrupt, ValueError),
            Interrupts(n, *WHERE, after=WHEN) as interrupts,
        ):
            result = to_hugging_face(model, hf_model)
        happened, n = interrupts.raised, n + 1
        if result is None:
            assert same(bits(hf_model), before), n
        else:
            written = True
    assert n > 30
    assert written == agree
    assert same(bits(hf_model), before) != agree


def test_a_model_that_was_cast_with_edits_on_can_be_exported():
    model = tiny_models.build("gpt2")
    make_edit(model, (0, 1)).apply(model)
    model.to(torch.bfloat16)
    hf_model = tiny_models.build_hf("gpt2", len(model.tokenizer), dtype=torch.bfloat16)
    assert len(to_hugging_face(model, hf_model).parameters) == 2
