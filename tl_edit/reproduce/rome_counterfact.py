"""Single edits with ROME, the ROME paper's table for CounterFact (and, with such records, for zsRE)."""

from collections.abc import Sequence
from pathlib import Path

from tl_edit import host, tokens
from tl_edit.data import EditRecord
from tl_edit.evaluate import Generation
from tl_edit.host import Model
from tl_edit.reproduce.compared import Reproduction, Row, bos_note, cells_of, layout_of, missing_note
from tl_edit.reproduce.published import published_row
from tl_edit.sweep import sweep
from tl_edit.sweep.named import Measure, named_methods

SHOWN = {"none": "no edit", "rome": "ROME", "rome-identity": "ROME, C = I", "random": "random direction"}


def rome_counterfact(
    model: Model,
    records: Sequence[EditRecord],
    measure: Measure,
    *,
    controls: bool = False,
    layer: int | None = None,
    prepend_bos: bool | None = None,
    generate: Generation | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 128,
    progress: bool = True,
) -> Reproduction:
    """Edit each record alone, judge it and take it back, as the paper's table has it.

    Args:
        model: A HookedTransformer or TransformerBridge; the papers' numbers are of unprocessed weights.
        records: The paper's are the first 7,500 of CounterFact, and 2,000 for GPT-J. Only what `read_records` gave, in
            the published layout, is put beside the published numbers.
        measure: Gives the second moments of the layers it is asked for.
        controls: Whether to run ROME with ``C = I`` and random directions of its norm, too.
        layer: The layer; None for the published one.
        prepend_bos: Whether prompts begin with a BOS; the published numbers are without.
        generate: How to generate texts, for GE and RS; None for none.
        folder: Where results are kept as they come, so that a run that was stopped goes on.
        seed: Of prefixes, random directions and bootstrap intervals.
        batch_size: Rows per forward pass.
        progress: Whether to show a bar.

    Raises:
        ValueError: What `sweep` raises.
    """
    bos = tokens.resolve_bos(model, prepend_bos)
    names = ["none", "rome", *(["rome-identity", "random"] if controls else [])]
    named = named_methods(model, names, measure, layer=layer, prepend_bos=bos, seed=seed, operation="rome-counterfact")
    found = sweep(
        model,
        records,
        named.methods,
        folder=folder,
        generate=generate,
        prepend_bos=bos,
        batch_size=batch_size,
        progress=progress,
    )
    name = host.model_name(model)
    rows: list[Row] = []
    for method, metrics in found.compare().metrics().items():
        published = published_row(name, method, data=layout_of(records), n_edits=1)
        cells = cells_of(metrics, published, seed=seed)
        rows.append(Row(name=SHOWN[method], cells=cells, source=None if published is None else published.source))
    notes = [
        f"{len(records)} records, each edited alone; prompts {bos_note(bos)}.",
        f"ROME: {named.settings['rome']}.",
        missing_note(name, rows),
    ]
    return Reproduction(
        title=f"ROME, single edits, {name}",
        rows=tuple(rows),
        notes=tuple(note for note in notes if note),
        failures=tuple((SHOWN[method], str(record.request), why) for method, record, why in found.failures),
    )
