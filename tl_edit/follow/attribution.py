"""Direct logit attribution of one run: a logit difference as a sum over the parts of the residual stream.

The stream that is unembedded is a sum: embeddings, positions, what each head and each MLP wrote, and biases. With the
scale of the final norm held at the run's own, all that follows is linear (the norm's mean included), so the difference
of two logits is a sum over the same parts. TransformerLens' ``cache.logit_attrs`` does that for processed models, where
it leaves out the unembedding's bias, and takes heads before the norm that Gemma 2 has behind them. Here the gain of raw
models, that norm (its scale held likewise) and all biases are in it, and the sum is compared with what the model said.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import host, stream
from tl_edit.forward import length, lengths
from tl_edit.host import Model


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What each part of a model adds to a logit difference at one position, in logits (nats), in float64."""

    embedding: float
    """The token's own embedding."""
    positions: float
    """Of learned positions; 0 where there are none."""
    heads: Float[Tensor, "layer head"]
    attention_biases: Float[Tensor, " layer"]
    """Of ``b_O``, with values' biases where processing folded them into it."""
    mlps: Float[Tensor, " layer"]
    bias: float
    """Of the final norm and the unembedding."""
    logit_difference: float
    """What the model said, before a cap on logits (Gemma 2)."""

    @property
    def total(self) -> float:
        """The sum of all parts: the logit difference, up to rounding."""
        several = sum(float(part.sum()) for part in (self.heads, self.attention_biases, self.mlps))
        return self.embedding + self.positions + several + self.bias


def names_read(model: Model) -> list[str]:
    """The hook points that `parts` needs."""
    points = host.hook_points(model)
    names = [host.EMBED, host.resid_pre_name(0), stream.FINAL_SCALE]
    for layer in range(host.n_layers(model)):
        names += [stream.head_name(layer), stream.attn_out_name(layer), stream.attention_scale_name(layer)]
        names += [stream.mlp_out_name(layer)] * stream.has_mlp(model, layer)
    return [name for name in names if name in points]


def parts(
    model: Model, kept: Mapping[str, Tensor], pair: Int[Tensor, "2"], said: Float[Tensor, "2"], operation: str
) -> Parts:
    """Direct logit attribution at one position.

    Args:
        model: The model as it was in the run.
        kept: By hook point of `names_read`, the activation at the position.
        pair: Two tokens; the first one's logit less the second one's is what is taken apart.
        said: Their logits as the unembedding made them.
        operation: Whose it is, for errors.

    Raises:
        ValueError: If the parts do not add up to what the model said.
    """
    seen = {name: value.to("cpu", torch.float64) for name, value in kept.items()}
    norm, scale = stream.final_norm(model), seen[stream.FINAL_SCALE]
    columns, biases = stream.unembedding(model, pair)
    direction = columns[0] - columns[1]

    sizes: list[Tensor] = []

    def worth(part: Float[Tensor, "*part d_model"]) -> Float[Tensor, "*part"]:
        normed = norm.part(part, scale)
        sizes.append(length(normed) * lengths(columns).sum())
        return normed @ direction

    eps = max(torch.finfo(value.dtype).eps for value in kept.values())
    heads: list[Tensor] = []
    attention_biases: list[Tensor] = []
    mlps: list[Tensor] = []
    for layer in range(host.n_layers(model)):
        written, bias = _attention(model, layer, seen, eps, operation)
        heads.append(worth(written))
        attention_biases.append(worth(bias))
        # A model of attention alone has no MLPs.
        mlp = seen.get(stream.mlp_out_name(layer))
        mlps.append(torch.zeros((), dtype=torch.float64) if mlp is None else worth(mlp))
    embedding, first = seen[host.EMBED], seen[host.resid_pre_name(0)]
    found = Parts(
        embedding=float(worth(embedding)),
        positions=float(worth(first - embedding)),
        heads=torch.stack(heads),
        attention_biases=torch.stack(attention_biases),
        mlps=torch.stack(mlps),
        bias=float(norm.offset @ direction + biases[0] - biases[1]),
        logit_difference=float(said[0].double() - said[1].double()),
    )
    off, size = abs(found.total - found.logit_difference), float(torch.stack(sizes).sum())
    _check(off, size, eps, "the logit difference", model, operation)
    return found


def _attention(
    model: Model, layer: int, seen: Mapping[str, Tensor], eps: float, operation: str
) -> tuple[Float[Tensor, "head d_model"], Float[Tensor, " d_model"]]:
    """What heads, and the bias beside them, add to the residual stream."""
    written, bias = stream.head_outputs(model, layer, seen[stream.head_name(layer)])
    norm = stream.norm_after_attention(model, layer)
    if norm is not None:
        scale = seen[stream.attention_scale_name(layer)]
        written, bias = norm.part(written, scale), norm.part(bias, scale) + norm.offset
    out = seen[stream.attn_out_name(layer)]
    off = float(length(written.sum(dim=0) + bias - out))
    size = float(lengths(written).sum() + length(bias) + length(out))
    _check(off, size, eps, f"the attention's output of layer {layer}", model, operation)
    return written, bias


def _check(off: float, size: float, eps: float, what: str, model: Model, operation: str) -> None:
    """Refuse parts that do not add up; bridges have steps in float32."""
    limit = 64 * max(eps, torch.finfo(torch.float32).eps) * size
    if not math.isfinite(off) or off > limit:
        raise ValueError(
            f"{operation}: the parts of {host.model_name(model)} miss {what} by {off:.3g} of {size:.3g}; expected "
            "their sum; take off hooks that change what attention, MLPs or the final norm add, or use logit_lens, "
            "which needs no parts, if this architecture puts them together in another way."
        )
