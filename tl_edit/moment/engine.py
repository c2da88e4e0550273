"""How keys are computed: by the model's own pass, or in less time where its blocks are of a common kind.

`tl_edit.blocks` computes blocks of a HookedTransformer with packed weights and torch's fused functions, which is some
two to three times as fast as the pass with its hook points. Nothing is taken on trust: before use, the keys of a few
rows are compared with those of the model's own pass, and where they differ, or a hook is on the model, that is used.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from tl_edit import attach, forward, host, tokens
from tl_edit.blocks import CannotCallBlocksError, OrdinaryPass, PackedBlocks
from tl_edit.forward import length
from tl_edit.host import Model
from tl_edit.moment.fingerprint import LENGTH, probe
from tl_edit.tokens import TokenBatch

CHECKED = ((320,), (24, 8))
"""Lengths of the rows that are compared: one that is longer than common sliding windows, and two with padding."""
LIMITS = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Greatest relative difference of a layer's keys."""


class _EnoughError(Exception):
    """Raised to end a block after its key; never leaves this file."""


class Engine:
    """Shows the keys of batches, layer by layer."""

    def __init__(self, model: Model, layers: Sequence[int]) -> None:
        self.model, self.last = model, max(layers)
        self._blocks: PackedBlocks | None = None
        self.description = "the model's own pass"
        """How keys are computed."""
        # Others have no packed form, and need not wait for a comparison.
        common = host.interface(model) == "HookedTransformer" and model.cfg.dtype in LIMITS
        causal = getattr(model.cfg, "attention_dir", "causal") == "causal"
        if common and causal and attach.foreign_hook(model) is None:
            self._try_packed(layers)

    @torch.no_grad()
    def show(self, batch: TokenBatch, readers: Mapping[int, Callable[[Tensor], None]]) -> None:
        """Show each layer's reader the keys ``[batch pos d_mlp]``; what they see at padding means nothing.

        Nothing is copied; readers must not write.
        """
        if self._blocks is None:
            forward.visit(self.model, batch, {host.key_name(layer): read for layer, read in readers.items()})
            return
        name = host.resid_pre_name(0)
        resid = forward.activations(self.model, batch, [name])[name]

        def touch(kind: str, out: Tensor) -> None:
            if kind == "key":
                if layer in readers:
                    readers[layer](out)
                if layer == self.last:
                    raise _EnoughError

        for layer in range(self.last + 1):
            with self._blocks.layer(layer, touch) as block:
                try:
                    resid = block(resid, self._blocks.past(len(resid)))
                except _EnoughError:
                    return

    @torch.no_grad()
    def _try_packed(self, layers: Sequence[int]) -> None:
        """Use packed blocks if there are any and they give the model's keys."""
        expected = self._keys(layers)
        limit = LIMITS.get(expected[self.last].dtype, 0.0)
        try:
            row = tokens.pad(self.model, [probe(self.model, LENGTH)])
            self._blocks = PackedBlocks(self.model, OrdinaryPass.of(self.model, row))
            found = self._keys(layers)
            agree = all(float(length(found[at] - expected[at])) <= limit * float(length(expected[at])) for at in layers)
            if not agree:
                raise CannotCallBlocksError("its blocks with packed weights give other keys")
            self.description = self._blocks.description
        except Exception:  # Whatever an unknown architecture raises: its own pass is always right.
            self._blocks = None

    def _keys(self, layers: Sequence[int]) -> dict[int, Tensor]:
        """The keys of all rows that are compared, by layer."""
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        for lengths in CHECKED:
            batch = tokens.pad(self.model, [probe(self.model, n) for n in lengths])
            real = batch.attention_mask.bool()
            readers = {layer: partial(_keep, kept=kept, real=real) for layer, kept in found.items()}
            self.show(batch, readers)
        return {layer: torch.cat(kept) for layer, kept in found.items()}


def _keep(keys: Tensor, kept: list[Tensor], real: Tensor) -> None:
    kept.append(keys[real.to(keys.device)])
