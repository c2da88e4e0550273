"""Ours beside the published numbers, and whether the sample allows to tell them apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tl_edit.evaluate import MEASURES, Metric
from tl_edit.evaluate.measures import COUNTERFACT, ZSRE
from tl_edit.reproduce.published import PublishedRow

RATES = ("S", "ES", "PS", "NS", "TS", "ET", "PT", "UT")
ROUNDING = 0.05
"""What printing one decimal hides."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number, in the units of the papers' tables: per cent, and bits times 100."""

    ours: float
    standard_error: float
    """NaN where there is none, as of a single record."""
    interval: tuple[float, float]
    """95 %, of our sample."""
    n: int
    published: float | None = None
    n_published: int | None = None
    layer: int | None = None
    """Where it was found, of effects that are strongest somewhere."""
    published_layer: int | None = None

    @property
    def tolerance(self) -> float | None:
        """By how much two samples of these sizes may differ by chance, 95 times in 100; None where that is not known.

        ``1.96 * sqrt(se_ours^2 + se_published^2)``, and what the paper's rounding hides. The published standard error
        is ours for as many records as the paper had. It holds for two independent samples: on the paper's own records
        the numbers should be closer.
        """
        if self.published is None or not self.n_published or math.isnan(self.standard_error):
            return None
        there = self.standard_error * math.sqrt(self.n / self.n_published)
        return 1.96 * math.hypot(self.standard_error, there) + ROUNDING

    @property
    def within(self) -> bool | None:
        """Whether the published number lies within the tolerance of ours; None where there is nothing to compare."""
        tolerance = self.tolerance
        if self.published is None or tolerance is None:
            return None
        return abs(self.ours - self.published) <= tolerance


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table."""

    name: str
    cells: Mapping[str, Cell]
    n_edits: int | None = None
    """Edits in the model at once, where tables are about that."""
    source: str | None = None
    """Where the published numbers are; None where there are none."""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A table of a paper, measured again."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """What was done, in sentences."""
    failures: tuple[tuple[str, str, str], ...] = ()
    """(method, request, why) of what failed."""


def cells_of(metrics: Mapping[str, Metric], published: PublishedRow | None, *, seed: int = 0) -> dict[str, Cell]:
    """The papers' columns of one method, beside what was published for it."""
    return {
        key: cell_of(
            key,
            metrics[key],
            None if published is None else published.values.get(key),
            None if published is None else published.n_records,
            seed=seed,
        )
        for key in (COUNTERFACT if data_of(metrics) == "CounterFact" else ZSRE)
        if key in metrics
    }


def cell_of(key: str, metric: Metric, published: float | None, n_published: int | None, *, seed: int = 0) -> Cell:
    """A metric in a table's units."""
    scale = MEASURES[key].scale
    error = scale * metric.standard_error
    if error == 0 and published is not None and key in RATES:
        # No record differs from another, which does not mean that none would: as if the published rate were the true.
        rate = min(1.0, max(0.0, published / 100))
        error = 100 * math.sqrt(rate * (1 - rate) / metric.n)
    low, high = metric.interval(seed=seed)
    return Cell(
        ours=scale * metric.mean,
        standard_error=error,
        interval=(scale * low, scale * high),
        n=metric.n,
        published=published,
        n_published=None if published is None else n_published,
    )


def data_of(metrics: Mapping[str, Metric]) -> str:
    """Which columns of the papers' tables fit."""
    return "CounterFact" if "ES" in metrics else "zsRE"


def layout_of(given: object) -> str:
    """The layout that records or facts were read from, e.g. "CounterFact"; others have no published numbers."""
    return str(getattr(given, "schema", ""))


def bos_note(bos: bool) -> str:
    """How prompts began."""
    return "with a BOS (the papers' had none)" if bos else "without a BOS, as in the papers"


def missing_note(model_name: str, rows: Sequence[Row]) -> str | None:
    """What to say where nothing, or not all, was published; None where there is nothing to say."""
    if all(row.source is None for row in rows):
        return f"Nothing is published for {model_name} and these data, so ours stands alone (–)."
    hidden = {key for row in rows if row.source and "ES" in row.cells for key in ("GE", "RS") if key not in row.cells}
    if "GE" in hidden:
        return "GE and RS are published, too; they take generated texts (--generate)."
    return "RS is published, too; it takes --tfidf and --snippets." if hidden else None
