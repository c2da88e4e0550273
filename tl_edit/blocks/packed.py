"""The blocks of a HookedTransformer, computed here with packed weights.

TransformerLens keeps one matrix per head and copies all of them into another layout at every call, and it computes
norms and activations step by step so that each step has a hook point. Where nobody looks at the steps, one matrix
for query, key and value and the fused functions of torch give the same numbers in less time. Only the common kinds
of blocks are computed so; for others `PackedBlocks` refuses, and the model's own blocks are called.

A layer's weights are packed when it is entered and dropped when it is left.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange  # pyright: ignore[reportUnknownVariableType]
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from tl_edit import host
from tl_edit.blocks.base import (
    TOUCHED,
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
        """See `check_common`."""
        super().__init__(model, ordinary)
        check_common(model)

    @contextmanager
    def layer(
        self, layer: int, touch: Touch | None = None, kinds: Sequence[str] = TOUCHED
    ) -> Generator[Block, None, None]:
        """See `Blocks.layer`."""
        yield PackedBlock(self.model.blocks[layer], touch)

    def unembed(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """See `Blocks.unembed`."""
        return unembed(self.model, resid)


def unembed(model: Any, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of a HookedTransformer's residual stream after the last block."""
    return logits_of(model, resid if model.cfg.normalization_type is None else _norm(model.ln_final)(resid))


def check_common(model: Model) -> None:
    """Check that a model is a HookedTransformer whose blocks are of the common kinds.

    Raises:
        CannotCallBlocksError: naming what is unusual.
    """
    if host.interface(model) != "HookedTransformer":
        raise CannotCallBlocksError("not a HookedTransformer")
    stranger = replaced_module(model)
    if stranger is not None:
        raise CannotCallBlocksError(f"{stranger} is not TransformerLens' own")
    cfg = model.cfg
    unusual = [name for name in _UNUSUAL if getattr(cfg, name, None)]
    if cfg.positional_embedding_type not in ("standard", "rotary"):
        unusual.append(f"positions: {cfg.positional_embedding_type}")
    if cfg.original_architecture in _POST_NORM:
        unusual.append(str(cfg.original_architecture))
    if cfg.n_devices > 1 or cfg.dtype not in (torch.float32, torch.float64):
        unusual.append(f"{cfg.dtype} on {cfg.n_devices} devices")
    mlps = [block._modules.get("mlp") for block in model.blocks]
    unusual += {"no MLP" if mlp is None else type(mlp).__name__ for mlp in mlps} - {"MLP", "GatedMLP"}
    if unusual:
        raise CannotCallBlocksError(f"no packed form for {', '.join(unusual)}")


class PackedBlock:
    """One block; ``resid`` is [batch pos d_model] throughout."""

    def __init__(self, block: Any, touch: Touch | None = None) -> None:
        self.cfg, self.touch = block.cfg, touch
        self.norm_1, self.norm_2 = _norm(block.ln1), _norm(block.ln2)
        post = self.cfg.use_normalization_before_and_after
        self.post_1, self.post_2 = (_norm(block.ln1_post), _norm(block.ln2_post)) if post else (None, None)
        self.attention, self.mlp = _Attention(block.attn), _MLP(block.mlp)

    def __call__(self, resid: Tensor, past: Past, last: int | None = None) -> Tensor:
        """See `Block`."""
        attn_out = self.attention(self.norm_1(resid), past, last)
        return self.finish(resid if last is None else resid[:, -last:], attn_out)

    def finish(self, resid: Tensor, attn_out: Tensor) -> Tensor:
        """The block output, of its input and of what attention gives."""
        attn_out = self._touched("attn_out", attn_out if self.post_1 is None else self.post_1(attn_out))
        mid = resid + attn_out
        keys = self._touched("key", self.mlp.keys(self.norm_2(resid if self.cfg.parallel_attn_mlp else mid)))
        value = self._touched("value", self.mlp.values(keys))
        return mid + self._touched("mlp_out", value if self.post_2 is None else self.post_2(value))

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
        # Detached: what follows may need gradients, but never those of weights.
        several = (each.detach() for each in (query, key, value))
        self.weight = torch.cat([rearrange(each, "head m h -> (head h) m") for each in several])
        self.bias = torch.cat([rearrange(each.detach(), "head h -> (head h)") for each in biases])
        self.output, self.output_bias = output.detach().flatten(0, 1), attn.b_O.detach()
        self.rotary = cfg.positional_embedding_type == "rotary"
        self.window = cfg.window_size if attn.attn_type == "local" else None
        self.cap = max(0.0, float(cfg.attn_scores_soft_cap or 0.0))  # TransformerLens says -1 for none
        self.scale = 1.0 / float(attn.attn_scale)

    def __call__(self, normed: Tensor, past: Past, last: int | None) -> Tensor:
        start = past.get_seq_length()
        query, key, value = self.project(normed)
        if self.rotary:
            query, key = (self.attn.apply_rotary(each, start) for each in (query, key))
        keys, values = past.append(key.transpose(1, 2), value.transpose(1, 2))
        query = (query if last is None else query[:, -last:]).transpose(1, 2)
        there = torch.arange(keys.shape[2], device=query.device)
        mixed = self.mix(query, keys, values, looks_back(there[-query.shape[2] :, None], there, self.window))
        return self.leave(rearrange(mixed, "b head pos h -> b pos (head h)"))

    def project(self, normed: Tensor) -> list[Tensor]:
        """Queries, keys and values, [batch pos head d_head], not yet rotated."""
        d_head = self.attn.cfg.d_head
        sizes = [heads * d_head for heads in self.heads]
        parts = torch.split(functional.linear(normed, self.weight, self.bias), sizes, dim=-1)
        query, key, value = (rearrange(part, "b pos (head h) -> b pos head h", h=d_head) for part in parts)
        if getattr(self.attn.cfg, "use_qk_norm", False):
            query = self.attn._apply_qk_norm(query, self.attn.q_norm)
            key = self.attn._apply_qk_norm(key, self.attn.k_norm)
        return [query, key, value]

    def leave(self, mixed: Tensor) -> Tensor:
        """The output of attention, of [... head * d_head]."""
        rows = mixed.flatten(0, -2)
        return torch.addmm(self.output_bias, rows, self.output).view(*mixed.shape[:-1], -1)

    def mix(self, query: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Values weighed by attention, [batch head pos d_head]."""
        repeats = query.shape[1] // keys.shape[1]
        if repeats > 1:
            keys, values = (each.repeat_interleave(repeats, dim=1) for each in (keys, values))
        if not self.cap:
            return functional.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=self.scale)
        scores = self.cap * torch.tanh(query @ keys.transpose(-1, -2) * (self.scale / self.cap))
        return torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1) @ values


def looks_back(here: Tensor, there: Tensor, window: int | None) -> Tensor:
    """Whether causal attention at the positions ``here`` sees those ``there``; local attention has a ``window``."""
    seen = there <= here
    return seen if window is None else seen & (there > here - window)


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


class _MLP:
    """An MLP in two halves, with torch's fused activations; weights are read at each call, since edits change."""

    def __init__(self, mlp: Any) -> None:
        self.parameters = mlp._parameters
        self.act: Function = _ACTIVATIONS.get(getattr(mlp.act_fn, "__name__", "")) or mlp.act_fn

    def keys(self, normed: Tensor) -> Tensor:
        """The input of ``W_out``, [... d_mlp]."""
        rows, w = normed.flatten(0, -2), self._weights()
        if "W_gate" in w:
            post = torch.addcmul(w["b_in"], self.act(rows @ w["W_gate"]), rows @ w["W_in"])
        else:
            post = self.act(torch.addmm(w["b_in"], rows, w["W_in"]))
        return post.view(*normed.shape[:-1], -1)

    def values(self, keys: Tensor) -> Tensor:
        """The output of ``W_out``, [... d_model]."""
        w = self._weights()
        return torch.addmm(w["b_out"], keys.flatten(0, -2), w["W_out"]).view(*keys.shape[:-1], -1)

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.parameters.items() if parameter is not None}
