"""The result of a sweep: evaluations by method, and what failed."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_edit import show
from tl_edit.counted import counted
from tl_edit.data import EditRecord
from tl_edit.evaluate import Comparison, Drift, Evaluation, RecordScores, compare
from tl_edit.evaluate.measures import metrics_html
from tl_edit.evaluate.plain import read_record, read_scores
from tl_edit.host import Provenance
from tl_edit.sweep.folder import read_results, read_run


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one method made of one batch of records."""

    scores: tuple[RecordScores, ...] = ()
    """None where it failed."""
    failed: str | None = None
    """Why it failed."""
    drifts: tuple[Drift, ...] = ()
    norms: Mapping[int, float] | None = None
    """Frobenius norm of the change by layer, where the method returned an `Edit`."""
    diagnostics: Mapping[str, float] | None = None
    """The numbers among the edit's diagnostics."""
    seconds: float = 0.0
    """For the edit and its evaluation."""

    @classmethod
    def of(cls, records: Sequence[EditRecord], line: Mapping[str, Any]) -> "Outcome":
        """From JSON's own values, as they are kept in a folder."""
        if "failed" in line:
            return cls(failed=line["failed"], seconds=line["seconds"])
        norms = line.get("norms")
        return cls(
            scores=tuple(read_scores(record, plain) for record, plain in zip(records, line["scores"], strict=True)),
            drifts=tuple(
                Drift(**{name: tuple(value) for name, value in drift.items()}) for drift in line.get("drifts", ())
            ),
            norms=None if norms is None else {int(layer): norm for layer, norm in norms.items()},
            diagnostics=line.get("diagnostics"),
            seconds=line["seconds"],
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sweep:
    """What several methods made of the same records."""

    batches: tuple[tuple[EditRecord, ...], ...]
    """Records that were edited together."""
    outcomes: Mapping[str, tuple[Outcome, ...]]
    """One for each batch, by the method's name."""
    provenance: Provenance

    @classmethod
    def load(cls, folder: str | Path) -> "Sweep":
        """What `sweep` kept in a folder, without the model; what was not done yet counts as failed.

        Raises:
            ValueError: If the folder holds no run.
        """
        path = Path(folder).expanduser()
        run, records = read_run(path)
        lines = read_results(path)
        batches = {key: tuple(read_record(record) for record in several) for key, several in records.items()}
        missing = {"failed": "not done yet", "seconds": 0.0}
        return cls(
            batches=tuple(batches.values()),
            outcomes={
                name: tuple(Outcome.of(batch, lines.get((name, key), missing)) for key, batch in batches.items())
                for name in run["methods"]
            },
            provenance=Provenance(**run["provenance"]),
        )

    @property
    def records(self) -> tuple[EditRecord, ...]:
        """All records, in their order."""
        return tuple(record for batch in self.batches for record in batch)

    @property
    def failures(self) -> tuple[tuple[str, EditRecord, str], ...]:
        """(method, record, why) of every record that a method failed on."""
        return tuple(
            (name, record, outcome.failed)
            for name, several in self.outcomes.items()
            for batch, outcome in zip(self.batches, several, strict=True)
            if outcome.failed is not None
            for record in batch
        )

    def evaluation(self, method: str) -> Evaluation:
        """Of all records that the method did not fail on.

        Raises:
            ValueError: If there is no such method.
        """
        if method not in self.outcomes:
            raise ValueError(f"Sweep: no method {method!r}; expected one of {', '.join(self.outcomes)}.")
        return self._evaluation(method, range(len(self.batches)))

    def compare(self, methods: Sequence[str] | None = None) -> Comparison:
        """Methods side by side, over the records that none of them failed on.

        Args:
            methods: Some of them, by name; None for all.

        Raises:
            ValueError: If there are no such records, or methods.

        Warns:
            UserWarning: Of records that are left out because a method failed on them.
        """
        names = list(self.outcomes) if methods is None else list(methods)
        if isinstance(methods, str) or not names or not set(names) <= set(self.outcomes):
            raise ValueError(
                f"Sweep.compare: methods is {methods!r}; expected a list of some of {', '.join(self.outcomes)}."
            )
        common = [i for i in range(len(self.batches)) if all(self.outcomes[name][i].failed is None for name in names)]
        failed = [(name, why) for name, _, why in self.failures if name in names]
        if not common:
            raise ValueError(
                f"Sweep.compare: there is no record that all methods worked on; expected one; leave out the one that "
                f"fails, {failed[0][0]!r} ({failed[0][1]}), with methods=[...]."
            )
        n, total = sum(len(self.batches[i]) for i in common), len(self.records)
        if n < total:
            warnings.warn(
                f"Sweep.compare: left out {total - n} of {counted(total, 'record')}, on which a method failed, e.g. "
                f"{failed[0][0]!r}: {failed[0][1]}",
                stacklevel=2,
            )
        return compare({name: self._evaluation(name, common) for name in names})

    def _evaluation(self, method: str, batches: Sequence[int]) -> Evaluation:
        chosen = [self.outcomes[method][i] for i in batches]
        return Evaluation(
            scores=tuple(scores for outcome in chosen for scores in outcome.scores),
            provenance=self.provenance,
            drifts=tuple(drift for outcome in chosen for drift in outcome.drifts),
        )

    def to_dataframe(self, *, seed: int = 0) -> Any:
        """A pandas frame: a row for each method and record, with the record's metrics, the edit's numbers, the failure.

        Raises:
            ImportError: If pandas is not installed.
        """
        rows: list[dict[str, Any]] = []
        for name, several in self.outcomes.items():
            own = iter(self.evaluation(name).by_record())
            for number, (batch, outcome) in enumerate(zip(self.batches, several, strict=True)):
                edit = {f"norm {layer}": norm for layer, norm in (outcome.norms or {}).items()}
                edit |= outcome.diagnostics or {}
                for record in batch:
                    rows.append(
                        {
                            "method": name,
                            "batch": number,
                            "name": record.name,
                            "request": str(record.request),
                            "failed": outcome.failed,
                            "seconds": outcome.seconds / len(batch),
                            **(next(own) if outcome.failed is None else {}),
                            **edit,
                        }
                    )
        return show.frame_of_rows("Sweep.to_dataframe", rows)

    def to_markdown(self, keys: Sequence[str] | None = None) -> str:
        """The methods' table in the papers' layout; see `Comparison.to_markdown`."""
        return self.compare().to_markdown(keys)

    def to_latex(self, keys: Sequence[str] | None = None) -> str:
        """The methods' table in LaTeX; see `Comparison.to_latex`."""
        return self.compare().to_latex(keys)

    def plot(self, ax: Any = None, *, keys: Sequence[str] | None = None, seed: int = 0) -> Any:
        """Bars of the methods side by side, over the records that none failed on; see `Comparison.plot`."""
        return self.compare().plot(ax, keys=keys, seed=seed)

    def __repr__(self) -> str:
        failed = len({id(record) for _, record, _ in self.failures})
        lost = f", {failed} failed" if failed else ""
        return f"Sweep({counted(len(self.records), 'record')}{lost}: {', '.join(self.outcomes)})"

    def _repr_html_(self) -> str:
        done = {name: self.evaluation(name) for name in self.outcomes}
        return metrics_html({name: each.metrics() for name, each in done.items() if each.scores}, repr(self))
