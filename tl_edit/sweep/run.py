"""`sweep`: edit, evaluate and restore, record after record, method after method."""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import cast

from tl_edit import attach, host, tokens
from tl_edit.data import EditRecord, as_records
from tl_edit.digest import digest
from tl_edit.edit.edit import edits_on
from tl_edit.evaluate.generation import Generation
from tl_edit.evaluate.judge import Judge, check_neighborhood
from tl_edit.evaluate.texts import as_texts
from tl_edit.evaluate.writing import check_generate
from tl_edit.host import Model
from tl_edit.identity import tokenizer_digest, weights_digest
from tl_edit.processes import processes
from tl_edit.sweep.alone import alone
from tl_edit.sweep.folder import OPERATION, SweepFolder
from tl_edit.sweep.methods import Method, describe
from tl_edit.sweep.result import Sweep
from tl_edit.sweep.runner import Runner, check_signature


def sweep(
    model: Model,
    records: EditRecord | Sequence[EditRecord],
    methods: Mapping[str, Method],
    *,
    batch: int = 1,
    folder: str | Path | None = None,
    distracted: bool = False,
    kl: bool = False,
    texts: str | Sequence[str] | None = None,
    generate: Generation | None = None,
    prepend_bos: bool | None = None,
    batch_size: int = 128,
    progress: bool = True,
) -> Sweep:
    """Edit each record with each method, evaluate it, and take the edit off again, on the same unedited model.

    Args:
        model: A HookedTransformer or TransformerBridge.
        records: What to edit and to ask.
        methods: By name. A method takes the model and the requests of a batch, leaves the model as it is, and returns
            something with ``.on(model)``: ``partial(rome_edit, moments=moments, apply=False)``, `no_edit`,
            `random_direction(method)`, or a function of your own. It must not remember earlier calls.
        batch: Records that are edited together: 1 for single edits; mass-editing methods take more.
        folder: Where results go as they come, as lines of JSON. A run that was stopped goes on from there, with equal
            results (one of each method is computed again and compared); records and methods may be added. `Sweep.load`
            reads it. Needed with several processes (``accelerate launch``), which share the batches.
        distracted: As for `evaluate`.
        kl: As for `evaluate`.
        texts: As for `evaluate`.
        generate: As for `evaluate`.
        prepend_bos: As for `evaluate`; give it to the methods, too.
        batch_size: As for `evaluate`.
        progress: Whether to show a bar.

    Returns:
        What each method made of each batch. A record on which a method raises a ValueError counts as failed, with the
        reason (the first is warned of, and all are tried again by the next run in the folder); anything else ends the
        sweep, and what is in the folder stays there.

    Raises:
        ValueError: For what `evaluate` refuses; methods that change the model, or return something that cannot be
            switched on; a folder of another run, or in which one works now, or hooks of yours together with one.
    """
    listed = as_records(records, OPERATION)
    chosen = _checked_methods(methods)
    tokens.check_rows(batch_size, OPERATION, default=128)
    if type(batch) is not int or batch < 1:
        raise ValueError(
            f"{OPERATION}: batch is {batch!r}; expected an integer of 1 or more records that are edited together."
        )
    if folder is not None and not isinstance(cast(object, folder), str | Path):
        raise ValueError(f"{OPERATION}: folder is {folder!r}; expected a path, or None to keep nothing.")
    host.check_ready(model, OPERATION)
    bos = tokens.resolve_bos(model, prepend_bos)
    check_generate(generate, listed, OPERATION)
    check_neighborhood(listed, OPERATION, distracted=distracted, kl=kl)
    on = edits_on(model, OPERATION)
    if on:
        warnings.warn(
            f"{OPERATION}: {on[0]!r} is applied to the model{f' with {len(on) - 1} others' if len(on) > 1 else ''}, "
            "and is part of what is called unedited; expected a model without edits; call undo_edits(model) first, or "
            "go on if this is meant.",
            stacklevel=2,
        )
    asked = () if texts is None else as_texts(texts, OPERATION)
    batches = tuple(listed[start : start + batch] for start in range(0, len(listed), batch))
    keys = [_key(each) for each in batches]
    weights = weights_digest(model)
    with processes(OPERATION) as own, ExitStack() as stack:
        kept = None
        if folder is not None:
            _check_no_hooks(model)
            settings = {"distracted": distracted, "kl": kl, "texts": digest(asked), "generate": describe(generate)}
            run = _identity(model, weights, bos, batch, settings)
            described = {name: describe(method) for name, method in chosen.items()}
            own.agree({**run, "records": digest(keys), "methods": described}, OPERATION)
            made_on = host.provenance(model, prepend_bos=bos)
            kept = SweepFolder(Path(folder).expanduser(), run, described, keys, made_on)
            stack.enter_context(alone(kept.path, own))
            # What another run wrote since, which has ended.
            kept.reread()
        elif own.world > 1:
            raise ValueError(
                f"{OPERATION}: {own.world} processes and no folder; expected one, through which they share their "
                "results; pass folder=."
            )
        judge = Judge(
            model,
            OPERATION,
            prepend_bos=bos,
            distracted=distracted,
            kl=kl,
            texts=asked,
            generate=generate,
            batch_size=batch_size,
        )
        outcomes = Runner(model, weights, judge, chosen, kept, own).run(batches, keys, progress=progress)
    return Sweep(batches=batches, outcomes=outcomes, provenance=host.provenance(model, prepend_bos=bos))


def _checked_methods(methods: object) -> dict[str, Method]:
    """Methods by name.

    Raises:
        ValueError: If they are something else, or there are none.
    """
    by_name = dict(cast(Mapping[object, object], methods)) if isinstance(methods, Mapping) else dict[object, object]()
    if not by_name:
        kind = "an empty mapping" if isinstance(methods, Mapping) else f"of type {type(methods).__name__}"
        raise ValueError(
            f"{OPERATION}: methods is {kind}; expected methods by name; write e.g. "
            "{'no edit': no_edit, 'ROME': partial(rome_edit, moments=moments, apply=False)}."
        )
    for name, method in by_name.items():
        if not isinstance(name, str) or not callable(method):
            raise ValueError(
                f"{OPERATION}: methods holds {name!r} with something of type {type(method).__name__}; expected a name "
                "with a function of a model and requests; write e.g. partial(rome_edit, moments=moments, apply=False)."
            )
        if not name.strip() or not name.isprintable():
            raise ValueError(
                f"{OPERATION}: a method is called {name!r}; expected a name that can stand in a table; choose words."
            )
        check_signature(name, cast(Method, method))
    return cast(dict[str, Method], by_name)


def _check_no_hooks(model: Model) -> None:
    stranger = attach.foreign_hook(model)
    if stranger:
        raise ValueError(
            f"{OPERATION}: a hook is attached at {stranger}; expected none with folder=, since a folder cannot tell "
            "what a hook does and might go on with other results; take it off, or sweep without a folder."
        )


def _identity(model: Model, weights: str, bos: bool, batch: int, settings: Mapping[str, object]) -> dict[str, object]:
    """What tells one run from another, but for its records and methods."""
    made_on = host.provenance(model, prepend_bos=bos)
    return {
        "model": made_on.model_name,
        "interface": made_on.interface,
        "dtype": made_on.dtype,
        "weights": weights,
        "tokenizer": tokenizer_digest(model),
        "prepend_bos": bos,
        "batch": batch,
        **settings,
    }


def _key(records: Sequence[EditRecord]) -> str:
    """Tells a batch of records from others, by their content."""
    return digest([json.dumps([asdict(record) for record in records], sort_keys=True)], size=8)
