"""Does tracing tell where to edit? Trace effects and edit scores, layer by layer, on the same facts.

Hase et al. 2023 (arXiv 2301.04213) found that how much a layer's states matter in a causal trace says next to nothing
about how well an edit of that layer works. `locate_vs_edit` asks the question of your model, your facts and your
method: it traces each fact at the subject's last token, edits it at each layer, and compares.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import forward, host, show, tokens
from tl_edit.arguments import as_moments
from tl_edit.counted import counted
from tl_edit.data import EditRecord, as_records
from tl_edit.evaluate import MEASURES, Evaluation, Metric
from tl_edit.evaluate.ranks import Correlation, over_records
from tl_edit.host import Model
from tl_edit.moment import SecondMoment, SecondMoments
from tl_edit.prefixes import generate_prefixes
from tl_edit.rome import ROMEConfig, effective_config, rome_edit
from tl_edit.sweep.agreement import Among, correlated, plot_agreement, r_squared
from tl_edit.sweep.methods import Method, no_edit, random_direction
from tl_edit.sweep.run import sweep
from tl_edit.trace import KINDS, Kind, Noise, causal_trace

OPERATION = "locate_vs_edit"
REWRITE = "rewrite"
FEW = 10
"""With fewer records a warning is due."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LocateVsEdit:
    """Trace effects and edit scores of the same records and layers.

    Scores go by name: "rewrite", the share of the possible gain in the new object's probability, ``(p' - p) / (1 - p)``
    (that paper's measure), or a metric of `Evaluation`, such as "ES", "PM" or "NM".
    """

    layers: tuple[int, ...]
    kind: Kind
    """Which states the traces restore, at the subject's last token."""
    effect: Float[Tensor, "record layer"]
    """Indirect effect of restoring them, as a difference of probabilities."""
    before: Evaluation
    """The model without an edit."""
    edited: Mapping[int, Evaluation]
    """The edited model, by layer."""
    control: Mapping[int, Evaluation]
    """The same with random directions of the edits' norms."""
    skipped: tuple[tuple[EditRecord, str], ...]
    """Records that are left out, and why: the model does not know the fact, or a method failed."""
    seed: int
    """Of intervals and controls."""

    @property
    def records(self) -> tuple[EditRecord, ...]:
        """The records that count."""
        return tuple(scores.record for scores in self.before.scores)

    def scores(self, name: str = REWRITE, *, control: bool = False) -> Float[Tensor, "record layer"]:
        """Scores of each record edited at each layer, NaN where a record does not have them.

        Args:
            name: Which score; see above.
            control: Those of the random directions instead.

        Raises:
            ValueError: If no record has such a score.
        """
        by_layer = self.control if control else self.edited
        columns = [self._column(name, by_layer[layer]) for layer in self.layers]
        there = [column for column in columns if column is not None]
        if not there:
            raise ValueError(
                f"{OPERATION}: no record has the score {name!r}; expected 'rewrite' or one of "
                f"{', '.join(self.edited[self.layers[0]].metrics())}."
            )
        return torch.stack([torch.full_like(there[0], math.nan) if each is None else each for each in columns], dim=1)

    def _column(self, name: str, edited: Evaluation) -> Float[Tensor, " record"] | None:
        """Each record's score, edited at one layer; None where no record has it."""
        if name != REWRITE:
            metric = edited.metric(name) if name in MEASURES else None
            return None if metric is None else metric.per_record
        before, now = (
            torch.tensor([scores.efficacy[0].prob_new for scores in each.scores], dtype=torch.float64)
            for each in (self.before, edited)
        )
        return torch.where(before < 1, (now - before) / (1 - before), math.nan)

    def correlation(
        self, name: str = REWRITE, *, among: Among = "cells", control: bool = False, shuffled: bool = False
    ) -> Correlation:
        """Rank correlation (Spearman) of trace effect and edit score, with its interval over records.

        Args:
            name: Which score.
            among: "cells", over all records and layers; "layers", of their means over records; "records", within each
                layer, then the mean over layers: whether facts that a layer matters for are edited better there.
            control: Of edits in random directions.
            shuffled: With the effect of another layer of the same record, drawn at random (mean of ten draws): what
                there is to see without looking at the edited layer. (A little below zero where effects differ by layer,
                as the edited layer's own is never drawn; for the means by layer this leaves nothing to compare.)

        Raises:
            ValueError: For another ``among``, a score that no record has, and ``shuffled`` among layers.
        """
        if among not in get_args(Among):
            raise ValueError(f"{OPERATION}: among is {among!r}; expected one of {', '.join(get_args(Among))}.")
        if shuffled and among == "layers":
            raise ValueError(
                f"{OPERATION}: shuffled effects have no means by layer of their own; expected among='cells' or "
                "'records'; leave shuffled out."
            )
        scores = self.scores(name, control=control)
        whole = ~scores.isnan().any(dim=1)
        scores, effects = scores[whole], [effect[whole] for effect in (self._shuffled() if shuffled else [self.effect])]

        def of_chosen(chosen: Int[Tensor, " record"]) -> float:
            found = [correlated(effect[chosen], scores[chosen], among) for effect in effects]
            return sum(found) / len(found)

        return over_records(of_chosen, len(scores), seed=self.seed)

    def _shuffled(self) -> list[Float[Tensor, "record layer"]]:
        """For each record and layer the effect of another layer, ten times."""
        generator = torch.Generator().manual_seed(self.seed)
        n = len(self.layers)
        places = [
            (torch.arange(n) + torch.randint(1, n, (len(self.effect), 1), generator=generator)) % n for _ in range(10)
        ]
        return [self.effect.gather(1, place) for place in places]

    def explained(self, name: str = REWRITE) -> dict[str, float]:
        """Share of the scores' variance (R^2 of linear regressions) that the layer explains, and layer and effect.

        The paper's comparison: what tracing adds to knowing the layer.
        """
        scores, effect = self.scores(name), self.effect
        whole = ~scores.isnan().any(dim=1)
        y, x = scores[whole].flatten(), effect[whole].flatten()
        one_hot = torch.eye(len(self.layers), dtype=torch.float64).repeat(int(whole.sum()), 1)
        return {
            "layer": r_squared(one_hot, y),
            "effect": r_squared(torch.stack([torch.ones_like(x), x], dim=1), y),
            "layer and effect": r_squared(torch.cat([one_hot, x[:, None]], dim=1), y),
        }

    def choosing(self, name: str = REWRITE) -> dict[str, Metric]:
        """Scores by how the layer is chosen for each record.

        "located": where its own trace effect is largest; "random layer": the mean over layers; "best layer": the one
        that is best on average over all records; "located, random direction": the norm-matched control at the first.
        """
        scores, control = self.scores(name), self.scores(name, control=True)
        located = self.effect.argmax(dim=1, keepdim=True)
        best = int(scores.nanmean(dim=0).argmax())
        columns = {
            "located": scores.gather(1, located)[:, 0],
            "random layer": scores.nanmean(dim=1),
            f"best layer ({self.layers[best]})": scores[:, best],
            "located, random direction": control.gather(1, located)[:, 0],
        }
        found = {key: Metric.over(map(float, column)) for key, column in columns.items()}
        return {key: metric for key, metric in found.items() if metric is not None}

    def to_dataframe(self) -> Any:
        """A pandas frame: a row for each record and layer, with the effect, the scores and the control's.

        Raises:
            ImportError: If pandas is not installed.
        """
        names = [REWRITE, *(key for key in ("ES", "EM", "PS", "PM", "NS", "NM") if key in self.before.metrics())]
        values = {"effect": self.effect}
        values |= {name: self.scores(name) for name in names}
        values |= {f"{name}, random direction": self.scores(name, control=True) for name in names}
        axes = {"record": range(len(self.records)), "layer": self.layers}
        return show.frame(f"{OPERATION}: to_dataframe", axes, values)

    def plot(self, ax: Any = None, *, name: str = REWRITE) -> Any:
        """Two pictures: effect and score by layer with 95 % intervals over records, and every record's at every layer.

        Args:
            ax: Two axes; None makes new ones.
            name: Which score.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If no record has the score, or the number of axes is another.
        """
        scores = {f"{name} score": self.scores(name), "random direction, same norm": self.scores(name, control=True)}
        return plot_agreement(self.layers, f"trace effect ({self.kind})", self.effect, scores, ax)

    def __repr__(self) -> str:
        lost = f", {len(self.skipped)} left out" if self.skipped else ""
        r2, scores = self.explained(), self.scores()
        # Without their intervals, whose resampling takes a while on thousands of records.
        whole = ~scores.isnan().any(dim=1)
        cells, records = (correlated(self.effect[whole], scores[whole], among) for among in ("cells", "records"))
        return (
            f"LocateVsEdit({counted(len(self.records), 'record')}{lost}, layers "
            f"{list(self.layers)}, {self.kind}: rank correlation with the rewrite score {cells:+.2f}, within layers "
            f"{records:+.2f} (intervals: .correlation()); R^2 of the layer {r2['layer']:.2f}, with the effect "
            f"{r2['layer and effect']:.2f})"
        )

    def _repr_html_(self) -> str:
        scores, control = self.scores(), self.scores(control=True)
        rows = [
            (
                str(layer),
                *(f"{round(float(each[:, i].nanmean()), 3) + 0.0:.3f}" for each in (self.effect, scores, control)),
            )
            for i, layer in enumerate(self.layers)
        ]
        columns = ("layer", "trace effect", "rewrite score", "random direction, same norm")
        return show.table(rows, columns=columns, heading=repr(self))


def locate_vs_edit(
    model: Model,
    records: EditRecord | Sequence[EditRecord],
    layers: Sequence[int],
    moments: SecondMoments | SecondMoment | None = None,
    *,
    config: ROMEConfig | None = None,
    editor: Callable[[int], Method] | None = None,
    kind: Kind = "mlp_out",
    window: int | None = None,
    noise: float | Noise = 3.0,
    noise_std: float | None = None,
    n_samples: int = 10,
    seed: int = 1,
    folder: str | Path | None = None,
    prepend_bos: bool | None = None,
    batch_size: int = 128,
    progress: bool = True,
) -> LocateVsEdit:
    """Trace each record's fact and edit it at each layer, with controls, and compare (arXiv 2301.04213 in one call).

    Args:
        model: A HookedTransformer or TransformerBridge.
        records: Facts with their true objects. Those that the model does not know are left out and named, as a trace of
            another answer says nothing about them.
        layers: Layers to trace and to edit.
        moments: Second moments of the keys at these layers, for ROME.
        config: Settings of ROME; its layer does not count. None for the model's own.
        editor: Another method: it takes a layer and returns a method for `sweep`, e.g. ``lambda layer:
            partial(memit_edit, moments=moments, layers=[layer], apply=False)``.
        kind: Which states the traces restore; this and the next five are explained in `causal_trace`. (The paper
            restores MLP outputs in windows of 10, 5, 3 and 1 layers.)
        window: Layers restored together.
        noise: Noise on the subject's embeddings.
        noise_std: Absolute.
        n_samples: Noise draws.
        seed: Of the noise, the random directions, the intervals.
        folder: As for `sweep`; traces are made again.
        prepend_bos: As for `evaluate`; ``editor`` must know it itself.
        batch_size: As for `evaluate`.
        progress: Whether to show bars.

    Warns, beside what these warn of, of fewer than ten records that count, and of edits that are alike at all layers.

    Raises:
        ValueError: For neither moments nor editor, fewer than two layers, no record that the model knows, and what
            `causal_trace`, `rome_edit` and `sweep` refuse.
    """
    listed = as_records(records, OPERATION)
    chosen = _checked_layers(model, layers)
    if kind not in KINDS or (editor is not None and not callable(cast(object, editor))):
        raise ValueError(
            f"{OPERATION}: kind is {kind!r} and editor is of type {type(editor).__name__}; expected one of "
            f"{', '.join(KINDS)}, and a function from a layer to a method, or None for ROME."
        )
    bos = tokens.resolve_bos(model, prepend_bos)
    if editor is not None and (moments is not None or config is not None):
        raise ValueError(
            f"{OPERATION}: editor is given with moments or config, which are for ROME; expected one or the other; give "
            "them to the methods that editor returns."
        )
    if editor is None:
        editor = _rome_at(model, moments, chosen, config, bos)
    known: list[EditRecord] = []
    effects: list[list[float]] = []
    skipped: list[tuple[EditRecord, str]] = []
    for record in tqdm(listed, desc=f"{OPERATION}: tracing", disable=not progress):
        why = _unknown(model, record, bos)
        if why:
            skipped.append((record, why))
            continue
        trace = causal_trace(
            model,
            record.request.prompt,
            record.request.subject,
            answer=record.request.target_true,
            kinds=(kind,),
            layers=chosen,
            positions="subject_last",
            window=window,
            noise=noise,
            noise_std=noise_std,
            n_samples=n_samples,
            seed=seed,
            prepend_bos=bos,
        )
        known.append(record)
        effects.append([float(value) for value in trace.of(kind)[:, 0]])
    if not known:
        raise ValueError(
            f"{OPERATION}: none of {counted(len(listed), 'record')} is left: {skipped[0][1]}; expected facts that "
            "the model knows, with their target_true; choose other records."
        )
    methods: dict[str, Method] = {"no edit": no_edit}
    for layer in chosen:
        edit = editor(layer)
        methods[f"layer {layer}"] = edit
        methods[f"layer {layer}, random direction"] = random_direction(edit, seed=seed)
    found = sweep(model, known, methods, folder=folder, prepend_bos=bos, batch_size=batch_size, progress=progress)
    failed = {id(record): f"{name}: {why}" for name, record, why in found.failures}
    left = [i for i, record in enumerate(known) if id(record) not in failed]
    skipped += [(record, failed[id(record)]) for record in known if id(record) in failed]
    compared = found.compare().evaluations
    if len(left) < FEW:
        warnings.warn(
            f"{OPERATION}: {len(left)} of {counted(len(listed), 'record')} left; expected {FEW} or more, as "
            "correlations and intervals over so few say little; give more records that the model knows.",
            stacklevel=2,
        )
    if all(compared[f"layer {layer}"].scores == compared[f"layer {chosen[0]}"].scores for layer in chosen):
        warnings.warn(
            f"{OPERATION}: the edits of all layers score the same, to the last bit; expected them to differ; see "
            "whether the editor edits at the layer that it is given.",
            stacklevel=2,
        )
    return LocateVsEdit(
        layers=tuple(chosen),
        kind=kind,
        effect=torch.tensor(effects, dtype=torch.float64)[left],
        before=compared["no edit"],
        edited={layer: compared[f"layer {layer}"] for layer in chosen},
        control={layer: compared[f"layer {layer}, random direction"] for layer in chosen},
        skipped=tuple(skipped),
        seed=seed,
    )


def _rome_at(
    model: Model, moments: object, layers: Sequence[int], config: ROMEConfig | None, bos: bool
) -> Callable[[int], Method]:
    """ROME at any of the layers, with prefixes that are generated once."""
    if not isinstance(moments, SecondMoments | SecondMoment):
        raise ValueError(
            f"{OPERATION}: moments is of type {type(moments).__name__}; expected the second moments of the layers' "
            f"keys, for ROME, or editor=; compute them with second_moment(model, texts, layers={list(layers)})."
        )
    moments = as_moments(moments, layers, OPERATION)
    settings = effective_config(model, layers[0], config)
    prefixes: tuple[str, ...] = ()
    if settings.n_prefixes:
        lengths, n = settings.prefix_lengths, settings.n_prefixes
        prefixes = generate_prefixes(model, lengths=lengths, n_per_length=n, seed=settings.seed)

    def editor(layer: int) -> Method:
        return partial(
            rome_edit,
            moments=moments,
            layer=layer,
            config=settings,
            prefixes=prefixes,
            prepend_bos=bos,
            apply=False,
        )

    return editor


def _checked_layers(model: Model, layers: object) -> tuple[int, ...]:
    """Two layers or more, each once, ascending."""
    host.check_layers(model, cast(Sequence[int], layers), OPERATION)
    found = tuple(sorted(set(cast(Sequence[int], layers))))
    if len(found) < 2:
        raise ValueError(
            f"{OPERATION}: layers is {list(found)}; expected two layers or more, as they are compared; pass e.g. "
            f"range({host.n_layers(model)})."
        )
    return found


def _unknown(model: Model, record: EditRecord, bos: bool) -> str:
    """Why a record's fact cannot be traced; empty where it can."""
    request = record.request
    if request.target_true is None:
        return f"{request.prompt!r} has no target_true"
    said = int(forward.next_log_probs(model, request.prompt, prepend_bos=bos).argmax())
    try:
        expected = int(tokens.target_tokens(model, request.prompt, request.target_true, prepend_bos=bos)[0])
    except ValueError as error:
        return str(error)
    if said == expected:
        return ""
    return f"after {request.prompt!r} the model says {model.tokenizer.decode([said])!r}, not {request.target_true!r}"
