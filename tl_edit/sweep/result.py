"""The result of a sweep: evaluations by method, and what failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tl_edit import show
from tl_edit.data import EditRecord
from tl_edit.evaluate import Comparison, Drift, Evaluation, RecordScores, compare
from tl_edit.evaluate.measures import metrics_html
from tl_edit.host import Provenance


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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sweep:
    """What several methods made of the same records."""

    batches: tuple[tuple[EditRecord, ...], ...]
    """Records that were edited together."""
    outcomes: Mapping[str, tuple[Outcome, ...]]
    """One for each batch, by the method's name."""
    provenance: Provenance

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

    def compare(self) -> Comparison:
        """All methods side by side, over the records that none of them failed on.

        Raises:
            ValueError: If there are no such records.
        """
        common = [
            i for i in range(len(self.batches)) if all(several[i].failed is None for several in self.outcomes.values())
        ]
        if not common:
            name, _, why = self.failures[0]
            raise ValueError(
                f"Sweep.compare: there is no record that all methods worked on; expected one; leave out the one that "
                f"fails, {name!r}: {why}"
            )
        return compare({name: self._evaluation(name, common) for name in self.outcomes})

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

    def __repr__(self) -> str:
        failed = len({id(record) for _, record, _ in self.failures})
        lost = f", {failed} failed" if failed else ""
        return f"Sweep({len(self.records)} records{lost}: {', '.join(self.outcomes)})"

    def _repr_html_(self) -> str:
        return metrics_html({name: self.evaluation(name).metrics() for name in self.outcomes}, repr(self))
