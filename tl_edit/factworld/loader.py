"""Load the bundled model, offline, with whichever interface the installed TransformerLens has.

TransformerLens and transformers are imported when a model is loaded, so that `import tl_edit` stays light.
"""

import json
from pathlib import Path
from typing import Any, Literal, cast

import torch
from einops import rearrange
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

DATA = Path(__file__).parent / "data"
"""Where the wheel keeps the facts, the weights and the tokenizer."""

MODEL_NAME = "tl-edit-fact-model"
"""``model.cfg.model_name`` of the bundled model."""


def load_fact_model(
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    interface: Literal["HookedTransformer", "TransformerBridge"] | None = None,
    processing: bool = False,
) -> Any:
    """The bundled model: a small GPT-2 that knows the facts of `facts()`.

    Args:
        dtype: Of the weights; float32 if None (they are stored as float16).
        device: Where to put the model; the CPU if None.
        interface: Which TransformerLens class to give; None takes ``HookedTransformer`` where the installed
            version has one (before 4.0), else ``TransformerBridge``.
        processing: Fold layer norms and centre weights, as ``HookedTransformer.from_pretrained`` does and a bridge's
            ``enable_compatibility_mode()``. Log-probabilities stay the same.

    Raises:
        ValueError: If the installed TransformerLens does not have the interface.
    """
    if interface not in (None, "HookedTransformer", "TransformerBridge"):
        raise ValueError(
            f"load_fact_model: interface is {interface!r}; expected 'HookedTransformer', 'TransformerBridge', or None "
            "for the one that the installed TransformerLens prefers."
        )
    dtype = dtype or torch.float32
    device = torch.device(device or "cpu")
    hooked = None if interface == "TransformerBridge" else _hooked_transformer_class(required=interface is not None)
    if hooked is not None:
        return _load_hooked(hooked, dtype, device, processing)
    return _load_bridge(dtype, device, processing)


def fact_model_weights(path: Path = DATA / "model.safetensors") -> dict[str, Tensor]:
    """The stored weights (float16) under Hugging Face's GPT-2 names."""
    return load_file(path)


def _hooked_transformer_class(*, required: bool) -> Any:
    try:
        from transformer_lens import HookedTransformer  # pyright: ignore[reportAttributeAccessIssue]

        return cast(Any, HookedTransformer)
    except ImportError as error:
        if not required:
            return None
        raise ValueError(
            "load_fact_model was asked for a HookedTransformer; the installed TransformerLens "
            f"{_version()} has none; expected a version below 4. Leave interface=None to get a "
            'TransformerBridge, or run pip install "transformer-lens<4".'
        ) from error


def _bridge_class() -> Any:
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError as error:
        raise ValueError(
            f"load_fact_model was asked for a TransformerBridge; the installed TransformerLens {_version()} "
            "has none; expected 3.8 or newer. Leave interface=None to get a HookedTransformer, or run "
            'pip install "transformer-lens>=3.8".'
        ) from error
    return TransformerBridge


def _version() -> str:
    from importlib.metadata import version

    return version("transformer-lens")


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return cast(Any, AutoTokenizer).from_pretrained(str(DATA))


def _load_hooked(hooked: Any, dtype: torch.dtype, device: torch.device, processing: bool) -> Any:
    from transformer_lens import HookedTransformerConfig  # pyright: ignore[reportAttributeAccessIssue]

    stored = json.loads((DATA / "config.json").read_text("utf-8"))
    config = HookedTransformerConfig(
        model_name=MODEL_NAME,
        original_architecture="GPT2LMHeadModel",
        n_layers=stored["n_layer"],
        n_heads=stored["n_head"],
        d_model=stored["n_embd"],
        d_head=stored["n_embd"] // stored["n_head"],
        d_mlp=stored["n_inner"],
        d_vocab=stored["vocab_size"],
        n_ctx=stored["n_positions"],
        eps=stored["layer_norm_epsilon"],
        act_fn=stored["activation_function"],
        normalization_type="LN",
        init_weights=False,
        dtype=dtype,
        device=str(device),
    )
    model = hooked(config, tokenizer=_tokenizer())
    weights = {name: tensor.to(device, dtype) for name, tensor in to_transformer_lens(config.n_heads).items()}
    model.load_and_process_state_dict(
        weights,
        fold_ln=processing,
        center_writing_weights=processing,
        center_unembed=processing,
        fold_value_biases=processing,
    )
    return model.eval()


def _load_bridge(dtype: torch.dtype, device: torch.device, processing: bool) -> Any:
    bridge_class = _bridge_class()
    from transformers import GPT2Config, GPT2LMHeadModel

    source: Any = GPT2LMHeadModel(GPT2Config.from_pretrained(str(DATA), attn_implementation="eager"))
    source.load_state_dict(fact_model_weights(), strict=False)  # the unembedding is the embedding, and not stored
    source = source.to(device=device, dtype=dtype)
    model = bridge_class.boot_transformers(
        MODEL_NAME, hf_model=source, tokenizer=_tokenizer(), device=str(device), dtype=dtype
    )
    if processing:
        model.enable_compatibility_mode()
    return model.eval()


def to_transformer_lens(n_heads: int) -> dict[str, Tensor]:
    """The stored weights under HookedTransformer's names: heads apart, ``W_U`` separate from ``W_E``."""
    stored = fact_model_weights()
    embedding = stored["transformer.wte.weight"]
    weights = {
        "embed.W_E": embedding,
        "pos_embed.W_pos": stored["transformer.wpe.weight"],
        "ln_final.w": stored["transformer.ln_f.weight"],
        "ln_final.b": stored["transformer.ln_f.bias"],
        "unembed.W_U": embedding.T.clone(),
        "unembed.b_U": torch.zeros(len(embedding)),
    }
    n_layers = sum(name.endswith("ln_1.weight") for name in stored)
    for layer in range(n_layers):
        old, new = f"transformer.h.{layer}", f"blocks.{layer}"
        for theirs, ours in (("ln_1", "ln1"), ("ln_2", "ln2")):
            weights[f"{new}.{ours}.w"] = stored[f"{old}.{theirs}.weight"]
            weights[f"{new}.{ours}.b"] = stored[f"{old}.{theirs}.bias"]
        joint_weights = stored[f"{old}.attn.c_attn.weight"].chunk(3, dim=1)
        joint_biases = stored[f"{old}.attn.c_attn.bias"].chunk(3)
        for letter, weight, bias in zip("QKV", joint_weights, joint_biases, strict=True):
            weights[f"{new}.attn.W_{letter}"] = rearrange(weight, "m (head h) -> head m h", head=n_heads)
            weights[f"{new}.attn.b_{letter}"] = rearrange(bias, "(head h) -> head h", head=n_heads)
        output = stored[f"{old}.attn.c_proj.weight"]
        weights[f"{new}.attn.W_O"] = rearrange(output, "(head h) m -> head h m", head=n_heads)
        weights[f"{new}.attn.b_O"] = stored[f"{old}.attn.c_proj.bias"]
        for theirs, ours in (("c_fc", "in"), ("c_proj", "out")):
            weights[f"{new}.mlp.W_{ours}"] = stored[f"{old}.mlp.{theirs}.weight"]
            weights[f"{new}.mlp.b_{ours}"] = stored[f"{old}.mlp.{theirs}.bias"]
    return weights
