"""Tiny random models of many architectures, behind every interface the installed TransformerLens has.

    model = build("gpt2")
    for case in available_cases(): model = build(case)

Each model starts as a Hugging Face model with random weights, and goes through TransformerLens' own loaders:
`HookedTransformer.from_pretrained` and `TransformerBridge.boot_transformers`. The weights depend on the
family, the seed and the vocabulary only, so all interfaces of a family compute the same function: their
log-probabilities agree (logits do not, because processing moves them by a constant). Nothing is downloaded,
and the global random state, the list of official model names and the like are left as they were.
"""

import contextlib
import copy
import functools
import io
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import tiny_tokenizers
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

D_MODEL = 32
N_HEADS = 4
D_HEAD = 8
D_MLP = 80
"""Neither `D_MODEL` nor four times that: a transposed matrix or a guessed size does not go unnoticed."""
N_CTX = 128
WINDOW = 24
"""Width of the sliding attention window of the families that have one (gemma2, gpt_neo)."""

FAMILIES = ("gpt2", "gpt_neox", "gptj", "llama", "gemma2", "qwen2", "qwen3", "opt", "gpt_neo", "phi")
"""Families with an ordinary MLP in every layer."""
UNEDITABLE_FAMILIES = ("mixtral", "attn_only")
"""Families without a `W_out` to edit: a mixture of experts, and a model without MLPs."""
PARALLEL_FAMILIES = ("gpt_neox", "gptj", "phi")
"""Attention and MLP read the same residual stream; there is no `hook_resid_mid`."""

HOOKED_TRANSFORMER = "HookedTransformer"
TRANSFORMER_BRIDGE = "TransformerBridge"

_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gptj": "GPTJForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "opt": "OPTForCausalLM",
    "gpt_neo": "GPTNeoForCausalLM",
    "phi": "PhiForCausalLM",
    "mixtral": "MixtralForCausalLM",
}


@dataclass(frozen=True)
class Case:
    """A family behind an interface. `str(case)` serves as the id of a test."""

    family: str
    interface: str
    """"HookedTransformer" or "TransformerBridge"."""
    processed: bool
    """LayerNorm folded and weights centred (HookedTransformer), `enable_compatibility_mode()` (bridge)."""

    def __str__(self) -> str:
        return f"{self.family}-{self.interface}-{'processed' if self.processed else 'raw'}"


@functools.cache
def interfaces() -> dict[str, Any]:
    """The model classes of the installed TransformerLens, by name."""
    found = {}
    # In TransformerLens 4, asking with hasattr raises ImportError.
    with contextlib.suppress(ImportError):
        from transformer_lens import HookedTransformer

        found[HOOKED_TRANSFORMER] = HookedTransformer
    with contextlib.suppress(ImportError):
        from transformer_lens.model_bridge import TransformerBridge

        found[TRANSFORMER_BRIDGE] = TransformerBridge
    return found


def available_cases(families: Iterable[str] = FAMILIES) -> list[Case]:
    """Every combination that the installed TransformerLens can build and that computes what it should.

    Left out: the processed Mixtral of TransformerLens 2, where half of the folding of LayerNorm is skipped,
    so that the model computes something else.
    """
    only_version_2 = TRANSFORMER_BRIDGE not in interfaces()
    return [
        Case(family, interface, processed)
        for family in families
        for interface in interfaces()
        for processed in (False, True)
        if not (family == "mixtral" and processed and only_version_2)
    ]


def build(
    case_or_family: Case | str,
    interface: str | None = None,
    processed: bool = False,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tokenizer: Any = None,
    n_layers: int = 3,
) -> Any:
    """A tiny model on the CPU with its tokenizer, in the state in which TransformerLens' loader leaves it.

    `interface` defaults to HookedTransformer where it exists. `tokenizer` defaults to one that is like the
    real one of the family (see `default_tokenizer`); a tokenizer that has no directory behind it is copied
    into one.

    `dtype`: the weights are drawn in float32 and cast, then the loader is asked for this dtype, so that
    `cfg.dtype` tells it. The other way that works is `.to(dtype)` on a float32
    model (not for a bridge over a gated MLP in compatibility mode in TransformerLens 3). `.double()` and
    `.half()` leave `cfg.dtype` behind, and HookedTransformer then fails, because its LayerNorm casts to it.
    Do not expect more than 1e-5 of float64: bridges have float32 steps (rotary angles, RMSNorm and softmax in
    Hugging Face), and TransformerLens 3 and 4 process weights in float32.
    Mixtral runs in float32 only (float16 and bfloat16: bridge only).
    """
    case = case_or_family
    if isinstance(case, str):
        case = Case(case, interface or next(iter(interfaces())), processed)
    if case.interface not in interfaces():
        raise ValueError(f"{case} needs {case.interface}; the installed TransformerLens has {list(interfaces())}")
    if tokenizer is None and case.interface == HOOKED_TRANSFORMER:
        return copy.deepcopy(loaded_once(case, dtype, seed, n_layers))
    return _load(case, dtype, seed, tokenizer, n_layers)


@functools.cache
def loaded_once(case: Case, dtype: torch.dtype, seed: int, n_layers: int) -> Any:
    """What `build` gives away copies of, in a fifth of the time of loading; bridges are not the same when copied."""
    with torch.inference_mode(False):
        return _load(case, dtype, seed, None, n_layers)


def _load(case: Case, dtype: torch.dtype, seed: int, tokenizer: Any, n_layers: int) -> Any:
    if tokenizer is None:
        tokenizer = default_tokenizer(case.family)
    elif not tiny_tokenizers.is_round_tripped(tokenizer):
        tokenizer = tiny_tokenizers.round_trip(tokenizer)

    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        if case.family == "attn_only":
            return _attention_only(case, tokenizer, dtype, seed, n_layers)
        hf_model = build_hf(case.family, len(tokenizer), dtype=dtype, seed=seed, n_layers=n_layers)
        return boot(hf_model, tokenizer, case, dtype)


def boot(
    hf_model: PreTrainedModel,
    tokenizer: Any,
    case: Case,
    dtype: torch.dtype,
    *,
    d_mlp: int = D_MLP,
    n_ctx: int = N_CTX,
) -> Any:
    """`hf_model` behind the interface of `case`; give the sizes where they are not those of this file."""
    if case.interface == HOOKED_TRANSFORMER:
        return _hooked_transformer(hf_model, tokenizer, case, dtype, d_mlp, n_ctx)
    return _bridge(hf_model, tokenizer, case, dtype)


def default_tokenizer(family: str) -> Any:
    """A tokenizer with the special tokens, spaces and BOS habits of the family's real one."""
    if family == "opt":
        return tiny_tokenizers.byte_level(bos="</s>", eos="</s>", pad="<pad>", add_bos=True)
    if family in ("qwen2", "qwen3"):
        return tiny_tokenizers.byte_level(bos=None)
    if family in ("llama", "mixtral"):
        return tiny_tokenizers.sentencepiece_like()
    if family == "gemma2":
        return tiny_tokenizers.sentencepiece_like(bos="<bos>", eos="<eos>", pad="<pad>", prepend_scheme="never")
    return tiny_tokenizers.byte_level()


def build_hf(
    family: str, d_vocab: int, *, dtype: torch.dtype = torch.float32, seed: int = 0, n_layers: int = 3
) -> PreTrainedModel:
    """The Hugging Face model behind `build`.

    A bridge takes the modules over, so build another one to compare with.
    """
    config = _hf_config(family, d_vocab, n_layers)
    with torch.random.fork_rng(devices=[]):
        model = getattr(transformers, _ARCHITECTURES[family])(config).eval()
    for name, parameter in model.named_parameters():
        # Transformers 5 renamed the output layer of gpt_neox; the weights are to be the same before and
        # after.
        name = name.replace("embed_out", "lm_head")
        # Casting the parameters only: rotary buffers stay in float32, as they do in
        # `from_pretrained(dtype=)`.
        parameter.data = _draw(name, parameter.shape, d_vocab, f"{family} {seed}", family == "gemma2").to(dtype)
    model.config.dtype = dtype
    return model


def _draw(name: str, shape: torch.Size, d_vocab: int, seed: str, norm_around_zero: bool) -> torch.Tensor:
    """Random values for one parameter. They depend on its name, not on the order of creation."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values * (0.4 if d_vocab in shape else 0.2)
    if name.endswith("bias"):
        return values * 0.2
    return values * 0.2 + (0.0 if norm_around_zero else 1.0)


def _hf_config(family: str, d_vocab: int, n_layers: int) -> PretrainedConfig:
    modern: dict[str, Any] = {
        "vocab_size": d_vocab,
        "hidden_size": D_MODEL,
        "num_hidden_layers": n_layers,
        "num_attention_heads": N_HEADS,
        "intermediate_size": D_MLP,
        "max_position_embeddings": N_CTX,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    old: dict[str, Any] = {
        "vocab_size": d_vocab,
        "n_embd": D_MODEL,
        "n_layer": n_layers,
        "n_head": N_HEADS,
        "n_inner": D_MLP,
        "n_positions": N_CTX,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    # Tied embeddings where the real family ties them: gpt2, gpt_neo, opt, gemma2 and the small qwens.
    grouped: dict[str, Any] = modern | {
        "num_key_value_heads": 2,
        "tie_word_embeddings": family.startswith("qwen"),
    }
    if family == "gpt2":
        config: PretrainedConfig = transformers.GPT2Config(**old)
        config.n_ctx = N_CTX  # TransformerLens asks for the name that old checkpoints have
    elif family == "gptj":
        config = transformers.GPTJConfig(**old, rotary_dim=4, tie_word_embeddings=False)
    elif family == "gpt_neox":
        config = transformers.GPTNeoXConfig(**modern, rotary_pct=0.5, tie_word_embeddings=False)
    elif family == "llama":
        config = transformers.LlamaConfig(**grouped)
    elif family == "gemma2":
        config = transformers.Gemma2Config(
            **{**grouped, "tie_word_embeddings": True},
            head_dim=D_HEAD,
            query_pre_attn_scalar=D_HEAD,
            sliding_window=WINDOW,
            hidden_activation="gelu_pytorch_tanh",
        )
    elif family == "qwen2":
        config = transformers.Qwen2Config(**grouped)
    elif family == "qwen3":
        config = transformers.Qwen3Config(**grouped, head_dim=D_HEAD)
    elif family == "opt":
        sizes = {key: value for key, value in modern.items() if key != "intermediate_size"}
        config = transformers.OPTConfig(**sizes, ffn_dim=D_MLP, word_embed_proj_dim=D_MODEL, pad_token_id=1)
    elif family == "gpt_neo":
        kinds = [("global", "local")[layer % 2] for layer in range(n_layers)]
        config = transformers.GPTNeoConfig(
            **{key: value for key, value in modern.items() if not key.startswith("num_")},
            num_layers=n_layers,
            num_heads=N_HEADS,
            attention_types=[[kinds, 1]],
            window_size=WINDOW,
        )
    elif family == "phi":
        config = transformers.PhiConfig(**modern, partial_rotary_factor=0.5, tie_word_embeddings=False)
        config.partial_rotary_factor = 0.5  # Transformers 5 moves it away; TransformerLens 3 asks for it
    elif family == "mixtral":
        config = transformers.MixtralConfig(**grouped, num_local_experts=4, num_experts_per_tok=2)
    else:
        raise ValueError(f"unknown family {family!r}; known are {[*_ARCHITECTURES, 'attn_only']}")
    config.architectures = [_ARCHITECTURES[family]]
    config._attn_implementation = "eager"
    return config


def _hooked_transformer(
    hf_model: PreTrainedModel, tokenizer: Any, case: Case, dtype: torch.dtype, d_mlp: int, n_ctx: int
) -> Any:
    """Through `HookedTransformer.from_pretrained`, which knows models by the names of a fixed list only.

    For the duration of the call, the list has one more name, and the config behind that name is ours.
    Corrected in the result: the size of the MLP, which TransformerLens takes to be 4 * d_model for gpt2, gptj
    and gpt_neo; and all sizes of gemma2, whose configuration it keeps in code, by name.
    """
    from transformer_lens import loading_from_pretrained as loading

    # A name with "llama" or "gemma" in it is taken for one of the official models; only gemma2 has to be.
    official_name = {"gemma2": "google/gemma-2-2b", "llama": "tiny-lama"}.get(case.family, f"tiny-{case.family}")
    convert = loading.convert_hf_model_config
    sizes: dict[str, Any] = {"d_mlp": d_mlp}
    if case.family == "gemma2":
        n_layers = hf_model.config.num_hidden_layers
        sizes |= {
            "d_model": D_MODEL,
            "d_head": D_HEAD,
            "n_heads": N_HEADS,
            "n_key_value_heads": 2,
            "n_layers": n_layers,
            "n_ctx": N_CTX,
            "d_vocab": hf_model.config.vocab_size,
            "window_size": WINDOW,
            "attn_types": [("local", "global")[layer % 2] for layer in range(n_layers)],
        }

    def tiny_config(name: str, **kwargs: Any) -> dict[str, Any]:
        return convert(name, **kwargs) | sizes

    names = [*loading.OFFICIAL_MODEL_NAMES, official_name]
    with (
        mock.patch.object(loading, "OFFICIAL_MODEL_NAMES", names),
        mock.patch.object(loading, "convert_hf_model_config", tiny_config),
        mock.patch.object(loading, "AutoConfig", SimpleNamespace(from_pretrained=lambda *_, **__: hf_model.config)),
    ):
        return interfaces()[HOOKED_TRANSFORMER].from_pretrained(
            official_name,
            hf_model=hf_model,
            tokenizer=tokenizer,
            device="cpu",
            dtype=dtype,
            n_ctx=n_ctx,
            default_padding_side=tokenizer.padding_side,
            fold_ln=case.processed,
            center_writing_weights=case.processed,
            center_unembed=case.processed,
            fold_value_biases=case.processed,
        )


def _bridge(hf_model: PreTrainedModel, tokenizer: Any, case: Case, dtype: torch.dtype) -> Any:
    bridge = interfaces()[TRANSFORMER_BRIDGE].boot_transformers(
        f"tiny-{case.family}", hf_model=hf_model, tokenizer=tokenizer, device="cpu", dtype=dtype
    )
    if case.processed:
        bridge.enable_compatibility_mode()
        # TransformerLens 3 gives float32 biases to attention layers that have none (gptj, qwen2, gpt_neo),
        # and cannot run a model of another dtype afterwards.
        for name, parameter in bridge.named_parameters():
            if name.endswith("bias"):
                parameter.data = parameter.data.to(dtype)
    return bridge


def _attention_only(case: Case, tokenizer: Any, dtype: torch.dtype, seed: int, n_layers: int) -> Any:
    """No Hugging Face family lacks MLPs, so each interface builds its own; their weights are not the same."""
    sizes: dict[str, Any] = {
        "n_layers": n_layers,
        "d_model": D_MODEL,
        "d_head": D_HEAD,
        "n_heads": N_HEADS,
        "n_ctx": N_CTX,
        "d_vocab": len(tokenizer),
        "attn_only": True,
        "normalization_type": "LN",
        "dtype": dtype,
        "device": "cpu",
    }
    if case.interface == HOOKED_TRANSFORMER:
        from transformer_lens import HookedTransformerConfig

        model = interfaces()[HOOKED_TRANSFORMER](
            HookedTransformerConfig(**sizes),
            tokenizer=tokenizer,
            default_padding_side=tokenizer.padding_side,
        )
    else:
        from transformer_lens.config import TransformerBridgeConfig

        model = interfaces()[TRANSFORMER_BRIDGE].boot_native(
            TransformerBridgeConfig(**sizes), tokenizer=tokenizer, device="cpu", dtype=dtype
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = parameter.ndim == 1 and name.endswith((".w", "weight"))
            kind = "gain" if is_gain else "bias"
            drawn = _draw(f"{name}.{kind}", parameter.shape, len(tokenizer), f"attn_only {seed}", False)
            parameter.copy_(drawn)
    if case.processed and case.interface == HOOKED_TRANSFORMER:
        model.process_weights_()
    elif case.processed:
        model.enable_compatibility_mode()
    return model
