"""``edit``: write one fact, or many at once, and see what the model says before and after.

The JSON has ``model``, ``method``, ``settings``, ``n`` (requests), ``took`` (share of the requests whose new object is
likelier than the true one, or the likeliest where no true one is known), ``before`` and ``after`` (``answers`` of a
single request, ``token`` and ``probability``; ``metrics``), ``norms`` and ``ranks`` by layer, ``diagnostics``,
``seconds``, ``out`` and ``html``.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

from rich.table import Table
from rich.text import Text

from tl_edit import Edit, EditRecord, Evaluation, evaluate, show
from tl_edit.command import inputs, options
from tl_edit.command.bundled import bundled_record, own_record
from tl_edit.command.models import is_bundled
from tl_edit.command.parsing import path
from tl_edit.command.report import (
    ERRORS,
    Report,
    as_page,
    legend,
    methods_table,
    metric_keys,
    metrics_plain,
    model_plain,
    plain_table,
)
from tl_edit.counted import counted
from tl_edit.host import Model
from tl_edit.story import as_object, save_before_and_after, top_answers
from tl_edit.sweep.named import EDITORS, SINGLE, named_methods

LEAST = 0.5
"""Share of the requests that must take for exit code 0."""


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "edit",
        help="write a fact, or many",
        description="Write one fact, or those of a file at once, and see what the model says before and after. The "
        "edit goes to a file; no model is written.",
        parents=[
            options.model_options(),
            options.edit_options(),
            options.record_options(default="none; a single fact is edited"),
            options.output_options(),
        ],
        allow_abbrev=False,
    )
    one = parser.add_argument_group("one fact")
    one.add_argument("--subject", help="what the fact is about")
    one.add_argument("--relation", help="template with one {} for the subject, or the name of a bundled relation")
    one.add_argument("--target-new", help="the object to write (default: another one of a bundled fact's relation)")
    one.add_argument("--target-true", help="the object that is said now (default: what the model says)")
    parser.add_argument("--method", default="rome", metavar="NAME", help=f"one of {', '.join(EDITORS)} (default: rome)")
    parser.add_argument(
        "--out", type=path, metavar="FILE", help="keep the edit (Edit.load reads it, and evaluate --edit)"
    )
    parser.add_argument("--html", type=path, metavar="FILE", help="also write what changes as a page, with pictures")
    options.describe(
        parser,
        "python -m tl_edit edit --subject 'Eiffel Tower' --target-new Rome --out rome.safetensors --html rome.html",
        "python -m tl_edit edit --records bundled --limit 3 --method memit",
        elsewhere="python -m tl_edit edit --model gpt2-xl --no-prepend-bos --subject 'The Space Needle' --relation "
        "'{} is in the city of' --target-new Rome --texts wiki.txt --moments moments",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> Report:
    """Edit.

    Raises:
        ValueError: If the options cannot be used.
    """
    if given.method not in EDITORS:
        raise ValueError(f"edit: no method {given.method!r}; expected one of {', '.join(EDITORS)}; check the name.")
    records = _records(given)
    n = len(records)
    if n > 1 and given.method in SINGLE:
        raise ValueError(
            f"edit: --method {given.method} edits one record, and {given.records} gives {n}; expected a "
            "method for several; give --method memit to edit them together, --limit 1, or use the command sweep, which "
            "edits them one by one."
        )
    model = inputs.model_of(given)
    if given.records is None:
        records = (_with_true(model, records[0], given.prepend_bos),)
    named = named_methods(
        model,
        [given.method],
        inputs.measure_of(given, model),
        layer=given.layer,
        layers=given.layers,
        prepend_bos=given.prepend_bos,
        seed=given.seed,
        batch=len(records),
        progress=inputs.progress_of(given),
        operation="edit",
    )
    before = _Said.of(model, records, given.prepend_bos)
    start = time.perf_counter()
    edit = cast(Edit, named.methods[given.method](model, [record.request for record in records]))
    seconds = time.perf_counter() - start
    after = _Said.of(model, records, given.prepend_bos, edit)
    if given.out is not None:
        edit.save(given.out)
    if given.html is not None:
        save_before_and_after(given.html, model, edit, before.found, after.found)
    took = _took(after.found)
    plain = {
        "model": model_plain(model, edit.provenance.prepend_bos),
        "method": given.method,
        "settings": named.settings[given.method],
        "n": len(records),
        "took": took,
        "before": before.plain(given.seed),
        "after": after.plain(given.seed),
        "norms": edit.norms,
        "ranks": edit.ranks,
        "diagnostics": dict(edit.diagnostics),
        "seconds": seconds,
        "out": given.out,
        "html": given.html,
    }
    metrics = {"before": before.found.metrics(), "after": after.found.metrics()}
    shown = [
        Text(str(records[0].request) if len(records) == 1 else counted(len(records), "edit"), style="bold"),
        Text(inputs.named_model(model) + "\n", style="dim"),
        *([_answers(before, after), Text("")] if before.answers else []),
        methods_table(metrics),
        Text(legend(metric_keys(metrics)) + (f" {ERRORS}" if len(records) > 1 else ""), style="dim"),
        Text(""),
        _numbers(edit, seconds),
        *([Text(f"\nKept in {given.out}.")] if given.out is not None else []),
        *as_page(given),
        *([Text(f"\n{_not_taken(took, len(records))}", style="bold red")] if took < LEAST else []),
    ]
    return Report(plain=plain, shown=shown, code=0 if took >= LEAST else 1)


def _records(given: argparse.Namespace) -> tuple[EditRecord, ...]:
    """One record of the user's words, or those of a file."""
    if given.subject is None and given.records is None:
        raise ValueError(
            "edit: nothing says what to edit; expected --subject (with --relation and --target-new), or --records; try "
            "python -m tl_edit edit --subject 'Eiffel Tower' --target-new Rome."
        )
    one = {
        "--subject": given.subject,
        "--relation": given.relation,
        "--target-new": given.target_new,
        "--target-true": given.target_true,
    }
    if given.records is not None:
        misplaced = [name for name, value in one.items() if value is not None]
        if misplaced:
            raise ValueError(f"edit: {misplaced[0]} does not go with --records; expected one of them; leave one out.")
        return inputs.records_of(given)
    if given.limit is not None or given.snippets is not None:
        name = "--limit" if given.limit is not None else "--snippets"
        raise ValueError(f"edit: {name} goes with --records, and a single fact is asked for; leave it out.")
    if is_bundled(given.model):
        return (bundled_record(given),)
    return (own_record(given, given.relation),)


def _with_true(model: Model, record: EditRecord, prepend_bos: bool | None) -> EditRecord:
    """With what the model says now as the true object, where that is an object and none was given."""
    request = record.request
    if request.target_true is not None:
        return record
    token = top_answers(model, request.prompt, 1, prepend_bos=prepend_bos)[0][0]
    return replace(record, request=replace(request, target_true=as_object(model, request, token)))


class _Said:
    """What the model says of the records, as it is or with an edit."""

    def __init__(self, model: Model, answers: Sequence[tuple[int, float]], found: Evaluation) -> None:
        self.found = found
        self.answers = [(model.tokenizer.decode([token]), probability) for token, probability in answers]

    @classmethod
    def of(
        cls, model: Model, records: Sequence[EditRecord], prepend_bos: bool | None, edit: Edit | None = None
    ) -> "_Said":
        with nullcontext() if edit is None else edit.on(model):
            found = evaluate(model, records, prepend_bos=prepend_bos)
            one = records[0].request.prompt if len(records) == 1 else None
            answers = [] if one is None else top_answers(model, one, prepend_bos=prepend_bos)
        return cls(model, answers, found)

    def plain(self, seed: int) -> dict[str, object]:
        """For JSON."""
        answers = [{"token": token, "probability": probability} for token, probability in self.answers]
        return {"answers": answers, "metrics": metrics_plain(self.found.metrics(), seed)}


def _not_taken(took: float, n: int) -> str:
    """Why the exit code is 1."""
    rule = "expected the new object to be likelier than the true one (or, where that is not known, to be said)"
    if n == 1:
        return f"The edit did not take: {rule}. Exit code 1."
    return f"The edit took for {round(took * n)} of {n} requests: {rule} for half of them. Exit code 1."


def _took(found: Evaluation) -> float:
    """Share of the requests that the model takes the new object for."""
    taken = [
        score.says_new if score.prefers_new is None else score.prefers_new
        for record in found.scores
        for score in record.efficacy
    ]
    return sum(taken) / len(taken)


def _answers(before: _Said, after: _Said) -> Table:
    """The likeliest answers, side by side."""
    table = plain_table("said before", "", "says now", "")
    for (old, p_old), (new, p_new) in zip(before.answers, after.answers, strict=True):
        shown = [Text(show.visible(token).strip()) for token in (old, new)]
        table.add_row(shown[0], f"{p_old:.3f}", shown[1], f"{p_new:.3f}")
    return table


def _numbers(edit: Edit, seconds: float) -> Table:
    """The edit's diagnostics that are single numbers, or numbers by layer or request."""
    table = plain_table("edit", "")
    layers = ", ".join(map(str, edit.deltas))
    table.add_row("change", f"{edit.method}, layer{'s' * (len(edit.deltas) > 1)} {layers}; {seconds:.1f} s")
    table.add_row("norm by layer", _several(list(edit.norms.values())))
    for name, value in edit.diagnostics.items():
        if isinstance(value, bool) or name == "losses":
            continue
        if isinstance(value, int | float):
            table.add_row(name, f"{value:.3g}")
        elif isinstance(value, Mapping):
            table.add_row(f"{name} by layer", _several(list(cast(Mapping[int, Any], value).values())))
    return table


def _several(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:.3g}" if isinstance(value, int | float) else str(value) for value in values)
