"""The residual stream of TransformerLens' models: who writes into it, and how logits are read from it.

Block by block, ``resid_post = resid_pre + attn_out + mlp_out``, also where attention and MLP read the same input
(GPT-J, GPT-NeoX, Phi). ``attn_out`` is the sum over heads of ``z @ W_O``, and the bias ``b_O``; Gemma 2 normalises that
before it is added. After the last block, the final norm and the unembedding make logits of the stream, which some
models cap. That the two interfaces agree in this, raw and processed, was measured on TransformerLens 2.18 to 4.3.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_edit.host import Model, interface, model_name, norm_after

POSITIONS = "hook_pos_embed"
"""Learned positions; not there, or never seen, where positions are rotary."""

FINAL_SCALE = "ln_final.hook_scale"
"""What the final norm divides by: ``[batch pos 1]``."""

PROBE = 1e4
"""Size of the vector that a norm is shown to find its gain; next to it, eps is nothing."""


def attn_out_name(layer: int) -> str:
    """Hook point of what attention adds to the residual stream: ``[batch pos d_model]``."""
    return f"blocks.{layer}.hook_attn_out"


def mlp_out_name(layer: int) -> str:
    """Hook point of what the MLP adds to the residual stream, the value after a norm behind it, if there is one."""
    return f"blocks.{layer}.hook_mlp_out"


def has_mlp(model: Model, layer: int) -> bool:
    """Whether a block has an MLP, of any kind: models of attention alone have hook points for it that never fire."""
    return model.blocks[layer]._modules.get("mlp") is not None


def head_name(layer: int) -> str:
    """Hook point of what heads read, before ``W_O``: ``[batch pos head d_head]``."""
    return f"blocks.{layer}.attn.hook_z"


def pattern_name(layer: int) -> str:
    """Hook point of attention patterns: ``[batch head dest src]``."""
    return f"blocks.{layer}.attn.hook_pattern"


@dataclass(frozen=True)
class Norm:
    """A layer norm or RMS norm as its numbers: ``gain * (x - mean) / scale + offset``."""

    centred: bool
    """Whether the mean is taken away: layer norms do, RMS norms do not."""
    gain: Float[Tensor, " d_model"]
    offset: Float[Tensor, " d_model"]

    def part(self, part: Float[Tensor, "*part d_model"], scale: Float[Tensor, "..."]) -> Float[Tensor, "*part d_model"]:
        """What a part of the input is in the output, for the scale of the whole; parts sum to the output's rest."""
        kept = part - part.mean(-1, keepdim=True) if self.centred else part
        return self.gain * kept / scale


def final_norm(model: Model) -> Norm:
    """The norm before the unembedding, in float64 on the CPU.

    Raises:
        ValueError: If there is none, or it is no norm that tl_edit knows.
    """
    return _norm(model, getattr(model, "ln_final", None), "ln_final")


def has_final_norm(model: Model) -> bool:
    """Whether there is a norm before the unembedding: toy models may have none."""
    return not isinstance(getattr(model, "ln_final", None), nn.Identity | None)


def norm_after_attention(model: Model, layer: int) -> Norm | None:
    """The norm between the heads and the residual stream (Gemma 2 and 3); None where there is none.

    Raises:
        ValueError: If it is no norm that tl_edit knows.
    """
    found = model.blocks[layer]._modules.get("ln1_post")
    return None if found is None else _norm(model, found, f"blocks.{layer}.ln1_post")


def norm_after_mlp(model: Model, layer: int) -> Norm | None:
    """The norm between the MLP and the residual stream (Gemma 2 and 3, OLMo 2); None where there is none.

    Raises:
        ValueError: If it is no norm that tl_edit knows.
    """
    name = norm_after(model, layer)
    return None if name is None else _norm(model, getattr(model.blocks[layer], name), f"blocks.{layer}.{name}")


def attention_scale_name(layer: int) -> str:
    """Hook point of what the norm after attention divides by."""
    return f"blocks.{layer}.ln1_post.hook_scale"


def _norm(model: Model, module: Any, name: str) -> Norm:
    width = int(model.cfg.d_model)
    gain, offset = torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    if module is None or isinstance(module, nn.Identity):
        raise ValueError(_unknown(model, name, module))
    if interface(model) == "HookedTransformer":
        kind = type(module).__name__
        if kind not in ("LayerNorm", "LayerNormPre", "RMSNorm", "RMSNormPre"):
            raise ValueError(_unknown(model, name, module))
        own = module._parameters
        return Norm(
            centred=kind.startswith("LayerNorm"), gain=_double(own.get("w"), gain), offset=_double(own.get("b"), offset)
        )
    centred = getattr(module, "uses_rms_norm", None)
    if centred is None:
        raise ValueError(_unknown(model, name, module))
    return _probed(module.original_component, not centred, width)


@torch.no_grad()
def _probed(component: nn.Module, centred: bool, width: int) -> Norm:
    """A norm of Hugging Face: some keep their gain less one (Gemma), so it is asked rather than read."""
    weight = next(component.parameters(), None)
    if weight is None:
        return Norm(centred, torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))
    signs = torch.tensor([1.0, -1.0], device=weight.device, dtype=weight.dtype).repeat(width // 2 + 1)[:width]
    shown = torch.stack([PROBE * signs, torch.zeros_like(signs)])[:, None]
    (answer,), (offset,) = component(shown).to("cpu", torch.float64)
    probe = shown[0, 0].to("cpu", torch.float64)
    probe = probe - probe.mean() if centred else probe
    return Norm(centred, (answer - offset) * probe.square().mean().sqrt() / probe, offset)


def _double(found: Tensor | None, otherwise: Tensor) -> Tensor:
    return otherwise if found is None else found.detach().to("cpu", torch.float64)


def _unknown(model: Model, name: str, module: object) -> str:
    return (
        f"taking apart what {model_name(model)} says: its {name} is of type {type(module).__name__}; expected a layer "
        "norm or an RMS norm, as parts can be told apart behind no other; use another model, or logit_lens, which "
        "needs no parts."
    )


def head_outputs(
    model: Model, layer: int, z: Float[Tensor, "head d_head"]
) -> tuple[Float[Tensor, "head d_model"], Float[Tensor, " d_model"]]:
    """What each head writes, ``z @ W_O``, and the bias ``b_O`` beside them, in float64 on the CPU.

    Both come before the norm that Gemma 2 has after its attention.

    Raises:
        ValueError: If the attention has no ``W_O`` for each head.
    """
    attention = model.blocks[layer].attn
    weight = getattr(attention, "W_O", None)
    if not isinstance(weight, Tensor) or weight.ndim != 3 or weight.shape[:2] != z.shape:
        found = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(
            f"taking apart the attention of layer {layer} of {model_name(model)}: W_O is {found}; expected "
            f"{[*z.shape, int(model.cfg.d_model)]}, [head d_head d_model]; use another model, or attention_change, "
            "which needs no W_O."
        )
    zero = torch.zeros(weight.shape[2], dtype=torch.float64)
    written = torch.einsum("hd,hdm->hm", z.to("cpu", torch.float64), weight.detach().to("cpu", torch.float64))
    return written, _double(getattr(attention, "b_O", None), zero)


def unembedding(model: Model, tokens: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n d_model"], Float[Tensor, " n"]]:
    """Columns of ``W_U`` and entries of ``b_U`` of some tokens, in float64 on the CPU."""
    unembed = cast(Any, model).unembed
    weight = unembed.W_U.detach()
    bias = getattr(unembed, "b_U", None)
    columns = weight[:, tokens.to(weight.device)].T.to("cpu", torch.float64)
    return columns, torch.zeros(len(tokens), dtype=torch.float64) if bias is None else _double(
        bias[tokens.to(bias.device)], bias
    )


@contextmanager
def shown_unembedded(model: Model, reader: Callable[[Tensor], None]) -> Generator[None, None, None]:
    """Show ``reader`` the logits as the unembedding makes them, before a cap (Gemma 2), in each pass of the block."""

    def read(_module: nn.Module, _args: object, logits: Tensor) -> None:
        reader(logits.detach())

    handle = cast(nn.Module, cast(Any, model).unembed).register_forward_hook(read)
    try:
        yield
    finally:
        handle.remove()
