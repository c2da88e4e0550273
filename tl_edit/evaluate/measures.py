"""What the metrics are called, how they are shown, and tables of them in the papers' layout."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tl_edit import show
from tl_edit.evaluate.metric import Metric


@dataclass(frozen=True)
class Measure:
    """How a metric is called and shown."""

    what: str
    heading: str = ""
    """What it stands under in the papers' tables."""
    scale: float = 100.0
    """Tables and pictures show the value times this,"""
    better: Literal["higher", "lower", "neither"] = "higher"
    unit: str = "%"
    """and then it has this unit."""

    @property
    def name(self) -> str:
        """What it is, with its unit if that is not per cent."""
        return self.what if self.unit == "%" else f"{self.what}, {self.unit}"


MEASURES: Mapping[str, Measure] = {
    "S": Measure("score", "Score"),
    "ES": Measure("efficacy success", "Efficacy"),
    "EM": Measure("efficacy magnitude", "Efficacy"),
    "EA": Measure("efficacy accuracy", "Efficacy"),
    "PS": Measure("paraphrase success", "Generalization"),
    "PM": Measure("paraphrase magnitude", "Generalization"),
    "PA": Measure("paraphrase accuracy", "Generalization"),
    "NS": Measure("neighborhood success", "Specificity"),
    "NM": Measure("neighborhood magnitude", "Specificity"),
    "NA": Measure("neighborhood accuracy", "Specificity"),
    "NS+": Measure("distracted neighborhood success", "Specificity"),
    "NM+": Measure("distracted neighborhood magnitude", "Specificity"),
    "KL": Measure("neighborhood KL", "Specificity", 1.0, "lower", "nats"),
    "KL+": Measure("distracted neighborhood KL", "Specificity", 1.0, "lower", "nats"),
    "AS": Measure("attribute success", "Attribute", better="neither"),
    "AM": Measure("attribute magnitude", "Attribute", better="neither"),
    "OF": Measure("other facts of the subject kept", "Essence"),
    "EP": Measure("essence perplexity", "Essence", 1.0, "lower", "per token"),
    "UF": Measure("unrelated facts kept", "Specificity"),
    "TS": Measure("token score", "Score"),
    "ET": Measure("efficacy token accuracy", "Efficacy"),
    "PT": Measure("paraphrase token accuracy", "Paraphrase"),
    "UT": Measure("unrelated facts token accuracy", "Specificity"),
    "GE": Measure("generation entropy", "Fluency", unit="bits times 100"),
    "RS": Measure("reference score", "Consistency"),
    "PPL": Measure("perplexity", "Drift", 1.0, "lower", "edited over unedited"),
}
"""All metrics by their key, in the order of tables."""

COUNTERFACT = ("S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS")
"""Columns of the papers' tables for CounterFact."""
ZSRE = ("TS", "ET", "PT", "UT")
"""Columns of the papers' tables for zsRE, which are token accuracies."""
RATES = (("ES", "PS", "NS", "S"), ("ET", "PT", "UT", "TS"), ("EA", "PA", "NA"))
"""What bars show where nothing else is asked for, the first of these that there is."""
_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}

Methods = Mapping[str, Mapping[str, Metric]]
"""Metrics by key, by the name of the method."""


def chosen(methods: Methods, keys: Sequence[str] | None, operation: str) -> list[str]:
    """Which metrics a table shows: those asked for, or the papers' columns that some method has.

    Raises:
        ValueError: If a key is unknown, or no method has any of them.
    """
    there = {key for found in methods.values() for key in found}
    unknown = [key for key in keys or () if key not in MEASURES]
    if isinstance(keys, str) or unknown:
        raise ValueError(f"{operation}: keys is {keys!r}; expected a list of some of {', '.join(MEASURES)}.")
    wanted = keys if keys is not None else COUNTERFACT if "ES" in there else ZSRE
    shown = [key for key in wanted if key in there]
    if keys is not None and len(shown) < len(keys):
        missing = [key for key in keys if key not in there]
        raise ValueError(
            f"{operation}: none of these records has {', '.join(missing)}; expected some of "
            f"{', '.join(key for key in MEASURES if key in there)}; a metric is there where the data and the arguments "
            "of evaluate give it."
        )
    return shown or [key for key in MEASURES if key in there]


def show_metric(key: str, metric: Metric | None, *, digits: int = 1, half_width: bool = False) -> str:
    """A value as tables show it, with its standard error, or with half its 95 % interval (1.96 times as much)."""
    if metric is None:
        return "–"
    measure = MEASURES[key]
    digits = digits if measure.scale > 1 else digits + 2
    # Plus zero, since a tiny negative number rounds to -0.
    value, error = round(measure.scale * metric.mean, digits) + 0.0, measure.scale * metric.standard_error
    if math.isnan(error):
        return f"{value:.{digits}f}"
    return (
        f"{value:.{digits}f} ({1.96 * error:.{digits}f})" if half_width else f"{value:.{digits}f} ± {error:.{digits}f}"
    )


def markdown(methods: Methods, keys: Sequence[str] | None) -> str:
    """A Markdown table: one row for each method; the half width of the 95 % interval in parentheses, as published."""
    shown = chosen(methods, keys, "to_markdown")
    heads = [f"{key} {_ARROWS[MEASURES[key].better]}".strip() for key in shown]
    rows = [
        [name.replace("|", r"\|"), *(show_metric(key, found.get(key), half_width=True) for key in shown)]
        for name, found in methods.items()
    ]
    lines = [["method", *heads], ["---"] * (len(shown) + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(methods: Methods, keys: Sequence[str] | None) -> str:
    """A LaTeX table with booktabs' rules, in the layout of the papers."""
    shown = chosen(methods, keys, "to_latex")
    arrows = {"↑": r" $\uparrow$", "↓": r" $\downarrow$", "": ""}
    groups: list[tuple[str, int]] = []
    for key in shown:
        heading = MEASURES[key].heading
        if groups and groups[-1][0] == heading:
            groups[-1] = heading, groups[-1][1] + 1
        else:
            groups.append((heading, 1))
    above = " & ".join(rf"\multicolumn{{{width}}}{{c}}{{{heading}}}" for heading, width in groups)
    heads = " & ".join(_tex(key) + arrows[_ARROWS[MEASURES[key].better]] for key in shown)
    rows = [
        " & ".join([_tex(name), *(_tex_number(show_metric(key, found.get(key), half_width=True)) for key in shown)])
        for name, found in methods.items()
    ]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(shown)}}}",
        r"\toprule",
        rf"& {above} \\",
        rf"Editor & {heads} \\",
        r"\midrule",
        *(rf"{row} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def metrics_html(methods: Methods, heading: str) -> str:
    """An HTML table: a row for each metric, a column for each method."""
    there = [key for key in MEASURES if any(key in found for found in methods.values())]
    rows = [
        (key, MEASURES[key].name, *(show_metric(key, found.get(key)) for found in methods.values()), _ns(methods, key))
        for key in there
    ]
    shown = f"{heading}; rates and magnitudes in per cent, ± one standard error"
    return show.table(rows, columns=("", "", *methods, "n"), heading=shown)


def plot_metrics(methods: Methods, keys: Sequence[str] | None, ax: Any, *, title: str = "", seed: int = 0) -> Any:
    """Bars of metrics of one unit with their 95 % intervals, methods side by side; returns the axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If a metric is unknown, no method has it, or units differ.
    """
    operation = "plot"
    there = {key for found in methods.values() for key in found}
    if keys is None:
        keys = next((several for several in RATES if there & set(several)), RATES[0])
        keys = [key for key in keys if key in there]
    units = {MEASURES[key].unit: key for key in reversed(chosen(methods, keys, operation))}
    if len(units) != 1 or not keys:
        found = ", ".join(f"{key} ({unit})" for unit, key in units.items())
        raise ValueError(
            f"{operation}: found {found if keys else 'no rates'}; expected metrics of one unit, as they share a scale; "
            f"pass e.g. keys={list(RATES[0])}; the table has all of them."
        )
    bars: dict[str, Tensor] = {}
    ends: dict[str, tuple[Tensor, Tensor]] = {}
    scale = MEASURES[keys[0]].scale
    for name, found in methods.items():
        metrics = [found.get(key) for key in keys]
        sides = [(math.nan, math.nan) if each is None else each.interval(seed=seed) for each in metrics]
        means = [math.nan if each is None else each.mean for each in metrics]
        bars[name] = scale * torch.tensor(means, dtype=torch.float64)
        low, high = scale * torch.tensor(sides, dtype=torch.float64).T
        ends[name] = low, high
    known = any(bool((~low.isnan()).any()) for low, _ in ends.values())
    # The perplexity is that of texts, not of records.
    over = "" if "PPL" in keys else " over records"
    ylabel = f"{next(iter(units))} (95 % intervals{over})" if known else next(iter(units))
    groups = [f"{key}\n{MEASURES[key].what.replace(' ', chr(10), 1)}" for key in keys]
    return show.plot_bars(bars, ax, groups=groups, ylabel=ylabel, title=title, intervals=ends)


def metric_rows(methods: Methods, seed: int) -> list[dict[str, Any]]:
    """A row for each method and metric, as it was measured: rates from 0 to 1, entropies in bits."""
    rows: list[dict[str, Any]] = []
    for name, found in methods.items():
        for key, metric in found.items():
            low, high = metric.interval(seed=seed)
            numbers = {"mean": metric.mean, "standard_error": metric.standard_error, "low": low, "high": high}
            rows.append({"method": name, "metric": key, "name": MEASURES[key].what, **numbers, "n": metric.n})
    return rows


def _ns(methods: Methods, key: str) -> str:
    """How many records have it; of several methods, all numbers that occur."""
    return ", ".join(dict.fromkeys(str(found[key].n) for found in methods.values() if key in found))


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter) or (f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)


def _tex_number(text: str) -> str:
    return "--" if text == "–" else f"${text}$"
