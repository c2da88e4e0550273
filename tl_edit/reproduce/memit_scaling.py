"""Many edits at once with MEMIT, the MEMIT paper's table for 10,000 edits and what leads there."""

from collections.abc import Sequence
from pathlib import Path

from tl_edit import host, tokens
from tl_edit.data import EditRecord
from tl_edit.evaluate import Generation
from tl_edit.host import Model
from tl_edit.reproduce.compared import Reproduction, Row, bos_note, cells_of, layout_of, missing_note
from tl_edit.reproduce.published import published_row
from tl_edit.sweep import Sweep, no_edit, sweep
from tl_edit.sweep.named import Measure, named_methods

OPERATION = "memit-scaling"
SIZES = (1, 10, 100, 1000, 10_000)
"""Numbers of edits at once; the last is the published one."""


def memit_scaling(
    model: Model,
    records: Sequence[EditRecord],
    measure: Measure,
    *,
    sizes: Sequence[int] | None = None,
    averaged: int = 100,
    layers: Sequence[int] | None = None,
    prepend_bos: bool | None = None,
    generate: Generation | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 128,
    progress: bool = True,
) -> Reproduction:
    """Edit the first ``n`` records at once, for each ``n``, and judge all that were edited.

    Args:
        model: A HookedTransformer or TransformerBridge; the papers' numbers are of unprocessed weights.
        records: The paper's are those of multi_counterfact, in which no two contradict each other. Only what
            `read_records` gave, in the published layout, is put beside the published numbers.
        measure: Gives the second moments of the layers it is asked for.
        sizes: Numbers of edits at once; None for 1, 10, 100, 1000 and 10,000, as far as the records go.
        averaged: Smaller sizes are means over several batches, of so many records in all or less.
        layers: The layers; None for the published ones.
        prepend_bos: Whether prompts begin with a BOS; the published numbers are without.
        generate: How to generate texts, for GE and RS; None for none.
        folder: Where results are kept as they come, a folder in it for each size.
        seed: Of prefixes and bootstrap intervals.
        batch_size: Rows per forward pass.
        progress: Whether to show bars.

    Raises:
        ValueError: For sizes of less than 1 or more than there are records; what `sweep` raises, and if all edits of a
            size fail.
    """
    chosen = sorted({n for n in SIZES if n <= len(records)} if sizes is None else set(sizes))
    if not chosen or chosen[0] < 1 or chosen[-1] > len(records) or averaged < 1:
        raise ValueError(
            f"{OPERATION}: {', '.join(map(str, chosen)) or 'no'} edits at once, means over {averaged} records, and "
            f"{len(records)} records; expected numbers from 1 to {len(records)}, and 1 or more to average; choose "
            "others (--n, --averaged), or read more records."
        )
    bos = tokens.resolve_bos(model, prepend_bos)
    named = named_methods(
        model,
        ["memit"],
        measure,
        layers=layers,
        prepend_bos=bos,
        seed=seed,
        operation=OPERATION,
    )

    def run(taken: Sequence[EditRecord], method: str, batch: int) -> Sweep:
        place = None if folder is None else Path(folder).expanduser() / (method if batch == 1 else f"{method}-{batch}")
        methods = {"none": no_edit} if method == "none" else named.methods
        return sweep(
            model,
            taken,
            methods,
            batch=batch,
            folder=place,
            generate=generate,
            prepend_bos=bos,
            batch_size=batch_size,
            progress=progress,
        )

    def used(n: int) -> Sequence[EditRecord]:
        """Whole batches only, so that each is of ``n``."""
        return records[: n * max(1, min(averaged, len(records)) // n)]

    name, data = host.model_name(model), layout_of(records)
    rows = [_row(name, data, "none", run(max(map(used, chosen), key=len), "none", 1), seed, None)]
    failures: list[tuple[str, str, str]] = []
    for n in chosen:
        found = run(used(n), "memit", n)
        failures += [(f"MEMIT, {n} at once", str(record.request), why) for _, record, why in found.failures]
        rows.append(_row(name, data, "memit", found, seed, n))
    several = [n for n in chosen if len(used(n)) > n]
    notes = [
        f"Prompts {bos_note(bos)}."
        + (f" Means over several batches: {', '.join(map(str, several))} at once." if several else ""),
        f"MEMIT: {named.settings['memit']}.",
        missing_note(name, rows),
    ]
    return Reproduction(
        title=f"MEMIT, many edits at once, {name}",
        rows=tuple(rows),
        notes=tuple(note for note in notes if note),
        failures=tuple(failures),
    )


def _row(model_name: str, data: str, method: str, found: Sweep, seed: int, n: int | None) -> Row:
    metrics = found.evaluation(method).metrics()
    if not metrics:
        _, record, why = found.failures[0]
        raise ValueError(
            f"{OPERATION}: {method} failed on all batches of {n or 1}, e.g. with {record.request}: {why}; expected "
            "some to work; choose fewer edits, or other layers."
        )
    # The unedited model was asked the same records.
    published = published_row(model_name, method, data=data, n_edits=SIZES[-1] if n is None else n)
    return Row(
        name="no edit" if method == "none" else "MEMIT",
        n_edits=n,
        cells=cells_of(metrics, published, seed=seed),
        source=None if published is None else published.source,
    )
