"""``reproduce``: a paper's table, ours beside the published numbers.

The JSON has ``model``, ``title``, ``rows`` (``name``, ``n_edits`` at once, ``source`` of the published numbers, and
``cells``: by metric ``ours``, ``standard_error``, ``low``, ``high``, ``n``, ``published``, ``tolerance``, ``within``,
and ``layer`` and ``published_layer`` of effects), ``notes`` and ``failures`` (``method``, ``request``, ``why``). Cells
are in the units of the papers' tables: per cent, and for GE bits times 100.
"""

import argparse
import math
from typing import Any

from rich.table import Table
from rich.text import Text

from tl_edit import host
from tl_edit.command import inputs, options
from tl_edit.command.models import is_bundled
from tl_edit.command.parsing import Several, numbers, path
from tl_edit.command.report import Report, decimals, model_plain, plain_table
from tl_edit.host import Model
from tl_edit.reproduce import (
    PAPER_MODELS,
    Cell,
    Reproduction,
    memit_scaling,
    published_name,
    rome_counterfact,
    trace_averages,
)


def add(commands: Any) -> None:
    """The command's options, and a table's own."""
    parser = commands.add_parser(
        "reproduce",
        help="a paper's table, ours beside the published numbers",
        description="Measure a paper's table again. Without --model the bundled model is measured, for which nothing "
        "is published.",
        allow_abbrev=False,
    )
    options.describe(
        parser,
        "python -m tl_edit reproduce rome-counterfact --limit 2 --controls",
        elsewhere="python -m tl_edit reproduce rome-counterfact --model gpt2-medium --limit 7500 --texts wikipedia "
        "--moments moments --folder rome",
    )
    tables = parser.add_subparsers(dest="table", required=True, metavar="TABLE")
    _rome(tables)
    _trace(tables)
    _memit(tables)


def _rome(tables: Any) -> None:
    parser = tables.add_parser(
        "rome-counterfact",
        help="ROME, single edits on CounterFact",
        description="ROME's table for CounterFact: each record edited alone (zsRE's with --records zsre).",
        parents=[
            options.model_options(),
            options.record_options(default="counterfact; for the bundled model its own facts"),
            options.edit_options(),
            _judged(),
            options.output_options(),
        ],
        allow_abbrev=False,
    )
    parser.add_argument("--controls", action="store_true", help="also C = I and random directions")
    options.describe(
        parser,
        "python -m tl_edit reproduce rome-counterfact --limit 2 --controls",
        elsewhere="accelerate launch -m tl_edit reproduce rome-counterfact --model gpt2-xl --limit 7500 "
        "--texts wikipedia --moments moments --folder rome",
    )
    parser.set_defaults(run=_run_rome)


def _trace(tables: Any) -> None:
    parser = tables.add_parser(
        "trace-averages",
        help="causal tracing over KnownFacts",
        description="The averages of causal tracing, for which the paper prints numbers for GPT-2 XL.",
        parents=[options.model_options(seed=1), options.output_options()],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--facts",
        type=path,
        metavar="FILE",
        help="a file of known facts (default: known_1000; for the bundled model its own)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="trace the first N (default: 1000, as published)")
    parser.add_argument("--samples", type=int, default=10, metavar="N", help="noise draws (default: 10, as published)")
    parser.add_argument(
        "--folder", type=path, help="keep each fact's trace as it is done, and go on where a run was stopped"
    )
    options.describe(
        parser,
        "python -m tl_edit reproduce trace-averages --limit 2 --samples 3",
        elsewhere="python -m tl_edit reproduce trace-averages --model gpt2-xl --folder traces",
    )
    parser.set_defaults(run=_run_trace)


def _memit(tables: Any) -> None:
    parser = tables.add_parser(
        "memit-scaling",
        help="MEMIT, many edits at once",
        description="MEMIT with growing numbers of edits; the paper prints numbers for 10,000.",
        parents=[
            options.model_options(),
            options.record_options(default="multi_counterfact; for the bundled model its own facts"),
            options.edit_options(),
            _judged(),
            options.output_options(),
        ],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--n",
        type=numbers,
        action=Several,
        nargs="+",
        metavar="N",
        help="edits at once (default: 1 10 100 1000 10000, as far as records go)",
    )
    parser.add_argument(
        "--averaged", type=int, default=100, metavar="N", help="smaller numbers are means over N records (default: 100)"
    )
    options.describe(
        parser,
        "python -m tl_edit reproduce memit-scaling --n 1 2 --limit 2",
        elsewhere="python -m tl_edit reproduce memit-scaling --model EleutherAI/gpt-j-6B --moments gpt-j-npz "
        "--folder memit",
    )
    parser.set_defaults(run=_run_memit)


def _judged() -> argparse.ArgumentParser:
    """What goes with edits: the folder, and how they are judged."""
    parser = options.parent()
    group = parser.add_argument_group("what is measured")
    group.add_argument("--folder", type=path, help="keep results as they come, and go on where a run was stopped")
    options.generate_options(group)
    group.add_argument("--batch-size", type=int, default=128, metavar="N", help="rows per forward pass (default: 128)")
    return parser


def _run_rome(given: argparse.Namespace) -> Report:
    if given.layers is not None:
        raise ValueError(
            "rome-counterfact: --layers is for MEMIT and its relatives; expected --layer; write --layer N."
        )
    records = inputs.records_of(given, default="counterfact")
    model = _model(given)
    found = rome_counterfact(
        model,
        records,
        inputs.measure_of(given, model),
        controls=given.controls,
        layer=given.layer,
        prepend_bos=given.prepend_bos,
        generate=inputs.generation_of(given, model),
        folder=given.folder,
        seed=given.seed,
        batch_size=given.batch_size,
        progress=inputs.progress_of(given),
    )
    return _report(given, model, found)


def _run_trace(given: argparse.Namespace) -> Report:
    if given.facts is None:
        given.facts = inputs.BUNDLED if is_bundled(given.model) else "known_1000"
    facts = inputs.facts_of(given, None)
    model = _model(given)
    found = trace_averages(
        model,
        facts,
        n_facts=1000 if given.limit is None else given.limit,
        n_samples=given.samples,
        prepend_bos=given.prepend_bos,
        folder=given.folder,
        seed=given.seed,
        progress=inputs.progress_of(given),
    )
    return _report(given, model, found)


def _run_memit(given: argparse.Namespace) -> Report:
    records = inputs.records_of(given, default="multi_counterfact")
    model = _model(given)
    found = memit_scaling(
        model,
        records,
        inputs.measure_of(given, model),
        sizes=given.n,
        averaged=given.averaged,
        layers=given.layers if given.layers or given.layer is None else [given.layer],
        prepend_bos=given.prepend_bos,
        generate=inputs.generation_of(given, model),
        folder=given.folder,
        seed=given.seed,
        batch_size=given.batch_size,
        progress=inputs.progress_of(given),
    )
    return _report(given, model, found)


def _model(given: argparse.Namespace) -> Any:
    """The model; the papers' are asked without a BOS, as they were, unless the user says otherwise."""
    model = inputs.model_of(given)
    if given.prepend_bos is None and published_name(host.model_name(model)) in PAPER_MODELS:
        given.prepend_bos = False
    given.prepend_bos = inputs.bos_of(given, model)
    return model


def _report(given: argparse.Namespace, model: Model, found: Reproduction) -> Report:
    source = given.facts if given.table == "trace-averages" else given.records
    failures = [dict(zip(("method", "request", "why"), failure, strict=True)) for failure in found.failures]
    plain = {
        "model": model_plain(model, inputs.bos_of(given, model)),
        "data": source,
        "title": found.title,
        "rows": [
            {
                "name": row.name,
                "n_edits": row.n_edits,
                "source": row.source,
                "cells": {key: _cell_plain(cell) for key, cell in row.cells.items()},
            }
            for row in found.rows
        ],
        "notes": found.notes,
        "failures": failures,
    }
    lost = f"{len(failures)} failed and are left out, e.g. {', '.join(failures[0].values())}" if failures else ""
    shown = [
        Text(found.title, style="bold"),
        Text(f"{inputs.named_model(model)}; data: {source}\n", style="dim"),
        _table(found),
        Text(""),
        *(Text(each) for each in _legend(found)),
        *(Text(note) for note in found.notes),
        *([Text(lost, style="yellow")] if lost else []),
    ]
    return Report(plain=plain, shown=shown)


def _cell_plain(cell: Cell) -> dict[str, object]:
    low, high = cell.interval
    return {
        "ours": cell.ours,
        "standard_error": cell.standard_error,
        "low": low,
        "high": high,
        "n": cell.n,
        "published": cell.published,
        "tolerance": cell.tolerance,
        "within": cell.within,
        "layer": cell.layer,
        "published_layer": cell.published_layer,
    }


def _table(found: Reproduction) -> Table:
    """A line for each number, so that it fits a narrow terminal."""
    table = plain_table("", "", "ours", "95 % interval", "n", "published", "")
    for row in found.rows:
        name = row.name if row.n_edits is None else f"{row.name}, {row.n_edits:,} at once"
        for i, (key, cell) in enumerate(row.cells.items()):
            low, high = cell.interval
            interval = "–" if math.isnan(low) else f"{decimals(low, 1)} to {decimals(high, 1)}"
            published = "–" if cell.published is None else f"{cell.published:.1f}"
            verdict = {None: "", True: "within", False: "outside"}[cell.within]
            table.add_row(
                "" if i else name,
                key,
                f"{decimals(cell.ours, 1)}{_layer(cell.layer)}",
                interval,
                str(cell.n),
                f"{published}{_layer(cell.published_layer)}",
                Text(verdict, style="red" if verdict == "outside" else "green"),
            )
    return table


def _legend(found: Reproduction) -> list[str]:
    """What the columns are."""
    sources = dict.fromkeys(row.source for row in found.rows if row.source)
    if not sources:
        return ["Intervals are of our sample."]
    return [
        f"Published: {'; '.join(sources)}.",
        "Intervals are of our sample; within: published and ours are as near as two such samples are 95 times in 100.",
    ]


def _layer(layer: int | None) -> str:
    return "" if layer is None else f" (layer {layer})"
