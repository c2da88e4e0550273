"""What tl_edit knows of TransformerLens is true of every family behind every interface."""

import contextlib
import copy
import functools

import pytest
import tiny_models
import torch
from tiny_models import (
    FAMILIES,
    HOOKED_TRANSFORMER,
    TRANSFORMER_BRIDGE,
    UNEDITABLE_FAMILIES,
    Case,
    available_cases,
    build,
    build_hf,
    default_tokenizer,
    interfaces,
)
from torch import Tensor, nn

from tl_edit import host
from tl_edit.attach import attached

CASES = available_cases()
GATED = ("llama", "gemma2", "qwen2", "qwen3")
LAYER = 1
TOKENS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(0))
EMBED, RESID = host.EMBED, host.resid_post_name(LAYER)

needs_bridge = pytest.mark.skipif(TRANSFORMER_BRIDGE not in interfaces(), reason="TransformerLens has no bridge")
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_interface = pytest.mark.parametrize("interface", interfaces())
each_raw_case = pytest.mark.parametrize("case", [case for case in CASES if not case.processed], ids=str)
# Conv1D and nn.Linear, gated and not, normalised output, parallel attention.
KINDS = ("gpt2", "llama", "gemma2", "phi")
each_kind = pytest.mark.parametrize("case", available_cases(KINDS), ids=str)
each_raw_kind = pytest.mark.parametrize("case", [c for c in available_cases(KINDS) if not c.processed], ids=str)


@functools.cache
def shared(case):
    """A model that no test changes."""
    return build(case)


def bias_of(model, layer):
    mlp = model.blocks[layer].mlp
    bias = mlp.out.original_component.bias if host.interface(model) == TRANSFORMER_BRIDGE else mlp.b_out
    return 0.0 if bias is None else bias


@torch.no_grad()
def log_probs(model, hooks=()):
    with attached(model, hooks):
        return model(TOKENS).double().log_softmax(-1)


@torch.no_grad()
def read(model, *names):
    seen = [[] for _ in names]
    with attached(
        model,
        [(name, lambda act, hook=None, acts=acts: acts.append(act)) for name, acts in zip(names, seen, strict=True)],
    ):
        model(TOKENS)
    assert [len(acts) for acts in seen] == [1] * len(names)
    return [acts[0] for acts in seen]


def change_of(model, layer=LAYER, size=0.05):
    weight = host.w_out(model, layer)
    return size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).to(weight.dtype)


def adding(model, change, layer=LAYER):
    """Hooks that do to the value what adding ``change`` to ``W_out`` shall do."""
    key = {}

    def keep(act, hook=None):
        key["key"] = act

    return [
        (host.key_name(layer), keep),
        (host.value_name(model, layer), lambda act, hook=None: act + key["key"] @ change),
    ]


def assert_writing_acts_like_a_hook(model):
    change, before, kept = change_of(model), log_probs(model), host.w_out(model, LAYER).clone()
    expected = log_probs(model, adding(model, change))
    assert (expected - before).abs().max() > 0.05
    host.write_w_out(model, LAYER, kept + change)
    torch.testing.assert_close(log_probs(model), expected, atol=2e-5, rtol=0)
    assert torch.equal(host.w_out(model, LAYER), kept + change)
    host.write_w_out(model, LAYER, kept)
    assert torch.equal(log_probs(model), before)
    assert torch.equal(host.w_out(model, LAYER), kept)


def process(model):
    if host.interface(model) == TRANSFORMER_BRIDGE:
        model.enable_compatibility_mode()
    else:
        model.process_weights_(center_unembed=False)  # which a loader knows by itself for gemma2


# --- sites ---------------------------------------------------------------------------------------------


@each_case
def test_the_value_is_the_key_times_w_out_plus_its_bias(case):
    model = shared(case)
    key, value = read(model, host.key_name(LAYER), host.value_name(model, LAYER))
    assert key.shape == (*TOKENS.shape, tiny_models.D_MLP)
    torch.testing.assert_close(value, key @ host.w_out(model, LAYER) + bias_of(model, LAYER), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("case", available_cases(["gemma2", "phi"]), ids=str)
def test_sites_belong_to_their_layer(case, layer):
    model = shared(case)
    key, value = read(model, host.key_name(layer), host.value_name(model, layer))
    torch.testing.assert_close(value, key @ host.w_out(model, layer) + bias_of(model, layer), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("case", available_cases(["gemma2"]), ids=str)
def test_where_the_output_is_normalised_hook_mlp_out_is_not_the_value(case):
    model = shared(case)
    value, contribution = read(model, host.value_name(model, LAYER), f"blocks.{LAYER}.hook_mlp_out")
    assert (value - contribution).abs().max() > 0.1


@each_case
def test_elsewhere_hook_mlp_out_is_the_value(case):
    if case.family == "gemma2":
        pytest.skip("normalises its MLP output")
    model = shared(case)
    value, contribution = read(model, host.value_name(model, LAYER), f"blocks.{LAYER}.hook_mlp_out")
    assert torch.equal(value, contribution)


@each_kind
def test_the_block_output_is_the_next_blocks_input(case):
    here, there = read(shared(case), RESID, f"blocks.{LAYER + 1}.hook_resid_pre")
    assert torch.equal(here, there)


@each_kind
def test_a_hook_at_the_value_site_changes_what_follows_and_gradients_flow_back(case):
    model = shared(case)
    delta = torch.zeros(tiny_models.D_MODEL, requires_grad=True)
    with attached(model, [(host.value_name(model, LAYER), lambda act, hook=None: act + delta)]):
        loss = model(TOKENS).log_softmax(-1)[0, -1, 7]
    (gradient,) = torch.autograd.grad(loss, delta)
    assert gradient.abs().max() > 1e-3
    direction, step = gradient / gradient.norm(), 1e-2
    ahead, behind = (
        log_probs(
            model, [(host.value_name(model, LAYER), lambda act, hook=None, sign=sign: act + sign * step * direction)]
        )[0, -1, 7]
        for sign in (1, -1)
    )
    assert float((ahead - behind) / (2 * step)) == pytest.approx(float(gradient.norm()), rel=0.02)


# --- facts about a model -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", available_cases((*FAMILIES, *UNEDITABLE_FAMILIES)), ids=str)
def test_interface_and_processing_are_recognised(case):
    model = shared(case)
    assert host.interface(model) == case.interface
    assert host.is_processed(model) == case.processed
    assert host.n_layers(model) == 3
    assert host.device_of(model) == torch.device("cpu")


@each_interface
def test_processing_later_is_noticed(interface):
    model = build("gpt2", interface)
    process(model)
    assert host.is_processed(model)


def test_provenance_tells_what_is_needed_to_repeat_a_result():
    for name in interfaces():
        made = host.provenance(build("gpt2", name, dtype=torch.bfloat16), prepend_bos=False, seed=3)
        assert (made.model_name, made.interface, made.processed) == ("tiny-gpt2", name, False)
        assert (made.dtype, made.prepend_bos, made.seed) == ("bfloat16", False, 3)
        assert made.versions["torch"] == host.installed_version("torch")
        assert set(made.versions) == {"transformer-lens", "torch", "tl-edit"}


def test_the_version_of_a_missing_package_is_unknown():
    assert host.installed_version("no-such-package-as-this") == "unknown"


# --- writing W_out -------------------------------------------------------------------------------------


@each_case
def test_writing_acts_like_a_hook(case):
    assert_writing_acts_like_a_hook(build(case))


@pytest.mark.parametrize("case", available_cases([*KINDS, "qwen2", "opt"]), ids=str)
def test_writing_acts_like_a_hook_after_deepcopy_and_leaves_the_original_alone(case):
    original = shared(case)
    before = log_probs(original)
    copied = copy.deepcopy(original)
    assert_writing_acts_like_a_hook(copied)
    host.write_w_out(copied, LAYER, host.w_out(copied, LAYER) + change_of(copied))
    assert torch.equal(log_probs(original), before)
    assert not torch.equal(log_probs(copied), before)


@each_raw_kind
def test_writing_acts_like_a_hook_after_processing_later(case):
    model = build(case)
    host.w_out(model, LAYER)
    process(model)
    assert_writing_acts_like_a_hook(model)
    assert_writing_acts_like_a_hook(copy.deepcopy(model))


@each_raw_kind
def test_what_is_written_survives_processing(case):
    model = build(case)
    untouched = log_probs(model)
    host.write_w_out(model, LAYER, host.w_out(model, LAYER) + change_of(model))
    before = log_probs(model)
    process(model)
    torch.testing.assert_close(log_probs(model), before, atol=1e-4, rtol=0)
    assert (log_probs(model) - untouched).abs().max() > 0.05


@each_kind
def test_writing_acts_like_a_hook_after_casting(case):
    model = build(case)
    model.to(torch.float64)
    try:
        log_probs(model)
    except RuntimeError:
        pytest.skip("this TransformerLens cannot run the model after .to(dtype)")
    assert_writing_acts_like_a_hook(model)


@needs_bridge
@pytest.mark.parametrize("family", GATED)
def test_every_live_copy_is_written_even_where_casting_broke_the_forward_pass(family):
    model = build(family, TRANSFORMER_BRIDGE, True)
    model.to(torch.float64)
    new = host.w_out(model, LAYER) + change_of(model)
    host.write_w_out(model, LAYER, new)
    for view in host.w_out_views(model, LAYER):
        torch.testing.assert_close(view.double(), new, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", available_cases(["gpt2", "llama"]), ids=str)
def test_writing_rounds_once_to_the_weights_dtype(case, dtype):
    model = build(case, dtype=dtype)
    new = host.w_out(model, LAYER).double() + change_of(model).double() / 3
    host.write_w_out(model, LAYER, new)
    assert torch.equal(host.w_out(model, LAYER), new.to(dtype))
    (key, value) = read(model, host.key_name(LAYER), host.value_name(model, LAYER))
    expected = key.float() @ new.to(dtype).float() + bias_of(model, LAYER)
    torch.testing.assert_close(value.float(), expected.float(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@each_interface
def test_writing_leaves_no_trace_in_autograd(interface, context):
    model = build("phi", interface)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with context():
        host.write_w_out(model, LAYER, host.w_out(model, LAYER) + change_of(model))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(parameter.grad is None and parameter.is_leaf for parameter in model.parameters())
    assert model(TOKENS).isfinite().all()


@each_case
def test_w_out_is_a_detached_view_in_the_orientation_of_transformer_lens(case):
    model = shared(case)
    weight = host.w_out(model, LAYER)
    assert weight.shape == (tiny_models.D_MLP, tiny_models.D_MODEL)
    assert not weight.requires_grad
    assert weight.data_ptr() == host.w_out_views(model, LAYER)[0].data_ptr()
    torch.testing.assert_close(weight, model.blocks[LAYER].mlp.W_out.detach(), atol=0, rtol=0)


@each_raw_kind
def test_other_layers_and_other_weights_stay(case):
    model = build(case)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    host.write_w_out(model, LAYER, host.w_out(model, LAYER) + change_of(model))
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert len(changed) == 1
    assert f".{LAYER}." in changed[0]


def _into_the_stack(model, change):
    with torch.no_grad():
        model.W_out[LAYER] += change


def _augmented(model, change):
    with torch.no_grad():
        model.blocks[LAYER].mlp.W_out += change


def _new_parameter(model, change):
    mlp = model.blocks[LAYER].mlp
    mlp.W_out = nn.Parameter(mlp.W_out.detach() + change)


def _new_data(model, change):
    weight = model.blocks[LAYER].mlp.W_out
    weight.data = weight.detach() + change


def _ours(model, change):
    host.write_w_out(model, LAYER, host.w_out(model, LAYER) + change)


WORKS, NOTHING, RAISES, CHANGES_AND_RAISES = "works", "does nothing", "raises", "changes and raises"


def _outcomes(way, linear, conv1d, hooked=WORKS):
    families = {"gpt2": conv1d, "gpt_neox": linear, "llama": linear}
    for name in interfaces():
        for family, on_bridge in families.items():
            yield pytest.param(
                way,
                Case(family, name, False),
                hooked if name == HOOKED_TRANSFORMER else on_bridge,
                id=f"{way.__name__.strip('_')}-{family}-{name}",
            )


@pytest.mark.parametrize(
    ("way", "case", "outcome"),
    [
        *_outcomes(_into_the_stack, NOTHING, NOTHING, NOTHING),
        *_outcomes(_augmented, CHANGES_AND_RAISES, CHANGES_AND_RAISES),
        *_outcomes(_new_parameter, RAISES, RAISES),
        *_outcomes(_new_data, NOTHING, WORKS),
        *_outcomes(_ours, WORKS, WORKS),
    ],
)
def test_the_plain_ways_to_write_fail_silently_or_loudly_and_ours_works(way, case, outcome):
    model = build(case)
    change, before = change_of(model), log_probs(model)
    expected = log_probs(model, adding(model, change))
    raised = False
    try:
        way(model, change)
    except (KeyError, AttributeError):
        raised = True
    after = log_probs(model)
    changed = not torch.equal(after, before)
    assert (changed, raised) == {
        WORKS: (True, False),
        NOTHING: (False, False),
        RAISES: (False, True),
        CHANGES_AND_RAISES: (True, True),
    }[outcome]
    if changed:
        torch.testing.assert_close(after, expected, atol=2e-5, rtol=0)


@needs_bridge
def test_a_dense_layer_among_experts_is_written_and_an_expert_layer_refused():
    transformers = pytest.importorskip("transformers")
    tokenizer = default_tokenizer("qwen3")
    config = transformers.Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=tiny_models.D_MODEL,
        intermediate_size=tiny_models.D_MLP,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[LAYER],
        max_position_embeddings=64,
    )
    config.architectures = ["Qwen3MoeForCausalLM"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf_model = transformers.Qwen3MoeForCausalLM(config).eval()
        for parameter in hf_model.parameters():
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    model = interfaces()[TRANSFORMER_BRIDGE].boot_transformers(
        "tiny-qwen3-moe", hf_model=hf_model, tokenizer=tokenizer, device="cpu"
    )
    with pytest.raises(ValueError, match="mixture of experts"):
        host.check_layers(model, [0], "test")
    with pytest.raises(ValueError, match="mixture of experts"):
        host.value_name(model, 0)
    host.check_layers(model, [LAYER], "test")
    assert_writing_acts_like_a_hook(model)


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", available_cases(["attn_only"]), ids=str)
def test_an_attention_only_model_is_refused_by_name(case):
    model = shared(case)
    with pytest.raises(
        ValueError, match=r"my_operation: layer 1 .* no MLP \(an attention-only model\).*use a model with"
    ):
        host.check_layers(model, [LAYER], "my_operation")
    with pytest.raises(ValueError, match="attention-only"):
        host.write_w_out(model, LAYER, torch.zeros(4, 4))


@needs_bridge
def test_the_value_of_an_attention_only_bridge_is_refused():
    with pytest.raises(ValueError, match="attention-only"):
        host.value_name(shared(Case("attn_only", TRANSFORMER_BRIDGE, False)), LAYER)


@pytest.mark.parametrize("case", available_cases(["mixtral"]), ids=str)
def test_a_mixture_of_experts_is_refused_by_name(case):
    model = shared(case)
    with pytest.raises(ValueError, match=r"my_operation: layer 1 .* mixture of experts \(MoE\).* choose a dense layer"):
        host.check_layers(model, [LAYER], "my_operation")
    with pytest.raises(ValueError, match="MoE"):
        host.w_out(model, LAYER)
    with pytest.raises(ValueError, match="MoE"):
        host.value_name(model, LAYER)


def put_weight(model, weight):
    """Replace the parameter that holds ``W_out``, as a quantising loader does."""
    mlp = model.blocks[LAYER].mlp
    parameter = nn.Parameter(weight, requires_grad=False)
    if host.interface(model) == HOOKED_TRANSFORMER:
        mlp.W_out = parameter
    else:
        mlp.out.original_component.weight = parameter


UNREADABLE = {
    "int8": (torch.zeros(80, 32, dtype=torch.int8), r"torch\.int8"),
    "packed-4bit": (torch.zeros(80 * 16, 1, dtype=torch.uint8), r"torch\.uint8 of shape \(1280, 1\)"),
    "float8": (torch.zeros(80, 32, dtype=torch.float8_e4m3fn), "float8"),
    "flat": (torch.zeros(80 * 32), r"of shape \(2560,\)"),
    "meta": (torch.zeros(80, 32, device="meta"), "on the meta device"),
}


@pytest.mark.parametrize(("weight", "found"), UNREADABLE.values(), ids=UNREADABLE)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@each_interface
def test_quantised_and_unloaded_weights_are_refused_by_name(interface, family, weight, found):
    model = build(family, interface)
    put_weight(model, weight)
    pattern = (
        f"my_operation: W_out of layer 1 is .*{found}.*quantised or not loaded.*float32.*load the model unquantised"
    )
    with pytest.raises(ValueError, match=pattern):
        host.check_layers(model, [LAYER], "my_operation")
    with pytest.raises(ValueError, match="quantised or not loaded"):
        host.write_w_out(model, LAYER, torch.zeros(80, 32))


@needs_bridge
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_second_bridge_over_the_same_model_has_the_same_w_out(family):
    """It wraps the wrappers of the first; GPT-2's weights would be taken for those of an nn.Linear, transposed."""
    first, second = two_bridges(family)
    assert torch.equal(host.w_out(second, LAYER), host.w_out(first, LAYER))
    assert host.w_out(second, LAYER).shape == (tiny_models.D_MLP, tiny_models.D_MODEL)
    assert_writing_acts_like_a_hook(second)


def two_bridges(family):
    tokenizer = tiny_models.default_tokenizer(family)
    hf_model = tiny_models.build_hf(family, len(tokenizer))
    case = Case(family, TRANSFORMER_BRIDGE, False)
    return [tiny_models.boot(hf_model, tokenizer, case, torch.float32) for _ in range(2)]


@needs_bridge
def test_a_linear_that_hides_its_weight_is_refused():
    class QuantLinear(nn.Module):
        qweight = torch.zeros(4, 4, dtype=torch.int32)

    model = build("llama", TRANSFORMER_BRIDGE)
    out = model.blocks[LAYER].mlp.out
    out._modules[next(name for name, part in out._modules.items() if part is out.original_component)] = QuantLinear()
    with pytest.raises(ValueError, match=r"hidden in a QuantLinear .*load the model unquantised"):
        host.check_layers(model, [LAYER], "my_operation")


@pytest.mark.parametrize("layer", [3, 100, -1, -3])
@each_interface
def test_layers_that_do_not_exist_are_refused(interface, layer):
    with pytest.raises(ValueError, match=rf"my_operation got layer {layer}; tiny-gpt2 has layers 0 to 2; .*negative"):
        host.check_layers(shared(Case("gpt2", interface, False)), [0, layer], "my_operation")


@each_interface
def test_no_layers_are_refused(interface):
    with pytest.raises(
        ValueError, match=r"my_operation needs at least one layer; found none; pass e\.g\. layers=\[1\]"
    ):
        host.check_layers(shared(Case("gpt2", interface, False)), [], "my_operation")


@each_case
def test_a_model_as_it_is_loaded_is_accepted(case):
    model = shared(case)
    host.check_ready(model, "test")
    host.check_layers(model, [0, 1, 2], "test")


def set_all_dropout(model, rate):
    for module in model.original_model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                vars(module)[name] = rate


@needs_bridge
@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_refused_where_it_makes_runs_differ_and_the_advice_helps(family):
    model = build(family, TRANSFORMER_BRIDGE)
    set_all_dropout(model, 0.5)
    model.train()
    torch.manual_seed(0)  # OPT drops whole layers: all of them in both runs, once in 64 times
    assert not torch.equal(log_probs(model), log_probs(model))
    with pytest.raises(
        ValueError, match=r"my_operation needs a deterministic.*p = 0\.5\) at .*call model\.eval\(\) first"
    ):
        host.check_ready(model, "my_operation")
    model.eval()
    host.check_ready(model, "my_operation")
    assert torch.equal(log_probs(model), log_probs(model))


@needs_bridge
def test_dropout_of_embeddings_is_seen_though_a_bridge_does_not_list_it():
    model = build("gpt2", TRANSFORMER_BRIDGE)
    set_all_dropout(model, 0.0)
    embedding_dropout = model.original_model.transformer.drop
    embedding_dropout.p = 0.5
    model.train()
    assert embedding_dropout not in set(model.modules())
    assert not torch.equal(log_probs(model), log_probs(model))
    with pytest.raises(ValueError, match=r"active dropout .* at transformer\.drop"):
        host.check_ready(model, "test")


@needs_bridge
@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen3"])
def test_training_mode_without_dropout_is_accepted(family):
    model = build(family, TRANSFORMER_BRIDGE)
    set_all_dropout(model, 0.0)
    model.train()
    host.check_ready(model, "test")
    assert torch.equal(log_probs(model), log_probs(model))


@pytest.mark.skipif(HOOKED_TRANSFORMER not in interfaces(), reason="TransformerLens has no HookedTransformer")
def test_the_training_flag_of_hooked_transformer_is_harmless():
    model = build("gpt2", HOOKED_TRANSFORMER)
    assert model.training
    host.check_ready(model, "test")
    host.check_ready(model.train(), "test")


class Lookalike(nn.Module):
    """Everything that `host.Model` asks for, and not a TransformerLens model."""

    cfg = None
    blocks = ()
    tokenizer = None
    hook_dict: dict = {}  # noqa: RUF012

    def to_tokens(self, *args, **kwargs):
        return None


def test_another_kind_of_model_is_refused_with_the_way_to_load_one():
    with pytest.raises(
        ValueError, match=r"found .*Lookalike, expected HookedTransformer or TransformerBridge; load it with"
    ):
        host.interface(Lookalike())
    with pytest.raises(ValueError, match="works on a TransformerLens model"):
        host.check_ready(Lookalike(), "test")


def test_a_plain_hugging_face_model_is_refused():
    # A TypeError where the shape checks of the test run come first.
    with pytest.raises((ValueError, TypeError), match="GPT2LMHeadModel"):
        host.interface(build_hf("gpt2", 300))


@each_interface
def test_a_subclass_is_recognised(interface):
    model = build("gpt2", interface)
    object.__setattr__(model, "__class__", type("Mine", (type(model),), {}))
    assert host.interface(model) == interface


class TransformerBridge(Lookalike):
    pass


@pytest.mark.parametrize("version", ["3.0.0", "3.7.1", "2.18.0", "3.7.0rc1"])
def test_bridges_before_3_8_are_refused(monkeypatch, version):
    monkeypatch.setattr(host, "installed_version", lambda package: version)
    with pytest.raises(ValueError, match=rf"transformer-lens {version}: before 3\.8 .*expected 3\.8 or newer; upgrade"):
        host.interface(TransformerBridge())


@pytest.mark.parametrize("version", ["3.8.0", "3.10.0", "4.0.0b1", "10.1", "unknown", "local"])
def test_newer_and_unknown_bridges_are_accepted(monkeypatch, version):
    monkeypatch.setattr(host, "installed_version", lambda package: version)
    assert host.interface(TransformerBridge()) == TRANSFORMER_BRIDGE


@needs_bridge
def test_a_real_bridge_is_known_without_a_look_at_its_version(monkeypatch):
    monkeypatch.setattr(host, "installed_version", lambda package: pytest.fail("this takes long, and is asked often"))
    assert host.interface(build("gpt2", TRANSFORMER_BRIDGE)) == TRANSFORMER_BRIDGE


def test_shared_models_were_not_changed():
    for case in [case for case in CASES if case.family == "gpt2"]:
        assert torch.equal(log_probs(shared(case)), log_probs(build(case)))
        assert isinstance(host.w_out(shared(case), 0), Tensor)


def test_a_matrix_of_another_shape_is_not_broadcast():
    model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match=r"shape \[80\]|shape \[1, 32\]|\[32, 80\]"):
        host.write_w_out(model, 1, host.w_out(model, 1).T.clone())
    with pytest.raises(ValueError, match=r"found a matrix of shape \[1, 32\]; expected \[80, 32\]"):
        host.write_w_out(model, 1, torch.ones(1, 32))
