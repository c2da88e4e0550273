"""Dose and response: what an edit does as it is scaled up and down, through hooks, without writing a weight.

An edit is a change of weights that can be had at any strength: ``scale * left @ right``. Over the scale one sees how
much of it the fact needs, where it begins to cost, and whether a failed edit was too weak or went elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import attach, forward, host, show, tokens
from tl_edit.counted import counted
from tl_edit.data import EditRecord, as_records
from tl_edit.edit import Edit
from tl_edit.effects.checked import check_edit, warn_of_subject
from tl_edit.evaluate import Evaluation, Group, Metric, Sheet
from tl_edit.host import Model, NamedHook, Provenance

MOST_SCALE = 1e6
SHORT: dict[Group, str] = {"efficacy": "ES", "paraphrase": "PS", "neighborhood": "NS"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DoseResponse:
    """An edit at several scales: how the records are answered, and how far other texts are moved."""

    edit: str
    scales: tuple[float, ...]
    """As they were asked for; 1 is the edit itself, 0 the model without it."""
    evaluations: tuple[Evaluation, ...]
    """By scale."""
    kl: tuple[float, ...] | None
    """By scale: Kullback-Leibler divergence of the next-token distribution in nats, from the unedited model's to the
    scaled one's, ``sum_v p_base(v) log(p_base(v) / p_scaled(v))``, mean over all tokens of ``texts``, a BOS among them;
    None without texts."""
    perplexity: tuple[float, ...] | None
    """By scale: of ``texts``, the exponential of the mean negative log-likelihood per predicted token; None without
    texts, or where they have no token to predict."""
    texts: tuple[str, ...]
    """Texts that should not change."""
    provenance: Provenance

    def success(self, group: Group) -> tuple[Metric | None, ...]:
        """ES, PS or NS by scale; see `Evaluation.success`."""
        return tuple(evaluation.success(group) for evaluation in self.evaluations)

    def magnitude(self, group: Group) -> tuple[Metric | None, ...]:
        """EM, PM or NM by scale; see `Evaluation.magnitude`."""
        return tuple(evaluation.magnitude(group) for evaluation in self.evaluations)

    @property
    def prob_new(self) -> tuple[float, ...]:
        """By scale: probability of the new object after the requests' prompts, mean over records."""
        found = [[score.prob_new for each in one.scores for score in each.efficacy] for one in self.evaluations]
        return tuple(sum(values) / len(values) for values in found)

    @property
    def other_facts(self) -> tuple[Metric | None, ...]:
        """By scale: share of the subjects' other facts that are kept; see `Evaluation.other_facts`."""
        return tuple(evaluation.other_facts for evaluation in self.evaluations)

    def to_dataframe(self) -> Any:
        """A pandas frame: one row for each scale, rates from 0 to 1; what could not be measured is NaN.

        Raises:
            ImportError: If pandas is not installed.
        """
        columns: dict[str, Tensor] = {"prob_new": _column(self.prob_new)}
        for group in SHORT:
            success = self.success(group)
            columns[group] = _column([metric and metric.mean for metric in success])
            columns[f"{group}_error"] = _column([metric and metric.standard_error for metric in success])
            columns[f"{group}_magnitude"] = _column([metric and metric.mean for metric in self.magnitude(group)])
        columns["other_facts"] = _column([metric and metric.mean for metric in self.other_facts])
        columns["score"] = _column([evaluation.score and evaluation.score.mean for evaluation in self.evaluations])
        for name, values in (("kl", self.kl), ("perplexity", self.perplexity)):
            columns[name] = _column(values or [None] * len(self.scales))
        return show.frame("DoseResponse.to_dataframe", {"scale": self.scales}, columns)

    def plot(self, ax: Any = None) -> Any:
        """ES, PS and NS over the scale with 95 % intervals over records, and on an axis of its own the divergence.

        Those that were measured are shown; of a single record there is no interval.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        lines = {SHORT[group]: self.success(group) for group in SHORT if any(self.success(group))}
        ends = {
            name: [metric.interval() if metric else (math.nan, math.nan) for metric in each]
            for name, each in lines.items()
        }
        return show.plot_lines(
            torch.tensor(self.scales, dtype=torch.float64),
            {name: 100 * _column([metric and metric.mean for metric in line]) for name, line in lines.items()},
            ax,
            xlabel="scale of the edit",
            ylabel="success (%)",
            title=self.edit,
            right=None if self.kl is None else {"KL": _column(self.kl)},
            right_label="KL from the unedited model (nats per token)",
            bands={
                name: (100 * _column([low for low, _ in each]), 100 * _column([high for _, high in each]))
                for name, each in ends.items()
            },
        )

    def __repr__(self) -> str:
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        parts = [f"p(new) {_arrows([f'{value:.3f}' for value in self.prob_new])}"]
        for group, name in SHORT.items():
            if any(self.success(group)):
                parts.append(f"{name} {_arrows([_percent(metric) for metric in self.success(group)])}")
        if self.kl is not None:
            parts.append(f"KL {_arrows([f'{value:.3g}' for value in self.kl])}")
        return f"DoseResponse({self.edit} at scales {scales}: {', '.join(parts)})"

    def _repr_html_(self) -> str:
        columns = ["scale", "p(new)", *(name for group, name in SHORT.items() if any(self.success(group)))]
        measured = [("KL (nats)", self.kl), ("perplexity", self.perplexity)]
        columns += ["other facts"] * any(self.other_facts) + [name for name, values in measured if values is not None]
        rows: list[tuple[str, ...]] = []
        for i, (scale, evaluation) in enumerate(zip(self.scales, self.evaluations, strict=True)):
            rates = [_percent(evaluation.success(group)) for group in SHORT if any(self.success(group))]
            rates += [_percent(self.other_facts[i])] * any(self.other_facts)
            rows.append(
                (
                    f"{scale:g}",
                    f"{self.prob_new[i]:.3f}",
                    *rates,
                    *(f"{values[i]:.4g}" for _, values in measured if values is not None),
                )
            )
        others = f", KL and perplexity over {counted(len(self.texts), 'text')}" if self.texts else ""
        asked = counted(len(self.evaluations[0].scores), "record")
        return show.table(rows, columns=columns, heading=f"{self.edit}: {asked}, success in %{others}")


def _column(values: Sequence[float | None]) -> Float[Tensor, " point"]:
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def _percent(metric: Metric | None) -> str:
    return "–" if metric is None else metric.percent()


def _arrows(values: Sequence[object]) -> str:
    """The first and the last of several."""
    return f"{values[0]} → {values[-1]}" if len(values) > 1 else f"{values[0]}"


def dose_response(
    model: Model,
    edit: Edit,
    records: EditRecord | Sequence[EditRecord],
    scales: Sequence[float | int] = (0, 0.25, 0.5, 0.75, 1, 1.5, 2),
    *,
    texts: Sequence[str] | None = None,
    prepend_bos: bool | None = None,
    batch_size: int = 128,
    allow_mismatch: bool = False,
    progress: bool = True,
) -> DoseResponse:
    """Evaluate an edit at several scales, and how far it moves other texts; by hooks, no weight is written.

    Args:
        model: The model that the edit was computed on, without the edit. Other edits that are applied stay on, and are
            part of what is called unedited here.
        edit: What is scaled. MEMIT's edits of several layers are scaled in all of them.
        records: What to ask; those that the edit writes.
        scales: Finite numbers, each once: 1 is the edit, 0 none (exactly the model's own numbers), negative the
            opposite.
        texts: Texts that should not change, for the divergence and the perplexity; None for the records' neighborhood
            prompts with their true object behind, each once; () for none.
        prepend_bos: Whether prompts and texts begin with a BOS; None for what the edit was computed with.
        batch_size: Rows per forward pass. Of a batch of texts the logits of two passes are kept at a time.
        allow_mismatch: Whether the model may have other weights than the edit was computed on.
        progress: Whether to show progress bars.

    Returns:
        By scale: an `Evaluation` of the records (``evaluations``; rates through ``success``, ``magnitude``),
        ``prob_new``, ``kl`` (nats per token) and ``perplexity`` of the texts.

    Warns:
        UserWarning: If no record is about a subject of the edit, or an edit of the same facts is on.

    Raises:
        ValueError: If the edit is applied already or was computed on other weights; for scales that are none, no finite
            numbers or repeated; for no records; and what `evaluate` raises.
    """
    operation = "dose_response"
    listed = as_records(records, operation)
    numbers = _checked_scales(scales, operation)
    tokens.check_rows(batch_size, operation, default=128)
    others = _checked_texts(texts, operation)
    others = _neighborhoods(listed) if others is None else others
    host.check_ready(model, operation)
    check_edit(model, edit, operation, "its scale is switched by hooks", allow_mismatch=allow_mismatch)
    if edit.requests and not {record.request.subject for record in listed} & {each.subject for each in edit.requests}:
        warn_of_subject(operation, "the records", "the edit", edit, stacklevel=2)
    bos = tokens.resolve_bos(model, edit.provenance.prepend_bos if prepend_bos is None else prepend_bos)
    # Nothing at 0: behind a norm (Gemma 2) even adding zero rounds.
    hooks = [edit.hooks(model, scale=scale, allow_mismatch=True) if scale else [] for scale in numbers]
    rows = sorted((tokens.encode(model, text, prepend_bos=bos) for text in others), key=len)
    sheet = Sheet(model, listed, bos)
    made = host.provenance(model, prepend_bos=bos)
    with forward.memory_advice(operation, "batch_size", batch_size):
        evaluations = [
            Evaluation(scores=sheet.scores(each, batch_size), provenance=made, engine=sheet.engine)
            for each in tqdm(hooks, desc="evaluating scales", disable=not progress)
        ]
        sums = _Sums(len(numbers))
        # Hooks of the user's may count from the end, where padding would be.
        one_length = attach.foreign_hook(model) is not None
        chunks = list(forward.batches(model, [len(row) for row in rows], batch_size, one_length=one_length))
        for chunk in tqdm(chunks, desc="reading texts", disable=not progress):
            sums.add(model, tokens.pad(model, [rows[i] for i in chunk]), hooks)
    return DoseResponse(
        edit=repr(edit),
        scales=numbers,
        evaluations=tuple(evaluations),
        kl=sums.kl,
        perplexity=sums.perplexity,
        texts=others,
        provenance=made,
    )


class _Sums:
    """Divergences and likelihoods of the texts so far, by scale."""

    def __init__(self, n_scales: int) -> None:
        self.divergence, self.nll = [0.0] * n_scales, [0.0] * n_scales
        self.n_tokens = self.n_predicted = 0

    @torch.no_grad()
    def add(self, model: Model, batch: tokens.TokenBatch, hooks: Sequence[Sequence[NamedHook]]) -> None:
        """Run one batch of texts: once as the model is, once for each scale."""
        base = forward.logits(model, batch)
        self.n_tokens += sum(batch.lengths)
        self.n_predicted += sum(batch.lengths) - len(batch.lengths)
        for s, each in enumerate(hooks):
            scaled = forward.logits(model, batch, each) if each else base
            # Row by row: log-probabilities of a whole batch, in float64, are much larger than its logits.
            for row, length in enumerate(batch.lengths):
                log_q = _log_probs(model, scaled[row, :length])
                if each:
                    self.divergence[s] += _divergence(_log_probs(model, base[row, :length]), log_q)
                following = batch.tokens[row, 1:length, None].to(log_q.device)
                self.nll[s] -= float(log_q[:-1].gather(-1, following).sum())

    @property
    def kl(self) -> tuple[float, ...] | None:
        """Mean per token."""
        return tuple(total / self.n_tokens for total in self.divergence) if self.n_tokens else None

    @property
    def perplexity(self) -> tuple[float, ...] | None:
        """Of what is predicted: all tokens but the first of each text."""
        if not self.n_predicted:
            return None
        # Not math.exp, which raises where the model is ruined.
        means = torch.tensor(self.nll, dtype=torch.float64) / self.n_predicted
        return tuple(map(float, means.exp()))


def _log_probs(model: Model, logits: Float[Tensor, "pos d_vocab"]) -> Float[Tensor, "pos d_vocab"]:
    """In float64 where the device has it: small divergences are differences of nearly equal numbers."""
    return forward.log_probs(model, logits if logits.device.type == "mps" else logits.double())


def _divergence(log_p: Float[Tensor, "pos d_vocab"], log_q: Float[Tensor, "pos d_vocab"]) -> float:
    """KL(p || q) in nats, summed over positions; a token that p never says adds nothing."""
    p = log_p.exp()
    return float(torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).to("cpu", torch.float64).sum())


def _neighborhoods(records: Sequence[EditRecord]) -> tuple[str, ...]:
    """The neighborhood prompts of all records with their true object behind, each once."""
    return tuple(
        dict.fromkeys(
            f"{prompt} {record.request.target_true}"
            for record in records
            if record.request.target_true is not None
            for prompt in record.neighborhood_prompts
        )
    )


def _checked_scales(scales: object, operation: str) -> tuple[float, ...]:
    """As floats, in their order.

    Raises:
        ValueError: If there are none, one is no finite number, or one stands there twice.
    """
    example = "write e.g. scales=(0, 0.5, 1)"
    # Arrays of numpy and torch, too.
    given: object = cast(Any, scales).tolist() if hasattr(scales, "tolist") else scales
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ValueError(
            f"{operation}: scales is {scales!r} of type {type(scales).__name__}; expected several numbers; {example}."
        )
    listed = list(cast(Sequence[object], given))
    numbers: list[float] = []
    for scale in listed:
        # What is beyond it does not fit the factors of any dtype.
        if isinstance(scale, bool) or not isinstance(scale, Real) or not abs(cast(float, scale)) <= MOST_SCALE:
            raise ValueError(
                f"{operation}: scales holds {scale!r}; expected numbers of at most {MOST_SCALE:g} in size; {example}."
            )
        numbers.append(float(scale))
    if not numbers or len(set(numbers)) < len(numbers):
        found = "has a number twice" if numbers else "is empty"
        raise ValueError(f"{operation}: scales {listed} {found}; expected numbers, each once; {example}.")
    return tuple(numbers)


def _checked_texts(texts: object, operation: str) -> tuple[str, ...] | None:
    """Texts as a tuple; None is None.

    Raises:
        ValueError: If they are one string, no list, or hold something else than strings.
    """
    if texts is None:
        return None
    if isinstance(texts, str):
        raise ValueError(f"{operation}: texts is one string; expected several; write [{texts!r}].")
    if not isinstance(texts, Sequence):
        raise ValueError(
            f"{operation}: texts is of type {type(texts).__name__}; expected a list of strings; write () for none."
        )
    listed = tuple(cast(Sequence[object], texts))
    for text in listed:
        if not isinstance(text, str):
            raise ValueError(
                f"{operation}: texts holds {text!r} of type {type(text).__name__}; expected strings; write e.g. "
                "['The Louvre is in Paris.']."
            )
    return cast(tuple[str, ...], listed)
