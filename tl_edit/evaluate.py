"""Evaluation: did the edit work, and what else moved.

Names and definitions are those of the ROME and MEMIT papers' programs (Meng et al. 2022, section 3.3). For a
prompt and its two objects, the new and the true one, the probability of an object is the geometric mean over
its tokens, ``exp(-nll)`` with ``nll`` the mean negative log-likelihood per token. Per record, then averaged:

- **efficacy** (ES, EM) over the request's own prompt, **paraphrase** (PS, PM) over its paraphrases: the rate of
  p(new) > p(true), and the mean of p(new) - p(true);
- **neighborhood** (NS, NM) over prompts about other subjects with the same true object: the rate of
  p(true) > p(new), and the mean of p(true) - p(new);
- **score** (S): the harmonic mean of the three success rates.

Success is *not* token accuracy: a model may prefer the new object to the old one and say a third. The argmax
accuracies stand beside them as ``accuracy``.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.attach import as_hooks, foreign_hook
from tl_edit.data import EditRecord, as_records
from tl_edit.edit import Edit
from tl_edit.host import Model, NamedHook, Provenance

Group = Literal["efficacy", "paraphrase", "neighborhood"]


@dataclass(frozen=True)
class Metric:
    """A mean over records, each of which counts once."""

    mean: float
    n: int
    """Records that have the metric."""
    standard_error: float
    """Of the mean, over records; NaN for a single one."""

    @classmethod
    def over(cls, values: Iterable[float]) -> "Metric | None":
        """The mean of ``values``; None where there are none, which is not zero."""
        listed = list(values)
        if not listed:
            return None
        column = torch.tensor(listed, dtype=torch.float64)
        error = float(column.std() / math.sqrt(len(listed))) if len(listed) > 1 else math.nan
        return cls(float(column.mean()), len(listed), error)

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {100 * self.standard_error:.1f}"
        return f"{100 * self.mean:.1f}{error}"


@dataclass(frozen=True, kw_only=True)
class PromptScore:
    """How one prompt is answered."""

    prompt: str
    prob_new: float
    """Probability of the new object (geometric mean over its tokens)."""
    prob_true: float | None
    """Probability of the true object; None where the request does not name it."""
    says_new: bool
    """Whether each of the new object's tokens is the likeliest."""
    says_true: bool | None
    prediction: str
    """The likeliest next token."""


@dataclass(frozen=True, kw_only=True)
class OtherFactScore:
    """How another fact of the edited subject is answered."""

    prompt: str
    answer: str
    prob: float
    kept: bool
    """Whether each of the answer's tokens is the likeliest."""
    prediction: str


@dataclass(frozen=True, kw_only=True)
class RecordScores:
    """All prompts of one record."""

    record: EditRecord
    efficacy: tuple[PromptScore, ...]
    paraphrase: tuple[PromptScore, ...]
    neighborhood: tuple[PromptScore, ...]
    other_facts: tuple[OtherFactScore, ...]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evaluation:
    """Scores of every prompt of every record, and the metrics over them."""

    scores: tuple[RecordScores, ...]
    provenance: Provenance | None = None
    """The model and how it was asked; None for scores made by hand, and for joined ones that differ in it."""

    @classmethod
    def of(cls, parts: Iterable["Evaluation"]) -> "Evaluation":
        """Several evaluations as one, e.g. of edits that were made one at a time."""
        listed = list(parts)
        first = listed[0].provenance if listed else None
        return cls(
            scores=tuple(score for part in listed for score in part.scores),
            provenance=first if all(part.provenance == first for part in listed) else None,
        )

    def success(self, group: Group) -> Metric | None:
        """ES, PS or NS: the rate at which the object that should win is likelier than the other."""
        return self._over(group, lambda score: _sign(group) * _difference(score) > 0)

    def magnitude(self, group: Group) -> Metric | None:
        """EM, PM or NM: by how much, as a difference of probabilities."""
        return self._over(group, lambda score: _sign(group) * _difference(score))

    def accuracy(self, group: Group) -> Metric | None:
        """The rate at which the object that should win is the likeliest continuation of all."""
        if group == "neighborhood":
            return self._over(group, lambda score: bool(score.says_true))
        return self._over(group, lambda score: score.says_new, needs_true=False)

    def _over(self, group: Group, measure: Callable[[PromptScore], float], *, needs_true: bool = True) -> Metric | None:
        """Mean over records of the mean over a record's prompts."""
        if group not in get_args(Group):
            raise ValueError(f"Evaluation: no group {group!r}; expected one of {', '.join(get_args(Group))}.")
        rows = [
            [float(measure(score)) for score in getattr(record, group)]
            for record in self.scores
            if record.record.request.target_true is not None or not needs_true
        ]
        return Metric.over(sum(row) / len(row) for row in rows if row)

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
    def score(self) -> float | None:
        """S: harmonic mean of ES, PS and NS, from 0 to 1; None where one of them is absent."""
        rates = [metric.mean for metric in (self.efficacy, self.paraphrase, self.neighborhood) if metric is not None]
        if len(rates) < 3:
            return None
        return 0.0 if min(rates) == 0 else 3 / sum(1 / rate for rate in rates)

    @property
    def other_facts(self) -> Metric | None:
        """Share of the subject's other facts that are still the likeliest answer."""
        rows = [[float(score.kept) for score in record.other_facts] for record in self.scores]
        return Metric.over(sum(row) / len(row) for row in rows if row)

    def __repr__(self) -> str:
        parts = {"ES": self.efficacy, "PS": self.paraphrase, "NS": self.neighborhood, "other facts": self.other_facts}
        shown = [f"{name} {metric}" for name, metric in parts.items() if metric is not None]
        if self.score is not None:
            shown.insert(0, f"S {100 * self.score:.1f}")
        return f"Evaluation({len(self.scores)} records: {', '.join(shown)})"


def _sign(group: Group) -> int:
    """+1 where the new object should win, -1 where the true one should stay."""
    return -1 if group == "neighborhood" else 1


def _difference(score: PromptScore) -> float:
    """p(new) - p(true)."""
    return score.prob_new - (score.prob_true or 0.0)


def evaluate(
    model: Model,
    records: EditRecord | Sequence[EditRecord],
    *,
    edit: Edit | None = None,
    hooks: Sequence[NamedHook] = (),
    prepend_bos: bool | None = None,
    batch_size: int = 128,
) -> Evaluation:
    """Score ``records`` on the model as it is, or with ``edit`` or ``hooks`` switched on for the duration.

    Args:
        model: A HookedTransformer or TransformerBridge.
        records: What to ask. Edits made one at a time are evaluated one at a time; join with `Evaluation.of`.
        edit: An edit to switch on; one that is applied already is left on.
        hooks: Hooks of your own for all passes, as (name, function) pairs, e.g. ``edit.hooks(model, scale=0.5)``. They
            see batches of prompts of one length, without padding, as hooks do that are on the model already; each
            prompt is followed by all tokens of an object but the last.
        prepend_bos: Whether prompts begin with a BOS; None for the model's own default, with a warning if ``edit`` was
            computed the other way.
        batch_size: Rows per forward pass.

    Raises:
        ValueError: For no records, targets that cannot be tokenised, hooks that are no pairs or have an unknown name,
            active dropout, probabilities that are not finite.
    """
    operation = "evaluate"
    listed = as_records(records, operation)
    ready = as_hooks(hooks, operation)
    tokens.check_rows(batch_size, operation, default=128)
    if edit is not None and not isinstance(cast(object, edit), Edit):
        raise ValueError(
            f"{operation}: edit is of type {type(edit).__name__}; expected what rome_edit(...) returns, or None for "
            "the model as it is."
        )
    host.check_ready(model, operation)
    bos = tokens.resolve_bos(model, prepend_bos)
    if edit is not None and prepend_bos is None and edit.provenance.prepend_bos != bos:
        made, now = ("with" if flag else "without" for flag in (edit.provenance.prepend_bos, bos))
        warnings.warn(
            f"{operation}: the edit was computed {made} a BOS and is evaluated {now} one, the model's default; "
            f"pass prepend_bos={not bos} to ask as it was computed, or prepend_bos={bos} if this is meant.",
            stacklevel=2,
        )
    sheet = Sheet(model, listed, bos)
    on = nullcontext() if edit is None or edit.is_applied(model) else edit.on(model)
    with on:
        scores = sheet.scores(ready, batch_size, unpadded=bool(ready))
    return Evaluation(scores=scores, provenance=host.provenance(model, prepend_bos=bos))


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One prompt with one answer, as a row of a batch."""

    prompt: str
    answer: str
    before: Int[Tensor, " _"]
    """Tokens of the prompt."""
    target: Int[Tensor, " _"]
    """Tokens of the answer."""

    @classmethod
    def of(cls, model: Model, prompt: str, answer: str, *, prepend_bos: bool) -> "Question":
        """Tokenised; ValueError as `tokens.target_tokens` raises it."""
        return cls(
            prompt=prompt,
            answer=answer,
            before=tokens.encode(model, prompt, prepend_bos=prepend_bos),
            target=tokens.target_tokens(model, prompt, answer, prepend_bos=prepend_bos),
        )


@dataclass(frozen=True)
class Opinion:
    """What the model thinks of a question."""

    prob: float
    """Of the answer: geometric mean over its tokens."""
    says: bool
    """Whether each of the answer's tokens is the likeliest."""
    predicted: int
    """The likeliest next token."""


@torch.no_grad()
def opinions(model: Model, questions: Sequence[Question], hooks: Sequence[NamedHook] = ()) -> list[Opinion]:
    """What the model thinks of each question, in one pass with ``hooks`` attached; a row of the batch is a question."""
    batch = tokens.pad(model, [torch.cat([question.before, question.target[:-1]]) for question in questions])
    logits = forward.logits(model, batch, hooks)
    found: list[Opinion] = []
    for row, question in zip(logits, questions, strict=True):
        start = len(question.before) - 1
        log_probs = forward.log_probs(model, row[start : start + len(question.target)]).cpu()
        likeliest = log_probs.argmax(dim=-1)
        found.append(
            Opinion(
                prob=float(log_probs.gather(-1, question.target[:, None]).mean().exp()),
                says=bool((likeliest == question.target).all()),
                predicted=int(likeliest[0]),
            )
        )
    return found


def batches(model: Model, questions: Sequence[Question], size: int, *, unpadded: bool = False) -> Iterable[list[int]]:
    """Which questions run together: where the model carries hooks of the user's, those of one length.

    A hook may count positions from the end, where padding would be.
    """
    lengths = [len(question.before) + len(question.target) - 1 for question in questions]
    return tokens.chunks(lengths, size, one_length=unpadded or foreign_hook(model) is not None)


class Sheet:
    """All questions of some records, tokenised once, to be asked once or several times."""

    def __init__(self, model: Model, records: Sequence[EditRecord], prepend_bos: bool) -> None:
        self.model, self.records = model, records
        self.questions = [
            Question.of(model, prompt, answer, prepend_bos=prepend_bos)
            for record in records
            for prompt, answer in _questions(record)
        ]

    def scores(
        self, hooks: Sequence[NamedHook], batch_size: int, *, unpadded: bool = False
    ) -> tuple[RecordScores, ...]:
        """Ask them of the model as it is now, with ``hooks`` attached."""
        found: dict[int, Opinion] = {}
        for chunk in batches(self.model, self.questions, batch_size, unpadded=unpadded):
            found |= zip(chunk, opinions(self.model, [self.questions[i] for i in chunk], hooks), strict=True)
        answered = iter([found[i] for i in range(len(self.questions))])
        return tuple(_collect(self.model, record, answered) for record in self.records)


def _questions(record: EditRecord) -> list[tuple[str, str]]:
    """The (prompt, answer) pairs of a record, in the order in which `_collect` takes them back."""
    request = record.request
    targets = [target for target in (request.target_new, request.target_true) if target is not None]
    prompts = (request.prompt, *record.paraphrase_prompts, *record.neighborhood_prompts)
    return [*((prompt, target) for prompt in prompts for target in targets), *record.other_facts]


def _collect(model: Model, record: EditRecord, answered: Iterator[Opinion]) -> RecordScores:
    """Take the opinions on the record's questions off the iterator and put them in their groups."""
    has_true = record.request.target_true is not None

    def score(prompt: str) -> PromptScore:
        new = next(answered)
        true = next(answered) if has_true else None
        return PromptScore(
            prompt=prompt,
            prob_new=new.prob,
            prob_true=true.prob if true else None,
            says_new=new.says,
            says_true=true.says if true else None,
            prediction=model.tokenizer.decode([new.predicted]),
        )

    def other(prompt: str, answer: str) -> OtherFactScore:
        asked = next(answered)
        prediction = model.tokenizer.decode([asked.predicted])
        return OtherFactScore(prompt=prompt, answer=answer, prob=asked.prob, kept=asked.says, prediction=prediction)

    return RecordScores(
        record=record,
        efficacy=(score(record.request.prompt),),
        paraphrase=tuple(score(prompt) for prompt in record.paraphrase_prompts),
        neighborhood=tuple(score(prompt) for prompt in record.neighborhood_prompts),
        other_facts=tuple(other(prompt, answer) for prompt, answer in record.other_facts),
    )
