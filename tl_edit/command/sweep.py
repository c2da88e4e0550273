"""``sweep``: several methods on the same records, edited, judged and taken back one after the other.

The JSON has ``model``, ``records`` (``source``, ``n``), ``batch``, ``folder``, ``methods`` (by name: ``settings``,
``metrics`` over the records that no method failed on, ``failed``, how many records it failed on, and
``seconds_per_record``), ``tests`` (by metric: ``against``, and by name ``difference``, ``standard_error``, ``low``,
``high``, ``p_value`` adjusted by Holm, ``n``) and ``failures`` (``method``, ``record``, ``why``).
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from tl_edit import Comparison, Sweep
from tl_edit import sweep as sweep_records
from tl_edit.command import inputs, options
from tl_edit.command.parsing import Several, names, path
from tl_edit.command.report import (
    ERRORS,
    HALF_WIDTHS,
    Report,
    legend,
    methods_table,
    metric_keys,
    metrics_plain,
    model_plain,
    plain_table,
)
from tl_edit.counted import counted
from tl_edit.evaluate import PairedTest
from tl_edit.sweep.named import NAMES, NamedMethods, check_names, named_methods

TESTED = ("S", "ES", "PS", "NS", "NS+", "TS", "ET", "PT", "UT")
"""Metrics that methods are compared by."""


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "sweep",
        help="several methods on the same records",
        description="Edit each record with each method, judge it, and take the edit off again. Under accelerate launch "
        "several processes share the records (with --folder).",
        parents=[
            options.model_options(),
            options.record_options(),
            options.edit_options(),
            options.judge_options(),
            options.output_options(),
        ],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--methods",
        type=names,
        action=Several,
        nargs="+",
        default=["none", "rome"],
        metavar="NAME",
        help=f"some of {', '.join(NAMES)} (default: none rome)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="records edited together (default: 1)")
    parser.add_argument("--folder", type=path, help="keep results as they come, and go on where a run was stopped")
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--markdown", action="store_true", help="print the papers' table in Markdown")
    table.add_argument("--latex", action="store_true", help="print the papers' table in LaTeX")
    options.describe(
        parser,
        "python -m tl_edit sweep --methods none rome random --limit 2",
        "python -m tl_edit sweep --methods none memit --batch 2 --limit 2 --folder sweep --markdown",
        elsewhere="accelerate launch -m tl_edit sweep --model gpt2-xl --no-prepend-bos --records counterfact "
        "--methods none rome rome-identity random --texts wikipedia --moments moments --folder sweep",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> Report:
    """Sweep.

    Raises:
        ValueError: If the options cannot be used.
    """
    check_names(given.methods, "sweep", batch=given.batch)
    records = inputs.records_of(given)
    texts = inputs.texts_of(given.perplexity, "--perplexity")
    model = inputs.model_of(given)
    generate = inputs.generation_of(given, model)
    # Said or not, a method is the same, also to the folder.
    given.prepend_bos = inputs.bos_of(given, model)
    named = named_methods(
        model,
        given.methods,
        inputs.measure_of(given, model),
        layer=given.layer,
        layers=given.layers,
        prepend_bos=given.prepend_bos,
        seed=given.seed,
        batch=given.batch,
        operation="sweep",
    )
    found = sweep_records(
        model,
        records,
        named.methods,
        batch=given.batch,
        folder=given.folder,
        distracted=given.distracted,
        kl=given.kl,
        texts=texts,
        generate=generate,
        prepend_bos=given.prepend_bos,
        batch_size=given.batch_size,
        progress=inputs.progress_of(given),
    )
    compared = found.compare()
    against = "none" if "none" in given.methods else given.methods[0]
    tests = _tests(compared, against, given.seed)
    plain = {
        "model": model_plain(model, found.provenance.prepend_bos),
        "records": {"source": given.records, "n": len(records)},
        "batch": given.batch,
        "folder": given.folder,
        "methods": methods_plain(found, compared, named, given.seed),
        "tests": {key: {"against": against} | _tests_plain(several) for key, several in tests.items()},
        "failures": failures_plain(found),
    }
    if given.markdown or given.latex:
        return Report(plain=plain, shown=_papers(found, compared, latex=given.latex))
    together = f", {given.batch} at once" if given.batch > 1 else ""
    shown = [
        Text(f"{counted(len(records), 'record')} ({given.records}){together}", style="bold"),
        Text(inputs.named_model(model) + "\n", style="dim"),
        methods_table(compared.metrics()),
        Text(f"\n{legend(metric_keys(compared.metrics()))} {ERRORS}", style="dim"),
        *_failures(found),
        *([Text(f"\nDifference from {against}, paired by record:"), _tests_table(tests)] if tests else []),
    ]
    return Report(plain=plain, shown=shown)


def _papers(found: Sweep, compared: Comparison, *, latex: bool) -> list[str]:
    """The papers' table, and what it shows: below it, or as comments."""
    metrics = compared.metrics()
    table = found.to_latex() if latex else found.to_markdown()
    head = next(line for line in table.splitlines() if line.startswith("Editor" if latex else "| method"))
    keys = [key for key in metric_keys(metrics) if any(word == key for word in head.split())]
    sizes = ", ".join(dict.fromkeys(counted(metric[key].n, "record") for metric in metrics.values() for key in keys))
    lines = [f"{sizes}. {HALF_WIDTHS}", legend(keys)]
    return [table, *(f"% {line.replace('95 %', '95%')}" for line in lines)] if latex else [table, "", *lines]


def methods_plain(found: Sweep, compared: Comparison, named: NamedMethods, seed: int) -> dict[str, object]:
    """What is known of each method."""
    failed = {name: sum(method == name for method, _, _ in found.failures) for name in found.outcomes}
    return {
        name: {
            "settings": named.settings.get(name),
            "metrics": metrics_plain(metrics, seed),
            "failed": failed[name],
            "seconds_per_record": sum(outcome.seconds for outcome in found.outcomes[name]) / len(found.records),
        }
        for name, metrics in compared.metrics().items()
    }


def failures_plain(found: Sweep) -> list[dict[str, str]]:
    """Every record that a method failed on."""
    return [{"method": name, "record": str(record.request), "why": why} for name, record, why in found.failures]


def _failures(found: Sweep) -> list[Text]:
    """How many records failed, and the first reason."""
    if not found.failures:
        return []
    name, record, why = found.failures[0]
    lost = len({id(record) for _, record, _ in found.failures})
    said = f"{counted(lost, 'record')} failed and {'is' if lost == 1 else 'are'} left out"
    return [Text(f"\n{said}, e.g. {name} on {record.request}: {why}", style="yellow")]


def _tests(compared: Comparison, against: str, seed: int) -> dict[str, dict[str, PairedTest]]:
    """Paired tests by metric and method."""
    metrics = compared.metrics()
    if len(metrics) < 2 or min(len(each.scores) for each in compared.evaluations.values()) < 2:
        return {}
    there = [key for key in TESTED if all(key in found for found in metrics.values())]
    return {key: compared.tests(key, against, seed=seed) for key in there}


def _tests_plain(several: Mapping[str, PairedTest]) -> dict[str, object]:
    return {
        name: {
            "difference": test.difference,
            "standard_error": test.standard_error,
            "low": test.interval[0],
            "high": test.interval[1],
            "p_value": test.p_value,
            "n": test.n,
        }
        for name, test in several.items()
    }


def _tests_table(tests: Mapping[str, Mapping[str, PairedTest]]) -> Table:
    table = plain_table("", "method", "difference", "95 % interval", "p (Holm)", "n")
    for key, several in tests.items():
        for name, test in several.items():
            low, high = (100 * edge for edge in test.interval)
            cells: Sequence[str] = (
                f"{100 * test.difference:+.1f}",
                f"{low:+.1f} to {high:+.1f}",
                f"{test.p_value:.2g}",
            )
            table.add_row(key, name, *cells, str(test.n))
    return table
