"""Causal tracing over many facts, the ROME paper's numbers for GPT-2 XL."""

import math
from collections.abc import Sequence
from pathlib import Path

from tl_edit import host
from tl_edit.data import KnownFact
from tl_edit.host import Model
from tl_edit.reproduce.compared import Cell, Reproduction, Row, bos_note, layout_of
from tl_edit.reproduce.published import (
    TRACE_SOURCE,
    TRACED,
    TRACED_DATA,
    TRACED_FACTS,
    TRACED_MEANS,
    TRACED_PEAKS,
    PublishedEffect,
    published_name,
)
from tl_edit.tokens import resolve_bos
from tl_edit.trace import ROLES, AverageTrace, embedding_std, trace_facts
from tl_edit.trace.result import KIND_NAMES


def trace_averages(
    model: Model,
    facts: Sequence[KnownFact],
    *,
    n_facts: int | None = TRACED_FACTS,
    n_samples: int = 10,
    prepend_bos: bool | None = None,
    folder: str | Path | None = None,
    seed: int = 1,
    progress: bool = True,
) -> Reproduction:
    """Trace the first facts, as far as the model knows them, with noise of 3 standard deviations of all subjects'.

    Args:
        model: A HookedTransformer or TransformerBridge.
        facts: The paper's are KnownFacts; the noise is taken from the subjects of all of them.
        n_facts: Trace the first so many; those that the model does not know are left out. None for all.
        n_samples: Noise draws.
        prepend_bos: Whether prompts begin with a BOS; the published numbers are without.
        folder: Where traces are kept as they are done, so that a run that was stopped goes on.
        seed: Of the noise; 1 gives the published program's draws.
        progress: Whether to show a bar.

    Raises:
        ValueError: What `trace_facts` raises.
    """
    noise_std = 3 * embedding_std(model, [fact.subject for fact in facts])
    average = trace_facts(
        model,
        facts[:n_facts],
        noise_std=noise_std,
        n_samples=n_samples,
        seed=seed,
        prepend_bos=prepend_bos,
        folder=folder,
        progress=progress,
    )
    name = host.model_name(model)
    known = published_name(name) == TRACED and layout_of(facts) == TRACED_DATA
    notes = [
        f"{average.n_facts} facts ({len(average.skipped)} left out, as the model does not say their answer), "
        f"{n_samples} noise draws of standard deviation {noise_std:.4g}, window {average.window}; prompts "
        f"{bos_note(resolve_bos(model, prepend_bos))}.",
        "Effects are the strongest mean indirect effects over layers; their intervals are of the effect within facts.",
        *([] if known else [f"No numbers are published for {name} and these facts, so ours stands alone (–)."]),
    ]
    return Reproduction(
        title=f"Causal tracing, {name}",
        rows=(*_means(average, known), *_peaks(average, known)),
        notes=tuple(notes),
    )


def _means(average: AverageTrace, known: bool) -> list[Row]:
    """The probabilities that the paper's text has, and their difference."""
    values = {
        "clean probability": (average.clean, math.nan),
        "corrupted probability": (average.corrupted, math.nan),
        "total effect": (average.total_effect, average.total_effect_error),
    }
    return [
        Row(
            name=name,
            cells={"mean": _cell(value, error, average.n_facts, TRACED_MEANS[name], known)},
            source=TRACE_SOURCE if known else None,
        )
        for name, (value, error) in values.items()
    ]


def _peaks(average: AverageTrace, known: bool) -> list[Row]:
    """The strongest mean indirect effects."""
    rows: list[Row] = []
    for (kind, role), published in TRACED_PEAKS.items():
        k, r = [str(kind) for kind in average.kinds].index(kind), ROLES.index(role)
        if not average.count[r]:
            continue
        effect = average.indirect_effect[k, r]
        at = int(effect.argmax())
        cell = _cell(
            float(effect[at]),
            float(average.paired_error[k, r, at]),
            average.count[r],
            published,
            known,
            layer=average.layers[at],
        )
        name = f"{KIND_NAMES[average.kinds[k]]}, {role}"
        rows.append(Row(name=name, cells={"effect": cell}, source=TRACE_SOURCE if known else None))
    return rows


def _cell(
    value: float, error: float, n: int, published: PublishedEffect, known: bool, *, layer: int | None = None
) -> Cell:
    return Cell(
        ours=100 * value,
        standard_error=100 * error,
        interval=(100 * (value - 1.96 * error), 100 * (value + 1.96 * error)),
        n=n,
        published=published.value if known else None,
        n_published=TRACED_FACTS if known else None,
        layer=layer,
        published_layer=published.layer if known else None,
    )
