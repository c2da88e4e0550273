"""`sweep`: edit, evaluate and restore, record after record, method after method."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm

from tl_edit import attach, host, tokens
from tl_edit.data import EditRecord, as_records
from tl_edit.digest import digest
from tl_edit.edit import Edit
from tl_edit.edit.edit import edits_on
from tl_edit.evaluate.generation import Generation
from tl_edit.evaluate.judge import Asked, Judge
from tl_edit.evaluate.plain import plain_scores, read_scores
from tl_edit.evaluate.texts import Drift, as_texts
from tl_edit.evaluate.writing import check_generate
from tl_edit.host import Model
from tl_edit.identity import tokenizer_digest, weights_digest
from tl_edit.processes import Processes, processes
from tl_edit.sweep.folder import OPERATION, SweepFolder
from tl_edit.sweep.methods import Derived, Method, Switchable, describe
from tl_edit.sweep.result import Outcome, Sweep


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
            results; records and methods may be added. Needed with several processes (``accelerate launch``), which
            share the batches.
        distracted: As for `evaluate`.
        kl: As for `evaluate`.
        texts: As for `evaluate`.
        generate: As for `evaluate`.
        prepend_bos: As for `evaluate`; give it to the methods, too.
        batch_size: As for `evaluate`.
        progress: Whether to show a bar.

    Returns:
        What each method made of each batch. A record on which a method raises a ValueError counts as failed, with
        the reason; anything else ends the sweep, and what is in the folder stays there.

    Raises:
        ValueError: For what `evaluate` refuses; methods that change the model, or return something that cannot be
            switched on; a folder of another run, or hooks of yours together with one.
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
    asked = () if texts is None else as_texts(texts, OPERATION)
    batches = tuple(listed[start : start + batch] for start in range(0, len(listed), batch))
    keys = [_key(each) for each in batches]
    with processes(OPERATION) as own:
        kept = None
        if folder is not None:
            _check_no_hooks(model)
            settings = {"distracted": distracted, "kl": kl, "texts": digest(asked), "generate": describe(generate)}
            run = _identity(model, bos, batch, settings)
            described = {name: describe(method) for name, method in chosen.items()}
            own.agree({**run, "records": digest(keys), "methods": described}, OPERATION)
            kept = SweepFolder(Path(folder).expanduser(), run, described, keys)
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
        outcomes = _Runner(model, judge, chosen, kept, own).run(batches, keys, progress=progress)
    return Sweep(batches=batches, outcomes=outcomes, provenance=host.provenance(model, prepend_bos=bos))


class _Runner:
    """Runs what is not there yet."""

    def __init__(
        self,
        model: Model,
        judge: Judge,
        methods: Mapping[str, Method],
        kept: SweepFolder | None,
        own: Processes,
    ) -> None:
        self.model, self.judge, self.methods, self.kept, self.own = model, judge, methods, kept, own
        self.lines: dict[tuple[str, str], dict[str, Any]] = {} if kept is None else kept.found
        """What is known, by method and key of the batch."""

    def run(
        self, batches: Sequence[tuple[EditRecord, ...]], keys: Sequence[str], *, progress: bool
    ) -> dict[str, tuple[Outcome, ...]]:
        """Every method on every batch; of several processes each returns all."""
        lacking = {i: [name for name in self.methods if (name, key) not in self.lines] for i, key in enumerate(keys)}
        todo = [i for i, names in lacking.items() if names]
        # Nobody writes before everybody has read.
        self.own.agree({"batches to do": digest(map(str, todo))}, OPERATION)
        if todo:
            self._repeat_one(batches, keys, {name for names in lacking.values() for name in names})
            if self.kept is not None and self.own.rank == 0:
                self.kept.begin()
            self.own.total(0)
        before = weights_digest(self.model) if todo else ""
        mine = todo[self.own.rank :: self.own.world]
        done = sum(len(batches[i]) for i in range(len(batches)) if not lacking[i])
        size = sum(len(batches[i]) for i in mine)
        with tqdm(total=done + size, initial=done, desc=OPERATION, unit="record", disable=not progress) as bar:
            for number, i in enumerate(mine):
                for name, line in self._batch(batches[i], lacking[i]).items():
                    self.lines[name, keys[i]] = line
                    if self.kept is not None:
                        self.kept.keep(self.own.rank, name, keys[i], line)
                if number in (0, len(mine) - 1):
                    self._check_restored(before)
                bar.update(len(batches[i]))
        self.own.total(0)
        if self.kept is not None:
            self.kept.reread()
        return {
            name: tuple(_outcome(each, self.lines[name, key]) for each, key in zip(batches, keys, strict=True))
            for name in self.methods
        }

    def _batch(self, records: tuple[EditRecord, ...], names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The lines of some methods on one batch, JSON's own values."""
        try:
            asked = self.judge.prepare(records)
        except ValueError as error:
            return {name: {"failed": str(error), "seconds": 0.0} for name in names}
        edits: dict[int, Switchable] = {}
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            start = time.perf_counter()
            try:
                line = self._one(name, asked, edits)
            except _BadMethodError:
                raise
            except ValueError as error:
                line = {"failed": str(error)}
            found[name] = line | {"seconds": round(time.perf_counter() - start, 3)}
        return found

    def _one(self, name: str, asked: Asked, edits: dict[int, Switchable]) -> dict[str, Any]:
        edit = self._edit(name, self.methods[name], asked, edits)
        with edit.on(self.model):
            scores, drifts = self.judge.scores(asked), self.judge.drifts()
        line: dict[str, Any] = {"scores": [plain_scores(each) for each in scores]}
        if drifts:
            line["drifts"] = [asdict(drift) for drift in drifts]
        if isinstance(edit, Edit):
            line["norms"] = {str(layer): norm for layer, norm in edit.norms.items()}
            line["diagnostics"] = {
                key: float(value)
                for key, value in edit.diagnostics.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
        return line

    def _edit(self, name: str, method: Method, asked: Asked, edits: dict[int, Switchable]) -> Switchable:
        """What a method computes for these records; the edit that another is derived from is computed once."""
        if isinstance(method, Derived):
            return method.derive(self._edit(name, method.method, asked, edits))
        if id(method) not in edits:
            before = edits_on(self.model, OPERATION)
            made = cast(object, method(self.model, [record.request for record in asked.sheet.records]))
            added = [edit for edit in edits_on(self.model, OPERATION) if edit not in before]
            for edit in reversed(added):
                edit.undo(self.model)
            if added:
                raise _BadMethodError(
                    f"{OPERATION}: the method {name!r} applied its edit; expected one that only computes it, as it is "
                    "switched on here for the evaluation; pass apply=False, e.g. partial(rome_edit, moments=moments, "
                    "apply=False)."
                )
            if not isinstance(made, Switchable):
                raise _BadMethodError(
                    f"{OPERATION}: the method {name!r} returned something of type {type(made).__name__}; expected "
                    "something with .on(model), such as an Edit; return what rome_edit(..., apply=False) returns."
                )
            edits[id(method)] = made
        return edits[id(method)]

    def _repeat_one(self, batches: Sequence[tuple[EditRecord, ...]], keys: Sequence[str], names: set[str]) -> None:
        """Compare one result of each method that goes on with what the folder has of it.

        Raises:
            ValueError: If they differ, so that the results would be of two different methods.
        """
        for name in sorted(names):
            known = next((i for i, key in enumerate(keys) if "scores" in self.lines.get((name, key), {})), None)
            if known is None:
                continue
            before, now = self.lines[name, keys[known]], self._batch(batches[known], [name])[name]
            limit = 0.05 if host.provenance(self.model, prepend_bos=self.judge.bos).dtype[-2:] == "16" else 2e-3
            furthest = _furthest(before["scores"], now.get("scores", []))
            if not furthest <= limit:
                raise ValueError(
                    f"{OPERATION}: the folder holds results of another {name!r}: repeated on "
                    f"{batches[known][0].request}, a probability differs by {furthest:.2g}; expected the same method "
                    "with the same settings; choose another folder, or another name for the method."
                )

    def _check_restored(self, before: str) -> None:
        if weights_digest(self.model) != before:
            raise _BadMethodError(
                f"{OPERATION}: the model's weights are not those from before the sweep; expected methods that leave "
                "the model as it was, bit for bit; load it again, and mend the method that does not restore it."
            )


class _BadMethodError(ValueError):
    """A method that breaks the rules, which is no failure on a record."""


def _outcome(records: tuple[EditRecord, ...], line: Mapping[str, Any]) -> Outcome:
    if "failed" in line:
        return Outcome(failed=line["failed"], seconds=line["seconds"])
    norms = line.get("norms")
    return Outcome(
        scores=tuple(read_scores(record, plain) for record, plain in zip(records, line["scores"], strict=True)),
        drifts=tuple(
            Drift(**{name: tuple(value) for name, value in drift.items()}) for drift in line.get("drifts", ())
        ),
        norms=None if norms is None else {int(layer): norm for layer, norm in norms.items()},
        diagnostics=line.get("diagnostics"),
        seconds=line["seconds"],
    )


def _furthest(before: object, now: object) -> float:
    """The largest difference of two numbers at the same place; infinite where the places differ."""
    if isinstance(before, bool) or isinstance(now, bool) or before is None or now is None:
        # What is likeliest may change by rounding, where two tokens are about as likely.
        return 0.0 if type(before) is type(now) else math.inf
    if isinstance(before, int | float) and isinstance(now, int | float):
        return abs(before - now) if max(abs(before), abs(now)) <= 1 else abs(before / now - 1) if now else math.inf
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        one, other = cast(Mapping[str, object], before), cast(Mapping[str, object], now)
        if one.keys() != other.keys():
            return math.inf
        return max((_furthest(one[name], other[name]) for name in one), default=0.0)
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        rows, others = cast(Sequence[object], before), cast(Sequence[object], now)
        if len(rows) != len(others):
            return math.inf
        return max((_furthest(*pair) for pair in zip(rows, others, strict=True)), default=0.0)
    return 0.0 if isinstance(before, str) and isinstance(now, str) else math.inf


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
    return cast(dict[str, Method], by_name)


def _check_no_hooks(model: Model) -> None:
    stranger = attach.foreign_hook(model)
    if stranger:
        raise ValueError(
            f"{OPERATION}: a hook is attached at {stranger}; expected none with folder=, since a folder cannot tell "
            "what a hook does and might go on with other results; take it off, or sweep without a folder."
        )


def _identity(model: Model, bos: bool, batch: int, settings: Mapping[str, object]) -> dict[str, object]:
    """What tells one run from another, but for its records and methods."""
    made_on = host.provenance(model, prepend_bos=bos)
    return {
        "model": made_on.model_name,
        "interface": made_on.interface,
        "dtype": made_on.dtype,
        "weights": weights_digest(model),
        "tokenizer": tokenizer_digest(model),
        "prepend_bos": bos,
        "batch": batch,
        **settings,
    }


def _key(records: Sequence[EditRecord]) -> str:
    """Tells a batch of records from others, by their content."""
    return digest([json.dumps([asdict(record) for record in records], sort_keys=True)], size=8)
