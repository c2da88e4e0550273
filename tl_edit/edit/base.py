"""What an edit was computed on: enough to refuse other weights, and to name the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tl_edit import host
from tl_edit.digest import digest
from tl_edit.edit.ledger import ledger_of
from tl_edit.host import Model, Provenance, ValueSite

_NARROWER = {
    "float64": ("float32", "bfloat16", "float16"),
    "float32": ("bfloat16", "float16"),
    "bfloat16": (),
    "float16": (),
}


@dataclass(frozen=True, kw_only=True)
class Base:
    """The weights before all edits, as hashes, and where the model shows its values."""

    weights: Mapping[int, Mapping[str, str]]
    """By layer and dtype: hash of ``W_out``, in the dtype that it had (first) and cast to the narrower ones."""
    sites: Mapping[int, ValueSite]
    """By layer: the hook points that `Edit.hooks` uses."""
    edits: tuple[str, ...] = ()
    """The edits that were on, in their order."""

    @classmethod
    def of(cls, model: Model, layers: Sequence[int]) -> "Base":
        """That of a model as it is now."""
        now = ledger_of(model).settle(model)
        return cls(
            weights={layer: _hashes(_base(model, layer, now.bases)) for layer in layers},
            sites={layer: host.value_site(model, layer) for layer in layers},
            edits=tuple(map(repr, now.changes)),
        )

    def difference(self, model: Model, made_on: Provenance, bases: Mapping[int, Tensor]) -> str | None:
        """In words, how the weights of ``model`` differ from these; None if they do not.

        Args:
            model: The model to be edited.
            made_on: The model that the edit was computed on.
            bases: By layer: the weights before all edits, where they are not the present ones.
        """
        for layer, known in self.weights.items():
            weight = _base(model, layer, bases)
            if _matches(weight, known):
                continue
            name, here = made_on.model_name, host.model_name(model)
            dtype, processed = str(weight.dtype).removeprefix("torch."), host.is_processed(model)
            if name != here:
                return f"on {name}, and this is {here}"
            if made_on.processed != processed:
                was, now = ("processed" if flag else "raw" for flag in (made_on.processed, processed))
                return f"on {was} weights of {name}, and these are {now}"
            if dtype not in known and dtype in ("bfloat16", "float16"):
                return f"on {next(iter(known))} weights of {name}, and these are {dtype}, which cannot be compared"
            return f"on other weights of {name}: those of W_out of layer {layer} differ"
        return None

    def disagrees(self, other: "Base") -> int | None:
        """The first layer of which two bases are known to be different."""
        for layer in sorted(self.weights.keys() & other.weights.keys()):
            mine, theirs = self.weights[layer], other.weights[layer]
            common = mine.keys() & theirs.keys()
            if common and any(mine[dtype] != theirs[dtype] for dtype in common):
                return layer
        return None

    def joined(self, other: "Base") -> "Base":
        """The layers of both."""
        edits = tuple(dict.fromkeys([*self.edits, *other.edits]))
        return Base(weights={**other.weights, **self.weights}, sites={**other.sites, **self.sites}, edits=edits)


def _base(model: Model, layer: int, bases: Mapping[int, Tensor]) -> Tensor:
    return bases[layer] if layer in bases else host.w_out(model, layer)


def _hashes(weight: Tensor) -> dict[str, str]:
    own = str(weight.dtype).removeprefix("torch.")
    return {name: digest([weight.to(getattr(torch, name))]) for name in (own, *_NARROWER[own])}


def _matches(weight: Tensor, known: Mapping[str, str]) -> bool:
    """Whether a weight is the known one, cast if need be to a dtype that both can be compared in."""
    own = str(weight.dtype).removeprefix("torch.")
    made_in = next(iter(known))
    if own in known and digest([weight]) == known[own]:
        return True
    for dtype in _NARROWER[own]:
        narrow = weight.to(getattr(torch, dtype))
        # Wider than the known one, or there and back: the same but for what the narrower dtype has lost.
        lost = dtype == made_in or torch.equal(narrow.to(weight.dtype), weight)
        if lost and dtype in known and digest([narrow]) == known[dtype]:
            return True
    return False
