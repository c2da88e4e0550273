"""An edit: low-rank changes of ``W_out``, and their life on a model.

`Edit` is what every method returns. It is a value (factors, requests, settings, where it came from), apart
from the model; `Edit.apply` writes it into ``W_out`` in place and `Edit.undo` takes it back **bit for bit**:
the weights before the first edit of a layer are kept (one copy of ``W_out`` per edited layer, on its device),
and undoing writes this base plus the edits that remain, in their order. Nothing is ever subtracted.

The ledger of what is applied lives on the model itself, so it goes where the model goes and dies with it.
"""

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import host, show
from tl_edit.digest import digest
from tl_edit.host import Model, Provenance
from tl_edit.request import EditRequest

_LEDGER = "_tl_edit_ledger"


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change ``left @ right`` of ``W_out``, in TransformerLens' orientation: key @ left weighs right."""

    left: Float[Tensor, "d_mlp rank"]
    right: Float[Tensor, "rank d_model"]

    @property
    def matrix(self) -> Float[Tensor, "d_mlp d_model"]:
        """The change as a full matrix."""
        return self.left @ self.right

    def norm(self) -> float:
        """Frobenius norm, from the factors alone."""
        gram = (self.left.T @ self.left) @ (self.right @ self.right.T)
        return float(gram.trace().clamp(min=0).sqrt())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Edit:
    """A computed edit: apply it, undo it, or switch it on for a while.

    Raises:
        ValueError: If a factor is not finite.
    """

    method: str
    deltas: Mapping[int, LowRank]
    """By layer: the change of ``W_out``, on the CPU in float64."""
    requests: tuple[EditRequest, ...]
    config: Any
    """The effective settings, layers included."""
    provenance: Provenance
    diagnostics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Numbers that tell whether to trust the edit; `rome_edit` says which."""

    def __post_init__(self) -> None:
        """Refuse factors that would destroy a model."""
        for layer, delta in self.deltas.items():
            if not (torch.isfinite(delta.left).all() and torch.isfinite(delta.right).all()):
                raise ValueError(
                    f"{self.method} edit: the change of layer {layer} is not finite; expected finite factors; check "
                    "the second moment and the loss curve, or load the model in a wider dtype."
                )

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that change, in ascending order."""
        return tuple(sorted(self.deltas))

    @property
    def fingerprint(self) -> str:
        """A hash of the factors: equal for a copy of the edit, different for any other."""
        parts: list[Tensor | str] = [self.method]
        for layer in self.layers:
            delta = self.deltas[layer]
            parts += [f"{layer}", delta.left, delta.right]
        return digest(parts, size=8)

    def apply(self, model: Model) -> "Edit":
        """Write the edit into ``W_out`` in place; returns itself.

        The sum is formed in float64 and rounded once to the dtype of the weights.

        Raises:
            ValueError: If it is applied already, does not fit the model, would give weights that are not
                finite, or if the weights of an edited layer were changed from outside. Nothing is written then.
        """
        ledger = _ledger(model)
        self._check_fits(model)
        if self.is_applied(model):
            raise ValueError(
                f"applying {self!r}: it is applied to this model already; expected each edit once; undo it first, "
                "or compute it again for a second one."
            )
        ledger.check_untouched(model, self.layers, "applying an edit")
        ledger.rewrite(model, [*ledger.edits, self], self.layers)
        return self

    def undo(self, model: Model) -> "Edit":
        """Take the edit back, bit for bit, also from among others; returns itself.

        Raises:
            ValueError: If it is not applied to this model, or if the weights of its layers were changed from
                outside since (they are never overwritten). Nothing is written then.
        """
        if not self._is_listed(model):
            raise ValueError(
                f"undoing {self!r}: it is not applied to this model; applied are {applied_edits(model) or 'none'}; "
                "undo it on the model that it was applied to."
            )
        ledger = _ledger(model)
        ledger.check_untouched(model, self.layers, "undoing an edit")
        fingerprint = self.fingerprint
        rest = [edit for edit in ledger.edits if edit.fingerprint != fingerprint]
        ledger.rewrite(model, rest, self.layers)
        return self

    @contextmanager
    def on(self, model: Model) -> Generator["Edit", None, None]:
        """Switch the edit on inside a ``with`` block; it is undone at the end, also after an exception.

        Raises:
            ValueError: What `apply` and `undo` raise. After an exception in the block, that one goes on, with a note if
                the edit could not be undone.
        """
        before = self._is_listed(model)
        ending = False
        try:
            self.apply(model)
            yield self
            ending = True
            self.undo(model)
        except BaseException as error:
            refused = ending and isinstance(error, ValueError)
            if not before and not refused and self._is_listed(model):
                try:
                    self.undo(model)
                except ValueError as stuck:
                    # Python 3.10 has no notes.
                    getattr(error, "add_note", warnings.warn)(str(stuck))
            raise

    def is_applied(self, model: Model) -> bool:
        """Whether this edit (or a copy of it) is written into ``model``.

        Raises:
            ValueError: If it was, but the weights of its layers were changed from outside since.
        """
        applied = self._is_listed(model)
        if applied:
            _ledger(model).check_untouched(model, self.layers, "asking whether an edit is applied")
        return applied

    def _is_listed(self, model: Model) -> bool:
        fingerprint = self.fingerprint
        return any(edit.fingerprint == fingerprint for edit in applied_edits(model))

    def _check_fits(self, model: Model) -> None:
        host.check_layers(model, self.layers, "applying an edit")
        for layer in self.layers:
            delta, weight = self.deltas[layer], host.w_out(model, layer)
            found = (delta.left.shape[0], delta.right.shape[1])
            if found != tuple(weight.shape):
                raise ValueError(
                    f"applying an edit: its change of layer {layer} is {found[0]} x {found[1]}; W_out of "
                    f"{host.model_name(model)} is {weight.shape[0]} x {weight.shape[1]}; apply it to a model like the "
                    f"one it was computed on ({self.provenance.model_name})."
                )

    def __repr__(self) -> str:
        facts = str(self.requests[0]) if len(self.requests) == 1 else f"{len(self.requests)} facts"
        layers = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"layers {list(self.layers)}"
        return f"Edit({self.method}, {layers}: {facts})"

    def _repr_html_(self) -> str:
        """A small table: what was asked, where it is written, and how it went."""
        rows = [("method", self.method), ("layers", ", ".join(map(str, self.layers)))]
        rows += [("fact", str(request)) for request in self.requests[:5]]
        if len(self.requests) > 5:
            rows.append(("", f"and {len(self.requests) - 5} more"))
        rows += [(name, text) for name, value in self.diagnostics.items() if (text := _shown(value))]
        rows.append(("model", f"{self.provenance.model_name} ({self.provenance.dtype})"))
        return show.table(rows)


def _shown(value: object) -> str:
    """A number, or numbers by layer, as text; nothing for what does not fit a line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and all(isinstance(each, float) for each in cast(dict[Any, Any], value).values()):
        return ", ".join(f"layer {layer}: {each:.4g}" for layer, each in cast(dict[int, float], value).items())
    return ""


def applied_edits(model: Model) -> list[Edit]:
    """The edits that are written into ``model``, in the order in which they were applied.

    If all edited weights were put back from outside, as loading the original state dict does, there are none.
    """
    return list(_ledger(model).edits)


def forget_edits(model: Model) -> None:
    """Take the weights as they are for the new base, and forget the edits in them: none can be undone any more."""
    _ledger(model)
    cast(Any, model).__dict__.pop(_LEDGER, None)


def check_untouched(model: Model, layers: Sequence[int], operation: str) -> None:
    """Refuse a model whose weights were changed from outside since an edit was applied, as `Edit.apply` would.

    Raises:
        ValueError: naming the layer.
    """
    _ledger(model).check_untouched(model, layers, operation)


@dataclass
class _EditedLayer:
    base: Tensor
    """``W_out`` before the first edit."""
    written: str
    """Hash of ``W_out`` as we last wrote it."""


@dataclass
class _Ledger:
    """What is applied to one model: the edits in order, and per edited layer the weights before them."""

    state: tuple[list[Edit], dict[int, _EditedLayer]] = field(
        default_factory=lambda: (list[Edit](), dict[int, _EditedLayer]())
    )

    @property
    def edits(self) -> list[Edit]:
        """The applied edits, in their order."""
        return self.state[0]

    @property
    def layers(self) -> dict[int, _EditedLayer]:
        """The edited layers."""
        return self.state[1]

    def check_untouched(self, model: Model, layers: Sequence[int], operation: str) -> None:
        """Refuse to write over weights that somebody else changed since our last write."""
        for layer in layers:
            record = self.layers.get(layer)
            if record is not None and digest([host.w_out(model, layer)]) != record.written:
                raise ValueError(
                    f"{operation}: W_out of layer {layer} was changed from outside since tl_edit last wrote it; "
                    "expected it untouched (training, loading weights, casting and weight processing all change it); "
                    "put the weights back, load the model afresh, or accept them as the new base with "
                    "tl_edit.forget_edits(model)."
                )

    def was_reset(self, model: Model) -> bool:
        """Whether somebody put all of the original weights back, so that nothing is applied any more."""
        current = {layer: host.w_out(model, layer) for layer in self.layers}
        if not all(torch.equal(weight, self.layers[layer].base.to(weight)) for layer, weight in current.items()):
            return False
        # An edit too small for the dtype leaves the weights as they were and is applied all the same.
        return any(digest([record.base]) != record.written for record in self.layers.values())

    def rewrite(self, model: Model, edits: list[Edit], layers: Sequence[int]) -> None:
        """Make ``edits`` the applied ones by rewriting ``layers``; on any failure all is as before."""
        records = {
            layer: self.layers.get(layer) or _EditedLayer(base=host.w_out(model, layer).clone(), written="")
            for layer in layers
        }
        news = {layer: _edited(record.base, layer, edits) for layer, record in records.items()}
        befores = {layer: host.w_out(model, layer).clone() for layer in layers}
        still_edited = {layer for edit in edits for layer in edit.layers}
        written = {
            layer: _EditedLayer(base=record.base, written=digest([news[layer]]))
            for layer, record in records.items()
            if layer in still_edited
        }
        untouched = {layer: record for layer, record in self.layers.items() if layer not in records}
        state = self.state
        try:
            for layer, new in news.items():
                host.write_w_out(model, layer, new)
            # One step: an interrupt comes before it or after it.
            self.state = (edits, untouched | written)
        except BaseException:
            self.state = state
            host.put_back_w_out(model, befores)
            raise


def _ledger(model: Model) -> _Ledger:
    host.interface(model)
    # In __dict__, because a bridge redirects plain attributes to the Hugging Face model.
    ledger: _Ledger = cast(Any, model).__dict__.setdefault(_LEDGER, _Ledger())
    if ledger.was_reset(model):
        ledger.state = ([], {})
    return ledger


def plus(weight: Tensor, delta: LowRank) -> Tensor:
    """``weight`` plus a change, summed in float64 and rounded once to its dtype; on the CPU.

    So every device rounds alike; not all have float64.
    """
    return (weight.to("cpu", torch.float64) + delta.matrix).to(weight.dtype)


def _edited(base: Tensor, layer: int, edits: Sequence[Edit]) -> Tensor:
    """``base`` plus the edits of ``layer`` in order, each rounded once, as applying them one by one does.

    Raises:
        ValueError: If the result is not finite in the weights' dtype.
    """
    weight = base
    for edit in edits:
        delta = edit.deltas.get(layer)
        if delta is not None:
            weight = plus(weight, delta)
    if not torch.isfinite(weight).all():
        raise ValueError(
            f"applying an edit: W_out of layer {layer} would not be finite in {base.dtype}; expected finite weights; "
            "the edit is too large for this dtype; load the model in bfloat16 or float32."
        )
    return weight
