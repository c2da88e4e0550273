"""Causal traces of many facts, pooled by the role of the restored token (Meng et al. 2022, figures 2 and 3).

Pooling is the published program's: each restored token is one observation, so that facts with long subjects weigh
more in "middle subject", and a token that has two roles counts in both (the only token of a subject is its first and
its last). Effects are means of restored values minus the mean of the corrupted ones over all facts; so a role that some
facts lack, or have several times, can be off 0 where restoring does nothing, by as much as those facts differ.
"""

import math
import reprlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import forward, tokens
from tl_edit.counted import counted
from tl_edit.data import KnownFact
from tl_edit.host import Model
from tl_edit.trace.average_result import ROLES, AverageTrace
from tl_edit.trace.folder import TraceFolder
from tl_edit.trace.noise import Noise
from tl_edit.trace.plan import KINDS, Kind, Measure, Severed
from tl_edit.trace.result import CausalTrace, different_settings
from tl_edit.trace.run import causal_trace
from tl_edit.trace.settings import Engine, Settings, check_subject, check_texts, nothing_corrupted, word_around


def average_traces(traces: Sequence[CausalTrace], *, skipped: Sequence[str] = ()) -> AverageTrace:
    """Pool traces of different facts by token role.

    Raises:
        ValueError: If there are none, or they differ in their settings or do not restore all positions.
    """
    if not isinstance(cast(object, traces), list | tuple) or any(type(trace) is not CausalTrace for trace in traces):
        raise ValueError(
            f"average_traces: found {reprlib.repr(traces)}; expected a list of CausalTrace, as causal_trace gives them."
        )
    if not traces:
        raise ValueError(
            f"average_traces: no traces ({counted(len(skipped), 'fact')} skipped as unknown); expected at least one; "
            "use facts that the model knows."
        )
    first = traces[0]
    for trace in traces:
        different = different_settings(first, trace)
        if different is not None:
            name, one, other = different
            raise ValueError(
                f"average_traces: {name} is {one!r} in one trace and {other!r} in another; expected the same settings "
                "and the same model; trace again."
            )
        if trace.positions != tuple(range(len(trace.str_tokens))):
            raise ValueError(
                f"average_traces: {trace!r} restores some positions only; expected all of them (positions='all')."
            )
    observations = _pooled(traces, [trace.restored for trace in traces])
    paired = _pooled(traces, [trace.indirect_effect for trace in traces])
    totals = torch.tensor([trace.total_effect for trace in traces], dtype=torch.float64)
    return AverageTrace(
        kinds=first.kinds,
        layers=first.layers,
        restored=torch.stack([each.mean(-1) for each in observations], dim=1),
        standard_error=torch.stack([_error(each) for each in observations], dim=1),
        count=tuple(each.shape[-1] for each in observations),
        n_facts_by_role=tuple(sum(bool(roles[r]) for roles in map(_roles, traces)) for r in range(len(ROLES))),
        clean=sum(trace.clean for trace in traces) / len(traces),
        corrupted=sum(trace.corrupted for trace in traces) / len(traces),
        total_effect_error=float(totals.std()) / math.sqrt(len(traces)) if len(traces) > 1 else math.nan,
        draws_error=_draws_error(traces),
        n_facts=len(traces),
        skipped=tuple(skipped),
        measure=first.measure,
        window=first.window,
        paired_effect=torch.stack([each.mean(-1) for each in paired], dim=1),
        paired_error=torch.stack([_error(each) for each in paired], dim=1),
        settings={"severed": first.severed, "n_samples": first.n_samples, "corruption": first.corruption},
    )


def _roles(trace: CausalTrace) -> list[list[int]]:
    """Positions of each role, as the published program has them; a subject at the very end has nothing after it."""
    (start, end), length = trace.subject_span, len(trace.str_tokens)
    after = [end] if end < length else []
    middle, further = list(range(start + 1, end - 1)), list(range(end + 1, length - 1))
    return [[start], middle, [end - 1], after, further, [length - 1]]


def _pooled(traces: Sequence[CausalTrace], tables: Sequence[Tensor]) -> list[Tensor]:
    """The tables [kind layer pos ...] of all traces cut to each role and put together along the positions."""
    roles = [_roles(trace) for trace in traces]
    return [
        torch.cat([table[:, :, of_trace[r]] for table, of_trace in zip(tables, roles, strict=True)], dim=2)
        for r in range(len(ROLES))
    ]


def _error(observations: Float[Tensor, "kind layer token"]) -> Float[Tensor, "kind layer"]:
    """Standard error of the mean; NaN for fewer than two observations."""
    n = observations.shape[-1]
    return observations.std(-1) / math.sqrt(n) if n > 1 else torch.full_like(observations.sum(-1), math.nan)


def _draws_error(traces: Sequence[CausalTrace]) -> Float[Tensor, "kind role layer"]:
    """Standard error over noise draws: facts share the seed, so draw s of one fact goes with draw s of the others."""
    first = traces[0]
    shape = (len(first.kinds), len(ROLES), len(first.layers))
    if first.n_samples < 2 or any(trace.restored_samples is None for trace in traces):
        return torch.full(shape, math.nan, dtype=torch.float64)
    low = torch.stack([cast(Tensor, trace.corrupted_samples) for trace in traces]).mean(0)
    effects = [
        each.mean(2) - low for each in _pooled(traces, [cast(Tensor, trace.restored_samples) for trace in traces])
    ]
    return torch.stack([effect.std(-1) / math.sqrt(first.n_samples) for effect in effects], dim=1)


def trace_facts(
    model: Model,
    facts: Sequence[KnownFact | tuple[str, str] | tuple[str, str, str | None]],
    *,
    kinds: Sequence[Kind] = KINDS,
    layers: Sequence[int] | None = None,
    window: int | None = None,
    noise: float | Noise = 3.0,
    noise_std: float | None = None,
    n_samples: int = 10,
    seed: int = 1,
    measure: Measure = "prob",
    severed: Severed | None = None,
    prepend_bos: bool | None = None,
    engine: Engine = "auto",
    max_rows: int = 2**15,
    folder: str | Path | None = None,
    progress: bool = True,
) -> AverageTrace:
    """Trace many facts and pool them by token role.

    Args:
        model: A HookedTransformer or TransformerBridge.
        facts: (prompt, subject, answer) of each; facts whose answer is not exactly the token that the model predicts
            are skipped and counted, as in the published program. An answer of None takes every prediction.
        kinds: Which states to restore; this and what is short here is explained in `causal_trace`.
        layers: Layers to restore; None for all.
        window: Layers restored together for MLP and attention outputs.
        noise: Noise on the subject's embeddings.
        noise_std: Absolute; the paper's is ``3 * embedding_std(model, subjects)`` over the subjects of the facts.
        n_samples: Noise draws.
        seed: Seed of the noise draws, the same for all facts.
        measure: Any but "logit_diff", which needs a second answer for each fact.
        severed: States that stay corrupted while a block output is restored.
        prepend_bos: Whether prompts begin with a BOS; None for the model's own default.
        engine: "auto", or "plain" for whole runs only.
        max_rows: Bound of memory.
        folder: Where to keep each fact's trace as it is done; a run that was stopped goes on there, with equal results.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: For no facts, a folder of another run, or what `causal_trace` refuses.
    """
    settings = Settings.checked(
        model,
        kinds=kinds,
        layers=layers,
        window=window,
        noise=noise,
        noise_std=noise_std,
        n_samples=n_samples,
        seed=seed,
        measure=measure,
        severed=severed,
        engine=engine,
        max_rows=max_rows,
    )
    if measure == "logit_diff":
        raise ValueError(
            "trace_facts: a logit difference needs a second answer for each fact; expected another measure; call "
            "causal_trace with other_answer for each fact, and average_traces."
        )
    bos = tokens.resolve_bos(model, prepend_bos)
    listed = _checked_facts(model, facts, bos)
    if said := nothing_corrupted(settings.noise):
        warnings.warn(said, stacklevel=2)
    kept = None if folder is None else TraceFolder(Path(folder), model, listed, settings, bos)
    traces: list[CausalTrace] = []
    skipped: list[str] = []
    for i, fact in enumerate(tqdm(listed, desc="tracing facts", disable=not progress)):
        known = kept.find(i, fact) if kept is not None else None
        if known is None:
            known = _trace(model, fact, bos, settings)
            if kept is not None:
                kept.keep(i, known)
        if isinstance(known, CausalTrace):
            traces.append(known)
        else:
            skipped.append(fact.prompt)
    return average_traces(traces, skipped=skipped)


def _trace(model: Model, fact: KnownFact, bos: bool, settings: Settings) -> CausalTrace | str:
    """The trace; or what the model says instead."""
    said: str = model.tokenizer.decode([int(forward.next_log_probs(model, fact.prompt, prepend_bos=bos).argmax())])
    if fact.answer is not None and said.strip() != fact.answer.strip():
        return said
    given = {field.name: getattr(settings, field.name) for field in fields(settings)}
    with warnings.catch_warnings():
        for said in (".* first as a part of ", ".* so nothing is corrupted "):
            warnings.filterwarnings("ignore", message=said)  # said before the first was traced
        return causal_trace(model, fact.prompt, fact.subject, prepend_bos=bos, keep_samples=True, **given)


def _checked_facts(model: Model, facts: object, bos: bool) -> list[KnownFact]:
    """The facts, all of them looked at before the first is traced."""
    example = "('The Eiffel Tower is in the city of', 'Eiffel Tower', 'Paris')"
    given = list(cast(Iterable[object], facts)) if isinstance(facts, Iterable) and not isinstance(facts, str) else []
    if not given:
        raise ValueError(
            f"trace_facts: no facts; expected (prompt, subject, answer) tuples, e.g. [{example}]; found {facts!r}."
        )
    listed: list[KnownFact] = []
    for i, fact in enumerate(given):
        parts: list[Any] = [*fact] if isinstance(fact, tuple | list) else []
        texts = all(isinstance(part, str) for part in parts[:2])
        if len(parts) not in (2, 3) or not texts or not isinstance(parts[-1], str | None):
            raise ValueError(f"trace_facts: fact {i} is {fact!r}; expected (prompt, subject, answer), e.g. {example}.")
        known = KnownFact(*parts)
        try:
            check_texts(known.prompt, known.subject)
            asked = tokens.tokenize_prompt(model, known.prompt, known.subject, prepend_bos=bos)
            check_subject(asked, known.subject, bos)
        except ValueError as error:
            raise ValueError(f"trace_facts: fact {i}, {tuple(known)}: {error}") from None
        word = word_around(known.prompt, known.subject)
        if word is not None:
            warnings.warn(
                f"trace_facts: fact {i}: {known.subject!r} stands in {known.prompt!r} first as a part of {word!r}, and "
                "is corrupted there.",
                stacklevel=3,
            )
        listed.append(known)
    return listed
