"""The model's own blocks, called with the arguments that the model gives them.

Masks, rotary angles and positions are recorded from one ordinary pass and cut to size; the cache is replaced by
ours. So rotary embeddings, grouped-query and gated models, post-norms and parallel blocks are computed by the code
that always computes them, of TransformerLens or Hugging Face.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from tl_edit import attach, host
from tl_edit.blocks.base import (
    TOUCHED,
    Block,
    Blocks,
    Call,
    OrdinaryPass,
    Past,
    Touch,
    logits_of,
    replaced_module,
    soft_cap,
)
from tl_edit.host import HookFn, Model


def _cut_call(call: Call, span: slice, length: int, past: Past) -> Call:
    """The arguments for the positions of ``span``, with ``past`` in place of the cache."""
    args = tuple(_cut(value, span, length, past) for value in call.args)
    kwargs = {name: _cut(value, span, length, past) for name, value in call.kwargs.items()}
    if "past_kv_cache_entry" in kwargs:
        # HookedTransformer's mask is over all positions, and None says that none is padding.
        kwargs |= {"past_kv_cache_entry": past, "attention_mask": None}
    return Call(args, kwargs)


def _cut(value: Any, span: slice, length: int, past: Past) -> Any:
    """One argument for the positions of ``span``."""
    if isinstance(value, Tensor):
        if value.ndim == 4 and value.shape[-2:] == (length, length):  # a mask [1 1 query key]
            return value[..., span, : span.stop]
        if value.ndim >= 2 and value.shape[1] == length:  # rotary angles [1 pos d_head], position ids [1 pos]
            return value[:, span]
        if value.ndim == 1 and len(value) == length:
            return value[span]
        return value
    if isinstance(value, tuple | list):
        several = cast(Sequence[Any], value)
        return tuple(_cut(item, span, length, past) for item in several)
    is_cache = hasattr(value, "update") and hasattr(value, "get_seq_length")
    return past if is_cache else value


class RecordedBlocks(Blocks):
    """The model's own blocks."""

    description = "the model's own blocks"

    def __init__(self, model: Model, ordinary: OrdinaryPass) -> None:
        super().__init__(model, ordinary)
        self._hooked_transformer = host.interface(model) == "HookedTransformer"
        self._own_unembed = self._hooked_transformer and replaced_module(model) is None
        self.dim = 1 if self._hooked_transformer else 2
        # Bridges make it anew each time.
        self._points = host.hook_points(model)

    @contextmanager
    def layer(
        self, layer: int, touch: Touch | None = None, kinds: Sequence[str] = TOUCHED
    ) -> Generator[Block, None, None]:
        """See `Blocks.layer`."""
        recorded, module = self.ordinary.calls[layer], self.model.blocks[layer]
        rows = [1]

        def call(resid: Tensor, past: Past, last: int | None = None) -> Tensor:
            start = past.get_seq_length()
            cut = _cut_call(recorded, slice(start, start + resid.shape[1]), self.length, past)
            rows[0] = len(resid)
            out: Any = module(resid, *cut.args, **cut.kwargs)
            states: Tensor = out if isinstance(out, Tensor) else out[0]
            return states if last is None else states[:, -last:]

        def hook(kind: str, touch: Touch) -> HookFn:
            def touched(act: Tensor, hook: object = None) -> Tensor | None:
                # Some Hugging Face MLPs see [batch * pos, d_model].
                new = touch(kind, act.reshape(rows[0], -1, act.shape[-1]))
                return None if new is None else new.reshape(act.shape)

            return touched

        names = {
            kind: host.value_name(self.model, layer) if kind == "value" else f"blocks.{layer}.hook_{kind}"
            for kind in kinds
        }
        hooks = [
            (name, hook(kind, touch))
            for kind, name in names.items()
            if touch is not None and (kind == "value" or name in self._points)
        ]
        with attach.attached(self.model, hooks, self._points):
            yield call

    def unembed(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """See `Blocks.unembed`."""
        model: Any = self.model
        if self._own_unembed:
            return logits_of(model, resid if model.cfg.normalization_type is None else model.ln_final(resid))
        if self._hooked_transformer:
            return model(resid, start_at_layer=host.n_layers(self.model), return_type="logits")
        return soft_cap(model.unembed(model.ln_final(resid)), getattr(model.cfg, "output_logits_soft_cap", None))
