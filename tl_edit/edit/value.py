"""An edit as a value: what was asked, what changes, where it comes from; its algebra and its file."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from tl_edit import show
from tl_edit.counted import counted
from tl_edit.edit import file
from tl_edit.edit.base import Base
from tl_edit.edit.low_rank import Change, LowRank, as_scale
from tl_edit.host import Provenance
from tl_edit.request import EditRequest

E = TypeVar("E", bound="EditValue")

MEANINGS = {
    "norm": "Frobenius norm of the change",
    "rank": "number of the change's factors",
    "target_prob": "probability of the new object at the end of the search, mean over tokens and prefixes",
    "delta_ratio": "how far the search moved the value, over the length that it had",
    "divisor": "product of the key and its direction, by which the update is divided: near 0 it explodes",
    "divisor_ratio": "the divisor over that with one key throughout: 1 is sound, far below 1 may ruin the model",
    "key_cosine": "cosine between the bare prompt's key and the mean key behind prefixes",
    "disturbance": "how far typical values move, over the length of the edited ones: near 1 may ruin the model",
    "relative_norm": "norm of the change over that of W_out",
    "residual": "mean distance to the values that were sought, before this layer's change",
    "relative_residual": "this distance over the values' length",
    "key_rarity": "1 for typical keys; the rarer they are, the more the edit moves",
    "weight": "of the second moment against the requests: the larger, the less is written",
    "damping": "what is added to the requests' equations: the larger, the less is written",
    "null_dimensions": "dimensions of keys in which the edit may write",
    "null_share": "share of the requests' keys in these dimensions: near 0 little can be written",
}
"""What stands beside the numbers of an edit's table."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EditValue(Change):
    """What an edit is apart from any model."""

    requests: tuple[EditRequest, ...]
    config: Any
    """The effective settings, layers included; of a sum of edits with different settings, a tuple of them."""
    provenance: Provenance
    diagnostics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Numbers that tell whether to trust the edit; `rome_edit` says which."""
    base: Base | None = None
    """The weights that it was computed on; None if that is not known, and then nobody can tell whether it fits."""
    statistics: Mapping[int, str] = field(default_factory=dict[int, str])
    """By layer: a note of the second moment that was used."""

    # --- algebra -----------------------------------------------------------------------------------

    def __mul__(self: E, scale: float | int) -> E:
        number = as_scale(scale, f"scaling {self!r}")
        method = f"({self.method})" if " + " in self.method else self.method
        return self._derived(f"{number:g} * {method}", {layer: delta * number for layer, delta in self.deltas.items()})

    __rmul__ = __mul__

    def __truediv__(self: E, divisor: float | int) -> E:
        number = as_scale(divisor, f"dividing {self!r}")
        if number == 0:
            raise ValueError(f"dividing {self!r}: the divisor is 0; expected another number; write e.g. edit / 2.")
        return self * (1 / number)

    def __neg__(self: E) -> E:
        return self * -1

    def __add__(self: E, other: E) -> E:
        if not isinstance(cast(object, other), EditValue):
            return NotImplemented
        for layer in self.deltas.keys() & other.deltas.keys():
            if self.deltas[layer].shape != other.deltas[layer].shape:
                raise ValueError(
                    f"adding edits: the changes of layer {layer} are of shape {list(self.deltas[layer].shape)} and "
                    f"{list(other.deltas[layer].shape)}; expected edits of one model; add those that fit."
                )
        differs = self.base.disagrees(other.base) if self.base and other.base else None
        if differs is not None:
            raise ValueError(
                f"adding edits: {self!r} and {other!r} were computed on different weights of layer {differs}; expected "
                "edits of one model; compute both on the same weights."
            )
        deltas = dict(self.deltas)
        for layer, delta in other.deltas.items():
            deltas[layer] = deltas[layer] + delta if layer in deltas else delta
        same_seed = self.provenance.seed == other.provenance.seed
        return replace(
            self._derived(self.method if self.method == other.method else f"{self.method} + {other.method}", deltas),
            requests=tuple(dict.fromkeys([*self.requests, *other.requests])),
            config=_joined(self.config, other.config),
            provenance=self.provenance if same_seed else replace(self.provenance, seed=None),
            base=self.base.joined(other.base) if self.base and other.base else None,
            statistics={**other.statistics, **self.statistics},
        )

    def __radd__(self: E, other: int) -> E:
        """So that ``sum(edits)`` works, which begins with 0."""
        if type(other) is not int or other != 0:
            return NotImplemented
        return self

    def __sub__(self: E, other: E) -> E:
        if not isinstance(cast(object, other), EditValue):
            return NotImplemented
        return self + -other

    def layers(self: E, chosen: Iterable[int]) -> E:
        """The part of the edit that changes these layers; ``tuple(edit.deltas)`` lists those it has.

        Raises:
            ValueError: If one of them is not among the edit's, or there are none.
        """
        given = cast(object, chosen)
        listed: list[Any] = list(cast(Iterable[Any], given)) if isinstance(given, Iterable) else []
        listed = [int(layer) if hasattr(layer, "__index__") else layer for layer in listed]
        if not listed or any(type(layer) is not int or layer not in self.deltas for layer in listed):
            raise ValueError(
                f"choosing layers of {self!r}: {chosen!r}; expected some of {list(self.deltas)}; write e.g. "
                f"edit.layers([{next(iter(self.deltas))}])."
            )
        method = f"({self.method}).layers({listed})" if " " in self.method else f"{self.method}.layers({listed})"
        return self._derived(method, {layer: self.deltas[layer] for layer in listed})

    def truncate(self: E, rank: int) -> E:
        """The nearest edit whose change of every layer has at most this rank (in the Frobenius norm).

        Raises:
            ValueError: If the rank is no integer of 1 or more.
        """
        if type(rank) is not int or rank < 1:
            raise ValueError(
                f"truncating {self!r}: rank is {rank!r}; expected an integer of 1 or more; write e.g. edit.truncate(1)."
            )
        method = f"({self.method}).truncate({rank})" if " " in self.method else f"{self.method}.truncate({rank})"
        return self._derived(method, {layer: delta.truncated(rank) for layer, delta in self.deltas.items()})

    @property
    def norms(self) -> dict[int, float]:
        """By layer: Frobenius norm of the change."""
        return {layer: delta.norm() for layer, delta in self.deltas.items()}

    @property
    def ranks(self) -> dict[int, int]:
        """By layer: the number of factors."""
        return {layer: delta.rank for layer, delta in self.deltas.items()}

    def _derived(self: E, method: str, deltas: Mapping[int, LowRank]) -> E:
        """The same edit with other factors; what was measured of the old ones does not hold for it."""
        return replace(self, method=method, deltas=deltas, diagnostics={})

    # --- files -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file; no pickle. `load` gives an equal edit back.

        It takes ``8 * rank * (d_mlp + d_model)`` bytes for each layer and a few kilobytes: the requests, the settings,
        diagnostics, hashes of the weights it was computed on, versions.

        Raises:
            ValueError: If the file cannot be written, or the settings are something that a file cannot hold.
        """
        file.write(path, self)

    @classmethod
    def load(cls: type[E], path: str | Path) -> E:
        """Read what `save` wrote. Whether it fits a model, `apply`, `on` and `hooks` check by the weights' hashes.

        Raises:
            ValueError: If the file is not such a one, or is damaged.
        """
        return cls(**file.read(path))

    # --- showing -----------------------------------------------------------------------------------

    def plot(self, ax: Any = None) -> Any:
        """The loss of the search over its evaluations, where the edit carries it; else the change's norm by layer.

        Of several requests it is the median of the losses, with the range of 90 % of them, those that ended early at
        their last loss. Sums and scaled edits carry none.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        losses = cast(tuple[Any, ...], self.diagnostics.get("losses", ()))
        if not losses:
            norms = torch.tensor(list(self.norms.values()), dtype=torch.float64)
            groups = [f"layer {layer}" for layer in self.norms]
            return show.plot_bars(
                {"": norms}, ax, groups=groups, ylabel="Frobenius norm of the change", title=str(self)
            )
        if not isinstance(losses[0], tuple):
            return show.plot_losses(losses, self.diagnostics.get("loss_terms", ()), ax, title=str(self))
        curves = [torch.tensor(each, dtype=torch.float64) for each in losses]
        if len(curves) == 1:
            return show.plot_losses(cast(tuple[float, ...], losses[0]), (), ax, title=str(self))
        longest = max(map(len, curves))
        table = torch.stack([torch.cat([each, each[-1:].expand(longest - len(each))]) for each in curves])
        median, low, high = (table.quantile(level, dim=0) for level in (0.5, 0.05, 0.95))
        name = f"median of {len(curves)} requests, and 90 % of them"
        return show.plot_lines(
            torch.arange(1, longest + 1, dtype=torch.float64),
            {name: median},
            ax,
            xlabel="evaluation",
            ylabel="loss (nats)",
            title=str(self),
            bands={name: (low, high)},
            whole=True,
        )

    def __repr__(self) -> str:
        facts = str(self.requests[0]) if len(self.requests) == 1 else counted(len(self.requests), "fact")
        layers = list(self.deltas)
        where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers}"
        return f"Edit({self.method}, {where}: {facts})"

    def _repr_html_(self) -> str:
        """A small table: what was asked, where it is written, how it went, and what the numbers mean."""
        rows = [("method", self.method), ("layers", ", ".join(map(str, self.deltas)))]
        rows += [("fact", str(request)) for request in self.requests[:5]]
        if len(self.requests) > 5:
            rows.append(("", f"and {len(self.requests) - 5} more"))
        rows += [("norm", _shown(self.norms)), ("rank", ", ".join(f"layer {at}: {n}" for at, n in self.ranks.items()))]
        rows += [(name, text) for name, value in self.diagnostics.items() if (text := _shown(value))]
        rows += [("second moment", text) for text in dict.fromkeys(self.statistics.values())]
        rows.append(("model", f"{self.provenance.model_name} ({self.provenance.dtype})"))
        return show.table([(name, value, MEANINGS.get(name, "")) for name, value in rows])


def _shown(value: object) -> str:
    """A number, or numbers by layer, as text; nothing for what does not fit a line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and all(isinstance(each, float) for each in cast(dict[Any, Any], value).values()):
        return ", ".join(f"layer {layer}: {each:.4g}" for layer, each in cast(dict[int, float], value).items())
    return ""


def _joined(mine: Any, other: Any) -> Any:
    """The settings of a sum: one where both have the same, a tuple where not."""
    both: list[Any] = []
    for config in (mine, other):
        for each in cast(tuple[Any, ...], config) if isinstance(config, tuple) else (config,):
            if each not in both:
                both.append(each)
    return both[0] if len(both) == 1 else tuple(both)
