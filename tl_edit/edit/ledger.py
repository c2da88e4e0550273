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

Anything else is somebody else's work and is reported, never overwritten. So are weights with edits in them that come
back to a layer which has no more: its base is let go with its last edit, hashes of what was written are not. The
ledger is not made for several threads at once, and models that share weights (a shallow copy made before the first
edit, two bridges over one Hugging Face model) have one each: edit through one of them.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from tl_edit import host
from tl_edit.digest import digest
from tl_edit.edit.low_rank import Change, plus
from tl_edit.host import Model

_LEDGER = "_tl_edit_ledger"
_HALVES = (torch.bfloat16, torch.float16)
_VIA = ((), *((half,) for half in _HALVES), _HALVES, _HALVES[::-1], (torch.float32,))
"""What a model may have been cast to before it came to the dtype that it has."""
_TWO = "has two live copies in this model that differ (only one of them was loaded or written)"


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
    layers: Mapping[int, EditedLayer]
    """Records of the edited layers as of now; bases in the dtype that the weights have now."""
    unexplained: Mapping[int, str] = field(default_factory=dict[int, str])
    """Layers that somebody else changed, and how far that is known, in words."""
    recast: frozenset[int] = frozenset()
    """Layers that were cast since we last wrote them."""

    @property
    def bases(self) -> dict[int, Tensor]:
        """Of every edited layer, as of the dtype that the weights have now."""
        return {layer: record.base for layer, record in self.layers.items()}

    def check_untouched(self, layers: Sequence[int], operation: str) -> None:
        """Refuse layers that somebody else changed."""
        for layer in layers:
            if layer in self.unexplained:
                raise ValueError(
                    f"{operation}: W_out of layer {layer} {self.unexplained[layer]}; expected it as tl_edit last wrote "
                    "it (training, loading weights and weight processing all change it); put the weights back, load "
                    "the model afresh, or accept them as the new base with tl_edit.forget_edits(model)."
                )


@dataclass
class Ledger:
    """The changes of one model."""

    state: tuple[list[Any], dict[int, EditedLayer]] = field(
        default_factory=lambda: (list[Any](), dict[int, EditedLayer]())
    )
    once: dict[int, set[str]] = field(default_factory=dict[int, set[str]])
    """By layer: marks of what was ever written there with changes in it. When a layer has none left, its base is let
    go, and by these such weights are known if they are loaded back, cast or not."""

    @property
    def changes(self) -> list[Any]:
        """As last written, in their order."""
        return self.state[0]

    @property
    def layers(self) -> dict[int, EditedLayer]:
        """The edited layers, as last written."""
        return self.state[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ledger":
        """A copy of the model shares what is never written to."""
        once = {layer: set(hashes) for layer, hashes in self.once.items()}
        return Ledger((list(self.changes), dict(self.layers)), once)

    def settle(self, model: Model) -> Settled:
        """Compare the weights with what was written, and recognise what happened to them since; changes nothing."""
        found = {layer: _look(model, layer) for layer in self.layers}
        back = {
            layer: "is again as it was with edits on that were undone since, as by a state dict that was loaded back"
            for layer, hashes in self.once.items()
            if layer not in self.layers and hashes & _marks(host.w_out(model, layer))
        }
        if all(found[layer] == record.written for layer, record in self.layers.items()):
            return Settled(self.changes, self.layers, back)
        stages = {
            layer: dict(self._stages(layer, host.w_out(model, layer).dtype, found[layer])) for layer in self.layers
        }
        n = len(self.changes)
        k = next((k for k in range(n, -1, -1) if all(k in known for known in stages.values())), n)
        casts = {layer: known[k] for layer, known in stages.items() if k in known}
        left = {layer for change in self.changes[:k] for layer in change.deltas}
        unexplained = {
            layer: ("was changed from outside since tl_edit last wrote it" if found[layer] else _TWO)
            + (" (to what it was before the edits)" if 0 in known else "")
            for layer, known in stages.items()
            if layer not in casts
        }
        return Settled(
            changes=self.changes[:k],
            layers={
                layer: EditedLayer(cast_to(self.layers[layer].base), found[layer])
                for layer, cast_to in casts.items()
                if layer in left
            },
            unexplained=back | unexplained,
            recast=frozenset(layer for layer, cast_to in casts.items() if cast_to.steps and layer in left),
        )

    def _stages(self, layer: int, dtype: torch.dtype, found: str) -> Generator[tuple[int, "_Cast"], None, None]:
        """With how many of the changes, and cast how, the base has the hash that was found."""
        weight = self.layers[layer].base
        casts = [_Cast(())] if weight.dtype == dtype else []
        casts += [_Cast((*via, dtype)) for via in _VIA]
        same: _Cast | None = None
        for k in range(len(self.changes) + 1):
            delta = self.changes[k - 1].deltas.get(layer) if k else None
            if delta is not None:
                weight = plus(weight, delta)
            if k == 0 or delta is not None:
                same = next((to for to in casts if digest([to(weight)]) == found), None)
            if same is not None:
                yield k, same

    def append(self, model: Model, now: Settled, change: Change) -> None:
        """Write a change on top of those that are on; on any failure all is as before.

        Raises:
            ValueError: If the result is not finite in the weights' dtype.
        """
        changes = [*now.changes, change]
        # Of what was not cast, the weights are the sum of those that are on.
        news = {
            layer: plus(host.w_out(model, layer), delta)
            for layer, delta in change.deltas.items()
            if layer not in now.recast
        }
        news |= {layer: summed(now.bases[layer], layer, changes) for layer in now.recast}
        self._write(model, now, changes, news)

    def rewrite(self, model: Model, now: Settled, changes: list[Any], layers: Iterable[int]) -> None:
        """Make ``changes`` the applied ones by rewriting ``layers`` and what was cast; on any failure all is as before.

        Raises:
            ValueError: If the result is not finite in the weights' dtype.
        """
        targets = sorted({*layers, *now.recast})
        self._write(model, now, changes, {layer: summed(now.bases[layer], layer, changes) for layer in targets})

    def _write(self, model: Model, now: Settled, changes: list[Any], news: Mapping[int, Tensor]) -> None:
        befores = {layer: host.w_out(model, layer).clone() for layer in news}
        for layer, new in news.items():
            _check_finite(new, layer, befores[layer])
        still_edited = {layer for change in changes for layer in change.deltas}
        written = {
            layer: EditedLayer(base=now.bases.get(layer, befores[layer]), written=digest([new]))
            for layer, new in news.items()
            if layer in still_edited
        }
        # Of layers that somebody else changed, the records stay for when they are put back.
        records = {layer: self.layers[layer] for layer in now.unexplained if layer in self.layers}
        records |= {layer: record for layer, record in now.layers.items() if layer not in news}
        for layer, record in written.items():
            # An edit too small for a dtype leaves the base there.
            self.once.setdefault(layer, set()).update(_marks(news[layer]) - _marks(record.base))
        state = self.state
        try:
            for layer, new in news.items():
                host.write_w_out(model, layer, new)
            # One step: an interrupt comes before it or after it.
            self.state = (changes, records | written)
        except BaseException:
            self.state = state
            host.put_back_w_out(model, befores)
            raise


def _look(model: Model, layer: int) -> str:
    """The hash of ``W_out`` as it is; "" where copies of it are alive that differ."""
    first, *others = (view.detach() for view in host.w_out_views(model, layer))
    return digest([first]) if all(torch.equal(first, other) for other in others) else ""


def _marks(weight: Tensor) -> set[str]:
    """Hashes by which a weight is known again, also if it is cast."""
    return {digest([weight]), *(digest([weight.to(half)]) for half in _HALVES)}


@dataclass(frozen=True)
class _Cast:
    """Through dtypes, one after the other, as in ``model.half().float()``."""

    steps: tuple[torch.dtype, ...]

    def __call__(self, weight: Tensor) -> Tensor:
        for dtype in self.steps:
            weight = weight.to(dtype)
        return weight


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
    _check_finite(weight, layer, base)
    return weight


def _check_finite(new: Tensor, layer: int, before: Tensor) -> None:
    if torch.isfinite(new).all():
        return
    if not torch.isfinite(before).all():
        raise ValueError(
            f"applying an edit: W_out of layer {layer} is not finite in this model as it is; expected finite weights; "
            "load the model afresh, in a wider dtype if it overflowed."
        )
    raise ValueError(
        f"applying an edit: W_out of layer {layer} would not be finite in {before.dtype}; expected finite weights; "
        "the edit is too large for this dtype; load the model in bfloat16 or float32."
    )
