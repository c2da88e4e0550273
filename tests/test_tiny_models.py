"""The tiny models and tokenizers are what the other tests take them for."""

import contextlib
import functools

import pytest
import tiny_models
import tiny_tokenizers
import torch
from tiny_models import (
    FAMILIES,
    UNEDITABLE_FAMILIES,
    Case,
    available_cases,
    build,
    build_hf,
    default_tokenizer,
)
from torch import Tensor

CASES = available_cases()
ALL_CASES = available_cases((*FAMILIES, *UNEDITABLE_FAMILIES))
PROMPT = (
    "The mother tongue of Danielle Darrieux is French and the Eiffel Tower is in the city of Paris, "
    "the capital of France; naïvely, 北京 🗼."
)
HOOKS = ("hook_embed", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_post", "blocks.1.hook_resid_post")
WIDTH = {"blocks.1.mlp.hook_post": tiny_models.D_MLP}

TOKENIZERS = {
    "byte_level": tiny_tokenizers.byte_level,
    "byte_level-opt": functools.partial(tiny_tokenizers.byte_level, bos="</s>", eos="</s>", pad="<pad>", add_bos=True),
    "byte_level-no-bos": functools.partial(tiny_tokenizers.byte_level, bos=None),
    "byte_level-left": functools.partial(tiny_tokenizers.byte_level, padding_side="left"),
    "sentencepiece_like-first": tiny_tokenizers.sentencepiece_like,
    "sentencepiece_like-always": functools.partial(tiny_tokenizers.sentencepiece_like, prepend_scheme="always"),
    "sentencepiece_like-never": functools.partial(tiny_tokenizers.sentencepiece_like, prepend_scheme="never"),
    "slow": tiny_tokenizers.slow,
}


@functools.cache
def prompt_ids(family: str) -> Tensor:
    ids = torch.tensor([default_tokenizer(family)(PROMPT)["input_ids"]])
    assert tiny_models.WINDOW < ids.shape[1] < tiny_models.N_CTX  # sliding windows slide
    return ids


@functools.cache
def reference(family: str) -> Tensor:
    model = build_hf(family, len(default_tokenizer(family)))
    with torch.no_grad():
        return model(prompt_ids(family)).logits.log_softmax(-1)


@torch.no_grad()
def log_probs(model, ids: Tensor) -> Tensor:
    return model(ids).double().log_softmax(-1)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_all_interfaces_compute_the_same_function(case):
    expected = reference(case.family) if case.family != "attn_only" else None
    if expected is None:
        expected = log_probs(build(case.family, case.interface), prompt_ids(case.family))
    actual = log_probs(build(case), prompt_ids(case.family))
    torch.testing.assert_close(actual, expected.double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_other_dtypes(case, dtype):
    model = build(case, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {model.cfg.dtype} == {dtype}
    assert model(prompt_ids(case.family)).dtype == dtype
    error = (log_probs(model, prompt_ids(case.family)) - reference(case.family)).abs()
    limit = {torch.float64: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}[dtype]
    assert error.mean() < limit


@pytest.mark.parametrize("case", CASES, ids=str)
def test_hooks_fire_once_with_the_right_width(case):
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in HOOKS}

    def recorder(name):
        return lambda act, hook: shapes[name].append(tuple(act.shape))

    model = build(case)
    ids = prompt_ids(case.family)
    model.run_with_hooks(ids, fwd_hooks=[(name, recorder(name)) for name in HOOKS])
    assert shapes == {name: [(*ids.shape, WIDTH.get(name, tiny_models.D_MODEL))] for name in HOOKS}
    assert model.blocks[1].mlp.W_out.shape == (tiny_models.D_MLP, tiny_models.D_MODEL)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_models_are_alike_and_share_nothing(case):
    first, second = build(case), build(case)
    weights = [model.state_dict() for model in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
        assert weight.data_ptr() != weights[1][name].data_ptr() or weight.numel() == 0, name
    ids = [{id(part) for part in (*model.modules(), *model.hook_dict.values())} for model in (first, second)]
    assert not ids[0] & ids[1]
    for model in (first, second):
        assert set(model.hook_dict.values()) <= set(model.modules())
    assert first.cfg is not second.cfg
    assert first.tokenizer is not second.tokenizer


@pytest.mark.parametrize("case", [case for case in CASES if case.processed], ids=str)
def test_processing_changes_the_weights(case):
    raw = build(case.family, case.interface).blocks[1].mlp
    mlp = build(case).blocks[1].mlp
    weight = "W_gate" if case.family in ("llama", "gemma2", "qwen2", "qwen3") else "W_in"
    assert (getattr(mlp, weight) - getattr(raw, weight)).abs().max() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_matters(family):
    model = build_hf(family, len(default_tokenizer(family)))
    model(prompt_ids(family)).logits.log_softmax(-1)[0, -1].max().backward()
    # Softmax does not see a bias added to all keys, unless a rotation comes in between.
    idle = {name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-6}
    assert all(name.endswith("k_proj.bias") for name in idle), idle


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_prompt_and_seed_matter_and_nothing_else(case):
    ids = prompt_ids(case.family)
    state = torch.get_rng_state()
    first, other = build(case), build(case, seed=1)
    tiny_models.loaded_once.cache_clear()
    again = build(case, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    expected = log_probs(first, ids)
    assert torch.equal(log_probs(again, ids), expected)
    assert (log_probs(other, ids) - expected).abs().max() > 0.5
    changed = ids.clone()
    changed[0, 1] = 300
    difference = (log_probs(first, changed) - expected).abs().amax(-1)[0]
    assert difference[0] < 1e-5
    assert difference[-1] > 0.01


@pytest.mark.parametrize("n_layers", [1, 4])
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_number_of_layers(case, n_layers):
    model = build(case, n_layers=n_layers)
    assert len(model.blocks) == model.cfg.n_layers == n_layers
    assert model(prompt_ids(case.family)).isfinite().all()


def test_no_trace_is_left_behind():
    loading = pytest.importorskip("transformer_lens.loading_from_pretrained")
    before = {name: getattr(loading, name, None) for name in ("AutoConfig", "convert_hf_model_config")}
    names = list(getattr(loading, "OFFICIAL_MODEL_NAMES", []))
    build("gpt2")
    assert before == {name: getattr(loading, name, None) for name in before}
    assert names == list(getattr(loading, "OFFICIAL_MODEL_NAMES", []))


def test_a_case_is_named_like_a_test():
    assert str(Case("llama", "TransformerBridge", True)) == "llama-TransformerBridge-processed"
    with pytest.raises(ValueError, match="needs NoSuchModel"):
        build("gpt2", "NoSuchModel")
    with pytest.raises(ValueError, match="unknown family"):
        build_hf("gpt5", 100)


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_tokenizers_are_lossless(make):
    tokenizer = make()
    assert len(tokenizer) == len(set(tokenizer.get_vocab().values())) <= 600
    for text in (
        PROMPT,
        "naïve café é",
        "北京",
        "🗼🇫🇷",
        "two  spaces,\na new line\tand a tab",
        "don 't , . ?",
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert max(ids) < len(tokenizer)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    for answer in tiny_tokenizers.SINGLE_TOKENS:
        assert len(tokenizer(answer, add_special_tokens=False)["input_ids"]) == 1
    assert len(tokenizer(" Danielle Darrieux", add_special_tokens=False)["input_ids"]) > 1


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_offsets(make):
    tokenizer = make()
    if tokenizer.is_fast:
        encoding = tokenizer(PROMPT, return_offsets_mapping=True, add_special_tokens=False)
        starts = [start for start, _ in encoding["offset_mapping"]]
        assert starts == sorted(starts)
        assert encoding["offset_mapping"][-1][1] == len(PROMPT)
    else:
        # Transformers 4 raises, transformers 5 leaves them out without a word.
        with contextlib.suppress(NotImplementedError):
            assert "offset_mapping" not in tokenizer(PROMPT, return_offsets_mapping=True)


@pytest.mark.parametrize("interface", tiny_models.interfaces())
@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS.keys())
def test_any_tokenizer_fits_any_model(make, interface):
    tokenizer = make()
    model = build("gpt2", interface, tokenizer=tokenizer)
    assert model.cfg.d_vocab == len(tokenizer)
    plain = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    assert model.to_tokens(PROMPT, prepend_bos=False)[0].tolist() == plain
    assert model.to_tokens(PROMPT, prepend_bos=True)[0].tolist() == [model.tokenizer.bos_token_id, *plain]
    assert model.tokenizer.padding_side == tokenizer.padding_side
    short, long = model.to_tokens(["Paris", PROMPT])
    assert len(short) == len(long)
    assert (short[0] if tokenizer.padding_side == "left" else short[-1]) == model.tokenizer.pad_token_id
    assert model(torch.stack([short, long])).isfinite().all()


def test_a_tokenizer_without_a_directory_is_given_one():
    tokenizer = tiny_tokenizers.byte_level()
    tokenizer.init_kwargs.pop("name_or_path")
    assert not tiny_tokenizers.is_round_tripped(tokenizer)
    assert (
        build("gpt2", tokenizer=tokenizer).to_tokens(PROMPT, prepend_bos=False)[0].tolist()
        == (tokenizer(PROMPT)["input_ids"])
    )
