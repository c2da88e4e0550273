"""Several methods side by side, on the same records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from tl_edit import show
from tl_edit.counted import counted
from tl_edit.evaluate.measures import MEASURES, latex, markdown, metric_rows, metrics_html, plot_metrics, show_metric
from tl_edit.evaluate.metric import Metric, PairedTest, holm, paired_test
from tl_edit.evaluate.result import Evaluation


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Comparison:
    """Evaluations of several methods over the same records."""

    evaluations: Mapping[str, Evaluation]
    """By the method's name."""

    def metrics(self) -> dict[str, dict[str, Metric]]:
        """All metrics, by method and key."""
        return {name: each.metrics() for name, each in self.evaluations.items()}

    def test(self, key: str, first: str, second: str, *, seed: int = 0) -> PairedTest:
        """Whether two methods differ in a metric, record by record.

        Args:
            key: The metric, e.g. "S" or "PS".
            first: A method.
            second: The method whose value is taken off.
            seed: Of the permutations and the bootstrap.

        Raises:
            ValueError: If a method or a metric is unknown.
        """
        return paired_test(self._metric(key, first), self._metric(key, second), seed=seed)

    def tests(self, key: str, against: str, *, seed: int = 0) -> dict[str, PairedTest]:
        """Every other method tested against one, p-values adjusted for their number (Holm)."""
        others = [name for name in self.evaluations if name != against]
        found = [self.test(key, name, against, seed=seed) for name in others]
        adjusted = holm([test.p_value for test in found])
        return {name: replace(test, p_value=value) for name, test, value in zip(others, found, adjusted, strict=True)}

    def _metric(self, key: str, name: str) -> Metric:
        if name not in self.evaluations:
            raise ValueError(f"compare: no method {name!r}; expected one of {', '.join(self.evaluations)}.")
        found = self.evaluations[name].metric(key) if key in MEASURES else None
        if found is None:
            raise ValueError(
                f"compare: {name} has no {key!r}; expected one of {', '.join(self.evaluations[name].metrics())}; a "
                "metric is there where the data and the arguments of evaluate give it."
            )
        return found

    def to_dataframe(self, *, seed: int = 0) -> Any:
        """A pandas frame: a row for each method and metric, with n, standard error and 95 % interval.

        Raises:
            ImportError: If pandas is not installed.
        """
        return show.frame_of_rows("Comparison.to_dataframe", metric_rows(self.metrics(), seed))

    def to_markdown(self, keys: Sequence[str] | None = None) -> str:
        """A Markdown table in the papers' layout, the half width of 95 % intervals in parentheses.

        Args:
            keys: Metrics to show; None for the papers' columns.

        Raises:
            ValueError: If a metric is unknown, or no method has it.
        """
        return markdown(self.metrics(), keys)

    def to_latex(self, keys: Sequence[str] | None = None) -> str:
        """A LaTeX table (it needs the package booktabs); see `to_markdown`."""
        return latex(self.metrics(), keys)

    def __repr__(self) -> str:
        scores = [f"{name} S {show_metric('S', each.score)}" for name, each in self.evaluations.items()]
        return f"Comparison({', '.join(scores)})"

    def plot(self, ax: Any = None, *, keys: Sequence[str] | None = None, seed: int = 0) -> Any:
        """Bars of the methods side by side; see `Evaluation.plot`."""
        return plot_metrics(self.metrics(), keys, ax, title=self._counted, seed=seed)

    def _repr_html_(self) -> str:
        return metrics_html(self.metrics(), f"{len(self.evaluations)} side by side, {self._counted}")

    @property
    def _counted(self) -> str:
        return counted(len(next(iter(self.evaluations.values())).scores), "record")


def compare(evaluations: Mapping[str, Evaluation]) -> Comparison:
    """Put evaluations of the same records side by side.

    Args:
        evaluations: By the method's name.

    Raises:
        ValueError: If there are none, or they are not of the same records in the same order.
    """
    operation = "compare"
    given = cast(object, evaluations)
    by_name = cast(Mapping[object, object], given if isinstance(given, Mapping) else {})
    if not by_name:
        kind = "an empty mapping" if isinstance(given, Mapping) else f"something of type {type(given).__name__}"
        raise ValueError(
            f"{operation}: found {kind}; expected evaluations by name; write e.g. compare({{'no edit': before, 'ROME': "
            "after})."
        )
    for name, each in by_name.items():
        if not isinstance(name, str) or not isinstance(each, Evaluation):
            raise ValueError(
                f"{operation}: found {name!r} with something of type {type(each).__name__}; expected a name with an "
                "Evaluation; pass what evaluate(model, records, ...) returns."
            )
    names = list(evaluations)
    first = [scores.record for scores in evaluations[names[0]].scores]
    for name in names[1:]:
        records = [scores.record for scores in evaluations[name].scores]
        if records != first:
            where = next((i for i, pair in enumerate(zip(first, records, strict=False)) if pair[0] != pair[1]), None)
            found = f"{len(first)} and {len(records)} records" if where is None else f"record {where} differs"
            raise ValueError(
                f"{operation}: {names[0]!r} and {name!r} are not of the same records ({found}); expected the same in "
                "the same order, as methods are compared record by record; evaluate both on the same list."
            )
    return Comparison(evaluations=dict(evaluations))
