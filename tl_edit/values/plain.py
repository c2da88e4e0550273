"""The plain engine: every evaluation is a pass of all rows through the whole model, with hooks.

It is what the definition says and works on every model and with every hook that is on it.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.host import HookFn, Model
from tl_edit.values.engine import Engine
from tl_edit.values.rows import Piece, Row, pieces
from tl_edit.values.settings import Site


def site_name(model: Model, site: Site, layer: int) -> str:
    """Where a site is seen."""
    return host.value_name(model, layer) if site == "value" else f"blocks.{layer}.hook_{site}"


class PlainEngine(Engine):
    """Whole passes."""

    description = "plain hooks"

    def __init__(self, model: Model, layer: int, sites: Sequence[Site], rows: Sequence[Row], max_rows: int) -> None:
        super().__init__()
        self.model, self.rows, self.max_rows = model, rows, max_rows
        self.names = [site_name(model, site, layer) for site in sites]

    def pieces(self, requests: Sequence[int]) -> Iterable[Piece]:
        """See `Engine.pieces`."""
        wanted = set(requests)
        return pieces([row for row in self.rows if row.request in wanted], self.max_rows)

    def logits(self, piece: Piece, delta: Float[Tensor, "request site d_model"]) -> Float[Tensor, "read d_vocab"]:
        """See `Engine.logits`."""
        batch = tokens.pad(self.model, [row.tokens for row in piece.rows])
        hooks = [
            (name, _shift_lookups(batch.tokens.shape, piece, delta[:, site])) for site, name in enumerate(self.names)
        ]
        logits = forward.logits(self.model, batch, hooks)
        return logits[piece.read_row, piece.read_pos]


def _shift_lookups(shape: torch.Size, piece: Piece, delta: Float[Tensor, "request d_model"]) -> HookFn:
    """A hook that adds each row's own delta at its own lookup position; gradients flow to it."""
    every = torch.arange(len(piece.lookup))

    def hook(act: Tensor, hook: object = None) -> Tensor:
        # Some Hugging Face MLPs see [batch * pos, d_model].
        out = act.reshape(*shape, -1).clone()
        out[every, piece.lookup] = out[every, piece.lookup] + delta[piece.owner].to(device=out.device, dtype=out.dtype)
        return out.reshape(act.shape)

    return hook
