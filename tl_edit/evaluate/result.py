"""The result of an evaluation: scores of every prompt, and the metrics over records."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from tl_edit import archive, show
from tl_edit.counted import counted
from tl_edit.evaluate.measures import MEASURES, latex, markdown, metric_rows, metrics_html, plot_metrics, show_metric
from tl_edit.evaluate.metric import Metric
from tl_edit.evaluate.plain import plain_scores, read_record, read_scores
from tl_edit.evaluate.scores import NEW_SHOULD_WIN, About, FactScore, Group, PromptScore, RecordScores, TextScores, mean
from tl_edit.evaluate.texts import Drift
from tl_edit.host import Provenance

By = Literal["metric", "record", "prompt"]

_KIND = archive.Kind("Evaluation", "tl_edit evaluation 1", "evaluate the records again")
_GROUPS: Mapping[str, Group] = {
    "E": "efficacy",
    "P": "paraphrase",
    "N": "neighborhood",
    "A": "attribute",
}
"""By the first letter of a metric's key."""
_NAMED = {"PPL": "PPL (edited / unedited)"}
_SHOWN = ("S", "ES", "PS", "NS", "NS+", "KL+", "OF", "UF", "TS", "GE", "RS", "PPL")
"""What the representation shows."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation:
    """Scores of every prompt of every record, and the metrics over them.

    Names and definitions are those of the ROME and MEMIT papers' programs (Meng et al. 2022, section 3.3). For a
    prompt and its two objects, the new and the true one, the probability of an object is the geometric mean over
    its tokens, ``exp(-nll)`` with ``nll`` the mean negative log-likelihood per token. Per record, then averaged:

    ======  ============  =========================================================================================
    key     group         meaning
    ======  ============  =========================================================================================
    ES, EM  efficacy      over the request's own prompt: rate of p(new) > p(true); mean of p(new) - p(true)
    PS, PM  paraphrase    the same over its paraphrases
    NS, NM  neighborhood  over prompts about other subjects with the same true object: p(true) > p(new); difference
    S                     the score: harmonic mean of ES, PS and NS
    EA ...  all three     accuracy: rate at which the object that should win is the likeliest of all, token by token
    AS, AM  attribute     over prompts about subjects of which the new object is true: p(new) > p(true); difference
    NS+...  distracted    neighborhood prompts behind the edited statement (CounterFact+, arXiv 2305.17553)
    KL, KL+               KL(edited || unedited) = sum p' (log p' - log p) of the next token, after the neighborhood's
                          prompts, bare and distracted, in nats (that paper's program divides it by the vocabulary)
    OF                    rate at which other facts of the subject are still the likeliest answer (its essence)
    UF                    the same of unrelated facts
    ET, PT  token         share of its tokens that are the likeliest behind those before them: zsRE's metric
    UT      accuracy      share of the unrelated answers' tokens (zsRE's specificity); TS: harmonic mean of the three
    GE      texts         generation entropy: how varied generated texts are, in bits (tables show it times 100)
    RS                    reference score: cosine of TF-IDF vectors of generated and reference texts
    EP                    perplexity of all texts about the subject, as one (the programs' essence score)
    PPL                   perplexity of the given texts, edited over unedited
    ======  ============  =========================================================================================

    Success is *not* token accuracy: a model may prefer the new object to the old one and say a third. What cannot be
    measured is absent, not zero: a request without its true object has no ES, a record without paraphrases no PS.
    """

    scores: tuple[RecordScores, ...]
    provenance: Provenance | None = None
    """The model and how it was asked; None for scores made by hand, and for joined ones that differ in it."""
    drifts: tuple[Drift, ...] = ()
    """How the given texts fare, once for each evaluation that was joined."""
    engine: str = ""
    """How the questions were asked: "trees", which compute once what prompts begin with alike, or "rows" and why; empty
    where parts differ."""

    @classmethod
    def of(cls, parts: "Iterable[Evaluation]") -> "Evaluation":
        """Several evaluations as one, e.g. of edits that were made one at a time.

        Raises:
            ValueError: If something else is among them.
        """
        listed = list(parts)
        wrong = next((part for part in cast(list[object], listed) if not isinstance(part, Evaluation)), None)
        if wrong is not None:
            raise ValueError(
                f"Evaluation.of: found something of type {type(wrong).__name__}; expected evaluations; pass a list of "
                "what evaluate(model, records, ...) returned."
            )
        first = listed[0].provenance if listed else None
        engines = {part.engine for part in listed}
        return cls(
            scores=tuple(score for part in listed for score in part.scores),
            provenance=first if all(part.provenance == first for part in listed) else None,
            drifts=tuple(drift for part in listed for drift in part.drifts),
            engine=engines.pop() if len(engines) == 1 else "",
        )

    # --- metrics by group ------------------------------------------------------------------------------

    def success(self, group: Group) -> Metric | None:
        """The rate at which the object that should win is likelier than the other (ES, PS, NS, ...).

        As published, mean log-probabilities per token are compared: they tell two objects apart whose probabilities are
        both zero as floats.
        """
        return self._over(group, lambda score: float(_won(group, score)))

    def magnitude(self, group: Group) -> Metric | None:
        """By how much, as a difference of probabilities (EM, PM, NM, ...)."""
        return self._over(group, lambda score: _lead(group, score))

    def accuracy(self, group: Group) -> Metric | None:
        """The rate at which the object that should win is the likeliest continuation of all, in each token."""
        if group in NEW_SHOULD_WIN:
            return self._over(group, lambda score: float(score.says_new), needs_true=False)
        return self._over(group, lambda score: float(bool(score.says_true)))

    def token_accuracy(self, group: Group | About) -> Metric | None:
        """Share of the tokens of what should be said that are the likeliest, given those before (zsRE's metric)."""
        if group in get_args(About):
            return self._of_facts(group, lambda score: mean(score.hits))
        if group in NEW_SHOULD_WIN:
            return self._over(group, lambda score: mean(score.hits_new), needs_true=False)
        return self._over(group, lambda score: mean(score.hits_true or ()))

    def kl(self, group: Group) -> Metric | None:
        """KL divergence of the next token's distribution from the unedited model's, in nats."""
        return self._over(group, lambda score: math.nan if score.kl is None else score.kl, needs_true=False)

    def kept(self, about: About) -> Metric | None:
        """The rate at which facts with one answer are still the likeliest answer."""
        return self._of_facts(about, lambda score: float(score.kept))

    def _over(self, group: str, measure: Callable[[PromptScore], float], *, needs_true: bool = True) -> Metric | None:
        """Mean over records of the mean over a record's prompts."""
        if group not in get_args(Group):
            raise ValueError(f"Evaluation: no group {group!r}; expected one of {', '.join(get_args(Group))}.")
        return Metric.over(
            mean([measure(score) for score in getattr(record, group)])
            if record.record.request.target_true is not None or not needs_true
            else math.nan
            for record in self.scores
        )

    def _of_facts(self, about: str, measure: Callable[[FactScore], float]) -> Metric | None:
        if about not in get_args(About):
            raise ValueError(f"Evaluation: no facts {about!r}; expected one of {', '.join(get_args(About))}.")
        return Metric.over(mean([measure(score) for score in getattr(record, about)]) for record in self.scores)

    # --- metrics by name -------------------------------------------------------------------------------

    @property
    def efficacy(self) -> Metric | None:
        """ES; see `success`."""
        return self.success("efficacy")

    @property
    def paraphrase(self) -> Metric | None:
        """PS; see `success`."""
        return self.success("paraphrase")

    @property
    def neighborhood(self) -> Metric | None:
        """NS; see `success`."""
        return self.success("neighborhood")

    @property
    def score(self) -> Metric | None:
        """S: harmonic mean of ES, PS and NS, from 0 to 1; None where one of them is absent."""
        return Metric.harmonic([self.efficacy, self.paraphrase, self.neighborhood])

    @property
    def token_score(self) -> Metric | None:
        """Harmonic mean of the token accuracies of efficacy, paraphrases and unrelated facts (the score for zsRE)."""
        groups: tuple[Group | About, ...] = ("efficacy", "paraphrase", "unrelated_facts")
        return Metric.harmonic([self.token_accuracy(group) for group in groups])

    @property
    def other_facts(self) -> Metric | None:
        """Share of the subject's other facts that are still the likeliest answer."""
        return self.kept("other_facts")

    @property
    def drift(self) -> Metric | None:
        """Perplexity of the given texts, edited over unedited: over texts, or over evaluations that were joined."""
        if len(self.drifts) == 1:
            return Metric.over(self.drifts[0].ratios)
        return Metric.over(mean(drift.ratios) for drift in self.drifts)

    def metrics(self) -> dict[str, Metric]:
        """All metrics that these records have, by their key in `MEASURES`."""
        return {key: metric for key in MEASURES if (metric := self.metric(key)) is not None}

    def metric(self, key: str) -> Metric | None:
        """One metric by its key in `MEASURES`; None where these records do not have it.

        Raises:
            ValueError: If there is no such metric.
        """
        if key not in MEASURES:
            raise ValueError(f"Evaluation.metric: no metric {key!r}; expected one of {', '.join(MEASURES)}.")
        named: dict[str, Callable[[], Metric | None]] = {
            "S": lambda: self.score,
            "TS": lambda: self.token_score,
            "OF": lambda: self.kept("other_facts"),
            "UF": lambda: self.kept("unrelated_facts"),
            "UT": lambda: self.token_accuracy("unrelated_facts"),
            "KL": lambda: self.kl("neighborhood"),
            "KL+": lambda: self.kl("distracted"),
            "GE": lambda: self._of_texts(lambda texts: texts.entropy),
            "RS": lambda: self._of_texts(lambda texts: texts.reference),
            "EP": lambda: self._of_texts(lambda texts: texts.essence_perplexity),
            "PPL": lambda: self.drift,
        }
        if key in named:
            return named[key]()
        group = "distracted" if key.endswith("+") else _GROUPS[key[0]]
        kinds = {"S": self.success, "M": self.magnitude, "A": self.accuracy, "T": self.token_accuracy}
        return kinds[key[1]](group)

    def _of_texts(self, measure: Callable[[TextScores], float | None]) -> Metric | None:
        found = (measure(record.texts) for record in self.scores)
        return Metric.over(math.nan if value is None else value for value in found)

    # --- as tables and files ---------------------------------------------------------------------------

    def to_dataframe(self, by: By = "metric", *, seed: int = 0) -> Any:
        """A pandas frame: a row for each metric (with n, standard error and 95 % interval), record, or prompt.

        Args:
            by: What a row is. By record, columns are metrics; by prompt, what was measured, as it was measured.
            seed: Of the bootstrap intervals.

        Raises:
            ImportError: If pandas is not installed.
            ValueError: For another ``by``.
        """
        if by not in get_args(By):
            raise ValueError(f"Evaluation.to_dataframe: by is {by!r}; expected one of {', '.join(get_args(By))}.")
        rows = {
            "metric": lambda: metric_rows({"": self.metrics()}, seed),
            "record": self._record_rows,
            "prompt": self._prompt_rows,
        }
        return show.frame_of_rows("Evaluation.to_dataframe", rows[by]())

    def by_record(self) -> list[dict[str, float]]:
        """The metrics of each record alone, by key; NaN where others have one that it lacks."""
        columns = {key: list(map(float, metric.per_record)) for key, metric in self.metrics().items() if key != "PPL"}
        return [{key: column[i] for key, column in columns.items()} for i in range(len(self.scores))]

    def _record_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for i, (scores, own) in enumerate(zip(self.scores, self.by_record(), strict=True)):
            request = scores.record.request
            asked = {"prompt": request.prompt, "target_new": request.target_new, "target_true": request.target_true}
            rows.append({"record": i, "name": scores.record.name, **asked, **own})
        return rows

    def _prompt_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for i, record in enumerate(self.scores):
            for group in (*get_args(Group), *get_args(About)):
                for score in cast(tuple[PromptScore | FactScore, ...], getattr(record, group)):
                    said = {
                        name: value for name, value in asdict(score).items() if not name.startswith(("hits", "tied"))
                    }
                    rows.append({"record": i, "name": record.record.name, "group": group, **said})
        return rows

    def to_markdown(self, keys: Sequence[str] | None = None, *, name: str = "edited") -> str:
        """A Markdown table with one row, in the papers' layout; see `compare` for several methods."""
        return markdown({name: self.metrics()}, keys)

    def to_latex(self, keys: Sequence[str] | None = None, *, name: str = "edited") -> str:
        """A LaTeX table (booktabs) with one row, in the papers' layout; see `compare` for several methods."""
        return latex({name: self.metrics()}, keys)

    def save(self, path: str | Path) -> None:
        """Write everything to one file, which `load` reads.

        Raises:
            ValueError: If it cannot be written.
        """
        plain: dict[str, object] = {
            "provenance": None if self.provenance is None else asdict(self.provenance),
            "scores": [{"record": asdict(each.record), **plain_scores(each)} for each in self.scores],
            "drifts": [asdict(drift) for drift in self.drifts],
            "engine": self.engine,
        }
        archive.write(path, _KIND, {}, plain)

    @classmethod
    def load(cls, path: str | Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is not such a one, or is damaged.
        """
        _, plain = archive.read(path, _KIND)
        made = plain["provenance"]
        return cls(
            scores=tuple(read_scores(read_record(each.pop("record")), each) for each in plain["scores"]),
            provenance=None if made is None else Provenance(**made),
            drifts=tuple(Drift(**{name: tuple(value) for name, value in drift.items()}) for drift in plain["drifts"]),
            engine=plain.get("engine", ""),
        )

    def __repr__(self) -> str:
        shown = [
            f"{_NAMED.get(key, key)} {show_metric(key, metric)}"
            for key in _SHOWN
            if (metric := self.metric(key)) is not None
        ]
        if self.metric("ES") is None:
            # Without true objects nothing competes; whether the new one is said is known.
            shown += [f"{key} {show_metric(key, metric)}" for key in ("EA", "PA") if (metric := self.metric(key))]
        return f"Evaluation({self._counted}: {', '.join(shown)})"

    def plot(self, ax: Any = None, *, keys: Sequence[str] | None = None, seed: int = 0) -> Any:
        """Bars of metrics of one unit, with their 95 % intervals over records.

        Args:
            ax: Axes to draw on; None for a new figure.
            keys: What to show, by their keys in `MEASURES`, all of one unit, e.g. ["KL", "KL+"] or ["PPL"]; None for
                ES, PS, NS and S, or for zsRE's rates.
            seed: Of the bootstrap intervals.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If a metric is unknown or absent, or units differ.
        """
        return plot_metrics({"": self.metrics()}, keys, ax, title=self._counted, seed=seed)

    @property
    def _counted(self) -> str:
        return counted(len(self.scores), "record")

    def _repr_html_(self) -> str:
        return metrics_html({"": self.metrics()}, self._counted)


def _won(group: Group, score: PromptScore) -> bool:
    """Whether the object that should win is likelier than the other."""
    return bool(score.prefers_new if group in NEW_SHOULD_WIN else score.prefers_true)


def _lead(group: Group, score: PromptScore) -> float:
    """By how much the object that should win is likelier than the other."""
    difference = score.prob_new - (score.prob_true or 0.0)
    return difference if group in NEW_SHOULD_WIN else -difference
