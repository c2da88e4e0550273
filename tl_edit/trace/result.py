"""`CausalTrace`: what one trace measured, kept apart from how."""

import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import archive, show
from tl_edit.counted import counted
from tl_edit.host import Provenance
from tl_edit.trace.plan import Kind, Measure, Severed

FILE = archive.Kind(owner="CausalTrace", schema="tl_edit causal trace 2", remedy="trace again, or restore the file")

KIND_NAMES: dict[Kind, str] = {
    "resid_post": "block output",
    "mlp_out": "MLP output",
    "attn_out": "attention output",
}
MEASURE_NAMES: dict[Measure, str] = {
    "prob": "probability of {answer!r}",
    "log_prob": "log-probability of {answer!r}",
    "logit_diff": "logit of {answer!r} minus that of {other!r}",
    "kl": "minus KL divergence from the clean run (nats)",
}
COLOURS: dict[Kind, str] = {"resid_post": "Purples", "mlp_out": "Greens", "attn_out": "Reds"}


def layer_labels(kinds: Sequence[Kind], window: int) -> list[str]:
    """What the columns of heatmaps are: single layers, or windows of them."""
    several = f"middle of {window} restored layers"
    return ["restored layer" if kind == "resid_post" or window == 1 else several for kind in kinds]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CausalTrace:
    """Values of the answer in the clean, the corrupted and every restored run; tensors on the CPU, in float64."""

    prompt: str
    subject: str
    answer: str
    """The traced tokens as text; a leading space belongs to it."""
    other_answer: str | None
    str_tokens: tuple[str, ...]
    """The prompt's tokens."""
    subject_span: tuple[int, int]
    """First subject position, and one past the last."""
    kinds: tuple[Kind, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    """Restored positions, the last axis of ``restored``."""
    clean_prob: float
    corrupted_prob: float
    """Mean over noise draws."""
    restored_prob: Float[Tensor, "kind layer pos"]
    """Mean over noise draws, by kind (in the order of ``kinds``), layer and position of the restored state."""
    measure: Measure
    """What ``clean``, ``corrupted`` and ``restored`` are; for "prob" they are the probabilities above."""
    clean: float
    corrupted: float
    restored: Float[Tensor, "kind layer pos"]
    corrupted_samples: Float[Tensor, " sample"] | None
    """``corrupted`` of every noise draw, where asked for."""
    restored_samples: Float[Tensor, "kind layer pos sample"] | None
    rank: int
    """Of the answer in the clean run, the greatest of its tokens', counted from 1, what the model says."""
    window: int
    """Layers restored together for ``mlp_out`` and ``attn_out``: [layer - window // 2, layer + ceil(window / 2))."""
    severed: Severed | None
    corruption: str
    """How the subject was corrupted, in words."""
    noise_std: float | None
    """Standard deviation of independent Gaussian noise, in units of the embedding; None for other corruptions."""
    n_samples: int
    engine: str
    """How it was computed: by blocks, or by plain hooks and why."""
    provenance: Provenance

    @property
    def total_effect(self) -> float:
        """``clean - corrupted``."""
        return self.clean - self.corrupted

    @property
    def indirect_effect(self) -> Float[Tensor, "kind layer pos"]:
        """``restored - corrupted``."""
        return self.restored - self.corrupted

    @property
    def subject_last(self) -> int:
        """The lookup position."""
        return self.subject_span[1] - 1

    def of(self, kind: Kind) -> Float[Tensor, "layer pos"]:
        """The indirect effect of one kind.

        Raises:
            ValueError: If this trace does not have the kind.
        """
        if kind not in self.kinds:
            raise ValueError(f"CausalTrace.of: no kind {kind!r}; this trace has {', '.join(self.kinds)}.")
        return self.indirect_effect[self.kinds.index(kind)]

    def to_dataframe(self) -> Any:
        """A pandas frame with one row per restored state: kind, layer, position, token, restored, indirect_effect.

        Raises:
            ImportError: If pandas is not installed.
        """
        frame = show.frame(
            "CausalTrace.to_dataframe",
            {"kind": self.kinds, "layer": self.layers, "position": self.positions},
            {"restored_prob": self.restored_prob, "restored": self.restored, "indirect_effect": self.indirect_effect},
        )
        start, end = self.subject_span
        frame.insert(3, "token", [self.str_tokens[pos] for pos in frame["position"]])
        frame.insert(4, "in_subject", [start <= pos < end for pos in frame["position"]])
        return frame

    # --- files -------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write to a safetensors file; no pickle. `load` gives an equal trace back.

        Raises:
            ValueError: If the file cannot be written.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value.contiguous() for name, value in values.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
        plain["provenance"] = asdict(self.provenance)
        archive.write(path, FILE, tensors, plain)

    @classmethod
    def load(cls, path: str | Path) -> "CausalTrace":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is not such a one, or is damaged.
        """
        tensors, plain = archive.read(path, FILE)
        try:
            provenance = Provenance(**plain.pop("provenance"))
            lists: dict[str, Any] = {
                name: tuple(cast(list[Any], value)) for name, value in plain.items() if isinstance(value, list)
            }
            trace = cls(**cast(Any, plain | lists | tensors), provenance=provenance)
            shape = (len(trace.kinds), len(trace.layers), len(trace.positions))
            samples = [trace.restored_samples[..., 0]] if trace.restored_samples is not None else []
            fits = all(tuple(table.shape) == shape for table in (trace.restored, trace.restored_prob, *samples))
        except Exception as error:  # whatever is wrong with it
            raise archive.unreadable(path, FILE, f"it is damaged: {error}") from error
        if not fits:
            raise archive.unreadable(path, FILE, f"it is damaged: its tables are not {list(shape)}")
        return trace

    # --- pictures ----------------------------------------------------------------------------------

    def marked_tokens(self) -> list[str]:
        """Labels of the restored positions; ``*`` marks the subject."""
        start, end = self.subject_span
        return [self.str_tokens[pos] + ("*" if start <= pos < end else "") for pos in self.positions]

    def titles(self) -> list[str]:
        """What each picture shows."""
        single = {"resid_post": "", "mlp_out": f", window of {self.window}", "attn_out": f", window of {self.window}"}
        return [f"restoring the {KIND_NAMES[kind]}{single[kind]}{self._cut_off()}" for kind in self.kinds]

    def _cut_off(self) -> str:
        return "" if self.severed is None else f", {KIND_NAMES[self.severed]}s severed"

    def _told(self, form: str) -> str:
        """What was measured without and with the noise; not -0.000, as of a divergence of nearly nothing."""
        clean, corrupted = (
            value if self.measure == "prob" or abs(value) > 1e-5 else 0.0 for value in (self.clean, self.corrupted)
        )
        return f"clean {clean:{form}}, corrupted {corrupted:{form}}"

    def measured(self) -> str:
        """What was measured, in words."""
        return MEASURE_NAMES[self.measure].format(answer=self.answer, other=self.other_answer)

    @property
    def part_lost(self) -> float:
        """The total effect over the larger of what is measured without and with the noise; below 0 where it raises."""
        size = max(abs(self.clean), abs(self.corrupted))
        return 0.0 if self._is_nothing or not size else self.total_effect / size

    @property
    def _is_nothing(self) -> bool:
        """Whether corrupting and restoring change no more than rounding does."""
        sizes = [abs(self.clean), abs(self.corrupted), *([] if self.measure == "prob" else [1.0])]
        changes = torch.cat([self.indirect_effect.flatten().abs(), torch.tensor([abs(self.total_effect)])])
        return float(changes.max()) <= 1e-5 * max(sizes)

    def _effects(self) -> Float[Tensor, "kind layer pos"]:
        """The indirect effect as pictures have it: rounding errors alone would fill all colours."""
        return torch.zeros_like(self.indirect_effect) if self._is_nothing else self.indirect_effect

    def _remark(self) -> str:
        """What keeps a reader from seeing a finding in next to nothing, which fills the colours as well."""
        if self._is_nothing:
            return ". The corrupted runs are as the clean one, so there is nothing to bring back"
        if self.measure == "kl" or self.part_lost > 0.05:
            return ""
        if self.part_lost < -0.05:
            return ". The noise raises this, so there is nothing to bring back: red takes away what the noise has added"
        return ". The noise hardly changes this, so there is nothing to bring back, and colours show next to nothing"

    def _repr_html_(self) -> str:
        """Heatmaps of the indirect effect, with inline styles only, so that they survive untrusted notebooks."""
        heading = (
            f"{self.measured()}: {self._told('.3f')} "
            f"({self.corruption}, {counted(self.n_samples, 'sample')}){self._remark()}"
        )
        return show.heatmaps_html(
            [table.T for table in self._effects()],
            titles=self.titles(),
            rows=self.marked_tokens(),
            columns=[str(layer) for layer in self.layers],
            heading=heading,
            unit=f"indirect effect ({self.measure}), by layer",
        )

    def plot(self, ax: Any = None, *, kind: Kind | None = None) -> Any:
        """Heatmaps like the paper's figure 1: tokens as rows, ``*`` on the subject, layers as columns, one scale.

        As in the paper, the scale begins at the corrupted value: what restoring lowers further is grey, and the
        scale has an arrow. The picture in a notebook shows it. Where the noise brought nothing down, the scale is
        that picture's, of the indirect effect both ways.

        Args:
            ax: Axes to draw into: one for each kind, or a single one with ``kind``; None makes new ones.
            kind: Draw only this one.

        Returns:
            The axes, one or a list.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If the trace does not have the kind, or the number of axes is another.
        """
        chosen = self.kinds if kind is None else (kind,)
        nothing = self._is_nothing
        effects = [torch.zeros_like(effect) if nothing else effect for effect in (self.of(each).T for each in chosen)]
        both_ways = nothing or self.part_lost < -0.05
        what = "" if self.measure == "prob" else f"{self.measure} "
        heading = f"{self.prompt} → {self.answer.strip()}: {what}{self._told('.3g')}{self._cut_off()}"
        return show.plot_heatmaps(
            [effect if both_ways else effect + self.corrupted for effect in effects],
            ax,
            titles=[f"restoring the {KIND_NAMES[each]}" for each in chosen],
            rows=self.marked_tokens(),
            columns=[str(layer) for layer in self.layers],
            colours=[show.BOTH_WAYS if both_ways else COLOURS[each] for each in chosen],
            low=None if both_ways else self.corrupted,
            unit=f"indirect effect ({self.measure})" if both_ways else self.measured(),
            heading=heading + self._remark(),
            xlabels=layer_labels(chosen, self.window),
        )

    def view_tokens(self) -> show.View:
        """The prompt's tokens, coloured by the indirect effect of restoring them, with a choice of the layer."""
        return show.layers_view(
            [self.str_tokens[pos] for pos in self.positions],
            self._effects().transpose(1, 2),
            [KIND_NAMES[kind] for kind in self.kinds],
            [str(layer) for layer in self.layers],
            heading=f"{self.prompt} → {self.answer.strip()}: which restored state brings the answer back"
            + self._cut_off(),
            unit=f"indirect effect ({self.measure}), window {self.window} for MLP and attention",
        )

    def __repr__(self) -> str:
        value = "" if self.measure == "prob" else f"{self.measure} "
        sizes = (
            counted(len(each), noun)
            for each, noun in ((self.kinds, "kind"), (self.layers, "layer"), (self.positions, "position"))
        )
        return (
            f"CausalTrace({self.prompt!r} → {self.answer!r}: {value}{self._told('.3f')}"
            f"{self._cut_off()}, {' x '.join(sizes)}, window {self.window}, {self.engine})"
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TraceDifference:
    """One fact traced on a base and on an edited model."""

    base: CausalTrace
    edited: CausalTrace

    @property
    def difference(self) -> Float[Tensor, "kind layer pos"]:
        """The indirect effects of the edited model minus those of the base."""
        return self.edited.indirect_effect - self.base.indirect_effect

    @property
    def total_difference(self) -> float:
        """The total effect of the edited model minus that of the base."""
        return self.edited.total_effect - self.base.total_effect

    def _repr_html_(self) -> str:
        parts = (
            ("base", self.base.indirect_effect),
            ("edited", self.edited.indirect_effect),
            ("edited - base", self.difference),
        )
        return show.heatmaps_html(
            [effect[k].T for k in range(len(self.base.kinds)) for _, effect in parts],
            titles=[f"{name}: {title}" for title in self.base.titles() for name, _ in parts],
            rows=self.base.marked_tokens(),
            columns=[str(layer) for layer in self.base.layers],
            heading=f"{self.base.prompt} → {self.base.answer}: before and after the edit",
            unit=f"indirect effect ({self.base.measure}), by layer",
            per_line=len(parts),
        )

    def plot(self, ax: Any = None, *, kind: Kind | None = None) -> Any:
        """Heatmaps of the indirect effect on one symmetric scale: base, edited and their difference, by kind.

        Args:
            ax: Axes to draw into, three for each kind; None makes new ones.
            kind: Draw only this one.

        Returns:
            The axes, as a list.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If the traces do not have the kind, or the number of axes is another.
        """
        base = self.base
        chosen = base.kinds if kind is None else (kind,)
        tables: list[Tensor] = []
        for each in chosen:
            before, after = base.of(each).T, self.edited.of(each).T
            tables += [before, after, after - before]
        names = ("base", "edited", "edited - base")
        return show.plot_heatmaps(
            tables,
            ax,
            titles=[f"{name}: {KIND_NAMES[each]}" for each in chosen for name in names],
            rows=base.marked_tokens(),
            columns=[str(layer) for layer in base.layers],
            colours=[show.BOTH_WAYS] * len(tables),
            low=None,
            unit=f"indirect effect ({base.measure})",
            heading=f"{base.prompt} → {base.answer.strip()}: before and after the edit",
            xlabels=[label for label in layer_labels(chosen, base.window) for _ in names],
            per_line=len(names),
        )

    def __repr__(self) -> str:
        return (
            f"TraceDifference({self.base.prompt!r} → {self.base.answer!r}: total effect {self.base.total_effect:.3f} → "
            f"{self.edited.total_effect:.3f}, greatest change {float(self.difference.abs().max()):.3f})"
        )


def trace_difference(base: CausalTrace, edited: CausalTrace) -> TraceDifference:
    """Two traces of the same fact as one result: before an edit and with it.

    Trace both models with the same ``answer=``, the old object to see where it went or the new one to see where it
    came from.

    Raises:
        ValueError: If they differ in more than the model's weights, naming what.
    """
    for trace in (base, edited):
        if not isinstance(cast(object, trace), CausalTrace):
            raise ValueError(
                f"trace_difference: found {reprlib.repr(trace)}; expected two CausalTrace; pass what causal_trace gave."
            )
    names = ("prompt", "subject", "answer", "other_answer", "str_tokens", "positions", "corruption")
    pairs = [(name, getattr(base, name), getattr(edited, name)) for name in names]
    different = next((pair for pair in pairs if pair[1] != pair[2]), None) or different_settings(base, edited)
    if different is not None:
        name, was, now = different
        raise ValueError(
            f"trace_difference: {name} is {was!r} in the base and {now!r} in the edited trace; expected two traces "
            "that differ in the model's weights alone; trace both with the same arguments, answer= included."
        )
    return TraceDifference(base=base, edited=edited)


def different_settings(one: CausalTrace, other: CausalTrace) -> tuple[str, object, object] | None:
    """What two traces do not have in common that can be the same for all facts: its name, here and there."""

    def shared(trace: CausalTrace) -> dict[str, object]:
        names = ("kinds", "layers", "measure", "window", "severed", "n_samples")
        made = trace.provenance
        from_prompt = trace.corruption.startswith("counterfactual")
        found: dict[str, object] = {name: getattr(trace, name) for name in names}
        found["corruption"] = "counterfactual" if from_prompt else trace.corruption
        return found | {"seed": made.seed, "prepend_bos": made.prepend_bos, "model_name": made.model_name}

    was, now = shared(one), shared(other)
    return next(((name, was[name], now[name]) for name in was if was[name] != now[name]), None)
