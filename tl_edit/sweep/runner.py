"""Running methods on batches of records, and watching that they leave the model as it was."""

import inspect
import math
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

from tqdm.auto import tqdm

from tl_edit import attach, host
from tl_edit.data import EditRecord
from tl_edit.digest import digest
from tl_edit.edit import Edit
from tl_edit.edit.edit import edits_on
from tl_edit.evaluate.judge import Asked, Judge
from tl_edit.evaluate.plain import plain_scores
from tl_edit.host import Model
from tl_edit.identity import weights_digest
from tl_edit.processes import Processes
from tl_edit.request import EditRequest
from tl_edit.sweep.folder import OPERATION, SweepFolder
from tl_edit.sweep.methods import Derived, Method, Switchable, Unedited
from tl_edit.sweep.result import Outcome

OF_SINGLE_EDITS = ("no value was found", "likely to disable", "times as large as its W_out")
"""Parts of what editors warn of for one request after another."""


class BadMethodError(ValueError):
    """A method that breaks the rules, which is no failure on a record."""


class Runner:
    """Runs what is not there yet."""

    def __init__(
        self,
        model: Model,
        weights: str,
        judge: Judge,
        methods: Mapping[str, Method],
        kept: SweepFolder | None,
        own: Processes,
    ) -> None:
        """``weights`` is the hash of the unedited model's."""
        self.model, self.weights, self.judge, self.methods = model, weights, judge, methods
        self.kept, self.own = kept, own
        self.lines: dict[tuple[str, str], dict[str, Any]] = {} if kept is None else kept.found
        """What is known, by method and key of the batch."""
        self._warned: set[str] = set()

    def run(
        self, batches: Sequence[tuple[EditRecord, ...]], keys: Sequence[str], *, progress: bool
    ) -> dict[str, tuple[Outcome, ...]]:
        """Every method on every batch; of several processes each returns all. What failed before is tried again."""
        lacking = {
            i: [name for name in self.methods if "scores" not in self.lines.get((name, key), {})]
            for i, key in enumerate(keys)
        }
        todo = [i for i, names in lacking.items() if names]
        # Nobody writes before everybody has read.
        self.own.agree({"batches to do": digest(map(str, todo))}, OPERATION)
        self._repeat_one(batches, keys)
        if self.kept is not None and todo:
            if self.own.rank == 0:
                self.kept.begin(dict(zip(keys, batches, strict=True)))
            self.own.total(0)
        mine = todo[self.own.rank :: self.own.world]
        done = sum(len(batches[i]) for i in range(len(batches)) if not lacking[i])
        size = sum(len(batches[i]) for i in mine)
        with tqdm(total=done + size, initial=done, desc=OPERATION, unit="record", disable=not progress) as bar:
            for number, i in enumerate(mine, start=1):
                with self._dropped_if_spoiled():
                    for name, line in self._batch(batches[i], lacking[i]).items():
                        self.lines[name, keys[i]] = line
                        if self.kept is not None:
                            self.kept.keep(self.own.rank, name, keys[i], line)
                # Hashing takes a second for a billion bytes: after 1, 2, 4, ... batches, and at the end.
                if number & (number - 1) == 0 or number == len(mine):
                    self._check_restored()
                bar.update(len(batches[i]))
        self.own.total(0)
        if self.kept is not None:
            self.kept.reread()
        return {
            name: tuple(Outcome.of(each, self.lines[name, key]) for each, key in zip(batches, keys, strict=True))
            for name in self.methods
        }

    def _batch(self, records: tuple[EditRecord, ...], names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The lines of some methods on one batch, JSON's own values."""
        portions = list(self.judge.portions(records))
        try:
            # Where there are several, what the unedited model says about all does not fit into memory together.
            whole = self.judge.prepare(records) if len(portions) == 1 else None
        except ValueError as error:
            return {name: self._failed(name, records, error) for name in names}
        requests = [record.request for record in records]
        edits: dict[int, Switchable] = {}
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            start = time.perf_counter()
            try:
                with self._watched(name):
                    edit = self._edit(name, self.methods[name], requests, edits)
                    line = self._judged(name, edit, portions, whole)
            except BadMethodError:
                raise
            except ValueError as error:
                line = self._failed(name, records, error)
            found[name] = line | {"seconds": round(time.perf_counter() - start, 3)}
        return found

    def _failed(self, name: str, records: Sequence[EditRecord], error: ValueError) -> dict[str, Any]:
        """The line of a failure, and a warning of the first of each method."""
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(
                f"{OPERATION}: the method {name!r} failed on {records[0].request}: {error} Such records are in "
                ".failures, and left out of comparisons; further ones are not warned of.",
                stacklevel=2,
            )
        return {"failed": str(error), "seconds": 0.0}

    def _judged(
        self, name: str, edit: Switchable, portions: Sequence[Sequence[EditRecord]], whole: Asked | None
    ) -> dict[str, Any]:
        """What the records say with the edit on."""
        line: dict[str, Any] = {"scores": []}
        for portion in portions:
            asked = self.judge.prepare(portion) if whole is None else whole
            with _switched(name, edit, self.model):
                line["scores"] += [plain_scores(each) for each in self.judge.scores(asked)]
                drifts = self.judge.drifts() if portion is portions[-1] else ()
            if drifts:
                line["drifts"] = [asdict(drift) for drift in drifts]
        if isinstance(edit, Edit):
            line["norms"] = {str(layer): norm for layer, norm in edit.norms.items()}
            line["diagnostics"] = {
                key: float(value)
                for key, value in edit.diagnostics.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
        elif not isinstance(edit, Unedited):
            # An `Edit` is watched by its ledger; of anything else nothing is known.
            self._check_restored(name)
        return line

    def _edit(
        self, name: str, method: Method, requests: Sequence[EditRequest], edits: dict[int, Switchable]
    ) -> Switchable:
        """What a method computes for these requests; the edit that another is derived from is computed once."""
        if isinstance(method, Derived):
            made = self._edit(name, method.method, requests, edits)
            if not isinstance(made, Edit):
                raise BadMethodError(
                    f"{OPERATION}: the control {name!r} takes norms and ranks of an Edit, but its method returned "
                    f"something of type {type(made).__name__}; expected a method that returns an Edit; pass another, "
                    "or leave the control out."
                )
            return method.derive(made)
        if id(method) not in edits:
            with self._nothing_applied(name), self._once(name):
                made = cast(object, method(self.model, requests))
            if not isinstance(made, Switchable) or inspect.isclass(made):
                raise BadMethodError(
                    f"{OPERATION}: the method {name!r} returned something of type {type(made).__name__}; expected "
                    "something with .on(model), such as an Edit; return what rome_edit(..., apply=False) returns."
                )
            self._check_bos(name, made)
            edits[id(method)] = made
        return edits[id(method)]

    @contextmanager
    def _once(self, name: str) -> Generator[None, None, None]:
        """Of what an editor warns of edit by edit, only the first is said: a sweep's scores tell of them all."""
        with warnings.catch_warnings(record=True) as said:
            yield
        for warning in said:
            words = str(warning.message)
            often = next((each for each in OF_SINGLE_EDITS if each in words), None)
            key = f"{name}, {often}"
            if often is not None and key not in self._warned:
                self._warned.add(key)
                words += f" Further edits of {name!r} are not warned of; their scores tell."
            elif often is not None:
                continue
            warnings.warn(words, warning.category, stacklevel=3)

    @contextmanager
    def _nothing_applied(self, name: str) -> Generator[None, None, None]:
        """Take back what a method applies, also where it fails, and refuse it.

        Raises:
            BadMethodError: naming it.
        """
        before = edits_on(self.model, OPERATION)

        def undone() -> bool:
            added = [edit for edit in edits_on(self.model, OPERATION) if edit not in before]
            for edit in reversed(added):
                edit.undo(self.model)
            return bool(added)

        applied = BadMethodError(
            f"{OPERATION}: the method {name!r} applied its edit; expected one that only computes it, as it is switched "
            "on here for the evaluation; pass apply=False, e.g. partial(rome_edit, moments=moments, apply=False)."
        )
        try:
            yield
        except ValueError as error:
            if undone():
                raise applied from error
            raise
        except BaseException:
            undone()
            raise
        if undone():
            raise applied

    def _check_bos(self, name: str, made: Switchable) -> None:
        key = f"{name}, BOS"
        if isinstance(made, Edit) and made.provenance.prepend_bos != self.judge.bos and key not in self._warned:
            self._warned.add(key)
            computed, asked = ("with" if flag else "without" for flag in (made.provenance.prepend_bos, self.judge.bos))
            warnings.warn(
                f"{OPERATION}: the edits of {name!r} were computed {computed} a BOS and are evaluated {asked} one; "
                f"expected the same for both; give the method prepend_bos={self.judge.bos}, or go on if this is meant.",
                stacklevel=2,
            )

    @contextmanager
    def _watched(self, name: str) -> Generator[None, None, None]:
        """Refuse a method that leaves hooks on the model.

        Raises:
            BadMethodError: naming it.
        """
        before = list(attach.foreign_hooks(self.model))
        yield
        left = [place for place in attach.foreign_hooks(self.model) if place not in before]
        if left:
            raise BadMethodError(
                f"{OPERATION}: the method {name!r} left a hook at {left[0][0]}, under which everything after it would "
                "be measured; expected .on(model) to take them off at the end; call model.reset_hooks() now, and mend "
                "the method."
            )

    def _repeat_one(self, batches: Sequence[tuple[EditRecord, ...]], keys: Sequence[str]) -> None:
        """Compare one result of each method, the last, with what the folder has of it.

        Names alone do not tell what methods do, and a run that was killed may have ended on spoiled weights.

        Raises:
            ValueError: If they differ, so that the results would be of two different methods.
        """
        for name in self.methods:
            there = [i for i, key in enumerate(keys) if "scores" in self.lines.get((name, key), {})]
            if not there:
                continue
            known = there[-1]
            before, now = self.lines[name, keys[known]], self._batch(batches[known], [name])[name]
            limit = 0.05 if host.provenance(self.model, prepend_bos=self.judge.bos).dtype[-2:] == "16" else 2e-3
            furthest = _furthest(before["scores"], now.get("scores", []))
            if not furthest <= limit:
                raise ValueError(
                    f"{OPERATION}: the folder holds results of another {name!r}: repeated on "
                    f"{batches[known][0].request}, a probability differs by {furthest:.2g}; expected the same method "
                    "with the same settings; choose another folder, or another name for the method."
                )

    @contextmanager
    def _dropped_if_spoiled(self) -> Generator[None, None, None]:
        """Where anything ends the run, keep nothing that was measured on other weights than the sweep's."""
        try:
            yield
        except BaseException:
            if self.kept is not None and weights_digest(self.model) != self.weights:
                self.kept.drop_untrusted(self.own.rank)
            raise

    def _check_restored(self, name: str = "") -> None:
        """Refuse to go on where the weights are not those from before, and drop what came since they last were.

        Raises:
            BadMethodError: naming the method that ran last, if it is given.
        """
        if weights_digest(self.model) == self.weights:
            if self.kept is not None:
                self.kept.trust(self.own.rank)
            return
        if self.kept is not None:
            self.kept.drop_untrusted(self.own.rank)
        who = f"{name!r}, or one that ran before it," if name else "a method"
        raise BadMethodError(
            f"{OPERATION}: {who} did not leave the model's weights as they were before the sweep; expected methods "
            "that restore them, bit for bit; load the model again, and mend the method. What was measured since the "
            "weights were last looked at is not kept."
        )


@contextmanager
def _switched(name: str, edit: Switchable, model: Model) -> Generator[None, None, None]:
    """The edit on, whatever a method of the user's returned.

    Raises:
        BadMethodError: If it cannot be switched on.
    """
    try:
        on: Any = edit.on(model)
    except TypeError as error:
        raise BadMethodError(f"{_not_switchable(name)} ({error}).") from error
    if not (hasattr(on, "__enter__") and hasattr(on, "__exit__")):
        raise BadMethodError(f"{_not_switchable(name)}; it returned something of type {type(on).__name__}.")
    with on:
        yield


def _not_switchable(name: str) -> str:
    return (
        f"{OPERATION}: what the method {name!r} returned cannot be switched on; expected .on(model) to be a context "
        "manager, as contextlib.contextmanager makes one"
    )


def check_signature(name: str, method: Method) -> None:
    """Refuse a method that cannot be called with a model and requests.

    Raises:
        ValueError: naming it and what it lacks.
    """
    try:
        inspect.signature(method).bind(None, [])
    except TypeError as error:
        raise ValueError(
            f"{OPERATION}: the method {name!r} cannot be called with a model and requests ({error}); expected a "
            "function of these two; give it its other arguments, e.g. partial(rome_edit, moments=moments, apply=False)."
        ) from error
    except ValueError:
        # Of some built-in functions the signature is not known.
        return


def _furthest(before: object, now: object) -> float:
    """The largest difference of two numbers at the same place; infinite where the places differ."""
    if isinstance(before, bool) or isinstance(now, bool) or before is None or now is None:
        # What is likeliest may change by rounding, where two tokens are about as likely.
        return 0.0 if type(before) is type(now) else math.inf
    if isinstance(before, int | float) and isinstance(now, int | float):
        if before == now or (before != before and now != now):
            return 0.0
        return abs(before - now) if max(abs(before), abs(now)) <= 1 else abs(before / now - 1) if now else math.inf
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        one, other = cast(Mapping[str, object], before), cast(Mapping[str, object], now)
        # What decides between equal probabilities, older folders do not have.
        names = [each.keys() - {"tied"} for each in (one, other)]
        if names[0] != names[1]:
            return math.inf
        return max((_furthest(one[name], other[name]) for name in names[0]), default=0.0)
    if isinstance(before, list | tuple) and isinstance(now, list | tuple):
        rows, others = cast(Sequence[object], before), cast(Sequence[object], now)
        if len(rows) != len(others):
            return math.inf
        return max((_furthest(*pair) for pair in zip(rows, others, strict=True)), default=0.0)
    return 0.0 if isinstance(before, str) and isinstance(now, str) else math.inf
