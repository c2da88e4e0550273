"""The blocks of a HookedTransformer, computed here with packed weights.

TransformerLens keeps one matrix per head and copies all of them into another layout at every call, and it computes
norms and activations step by step so that each step has a hook point. Where nobody looks at the steps, one matrix
for query, key and value and the fused functions of torch give the same numbers in less time. Only the common kinds
of blocks are computed so; for others `PackedBlocks` refuses, and the model's own blocks are called.

A layer's weights are packed when it is entered and dropped when it is left.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange  # pyright: ignore[reportUnknownVariableType]
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tl_edit import host
from tl_edit.blocks.base import (
    Block,
    Blocks,
    CannotCallBlocksError,
    OrdinaryPass,
    Past,
    Touch,
    logits_of,
    replaced_module,
)
from tl_edit.host import Model

Function = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Function] = {
    "gelu_new": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu": functional.gelu,
    "silu": functional.silu,
    "relu": functional.relu,
}

_UNUSUAL = ("use_attention_sinks", "use_logn_attn", "clip_qkv", "use_dynamic_ntk_rope", "num_experts", "load_in_4bit")
_POST_NORM = ("Olmo2ForCausalLM", "Olmo3ForCausalLM", "OlmoeForCausalLM")


class PackedBlocks(Blocks):
    """Blocks of a HookedTransformer with packed weights."""

    description = "packed weights"
    dim = 2

    def __init__(self, model: Model, ordinary: OrdinaryPass) -> None:
        """Check that the blocks are of the common kinds.

        Raises:
            CannotCallBlocksError: naming what is unusual.
        """
        super().__init__(model, ordinary)
        if host.interface(model) != "HookedTransformer":
            raise CannotCallBlocksError("not a HookedTransformer")
        stranger = replaced_module(model)
        if stranger is not None:
            raise CannotCallBlocksError(f"{stranger} is not TransformerLens' own")
        cfg = model.cfg
        unusual = [name for name in _UNUSUAL if getattr(cfg, name, None)]
        if cfg.positional_embedding_type not in ("standard", "rotary"):
            unusual.append(f"positions: {cfg.positional_embedding_type}")
        if cfg.original_architecture in _POST_NORM or cfg.attn_only:
            unusual.append(str(cfg.original_architecture))
        if cfg.n_devices > 1 or cfg.dtype not in (torch.float32, torch.float64):
            unusual.append(f"{cfg.dtype} on {cfg.n_devices} devices")
        unusual += {type(block.mlp).__name__ for block in model.blocks} - {"MLP", "GatedMLP"}
        if unusual:
            raise CannotCallBlocksError(f"no packed form for {', '.join(unusual)}")

    @contextmanager
    def layer(self, layer: int, touch: Touch | None = None) -> Generator[Block, None, None]:
        """See `Blocks.layer`."""
        yield _PackedBlock(self.model.blocks[layer], touch)

    def unembed(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """See `Blocks.unembed`."""
        model: Any = self.model
        normed = resid if model.cfg.normalization_type is None else _norm(model.ln_final)(resid)
        return logits_of(model, normed)


class _PackedBlock:
    """One block; ``resid`` is [batch pos d_model] throughout."""

    def __init__(self, block: Any, touch: Touch | None) -> None:
        self.cfg, self.touch = block.cfg, touch
        self.norm_1, self.norm_2 = _norm(block.ln1), _norm(block.ln2)
        post = self.cfg.use_normalization_before_and_after
        self.post_1, self.post_2 = (_norm(block.ln1_post), _norm(block.ln2_post)) if post else (None, None)
        self.attention, self.mlp = _Attention(block.attn), _mlp(block.mlp)

    def __call__(self, resid: Tensor, past: Past, last: int | None = None) -> Tensor:
        attn_out = self.attention(self.norm_1(resid), past, last)
        if last is not None:
            resid = resid[:, -last:]
        attn_out = self._touched("attn_out", attn_out if self.post_1 is None else self.post_1(attn_out))
        mid = resid + attn_out
        mlp_out = self.mlp(self.norm_2(resid if self.cfg.parallel_attn_mlp else mid))
        return mid + self._touched("mlp_out", mlp_out if self.post_2 is None else self.post_2(mlp_out))

    def _touched(self, kind: str, out: Tensor) -> Tensor:
        new = None if self.touch is None else self.touch(kind, out)
        return out if new is None else new


class _Attention:
    def __init__(self, attn: Any) -> None:
        self.attn, cfg = attn, attn.cfg
        grouped = hasattr(attn, "_W_K")
        query, output = attn.W_Q, attn.W_O
        key, value = (attn._W_K, attn._W_V) if grouped else (attn.W_K, attn.W_V)
        biases = (attn.b_Q, attn._b_K, attn._b_V) if grouped else (attn.b_Q, attn.b_K, attn.b_V)
        self.heads = [len(query), len(key), len(value)]
        self.weight = torch.cat([rearrange(each, "head m h -> (head h) m") for each in (query, key, value)])
        self.bias = torch.cat([rearrange(each, "head h -> (head h)") for each in biases])
        self.output, self.output_bias = rearrange(output, "head h m -> m (head h)").contiguous(), attn.b_O
        self.rotary = cfg.positional_embedding_type == "rotary"
        self.window = cfg.window_size if attn.attn_type == "local" else None
        self.cap = max(0.0, float(cfg.attn_scores_soft_cap or 0.0))  # TransformerLens says -1 for none
        self.scale = 1.0 / float(attn.attn_scale)

    def __call__(self, normed: Tensor, past: Past, last: int | None) -> Tensor:
        start, d_head = past.get_seq_length(), self.attn.cfg.d_head
        sizes = [heads * d_head for heads in self.heads]
        parts = torch.split(functional.linear(normed, self.weight, self.bias), sizes, dim=-1)
        query, key, value = (rearrange(part, "b pos (head h) -> b pos head h", h=d_head) for part in parts)
        if getattr(self.attn.cfg, "use_qk_norm", False):
            query = self.attn._apply_qk_norm(query, self.attn.q_norm)
            key = self.attn._apply_qk_norm(key, self.attn.k_norm)
        if self.rotary:
            query, key = (self.attn.apply_rotary(each, start) for each in (query, key))
        keys, values = past.append(key.transpose(1, 2), value.transpose(1, 2))
        query = (query if last is None else query[:, -last:]).transpose(1, 2)
        mixed = self._mix(query, keys, values)
        return functional.linear(rearrange(mixed, "b head pos h -> b pos (head h)"), self.output, self.output_bias)

    def _mix(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Values weighed by attention, [batch head pos d_head]; the queries are at the last positions."""
        repeats = query.shape[1] // keys.shape[1]
        if repeats > 1:
            keys, values = (each.repeat_interleave(repeats, dim=1) for each in (keys, values))
        there = torch.arange(keys.shape[2], device=query.device)
        here = there[-query.shape[2] :, None]
        seen = there <= here
        if self.window is not None:
            seen &= there > here - self.window
        if not self.cap:
            return functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=self.scale)
        scores = self.cap * torch.tanh(query @ keys.transpose(-1, -2) * (self.scale / self.cap))
        return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1) @ values


def _norm(module: Any) -> Function:
    """A normalisation as one function of torch."""
    kind = type(module).__name__
    if kind in ("LayerNorm", "LayerNormPre"):
        weight, bias = (module.w, module.b) if kind == "LayerNorm" else (None, None)
        return lambda x: functional.layer_norm(x, x.shape[-1:], weight, bias, module.eps)
    if kind in ("RMSNorm", "RMSNormPre"):
        weight = module.w if kind == "RMSNorm" else None
        return lambda x: functional.rms_norm(x, x.shape[-1:], weight, module.eps)
    return module


def _mlp(mlp: Any) -> Function:
    """The MLP on flattened rows, with torch's fused activations."""
    act: Function = _ACTIVATIONS.get(getattr(mlp.act_fn, "__name__", "")) or mlp.act_fn
    gate = mlp._parameters.get("W_gate")

    def run(normed: Tensor) -> Tensor:
        rows = normed.flatten(0, 1)
        if gate is None:
            post = act(torch.addmm(mlp.b_in, rows, mlp.W_in))
        else:
            post = torch.addcmul(mlp.b_in, act(rows @ gate), rows @ mlp.W_in)
        return torch.addmm(mlp.b_out, post, mlp.W_out).view(normed.shape)

    return run
