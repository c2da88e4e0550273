"""`causal_trace`: one fact, every layer and position."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.blocks import Blocks, CannotCallBlocksError, blocks_of
from tl_edit.forward import at_least_float32
from tl_edit.host import Model
from tl_edit.tokens import Prompt, TokenBatch
from tl_edit.trace.noise import Noise
from tl_edit.trace.plain import plain
from tl_edit.trace.plan import (
    KINDS,
    MEASURES,
    Branch,
    Corruption,
    Kind,
    Measure,
    Readings,
    Readout,
    Severed,
    Task,
)
from tl_edit.trace.result import CausalTrace
from tl_edit.trace.wavefront import wavefront

Where = Literal["all", "subject", "subject_last", "last"]
Engine = Literal["auto", "plain"]
OPERATION = "causal_trace"


@dataclass(frozen=True, eq=False)
class _Question:
    """The prompt, its answer, and what the clean run says."""

    prompt: Prompt
    target: Int[Tensor, " pos"] | None
    """Tokens of the answer; None for what the clean run predicts."""
    other: int | None
    batch: TokenBatch
    """The prompt and all but the last token of the answer, one row."""


@torch.no_grad()
def causal_trace(
    model: Model,
    prompt: str,
    subject: str,
    *,
    answer: str | None = None,
    other_answer: str | None = None,
    kinds: Sequence[Kind] = KINDS,
    layers: Sequence[int] | None = None,
    positions: Where | Sequence[int] = "all",
    window: int | None = None,
    noise: float | Noise = 3.0,
    noise_std: float | None = None,
    counterfactual: str | None = None,
    n_samples: int = 10,
    seed: int = 1,
    measure: Measure = "prob",
    severed: Severed | None = None,
    keep_samples: bool = False,
    prepend_bos: bool | None = None,
    engine: Engine = "auto",
    max_rows: int = 2**15,
    progress: bool = False,
) -> CausalTrace:
    """Trace one fact: which states, put back into a corrupted run, bring the answer back (Meng et al. 2022, 2.1).

    Blocks are computed only where a restored run can differ from the corrupted one, all runs together: with T
    positions of which T - b follow the first corrupted one, L layers and S samples, about
    ``S (T - b)^2 / 2 * L^2 / 2`` positions of a block for "resid_post" (and the same, times up to 2, for each other
    kind), where plain runs take ``S T^2 L^2``. Where hooks of yours are on the model, or its blocks cannot be called
    alone, plain runs are made instead; ``engine`` of the result says so and why.

    Args:
        model: A HookedTransformer or TransformerBridge; applied edits and your own hooks count.
        prompt: Text whose next token is the answer.
        subject: The subject as it stands in the prompt (first occurrence).
        answer: The answer to follow, of one or more tokens (their joint probability, teacher-forced); None for the
            token that the clean run predicts. One that the model does not predict is traced with a warning.
        other_answer: The second answer of ``measure="logit_diff"``, one token.
        kinds: Which states to restore: block outputs, outputs of MLPs or of attention.
        layers: Layers to restore, counted from 0; None for all.
        positions: Positions to restore, BOS counted: "all", "subject", "subject_last", "last", or a list.
        window: Layers restored together for MLP and attention outputs, [l - window // 2, l + ceil(window / 2)); None
            for about a fifth of the depth (the paper's 10 of GPT-2 XL's 48). Even windows reach one layer further down.
        noise: Gaussian noise as a multiple of the standard deviation of the subject's own embeddings, or a `Noise`.
            The paper takes 3 times that over many subjects: ``noise_std=3 * embedding_std(model, subjects)``.
        noise_std: Absolute standard deviation; overrides ``noise``.
        counterfactual: A prompt of as many tokens to corrupt with, instead of noise (symmetric token replacement,
            arXiv 2309.16042); there is one sample then.
        n_samples: Noise draws; all restored runs share them.
        seed: Seed of the draws, which are the published program's for seed 1.
        measure: What is compared: "prob"; "log_prob"; "logit_diff" to ``other_answer``; "kl", minus the divergence
            from the clean next-token distribution, in nats. ``*_prob`` of the result are probabilities always.
        severed: Keep MLP or attention outputs at the restored position as they are in the corrupted run, in all later
            layers, while a block output is restored (the paper's figure 3); for kinds=("resid_post",).
        keep_samples: Whether to keep the value of every noise draw.
        prepend_bos: Whether the prompt begins with a BOS; None for the model's own default.
        engine: "auto", or "plain" for whole runs only.
        max_rows: Bound of memory: positions of the residual stream held at a time, beside what all runs share (about
            six states for each layer, position and sample). The result does not depend on it.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the subject is not in the prompt or is all of it, an argument cannot work, or activations are not
            finite. Model and hooks stay as they are.
    """
    host.check_ready(model, OPERATION)
    _check_texts(
        prompt=prompt, subject=subject, answer=answer, other_answer=other_answer, counterfactual=counterfactual
    )
    depth = host.n_layers(model)
    kinds = _checked_kinds(kinds, severed)
    window = max(1, round(depth / 5)) if window is None else window
    _check_numbers(depth, window=window, n_samples=n_samples, max_rows=max_rows)
    _check_choices(measure=measure, engine=engine, other_answer=other_answer)
    listed = _layers(depth, layers)
    bos = tokens.resolve_bos(model, prepend_bos)
    asked = tokens.tokenize_prompt(model, prompt, subject, prepend_bos=bos)
    _check_subject(asked, subject, bos)
    chosen = _positions(asked, positions)

    question = _ask(model, asked, answer, other_answer, bos)
    spoiler, noise_level = _corruption(model, question, noise, noise_std, counterfactual, n_samples, seed, bos)
    blocks, reason = _blocks(model, question, spoiler, engine)
    logits = forward.logits(model, question.batch) if blocks is None else blocks.ordinary.logits
    readout, rank = _readout(question, logits, measure)
    if answer is not None and rank > 1:
        said = model.tokenizer.decode([int(readout.clean_log_probs.argmax())])
        warnings.warn(
            f"{OPERATION}: the model does not predict {answer!r} after {prompt!r}; it ranks {rank}, and the model says "
            f"{said!r}. Traced all the same.",
            stacklevel=3,  # no_grad's wrapper is one
        )
    branches: dict[tuple[Kind, int], Branch] = {
        (kind, layer): Branch.around(kind, layer, window, depth) for kind in kinds for layer in listed
    }
    task = Task(
        model=model,
        batch=question.batch,
        corruption=spoiler,
        readout=readout,
        branches=tuple(dict.fromkeys(branches.values())),
        positions=tuple(pos for pos in chosen if pos >= spoiler.first),
        severed=severed,
        max_rows=max_rows,
        progress=progress,
    )
    readings = plain(task) if blocks is None else wavefront(task, blocks)
    clean = readout(logits[:, -readout.length :])[0]
    restored = _table(task, readings, branches, kinds, listed, chosen)
    _check_finite(clean, readings.corrupted, restored)
    corrupted = readings.corrupted.mean(0)
    value = readout.measures.index(measure)
    return CausalTrace(
        prompt=prompt,
        subject=subject,
        answer=model.tokenizer.decode(readout.target.tolist()),
        other_answer=other_answer,
        str_tokens=asked.str_tokens,
        subject_span=asked.subject_span,
        kinds=tuple(kinds),
        layers=tuple(listed),
        positions=tuple(chosen),
        clean_prob=float(clean[0]),
        corrupted_prob=float(corrupted[0]),
        restored_prob=restored[..., 0].mean(-1),
        measure=measure,
        clean=float(clean[value]),
        corrupted=float(corrupted[value]),
        restored=restored[..., value].mean(-1),
        corrupted_samples=readings.corrupted[:, value].clone() if keep_samples else None,
        restored_samples=restored[..., value].clone() if keep_samples else None,
        rank=rank,
        window=window,
        severed=severed,
        corruption=f"counterfactual {counterfactual!r}" if counterfactual else repr(_as_noise(noise, noise_std)),
        noise_std=noise_level,
        n_samples=spoiler.samples,
        engine=f"blocks ({blocks.description})" if blocks is not None else f"plain hooks ({reason})",
        provenance=host.provenance(model, prepend_bos=bos, seed=seed),
    )


# --- what is asked -------------------------------------------------------------------------------------


def _ask(model: Model, asked: Prompt, answer: str | None, other: str | None, bos: bool) -> _Question:
    """The prompt with the answer's tokens."""
    target = None if answer is None else tokens.target_tokens(model, asked.text, answer, prepend_bos=bos)
    row = asked.tokens if target is None else torch.cat([asked.tokens, target[:-1]])
    context, length = int(model.cfg.n_ctx), len(row)
    if length > context:
        raise ValueError(
            f"{OPERATION}: prompt and answer are {length} tokens; {host.model_name(model)} has a context of {context}; "
            "shorten the prompt."
        )
    second = None
    if other is not None:
        others = tokens.target_tokens(model, asked.text, other, prepend_bos=bos)
        longest = max(len(others), 1 if target is None else len(target))
        if longest > 1:
            raise ValueError(
                f"{OPERATION}: an answer of {longest} tokens; a logit difference is between two single tokens; choose "
                "other objects, or another measure."
            )
        second = int(others[0])
    return _Question(asked, target, second, tokens.pad(model, [row]))


def _readout(question: _Question, logits: Tensor, measure: Measure) -> tuple[Readout, int]:
    """What to read, and the rank of the answer's first token in the clean run (1 is the prediction)."""
    log_probs = torch.log_softmax(at_least_float32(logits[0, len(question.prompt.tokens) - 1]), dim=-1).cpu()
    if not torch.isfinite(log_probs).all():
        raise ValueError(_not_finite("the clean run"))
    target = log_probs.argmax()[None] if question.target is None else question.target
    if question.other == int(target[0]):
        raise ValueError(f"{OPERATION}: the answer and other_answer are the same token; expected two different ones.")
    rank = 1 + int((log_probs > log_probs[target[0]]).sum())
    measures: tuple[Measure, ...] = ("prob",) if measure == "prob" else ("prob", measure)
    return Readout(target, question.other, log_probs, measures), rank


def _as_noise(noise: float | Noise, std: float | None) -> Noise:
    if isinstance(noise, Noise):
        return noise
    return Noise.gaussian(noise, std=std)


def _corruption(
    model: Model,
    question: _Question,
    noise: float | Noise,
    noise_std: float | None,
    counterfactual: str | None,
    n_samples: int,
    seed: int,
    bos: bool,
) -> tuple[Corruption, float | None]:
    """The corrupted runs, and the standard deviation of independent Gaussian noise."""
    span = question.prompt.subject_span
    row = question.batch.tokens[0].cpu()
    if counterfactual is not None:
        other = tokens.encode(model, counterfactual, prepend_bos=bos)
        length = len(question.prompt.tokens)
        if len(other) != length:
            raise ValueError(
                f"{OPERATION}: the counterfactual {counterfactual!r} is {len(other)} tokens and the prompt {length}; "
                "expected as many; choose a subject with as many tokens."
            )
        differs = (other != question.prompt.tokens).nonzero()
        if not len(differs):
            raise ValueError(f"{OPERATION}: the counterfactual is the prompt itself; expected another subject.")
        tokens_row = torch.cat([other, row[length:]])
        return Corruption(tokens.pad(model, [tokens_row]), (), int(differs[0])), None
    if isinstance(noise, Noise) and noise_std is not None:
        raise ValueError(f"{OPERATION}: both a Noise and noise_std; expected one; write Noise.gaussian(std=...).")
    effective = _as_noise(noise, noise_std)
    embedded = forward.activations(model, question.batch, [host.EMBED])[host.EMBED]
    subject = embedded[0, slice(*span)].to("cpu", torch.float64)
    own_std = float(subject.std())
    draws = effective.draws((n_samples, *subject.shape), seed=seed, own_std=own_std)
    batch = tokens.pad(model, [row] * n_samples)
    level = effective.scale(own_std) if effective.distribution == "gaussian" else None
    return Corruption(batch, ((host.EMBED, effective.hook(span, draws)),), span[0]), level


def _blocks(model: Model, question: _Question, corruption: Corruption, engine: Engine) -> tuple[Blocks | None, str]:
    """The blocks of the model; or None, and why."""
    if engine == "plain":
        return None, "asked for"
    try:
        return blocks_of(model, question.batch, corruption.first), ""
    except CannotCallBlocksError as error:
        return None, str(error)


def _table(
    task: Task,
    readings: Readings,
    branches: dict[tuple[Kind, int], Branch],
    kinds: Sequence[Kind],
    layers: Sequence[int],
    positions: Sequence[int],
) -> Tensor:
    """Restored values [kind layer pos sample measure]; before the first corrupted position nothing has an effect."""
    row = {branch: i for i, branch in enumerate(task.branches)}
    column = {pos: i for i, pos in enumerate(task.positions)}
    shape = (len(kinds), len(layers), len(positions), *readings.corrupted.shape)
    table = readings.corrupted.expand(shape).clone()
    for k, kind in enumerate(kinds):
        for i, layer in enumerate(layers):
            for p, pos in enumerate(positions):
                if pos in column:
                    table[k, i, p] = readings.restored[row[branches[kind, layer]], column[pos]]
    return table


# --- checks --------------------------------------------------------------------------------------------


def _checked_kinds(kinds: Sequence[Kind], severed: Severed | None) -> tuple[Kind, ...]:
    listed = cast(tuple[Kind, ...], (kinds,) if isinstance(kinds, str) else tuple(kinds))
    unknown = [kind for kind in listed if kind not in KINDS]
    if unknown or not listed:
        raise ValueError(f"{OPERATION}: kinds {list(listed)}; expected some of {', '.join(KINDS)}.")
    if severed is not None and (severed not in get_args(Severed) or listed != ("resid_post",)):
        raise ValueError(
            f"{OPERATION}: severed {severed!r} with kinds {list(listed)}; expected 'mlp_out' or 'attn_out', with "
            'kinds=("resid_post",).'
        )
    return listed


def _check_texts(**texts: object) -> None:
    for name, text in texts.items():
        if not isinstance(text, str) and (text is not None or name in ("prompt", "subject")):
            raise ValueError(f"{OPERATION}: {name} is {text!r}; expected a string; pass e.g. request.prompt.")


def _check_numbers(depth: int, **numbers: int) -> None:
    examples = {"window": f"1 to {depth} layers; the paper's is 10 of 48", "n_samples": "1 or more; the paper's is 10"}
    for name, value in numbers.items():
        if type(value) is not int or value < 1:
            expected = examples.get(name, "1 or more; the default is 32768")
            raise ValueError(f"{OPERATION}: {name} is {value!r}; expected an integer, {expected}.")


def _check_choices(measure: str, engine: str, other_answer: str | None) -> None:
    for name, value, allowed in (("measure", measure, MEASURES), ("engine", engine, get_args(Engine))):
        if value not in allowed:
            raise ValueError(f"{OPERATION}: {name} is {value!r}; expected one of {', '.join(allowed)}.")
    if (measure == "logit_diff") != (other_answer is not None):
        raise ValueError(
            f"{OPERATION}: measure {measure!r} with other_answer {other_answer!r}; a logit difference needs a second "
            'answer, and nothing else does; pass measure="logit_diff", other_answer="Rome".'
        )


def _check_subject(asked: Prompt, subject: str, bos: bool) -> None:
    start, end = asked.subject_span
    if start <= int(bos) and end == len(asked.tokens):
        raise ValueError(
            f"{OPERATION}: the subject {subject!r} is the whole prompt; expected a relation after it, e.g. "
            f"{subject + ' is in the city of'!r}."
        )


def _layers(depth: int, layers: Sequence[int] | None) -> list[int]:
    listed = list(range(depth)) if layers is None else list(layers)
    if not listed or len(set(listed)) < len(listed) or any(type(i) is not int or not 0 <= i < depth for i in listed):
        raise ValueError(
            f"{OPERATION}: layers {listed}; expected different ones from 0 to {depth - 1}; negative numbers are not "
            "accepted; pass e.g. layers=[0, 1]."
        )
    return listed


def _positions(asked: Prompt, where: Where | Sequence[int]) -> list[int]:
    length, (start, end) = len(asked.tokens), asked.subject_span
    named = {"all": range(length), "subject": range(start, end), "subject_last": [end - 1], "last": [length - 1]}
    if isinstance(where, str):
        if where not in named:
            raise ValueError(
                f"{OPERATION}: positions {where!r}; expected one of {', '.join(named)}, or a list of positions."
            )
        return list(named[where])
    chosen = list(where)
    outside = [pos for pos in chosen if type(pos) is not int or not 0 <= pos < length]
    if outside or not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"{OPERATION}: positions {chosen}; expected different ones from 0 to {length - 1}, the positions of "
            f"{list(asked.str_tokens)}."
        )
    return chosen


def _not_finite(what: str) -> str:
    return (
        f"{OPERATION}: {what} gives numbers that are not finite; expected finite activations; load the model in "
        "float32 or bfloat16 (float16 overflows on some models), or use less noise."
    )


def _check_finite(clean: Tensor, corrupted: Tensor, restored: Tensor) -> None:
    for what, values in (("the clean run", clean), ("a corrupted run", corrupted), ("a restored run", restored)):
        if not torch.isfinite(values).all():
            raise ValueError(_not_finite(what))
