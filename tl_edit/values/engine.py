"""What both engines of the search do with the pieces of their rows."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit.values.rows import Piece
from tl_edit.values.search import Evaluated


class Engine(ABC):
    """Evaluates requests piece by piece, so that one piece's activations are in memory at a time."""

    description: str
    """Says in results how it computes."""

    def __init__(self) -> None:
        self._unedited: dict[int, Tensor] = {}

    @abstractmethod
    def pieces(self, requests: Sequence[int]) -> Iterable[Piece]:
        """The rows of ``requests``."""

    @abstractmethod
    def logits(self, piece: Piece, delta: Float[Tensor, "request site d_model"]) -> Float[Tensor, "read d_vocab"]:
        """What the model says where the piece is read, with ``delta`` added at the lookups."""

    def __call__(
        self,
        delta: Float[Tensor, "request site d_model"],
        requests: Sequence[int],
        *,
        nll_weight: Float[Tensor, " request"],
        kl_weight: float,
        gradient: bool,
    ) -> Evaluated:
        """See `Evaluate`."""
        nll, kl = torch.zeros(len(delta), dtype=delta.dtype), torch.zeros(len(delta), dtype=delta.dtype)
        said = torch.ones(len(delta), dtype=torch.bool)
        slope: Tensor | None = None
        for piece in self.pieces(requests):
            with torch.set_grad_enabled(gradient):
                terms = piece.terms(self.logits(piece, delta), self._unedited, len(delta))
            nll += terms.nll.detach().cpu()
            kl += terms.kl.detach().cpu()
            said &= terms.said.cpu()
            if not gradient:
                continue
            loss = (nll_weight.to(terms.nll.device) * terms.nll + kl_weight * terms.kl).sum()
            if loss.requires_grad:
                # Only the way to delta is gone, so that weights get no gradients.
                part = cast(Tensor | None, torch.autograd.grad(loss, delta, allow_unused=True)[0])
                if part is not None:
                    slope = part if slope is None else slope + part
        return Evaluated(nll=nll, kl=kl, said=said, gradient=slope)
