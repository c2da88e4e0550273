"""What a vector says in words: what the final norm and the unembedding make of what an MLP writes.

The logits are not linear in the residual stream, only because the norms before them divide by a length. All else of a
norm is linear: the mean that LayerNorm takes away, and its gain. That much is applied here to a single vector, so that
its scores are what it adds to the logits, up to the divisors, which are the same for all tokens. Folding the gain into
the unembedding and centring weights, as TransformerLens does when it processes a model, changes nothing about them.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_edit import host
from tl_edit.forward import at_least_float32
from tl_edit.host import Model

PART = 2**25
"""Entries of the unembedding that are cast at a time, where it is in half precision."""


class Readout:
    """Scores of the vocabulary for what the MLP of a layer writes."""

    def __init__(self, model: Model, layer: int, *, final_norm: bool) -> None:
        """``final_norm``: whether the norms' linear part is applied, or the unembedding alone."""
        self._unembedding: Tensor = cast(Any, model).unembed.W_U.detach()
        width, device = self._unembedding.shape[0], self._unembedding.device
        self._gains: list[tuple[Tensor, bool]] = []
        if final_norm:
            after = host.norm_after(model, layer)
            norms = [getattr(model.blocks[layer], after)] if after else []
            norms += [cast(Any, model).ln_final] if hasattr(model, "ln_final") else []
            for norm in norms:
                gain, centres = _linear_part(model, norm, width)
                self._gains.append((gain.to(device), centres))

    @torch.no_grad()
    def scores(self, vectors: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """What vectors add to the logits, up to a positive factor, less the mean over the vocabulary."""
        # Cast first, as not every device has float64.
        resid = vectors.to(at_least_float32(self._unembedding[:1]).dtype).to(self._unembedding.device)
        for gain, centres in self._gains:
            resid = (resid - resid.mean(-1, keepdim=True) if centres else resid) * gain.to(resid.dtype)
        step = self._unembedding.shape[1]
        if self._unembedding.dtype != resid.dtype:
            step = max(1, PART // len(self._unembedding))
        columns = cast(Sequence[Tensor], torch.split(self._unembedding, step, dim=1))
        parts = [resid @ part.to(resid.dtype) for part in columns]
        scores = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return scores - scores.mean(-1, keepdim=True)


@torch.no_grad()
def _linear_part(model: Model, norm: Any, width: int) -> tuple[Float[Tensor, " d_model"], bool]:
    """A norm's gain, and whether it takes the mean away."""
    if host.interface(model) == "HookedTransformer":
        gain = getattr(norm, "w", None)
        ones = torch.ones(width, device=host.device_of(model))
        return at_least_float32(ones if gain is None else gain.detach()), type(norm).__name__.startswith("LayerNorm")
    while getattr(norm, "original_component", None) is not None:
        # Below the hook points, so that hooks of the user's see nothing of this.
        norm = norm.original_component
    weights = list(cast(Iterable[Tensor], cast(nn.Module, norm).parameters()))
    like = weights[0] if weights else torch.ones(1, device=host.device_of(model))
    # Hugging Face's norms keep their gain in several ways (Gemma less one), so they are asked what they do. Large, as
    # they add a little to the divisor, and of mean zero.
    probe = torch.ones(width, dtype=like.dtype, device=like.device)
    probe[1::2] = -1
    if width % 2:
        probe[-3:] = torch.tensor([1, 1, -2], dtype=like.dtype)
    flat = torch.ones_like(probe)
    gain = _odd_part(norm, 64 * probe) * at_least_float32(probe).square().mean().sqrt() / probe
    # Of what is only mean, nothing is left.
    centres = float(_odd_part(norm, 64 * flat).abs().max()) < 1e-3 * float(gain.abs().max())
    return gain, centres


def _odd_part(norm: Any, vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """What a norm makes of a vector, without its bias."""
    there, back = (at_least_float32(norm(each[None, None])[0, 0]) for each in (vector, -vector))
    return (there - back) / 2
