"""``evaluate``: the metrics of records on a model, with an edit or without.

The JSON has ``model``, ``records`` (``source``, ``n``), ``edit`` (the file), ``generate`` (tokens of a text, or null),
``metrics`` (by key, ``mean``, ``standard_error``, ``low`` and ``high`` of the 95 % interval, ``n``), and ``out``.
"""

import argparse
from typing import Any

from rich.text import Text

from tl_edit import Edit
from tl_edit import evaluate as evaluate_records
from tl_edit.command import inputs, options
from tl_edit.command.parsing import path
from tl_edit.command.report import Report, metrics_plain, metrics_table, model_plain
from tl_edit.counted import counted


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "evaluate",
        help="what a model says of records, edited or not",
        description="Metrics of records on a model, with an edit from a file or without.",
        parents=[
            options.model_options(),
            options.record_options(),
            options.judge_options(),
            options.output_options(),
        ],
        allow_abbrev=False,
    )
    parser.add_argument("--edit", type=path, metavar="FILE", help="an edit to switch on, a file of Edit.save")
    parser.add_argument("--out", type=path, metavar="FILE", help="keep all scores (Evaluation.load reads them)")
    options.describe(
        parser,
        "python -m tl_edit evaluate --limit 5 --distracted",
        elsewhere="python -m tl_edit evaluate --model gpt2-xl --no-prepend-bos --records counterfact.json --limit 1000 "
        "--edit edit.safetensors --json",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> Report:
    """Evaluate.

    Raises:
        ValueError: If the options cannot be used.
    """
    records = inputs.records_of(given)
    texts = inputs.texts_of(given.perplexity, "--perplexity")
    edit = None if given.edit is None else Edit.load(given.edit)
    if edit is None and (given.kl or texts is not None):
        raise ValueError(
            f"evaluate: {'--kl' if given.kl else '--perplexity'} compares the model with an edit and without; expected "
            "--edit; pass one, or use sweep, which edits."
        )
    model = inputs.model_of(given)
    generate = inputs.generation_of(given, model)
    found = evaluate_records(
        model,
        records,
        edit=edit,
        distracted=given.distracted,
        kl=given.kl,
        texts=texts,
        generate=generate,
        prepend_bos=given.prepend_bos,
        batch_size=given.batch_size,
    )
    if given.out is not None:
        found.save(given.out)
    metrics = found.metrics()
    plain = {
        "model": model_plain(model, inputs.bos_of(given, model)),
        "records": {"source": given.records, "n": len(records)},
        "edit": given.edit,
        "generate": None if generate is None else generate.n_tokens,
        "metrics": metrics_plain(metrics, given.seed),
        "out": given.out,
    }
    heading = f"{counted(len(records), 'record')} ({given.records}), {'no edit' if edit is None else repr(edit)}"
    shown = [
        Text(heading, style="bold"),
        Text(inputs.named_model(model) + "\n", style="dim"),
        metrics_table(metrics, given.seed),
        *([Text(f"\nKept in {given.out}.")] if given.out is not None else []),
    ]
    return Report(plain=plain, shown=shown)
