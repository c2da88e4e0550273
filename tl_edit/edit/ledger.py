"""What is applied to a model: the changes in their order, and the weights before them.

The ledger lives on the model itself, so it goes where the model goes and dies with it. Of every edited layer it keeps
the weights before the first change (one ``W_out``, whatever the number of edits) and a hash of what it last wrote.
Every write is the base plus the remaining changes in their order; nothing is ever subtracted.

Before anything is believed the hash is compared with the weights. Where they differ, and what happened is one of these,
it is recognised by its bits:

- the weights of an earlier state that was written here were loaded (the original ones, or those with the first few
  changes): then these changes are the applied ones;
- the model was cast, as by ``model.to(torch.bfloat16)``: then the base is cast likewise, and the next write makes every
  edited layer the cast base plus the changes, as if they had been applied to the cast model.

Anything else is somebody else's work and is reported, never overwritten.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from tl_edit import host
from tl_edit.digest import digest
from tl_edit.edit.low_rank import Change, plus
from tl_edit.host import Model

_LEDGER = "_tl_edit_ledger"
_VIA = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class EditedLayer:
    """One layer's record; its base is never written to, so that copies of the model can share it."""

    base: Tensor
    """``W_out`` before the first change."""
    written: str
    """Hash of ``W_out`` as we last wrote it."""


@dataclass(frozen=True, eq=False)
class Settled:
    """What a look at the weights tells."""

    changes: list[Any]
    """The applied ones, in their order."""
    bases: Mapping[int, Tensor]
    """Of every edited layer, as of the dtype that the weights have now."""
    unexplained: frozenset[int] = frozenset()
    """Layers that somebody else changed."""
    recast: frozenset[int] = frozenset()
    """Layers that were cast since we last wrote them."""

    def lists(self, change: Change) -> bool:
        """Whether a change, or a copy of it, is among the applied ones."""
        return any(other.fingerprint == change.fingerprint for other in self.changes)

    def check_untouched(self, layers: Sequence[int], operation: str) -> None:
        """Refuse layers that somebody else changed."""
        for layer in layers:
            if layer in self.unexplained:
                raise ValueError(
                    f"{operation}: W_out of layer {layer} was changed from outside since tl_edit last wrote it; "
                    "expected it untouched (training, loading weights and weight processing all change it); "
                    "put the weights back, load the model afresh, or accept them as the new base with "
                    "tl_edit.forget_edits(model)."
                )


@dataclass
class Ledger:
    """The changes of one model."""

    state: tuple[list[Any], dict[int, EditedLayer]] = field(
        default_factory=lambda: (list[Any](), dict[int, EditedLayer]())
    )

    @property
    def changes(self) -> list[Any]:
        """As last written, in their order."""
        return self.state[0]

    @property
    def layers(self) -> dict[int, EditedLayer]:
        """The edited layers."""
        return self.state[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ledger":
        """A copy of the model shares what is never written to."""
        return Ledger((list(self.changes), dict(self.layers)))

    def settle(self, model: Model) -> Settled:
        """Compare the weights with what was written, and recognise what happened to them since."""
        found = {layer: digest([host.w_out(model, layer)]) for layer in self.layers}
        if all(found[layer] == record.written for layer, record in self.layers.items()):
            return Settled(self.changes, {layer: record.base for layer, record in self.layers.items()})
        stages = {
            layer: dict(self._stages(layer, host.w_out(model, layer).dtype, found[layer])) for layer in self.layers
        }
        n = len(self.changes)
        together = [k for k in range(n, -1, -1) if all(k in known for known in stages.values())]
        k = together[0] if together else n
        casts = {layer: known[k] for layer, known in stages.items() if k in known}
        settled = Settled(
            changes=self.changes[:k],
            bases={layer: casts[layer](self.layers[layer].base) for layer in casts},
            unexplained=frozenset(self.layers.keys() - casts.keys()),
            recast=frozenset(layer for layer, cast_to in casts.items() if cast_to is not _as_is),
        )
        if together and not settled.recast:
            # Loading an earlier state made that the last one written.
            left = {layer for change in settled.changes for layer in change.deltas}
            kept = {layer: EditedLayer(self.layers[layer].base, found[layer]) for layer in self.layers if layer in left}
            self.state = (settled.changes, kept)
        return settled

    def _stages(
        self, layer: int, dtype: torch.dtype, found: str
    ) -> Generator[tuple[int, Callable[[Tensor], Tensor]], None, None]:
        """With how many of the changes, and cast how, the base has the hash that was found."""
        weight = self.layers[layer].base
        same: Callable[[Tensor], Tensor] | None = None
        for k in range(len(self.changes) + 1):
            delta = self.changes[k - 1].deltas.get(layer) if k else None
            if delta is not None:
                weight = plus(weight, delta)
            if k == 0 or delta is not None:
                casts = [_as_is] if weight.dtype == dtype else []
                casts += [_Cast(via, dtype) for via in _VIA]
                same = next((to for to in casts if digest([to(weight)]) == found), None)
            if same is not None:
                yield k, same

    def rewrite(self, model: Model, now: Settled, changes: list[Any], layers: Sequence[int]) -> None:
        """Make ``changes`` the applied ones by rewriting ``layers`` and what was cast; on any failure all is as before.

        Raises:
            ValueError: If the result is not finite in the weights' dtype.
        """
        targets = sorted({*layers, *now.recast})
        bases = {
            layer: now.bases[layer] if layer in now.bases else host.w_out(model, layer).clone() for layer in targets
        }
        news = {layer: summed(base, layer, changes) for layer, base in bases.items()}
        befores = {layer: host.w_out(model, layer).clone() for layer in targets}
        still_edited = {layer for change in changes for layer in change.deltas}
        written = {
            layer: EditedLayer(base=base, written=digest([news[layer]]))
            for layer, base in bases.items()
            if layer in still_edited
        }
        untouched = {layer: record for layer, record in self.layers.items() if layer not in bases}
        state = self.state
        try:
            for layer, new in news.items():
                host.write_w_out(model, layer, new)
            # One step: an interrupt comes before it or after it.
            self.state = (changes, untouched | written)
        except BaseException:
            self.state = state
            host.put_back_w_out(model, befores)
            raise


def _as_is(weight: Tensor) -> Tensor:
    return weight


@dataclass(frozen=True)
class _Cast:
    """To a dtype, perhaps by way of a narrower one, as in ``model.half().float()``."""

    via: torch.dtype
    to: torch.dtype

    def __call__(self, weight: Tensor) -> Tensor:
        return weight.to(self.via).to(self.to)


def ledger_of(model: Model) -> Ledger:
    """The ledger of a model; an empty one is made where there is none.

    Raises:
        ValueError: If it is no TransformerLens model.
    """
    host.interface(model)
    # In __dict__, because a bridge redirects plain attributes to the Hugging Face model.
    return cast(Ledger, cast(Any, model).__dict__.setdefault(_LEDGER, Ledger()))


def forget_edits(model: Model) -> None:
    """Take the weights as they are for the new base, and forget the edits in them: none can be undone any more."""
    ledger_of(model)
    cast(Any, model).__dict__.pop(_LEDGER, None)


def check_untouched(model: Model, layers: Sequence[int], operation: str) -> None:
    """Refuse a model whose weights were changed from outside since an edit was applied, as `Edit.apply` would.

    Raises:
        ValueError: naming the layer.
    """
    ledger_of(model).settle(model).check_untouched(layers, operation)


def summed(base: Tensor, layer: int, changes: Sequence[Change]) -> Tensor:
    """``base`` plus the changes of ``layer`` in order, each rounded once, as applying them one by one does.

    Raises:
        ValueError: If the result is not finite in the weights' dtype.
    """
    weight = base
    for change in changes:
        delta = change.deltas.get(layer)
        if delta is not None:
            weight = plus(weight, delta)
    if not torch.isfinite(weight).all():
        raise ValueError(
            f"applying an edit: W_out of layer {layer} would not be finite in {base.dtype}; expected finite weights; "
            "the edit is too large for this dtype; load the model in bfloat16 or float32."
        )
    return weight
