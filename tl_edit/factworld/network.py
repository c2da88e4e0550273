"""The network of the bundled model, a GPT-2, and the two masks that plant the early site while it is trained.

Left alone, a small GPT-2 learns the facts but reads the pieces of a name straight into the last token: restoring
the last subject token then restores nothing. So in most training batches (all of the first 30 %, then 85 %)

1. the pieces of a name, except its last, can be seen only from within the name (all layers), and
2. the lowest three layers see only the four nearest tokens.

The other batches are plain, as at inference, with a penalty on attention that would break the first rule. All this
leaves the last subject token as the one way for a name to reach the answer, and makes the lower layers gather it
there. At inference there is no mask; the weights are an ordinary GPT-2's. A causal trace of this model therefore
shows a mechanism that we put there: a test bench with a known answer, not evidence about language models.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu

HIDDEN = -1e4
"""Added to the attention score of what must not be seen."""


@dataclass(frozen=True)
class Shape:
    """The sizes of the network."""

    d_vocab: int
    n_layers: int = 6
    d_model: int = 192
    n_heads: int = 4
    d_mlp: int = 896
    n_ctx: int = 64


class Block(nn.Module):
    """One pre-LayerNorm transformer block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.ln_1 = nn.LayerNorm(shape.d_model)
        self.attn_in = nn.Linear(shape.d_model, 3 * shape.d_model)
        self.attn_out = nn.Linear(shape.d_model, shape.d_model)
        self.ln_2 = nn.LayerNorm(shape.d_model)
        self.mlp_in = nn.Linear(shape.d_model, shape.d_mlp)
        self.mlp_out = nn.Linear(shape.d_mlp, shape.d_model)

    def forward(
        self, residual: Float[Tensor, "batch pos d_model"], bias: Float[Tensor, "#batch 1 pos pos"]
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch head pos pos"]]:
        """The residual stream after this block and its attention pattern; ``bias`` is added to the scores."""
        mixed, pattern = self.attention(self.ln_1(residual), bias)
        residual = residual + mixed
        hidden = gelu(self.mlp_in(self.ln_2(residual)), approximate="tanh")
        return residual + self.mlp_out(hidden), pattern

    def attention(
        self, x: Float[Tensor, "batch pos d_model"], bias: Float[Tensor, "#batch 1 pos pos"]
    ) -> tuple[Float[Tensor, "batch pos d_model"], Float[Tensor, "batch head pos pos"]]:
        """Multi-head attention, spelled out: PyTorch's fused kernel is slow in bfloat16 on CPUs."""
        batch, pos, d_model = x.shape
        q, k, v = self.attn_in(x).view(batch, pos, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        pattern = (scores + bias.to(scores.dtype)).softmax(-1).to(v.dtype)
        mixed = pattern @ v
        return self.attn_out(mixed.transpose(1, 2).reshape(batch, pos, d_model)), pattern


class Network(nn.Module):
    """GPT-2 with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.d_vocab, shape.d_model)
        self.position_embedding = nn.Embedding(shape.n_ctx, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.ln_final = nn.LayerNorm(shape.d_model)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("attn_out.weight", "mlp_out.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.shape.n_layers) if writes else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self, tokens: Int[Tensor, "batch pos"], biases: list[Float[Tensor, "#batch 1 pos pos"]] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The final normalised residual stream; ``biases`` (one per layer) default to plain causal attention."""
        return self.run(tokens, biases)[0]

    def run(
        self, tokens: Int[Tensor, "batch pos"], biases: list[Float[Tensor, "#batch 1 pos pos"]] | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], list[Float[Tensor, "batch head pos pos"]]]:
        """`forward`, with the attention pattern of every layer."""
        pos = tokens.shape[1]
        biases = biases or [causal_bias(pos)] * len(self.blocks)
        residual = self.token_embedding(tokens) + self.position_embedding.weight[:pos]
        patterns: list[Tensor] = []
        for block, bias in zip(self.blocks, biases, strict=True):
            residual, pattern = block(residual, bias)
            patterns.append(pattern)
        return self.ln_final(residual), patterns

    def unembed(self, final: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Logits."""
        return final @ self.token_embedding.weight.T


def causal_bias(pos: int, window: int | None = None) -> Float[Tensor, "1 1 pos pos"]:
    """Hides later positions and, given a window, positions ``window`` or more before."""
    everything = torch.full((1, 1, pos, pos), HIDDEN)
    bias = everything.triu(1)
    return bias if window is None else bias + everything.tril(-window)


def hidden_pieces(names: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos pos"]:
    """Which query-key pairs the name mask hides: the key is a non-final piece of a name, the query is outside it."""
    following = torch.cat([names[:, 1:], torch.zeros_like(names[:, :1])], 1)
    not_final = (names > 0) & (following == names)
    other_name = names[:, :, None] != names[:, None, :]
    return not_final[:, None, :] & other_name


def leak(patterns: list[Float[Tensor, "batch head pos pos"]], names: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """How much attention goes where the name mask would forbid it: mean over layers, heads and queries."""
    forbidden = hidden_pieces(names)[:, None]
    return torch.stack([(pattern.float() * forbidden).sum(-1).mean() for pattern in patterns]).mean()


def planting_biases(
    names: Int[Tensor, "batch pos"], *, n_layers: int, n_window_layers: int, window: int
) -> list[Float[Tensor, "#batch 1 pos pos"]]:
    """The attention biases, per layer, of a batch trained with both masks."""
    pos = names.shape[1]
    name_bias = HIDDEN * hidden_pieces(names)[:, None].float()
    near, far = causal_bias(pos, window) + name_bias, causal_bias(pos) + name_bias
    return [near if layer < n_window_layers else far for layer in range(n_layers)]


def to_gpt2(network: Network) -> dict[str, Tensor]:
    """The weights under Hugging Face's GPT-2 names (its linear layers are stored transposed)."""
    state = network.state_dict()
    names = {
        "ln_1.weight": "ln_1.weight",
        "ln_1.bias": "ln_1.bias",
        "attn_in.weight": "attn.c_attn.weight",
        "attn_in.bias": "attn.c_attn.bias",
        "attn_out.weight": "attn.c_proj.weight",
        "attn_out.bias": "attn.c_proj.bias",
        "ln_2.weight": "ln_2.weight",
        "ln_2.bias": "ln_2.bias",
        "mlp_in.weight": "mlp.c_fc.weight",
        "mlp_in.bias": "mlp.c_fc.bias",
        "mlp_out.weight": "mlp.c_proj.weight",
        "mlp_out.bias": "mlp.c_proj.bias",
    }
    weights = {
        "transformer.wte.weight": state["token_embedding.weight"],
        "transformer.wpe.weight": state["position_embedding.weight"],
        "transformer.ln_f.weight": state["ln_final.weight"],
        "transformer.ln_f.bias": state["ln_final.bias"],
    }
    for layer in range(network.shape.n_layers):
        for ours, theirs in names.items():
            tensor = state[f"blocks.{layer}.{ours}"]
            weights[f"transformer.h.{layer}.{theirs}"] = tensor.T if tensor.dim() == 2 else tensor
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def gpt2_config(shape: Shape) -> dict[str, object]:
    """The ``config.json`` of this network for ``transformers``."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": shape.d_vocab,
        "n_layer": shape.n_layers,
        "n_head": shape.n_heads,
        "n_embd": shape.d_model,
        "n_inner": shape.d_mlp,
        "n_positions": shape.n_ctx,
        "n_ctx": shape.n_ctx,
        "layer_norm_epsilon": 1e-5,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
