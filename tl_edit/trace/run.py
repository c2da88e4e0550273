"""`causal_trace`: one fact, every layer and position."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.blocks import Blocks, CannotCallBlocksError, blocks_of, why_not
from tl_edit.counted import counted
from tl_edit.forward import at_least_float32
from tl_edit.host import Model
from tl_edit.tokens import Prompt, TokenBatch
from tl_edit.trace.noise import Noise
from tl_edit.trace.plain import plain
from tl_edit.trace.plan import KINDS, Branch, Corruption, Kind, Measure, Readings, Readout, Severed, Task
from tl_edit.trace.result import CausalTrace
from tl_edit.trace.settings import (
    OPERATION,
    Engine,
    Settings,
    Where,
    check_finite,
    check_subject,
    check_texts,
    nothing_corrupted,
    positions_of,
    word_around,
)
from tl_edit.trace.wavefront import wavefront


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
    subject: str = "",
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
        subject: The subject as it stands in the prompt (first occurrence); there is none by default.
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
    if (measure == "logit_diff") != (other_answer is not None):
        raise ValueError(
            f"{OPERATION}: measure {measure!r} with other_answer {other_answer!r}; a logit difference needs a second "
            'answer, and nothing else does; pass measure="logit_diff", other_answer="Rome".'
        )
    check_texts(prompt, subject, answer=answer, other_answer=other_answer, counterfactual=counterfactual)
    bos = tokens.resolve_bos(model, prepend_bos)
    asked = tokens.tokenize_prompt(model, prompt, subject, prepend_bos=bos)
    check_subject(asked, subject, bos)
    chosen = positions_of(asked, positions)
    level = 3  # of the user's line; no_grad's wrapper is one
    if counterfactual is None and (said := nothing_corrupted(settings.noise)):
        warnings.warn(said, stacklevel=level)
    word = word_around(prompt, subject)
    if word is not None:
        warnings.warn(
            f"{OPERATION}: {subject!r} stands in {prompt!r} first as a part of {word!r}; the tokens "
            f"{list(asked.str_tokens[slice(*asked.subject_span)])} are corrupted.",
            stacklevel=level,
        )

    question = _ask(model, asked, answer, other_answer, bos)
    spoiler, noise_level = _corruption(model, question, settings, counterfactual, bos)
    blocks, reason = _blocks(model, question, spoiler, settings.engine)
    logits = forward.logits(model, question.batch) if blocks is None else blocks.ordinary.logits
    readout, rank = _readout(question, logits, settings.measure)
    if answer is not None and rank > 1:
        said = model.tokenizer.decode([int(readout.clean_log_probs.argmax())])
        warnings.warn(
            f"{OPERATION}: the model does not predict {answer!r} after {prompt!r}; it ranks {rank}, and the model says "
            f"{said!r}. Traced all the same.",
            stacklevel=level,
        )
    depth = host.n_layers(model)
    branches: dict[tuple[Kind, int], Branch] = {
        (kind, layer): Branch.around(kind, layer, settings.window, depth)
        for kind in settings.kinds
        for layer in settings.layers
    }
    task = Task(
        model=model,
        batch=question.batch,
        corruption=spoiler,
        readout=readout,
        branches=tuple(dict.fromkeys(branches.values())),
        positions=chosen,
        severed=settings.severed,
        max_rows=settings.max_rows,
        progress=progress,
    )
    readings, computed = _measure(task, blocks, reason)
    clean = readout(logits[:, -readout.length :])[0]
    restored = _table(task, readings, branches, settings)
    check_finite(the_clean_run=clean, a_corrupted_run=readings.corrupted, a_restored_run=restored)
    corrupted = readings.corrupted.mean(0)
    value = readout.measures.index(settings.measure)
    return CausalTrace(
        prompt=prompt,
        subject=subject,
        answer=model.tokenizer.decode(readout.target.tolist()),
        other_answer=other_answer,
        str_tokens=asked.str_tokens,
        subject_span=asked.subject_span,
        kinds=settings.kinds,
        layers=settings.layers,
        positions=chosen,
        clean_prob=float(clean[0]),
        corrupted_prob=float(corrupted[0]),
        restored_prob=restored[..., 0].mean(-1),
        measure=settings.measure,
        clean=float(clean[value]),
        corrupted=float(corrupted[value]),
        restored=restored[..., value].mean(-1),
        corrupted_samples=readings.corrupted[:, value].clone() if keep_samples else None,
        restored_samples=restored[..., value].clone() if keep_samples else None,
        rank=rank,
        window=settings.window,
        severed=settings.severed,
        corruption=f"counterfactual {counterfactual!r}" if counterfactual else repr(settings.noise),
        noise_std=noise_level,
        n_samples=spoiler.samples,
        engine=computed,
        provenance=host.provenance(model, prepend_bos=bos, seed=settings.seed),
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
    """What to read, and the greatest rank of the answer's tokens in the clean run (1 is the prediction)."""
    # At every position that predicts a token of the answer.
    log_probs = torch.log_softmax(at_least_float32(logits[0, len(question.prompt.tokens) - 1 :]), dim=-1).cpu()
    # A token that is ruled out has minus infinity, which is a number.
    check_finite(the_clean_run=log_probs.clamp(min=-1e30))
    target = log_probs[0].argmax()[None] if question.target is None else question.target
    if question.other == int(target[0]):
        raise ValueError(f"{OPERATION}: the answer and other_answer are the same token; expected two different ones.")
    rank = 1 + int((log_probs > log_probs.gather(-1, target[:, None])).sum(-1).max())
    measures: tuple[Measure, ...] = ("prob",) if measure == "prob" else ("prob", measure)
    return Readout(target, question.other, log_probs[0], measures), rank


def _corruption(
    model: Model,
    question: _Question,
    settings: Settings,
    counterfactual: str | None,
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
                f"{OPERATION}: the counterfactual {counterfactual!r} is {counted(len(other), 'token')} and the prompt "
                f"{length}; expected as many; choose a subject with as many tokens."
            )
        differs = (other != question.prompt.tokens).nonzero()
        if not len(differs):
            raise ValueError(f"{OPERATION}: the counterfactual is the prompt itself; expected another subject.")
        tokens_row = torch.cat([other, row[length:]])
        return Corruption(tokens.pad(model, [tokens_row]), (), int(differs[0])), None
    embedded = forward.activations(model, question.batch, [host.EMBED])[host.EMBED]
    subject = embedded[0, slice(*span)].to("cpu", torch.float64)
    own_std = float(subject.std())
    draws = settings.noise.draws((settings.n_samples, *subject.shape), seed=settings.seed, own_std=own_std)
    batch = tokens.pad(model, [row] * settings.n_samples)
    level = settings.noise.scale(own_std) if settings.noise.distribution == "gaussian" else None
    return Corruption(batch, ((host.EMBED, settings.noise.hook(span, draws)),), span[0]), level


def _blocks(model: Model, question: _Question, corruption: Corruption, engine: Engine) -> tuple[Blocks | None, str]:
    """The blocks of the model; or None, and why."""
    if engine == "plain":
        return None, "asked for"
    try:
        return blocks_of(model, question.batch, corruption.first), ""
    except CannotCallBlocksError as error:
        return None, str(error)


def _measure(task: Task, blocks: Blocks | None, reason: str) -> tuple[Readings, str]:
    """What an engine measured, and which: plain where the fast one cannot do it."""
    if blocks is not None:
        try:
            return wavefront(task, blocks), f"blocks ({blocks.description})"
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a module of the user's does when it is called alone
            reason = why_not(error)
    return plain(task), f"plain hooks ({reason})"


def _table(
    task: Task,
    readings: Readings,
    branches: dict[tuple[Kind, int], Branch],
    settings: Settings,
) -> Tensor:
    """Restored values [kind layer pos sample measure]."""
    row = {branch: i for i, branch in enumerate(task.branches)}
    rows = torch.tensor([[row[branches[kind, layer]] for layer in settings.layers] for kind in settings.kinds])
    return readings.restored[rows]
