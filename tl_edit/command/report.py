"""What a command found: tables for a person, or one JSON object for a program."""

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

import tl_edit
from tl_edit import host
from tl_edit.evaluate import MEASURES, Metric
from tl_edit.evaluate.measures import show_metric
from tl_edit.host import Model

ERRORS = "± is one standard error over the n records that have the metric (half of the 95 % interval is 1.96 of them)."
HALF_WIDTHS = "In parentheses: half of the 95 % interval over the records, 1.96 standard errors."
WIDE = 160
"""Columns of a table that goes to a file or another program."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a command found."""

    plain: Mapping[str, object]
    """The same for a program: JSON's own values once `as_plain` has seen it."""
    shown: Sequence[RenderableType | str]
    """Tables and lines for a person; strings are printed as they are."""
    code: int = 0

    def write(self, out: Any, command: str, *, as_json: bool) -> None:
        """Write it: exactly one JSON object, or what a person reads."""
        if as_json:
            said = {"command": command, "tl_edit": tl_edit.__version__, **self.plain}
            out.write(json.dumps(as_plain(said), indent=1, allow_nan=False) + "\n")
            out.flush()
            return
        width = None if out.isatty() or "COLUMNS" in os.environ else WIDE
        console = Console(file=out, highlight=False, width=width)
        for each in self.shown:
            if isinstance(each, str):
                console.out(each, highlight=False)
            else:
                console.print(each)


def as_plain(value: object) -> Any:
    """JSON's own values: numbers that are not finite become None, and what JSON does not know a text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Tensor):
        return as_plain(cast(object, value.tolist()))
    if is_dataclass(value) and not isinstance(value, type):
        return as_plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): as_plain(each) for key, each in cast(Mapping[object, object], value).items()}
    if isinstance(value, Sequence | set | frozenset):
        return [as_plain(each) for each in cast(Sequence[object], value)]
    return str(value) if isinstance(value, Path) else repr(value)


def model_plain(model: Model, prepend_bos: bool) -> dict[str, object]:
    """The model, and how it was asked."""
    return {**asdict(host.provenance(model, prepend_bos=prepend_bos)), "n_layers": host.n_layers(model)}


def metric_plain(metric: Metric, seed: int) -> dict[str, object]:
    """A metric in its own unit, with its 95 % interval."""
    low, high = metric.interval(seed=seed)
    return {
        "mean": metric.mean,
        "standard_error": metric.standard_error,
        "low": low,
        "high": high,
        "n": metric.n,
    }


def metrics_plain(metrics: Mapping[str, Metric], seed: int) -> dict[str, object]:
    """Metrics by key."""
    return {key: metric_plain(metric, seed) for key, metric in metrics.items()}


def metrics_table(metrics: Mapping[str, Metric], seed: int) -> Table:
    """One evaluation: a row for each metric."""
    table = plain_table("", "metric", "mean", "std. error", "95 % interval", "n")
    for key, metric in metrics.items():
        low, high = metric.interval(seed=seed)
        shown = [number(key, value) for value in (metric.mean, metric.standard_error)]
        interval = "–" if math.isnan(low) else f"{number(key, low)} to {number(key, high)}"
        table.add_row(key, MEASURES[key].name, *shown, interval, str(metric.n))
    return table


def methods_table(methods: Mapping[str, Mapping[str, Metric]]) -> Table:
    """Several evaluations: a row for each metric, a column for each method, and of how many records they are."""
    table = plain_table("", *methods, "n")
    for key in metric_keys(methods):
        # Not to be broken into two lines.
        cells = [show_metric(key, found.get(key)).replace(" ", "\u00a0") for found in methods.values()]
        ns = dict.fromkeys(str(found[key].n) for found in methods.values() if key in found)
        table.add_row(key, *cells, ", ".join(ns))
    return table


def metric_keys(methods: Mapping[str, Mapping[str, Metric]]) -> list[str]:
    """The metrics that some method has, in the order of tables."""
    return [key for key in MEASURES if any(key in found for found in methods.values())]


def legend(keys: Sequence[str]) -> str:
    """What the metrics' keys mean, and in what unit tables show them."""
    said = "; ".join(f"{key} {MEASURES[key].name}" for key in keys)
    return f"{said}. Rates and magnitudes are in per cent."


def plain_table(*columns: str) -> Table:
    """Headings, and no lines around anything."""
    table = Table(box=None, header_style="bold dim", pad_edge=False)
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    return table


def decimals(value: float, digits: int) -> str:
    """A number without the sign that rounding may leave before a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def number(key: str, value: float) -> str:
    """A metric's value as tables show it."""
    measure = MEASURES[key]
    return "–" if math.isnan(value) else decimals(measure.scale * value, 1 if measure.scale > 1 else 3)


def as_page(options: argparse.Namespace) -> list[Text]:
    """Where the page is, if one was asked for."""
    return [] if options.html is None else [Text(f"\nAs a page: {options.html}")]
