"""Causal traces of many facts, pooled by the role of the restored token (Meng et al. 2022, figures 2 and 3).

Pooling is the published program's: each restored token is one observation, so that facts with long subjects weigh
more in "middle subject", and a token that has two roles counts in both (the only token of a subject is its first and
its last). Effects are means of restored values minus the mean of the corrupted ones over all facts; so a role that some
facts lack, or have several times, can be off 0 where restoring does nothing, by as much as those facts differ.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_edit import forward, host, show, tokens
from tl_edit.host import Model
from tl_edit.trace.noise import Noise
from tl_edit.trace.plan import KINDS, Kind, Measure, Severed
from tl_edit.trace.result import COLOURS, KIND_NAMES, CausalTrace
from tl_edit.trace.run import Engine, causal_trace

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)
MANIFEST = "traces.json"


class KnownFact(NamedTuple):
    """A prompt, its subject, and the answer that the model must know for the fact to count."""

    prompt: str
    subject: str
    answer: str | None = None
    """None takes whatever the model says."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AverageTrace:
    """Means over facts; tensors on the CPU, in float64."""

    kinds: tuple[Kind, ...]
    layers: tuple[int, ...]
    restored: Float[Tensor, "kind role layer"]
    """Mean restored value by the role of the token, in the order of `ROLES`; NaN for a role that no fact has."""
    standard_error: Float[Tensor, "kind role layer"]
    """Of ``restored``, over observations."""
    count: tuple[int, ...]
    """Observations by role."""
    clean: float
    corrupted: float
    total_effect_error: float
    """Standard error of the total effect over facts."""
    draws_error: Float[Tensor, "kind role layer"]
    """Standard error of the indirect effect over noise draws; NaN for a single draw."""
    n_facts: int
    skipped: tuple[str, ...]
    """Prompts whose answer the model does not know."""
    measure: str
    window: int
    settings: dict[str, Any]

    @property
    def total_effect(self) -> float:
        """Mean clean value minus mean corrupted value."""
        return self.clean - self.corrupted

    @property
    def indirect_effect(self) -> Float[Tensor, "kind role layer"]:
        """Mean restored values minus the mean corrupted value."""
        return self.restored - self.corrupted

    def of(self, kind: Kind, role: str) -> Float[Tensor, " layer"]:
        """The indirect effect of one kind at one role, by layer.

        Raises:
            ValueError: If there is no such kind or role here.
        """
        if kind not in self.kinds or role not in ROLES:
            raise ValueError(
                f"AverageTrace.of: no {kind!r} at {role!r}; expected one of {', '.join(self.kinds)} and one of "
                f"{', '.join(ROLES)}."
            )
        return self.indirect_effect[self.kinds.index(kind), ROLES.index(role)]

    def confidence(self) -> Float[Tensor, "kind role layer"]:
        """Half-width of the 95 % interval of ``restored`` over observations, 1.96 standard errors as published."""
        return 1.96 * self.standard_error

    def to_dataframe(self) -> Any:
        """A pandas frame with one row per kind, role and layer.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = show.extra("pandas", "AverageTrace.to_dataframe")
        effect = self.indirect_effect
        rows = [
            {
                "kind": kind,
                "role": role,
                "layer": layer,
                "n": self.count[r],
                "restored": float(self.restored[k, r, i]),
                "indirect_effect": float(effect[k, r, i]),
                "standard_error": float(self.standard_error[k, r, i]),
                "draws_error": float(self.draws_error[k, r, i]),
            }
            for k, kind in enumerate(self.kinds)
            for r, role in enumerate(ROLES)
            for i, layer in enumerate(self.layers)
        ]
        return pandas.DataFrame(rows)

    def _repr_html_(self) -> str:
        return show.heatmaps_html(
            list(self.indirect_effect),
            titles=[f"restoring the {KIND_NAMES[kind]}" for kind in self.kinds],
            rows=[f"{role} (n = {n})" for role, n in zip(ROLES, self.count, strict=True)],
            columns=[str(layer) for layer in self.layers],
            heading=repr(self),
            unit=f"mean indirect effect ({self.measure}), by layer; window {self.window} for MLP and attention",
        )

    def plot(self, ax: Any = None) -> Any:
        """Heatmaps like the paper's figure 2: roles as rows, layers as columns, one scale for all kinds.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return show.plot_heatmaps(
            [effect.clamp(min=0).nan_to_num() for effect in self.indirect_effect],
            ax,
            titles=[f"restoring the {KIND_NAMES[kind]}" for kind in self.kinds],
            rows=list(ROLES),
            columns=[str(layer) for layer in self.layers],
            colours=[COLOURS[kind] for kind in self.kinds],
            low=0.0,
            unit=f"mean indirect effect ({self.measure})",
        )

    def __repr__(self) -> str:
        error = "" if math.isnan(self.total_effect_error) else f" ± {1.96 * self.total_effect_error:.3f}"
        return (
            f"AverageTrace({self.n_facts} facts, {len(self.skipped)} skipped as unknown: total effect "
            f"{self.total_effect:.3f}{error})"
        )


def average_traces(traces: Sequence[CausalTrace], *, skipped: Sequence[str] = ()) -> AverageTrace:
    """Pool traces of different facts by token role.

    Raises:
        ValueError: If there are none, or they differ in their settings or do not restore all positions.
    """
    if not traces:
        raise ValueError(
            f"average_traces: no traces ({len(skipped)} facts skipped as unknown); expected at least one; use facts "
            "that the model knows."
        )
    first = traces[0]
    for trace in traces:
        for name in ("kinds", "layers", "measure", "window", "severed", "n_samples"):
            if getattr(trace, name) != getattr(first, name):
                raise ValueError(
                    f"average_traces: {name} is {getattr(first, name)!r} in one trace and {getattr(trace, name)!r} in "
                    "another; expected the same settings; trace again."
                )
        if trace.positions != tuple(range(len(trace.str_tokens))):
            raise ValueError(
                f"average_traces: {trace!r} restores some positions only; expected all of them (positions='all')."
            )
    observations = [
        torch.cat([trace.restored[:, :, _roles(trace)[r]] for trace in traces], dim=-1) for r in range(len(ROLES))
    ]
    totals = torch.tensor([trace.total_effect for trace in traces], dtype=torch.float64)
    return AverageTrace(
        kinds=first.kinds,
        layers=first.layers,
        restored=torch.stack([each.mean(-1) for each in observations], dim=1),
        standard_error=torch.stack([_error(each) for each in observations], dim=1),
        count=tuple(each.shape[-1] for each in observations),
        clean=sum(trace.clean for trace in traces) / len(traces),
        corrupted=sum(trace.corrupted for trace in traces) / len(traces),
        total_effect_error=float(totals.std()) / math.sqrt(len(traces)) if len(traces) > 1 else math.nan,
        draws_error=_draws_error(traces),
        n_facts=len(traces),
        skipped=tuple(skipped),
        measure=first.measure,
        window=first.window,
        settings={"severed": first.severed, "n_samples": first.n_samples, "corruption": first.corruption},
    )


def _roles(trace: CausalTrace) -> list[list[int]]:
    """Positions of each role, as the published program has them; a subject at the very end has nothing after it."""
    (start, end), length = trace.subject_span, len(trace.str_tokens)
    after = [end] if end < length else []
    middle, further = list(range(start + 1, end - 1)), list(range(end + 1, length - 1))
    return [[start], middle, [end - 1], after, further, [length - 1]]


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
    columns: list[Tensor] = []
    for r in range(len(ROLES)):
        samples = [cast(Tensor, trace.restored_samples)[:, :, _roles(trace)[r]] for trace in traces]
        effect = torch.cat(samples, dim=2).mean(2) - low
        columns.append(effect.std(-1) / math.sqrt(first.n_samples))
    return torch.stack(columns, dim=1)


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
    operation = "trace_facts"
    listed = [_checked_fact(fact) for fact in facts]
    if not listed:
        raise ValueError(f"{operation}: no facts; expected (prompt, subject, answer) tuples; pass at least one.")
    bos = tokens.resolve_bos(model, prepend_bos)
    settings: dict[str, Any] = {
        "kinds": tuple(kinds),
        "layers": layers if layers is None else tuple(layers),
        "window": window,
        "noise": noise,
        "noise_std": noise_std,
        "n_samples": n_samples,
        "seed": seed,
        "measure": measure,
        "severed": severed,
        "engine": engine,
        "max_rows": max_rows,
    }
    kept = None if folder is None else _Folder(Path(folder), model, listed, settings | {"prepend_bos": bos})
    traces: list[CausalTrace] = []
    skipped: list[str] = []
    for i, fact in enumerate(tqdm(listed, desc="tracing facts", disable=not progress)):
        known = kept.find(i) if kept is not None else None
        if known is None:
            known = _trace(model, fact, bos, settings)
            if kept is not None:
                kept.keep(i, known)
        if isinstance(known, CausalTrace):
            traces.append(known)
        else:
            skipped.append(fact.prompt)
    return average_traces(traces, skipped=skipped)


def _trace(model: Model, fact: KnownFact, bos: bool, settings: dict[str, Any]) -> CausalTrace | str:
    """The trace; or what the model says instead."""
    row = tokens.pad(model, [tokens.encode(model, fact.prompt, prepend_bos=bos)])
    said: str = model.tokenizer.decode([int(forward.last_log_probs(model, row)[0].argmax())])
    if fact.answer is not None and said.strip() != fact.answer.strip():
        return said
    return causal_trace(model, fact.prompt, fact.subject, prepend_bos=bos, keep_samples=True, **settings)


def _checked_fact(fact: object) -> KnownFact:
    parts = list(cast(Sequence[object], fact)) if isinstance(fact, tuple | list) else []
    texts = [part for part in parts[:2] if isinstance(part, str)]
    if len(texts) < 2 or len(parts) > 3 or not isinstance(parts[-1], str | None):
        raise ValueError(
            f"trace_facts: a fact is {fact!r}; expected (prompt, subject, answer), e.g. ('The Eiffel Tower is in the "
            "city of', 'Eiffel Tower', 'Paris')."
        )
    return KnownFact(texts[0], texts[1], cast(str | None, parts[2]) if len(parts) == 3 else None)


class _Folder:
    """Traces kept on disk: one file each, and a manifest that says which run they belong to."""

    def __init__(self, path: Path, model: Model, facts: Sequence[KnownFact], settings: dict[str, Any]) -> None:
        self.path = path
        made_on = host.provenance(model, prepend_bos=settings["prepend_bos"])
        run = {
            "model": made_on.model_name,
            "dtype": made_on.dtype,
            "weights": _weights_hash(model),
            "facts": hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest(),
            "settings": {name: repr(value) for name, value in sorted(settings.items())},
        }
        path.mkdir(parents=True, exist_ok=True)
        manifest = path / MANIFEST
        if not manifest.exists():
            if any(path.iterdir()):
                raise ValueError(
                    f"trace_facts: the folder {path} holds other files; expected a new one, or one of the same run; "
                    "choose another folder."
                )
            _write(manifest, json.dumps(run, indent=1))
            return
        before: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
        different = [name for name in run if before.get(name) != run[name]]
        if different:
            raise ValueError(
                f"trace_facts: the folder {path} holds another run, with other {', '.join(different)}; expected the "
                "same model, facts and settings; choose another folder."
            )

    def find(self, i: int) -> CausalTrace | str | None:
        """What is kept of fact ``i``."""
        trace, skipped = self._files(i)
        if skipped.exists():
            return skipped.read_text("utf-8")
        return CausalTrace.load(trace) if trace.exists() else None

    def keep(self, i: int, found: CausalTrace | str) -> None:
        """Keep what was found of fact ``i``; a file is there whole or not at all."""
        trace, skipped = self._files(i)
        if isinstance(found, str):
            _write(skipped, found)
        else:
            half = trace.with_suffix(".part")
            found.save(half)
            half.replace(trace)

    def _files(self, i: int) -> Iterator[Path]:
        yield self.path / f"{i:05d}.safetensors"
        yield self.path / f"{i:05d}.unknown.txt"


def _write(path: Path, text: str) -> None:
    half = path.with_suffix(".part")
    half.write_text(text, "utf-8")
    half.replace(path)


def _weights_hash(model: Model) -> str:
    """A hash over a thousandth of the weights, which no edit leaves as they are: an edited model is another model."""
    digest = hashlib.blake2b(digest_size=16)
    for weight in cast(nn.Module, model).parameters():
        some = weight.detach().flatten()[::997].cpu().clone(memory_format=torch.contiguous_format).view(torch.uint8)
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()
