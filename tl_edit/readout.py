"""What a vector says in words: what the final norm and the unembedding make of what an MLP writes.

The logits are not linear in the residual stream, only because the norms before them divide by a length. All else of a
norm is linear: the mean that LayerNorm takes away, and its gain. That much is applied here to a single vector, so that
its scores are what it adds to the logits, up to the divisors, which are the same for all tokens. Folding the gain into
the unembedding and centring weights, as TransformerLens does when it processes a model, changes nothing about them.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import stream
from tl_edit.forward import at_least_float32
from tl_edit.host import Model

PART = 2**25
"""Entries of the unembedding that are cast at a time, where it is in half precision."""


class Readout:
    """Scores of the vocabulary for what the MLP of a layer writes."""

    def __init__(self, model: Model, layer: int, *, final_norm: bool) -> None:
        """``final_norm``: whether the norms' linear part is applied, or the unembedding alone."""
        self._unembedding: Tensor = cast(Any, model).unembed.W_U.detach()
        # What an MLP writes may be normalised before it is added.
        norms = [stream.norm_after_mlp(model, layer)] if final_norm else []
        norms += [stream.final_norm(model)] if final_norm and stream.has_final_norm(model) else []
        dtype = at_least_float32(self._unembedding[:1]).dtype
        # Cast first, as not every device has float64.
        self._gains = [(norm.gain.to(dtype).to(self._unembedding.device), norm.centred) for norm in norms if norm]

    @torch.no_grad()
    def scores(self, vectors: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
        """What vectors add to the logits, up to a positive factor, less the mean over the vocabulary."""
        # Cast first, as not every device has float64.
        resid = vectors.to(at_least_float32(self._unembedding[:1]).dtype).to(self._unembedding.device)
        for gain, centres in self._gains:
            resid = (resid - resid.mean(-1, keepdim=True) if centres else resid) * gain
        step = self._unembedding.shape[1]
        if self._unembedding.dtype != resid.dtype:
            step = max(1, PART // len(self._unembedding))
        columns = cast(Sequence[Tensor], torch.split(self._unembedding, step, dim=1))
        parts = [resid @ part.to(resid.dtype) for part in columns]
        scores = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return scores - scores.mean(-1, keepdim=True)
