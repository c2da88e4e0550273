"""Causal tracing: where in layers and positions a model looks a fact up.

Three kinds of run, always of the same prompt (Meng et al. 2022, section 2.1):

- **clean**: as it is; the answer's probability is ``clean_prob``;
- **corrupted**: Gaussian noise on the subject's token embeddings; the mean over draws is ``corrupted_prob``;
- **corrupted with restoration**: one state (a layer's block output, or the MLP or attention output of a
  window of layers) at one position put back to its clean value; ``restored_prob[kind, layer, pos]``.

Probabilities are stored raw. The total effect is clean - corrupted; the indirect effect of a state is
restored - corrupted. Restoring everything gives the clean run, restoring nothing the corrupted one.

This is the plain program: every run goes through the whole model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import reduce, repeat  # pyright: ignore[reportUnknownVariableType]
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import host, tokens
from tl_edit.forward import activations, last_log_probs
from tl_edit.hooks import gaussian_draws
from tl_edit.host import HookFn, Model, NamedHook, Provenance

Kind = Literal["resid_post", "mlp_out", "attn_out"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CausalTrace:
    """Probabilities of the answer in the clean, the corrupted and every restored run; tensors on the CPU."""

    prompt: str
    subject: str
    answer: str
    """The traced token; a leading space belongs to it."""
    str_tokens: tuple[str, ...]
    subject_span: tuple[int, int]
    """First subject position, and one past the last."""
    kinds: tuple[Kind, ...]
    clean_prob: float
    corrupted_prob: float
    """Mean over noise draws."""
    restored_prob: Float[Tensor, "kind layer pos"]
    """Mean over noise draws, by kind (in the order of ``kinds``), layer and position of the restored state."""
    window: int
    """Layers restored together for ``mlp_out`` and ``attn_out``: [layer - window // 2, layer + ceil(window / 2))."""
    noise_std: float
    """Standard deviation of the noise, in units of the embedding."""
    n_samples: int
    provenance: Provenance

    @property
    def total_effect(self) -> float:
        """``clean_prob - corrupted_prob``."""
        return self.clean_prob - self.corrupted_prob

    @property
    def indirect_effect(self) -> Float[Tensor, "kind layer pos"]:
        """``restored_prob - corrupted_prob``."""
        return self.restored_prob - self.corrupted_prob

    def of(self, kind: Kind) -> Float[Tensor, "layer pos"]:
        """The indirect effect of one kind.

        Raises:
            ValueError: If this trace does not have the kind.
        """
        if kind not in self.kinds:
            raise ValueError(f"CausalTrace.of: no kind {kind!r}; this trace has {', '.join(self.kinds)}.")
        return self.indirect_effect[self.kinds.index(kind)]

    def __repr__(self) -> str:
        return (
            f"CausalTrace({self.prompt!r} → {self.answer!r}: clean {self.clean_prob:.3f}, corrupted "
            f"{self.corrupted_prob:.3f}, {len(self.kinds)} kinds x {self.restored_prob.shape[1]} layers x "
            f"{self.restored_prob.shape[2]} positions, window {self.window})"
        )


def causal_trace(
    model: Model,
    prompt: str,
    subject: str,
    *,
    answer: str | None = None,
    kinds: Sequence[Kind] = KINDS,
    window: int | None = None,
    noise: float = 3.0,
    noise_std: float | None = None,
    n_samples: int = 10,
    seed: int = 1,
    prepend_bos: bool | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> CausalTrace:
    """Trace one fact through every layer and position.

    Args:
        model: A HookedTransformer or TransformerBridge.
        prompt: Text whose next token is the answer.
        subject: The subject as it stands in the prompt (first occurrence).
        answer: The answer to follow; None for the token that the clean run predicts.
        kinds: Which states to restore.
        window: Layers restored together for ``mlp_out`` and ``attn_out``; None for about a fifth of the depth
            (the paper's 10 of GPT-2 XL's 48).
        noise: Noise as a multiple of the standard deviation of the subject's own embeddings. The paper takes
            3 times that over a list of subjects; pass that as ``noise_std``.
        noise_std: Absolute standard deviation; overrides ``noise``.
        n_samples: Noise draws; all restored runs share them.
        seed: Seed of the draws, which are the published program's for seed 1.
        prepend_bos: Whether the prompt begins with a BOS; None for the model's own default.
        batch_size: Rows per forward pass.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the subject is not in the prompt, the answer is not one token, or a setting cannot work.
    """
    operation = "causal_trace"
    host.check_ready(model, operation)
    _check_settings(model, kinds, window, noise, noise_std, n_samples, batch_size)
    bos = tokens.resolve_bos(model, prepend_bos)
    asked = tokens.tokenize_prompt(model, prompt, subject, prepend_bos=bos)
    depth, length = host.n_layers(model), len(asked.tokens)
    window = max(1, round(depth / 5)) if window is None else window
    sites = {(kind, layer): f"blocks.{layer}.hook_{kind}" for kind in kinds for layer in range(depth)}
    row = tokens.pad(model, [asked.tokens])
    # Read before the clean run is judged, so that a missing hook point is reported first.
    clean = activations(model, row, [host.EMBED, *sites.values()])
    log_probs = last_log_probs(model, row)[0]
    target = _target(model, prompt, answer, bos, log_probs)
    start, end = asked.subject_span
    if noise_std is None:
        noise_std = noise * float(clean[host.EMBED][0, start:end].to("cpu", torch.float64).std())
    draws = noise_std * gaussian_draws((n_samples, end - start, clean[host.EMBED].shape[-1]), seed=seed)
    runs = _Runs(model, asked, target, draws, batch_size)
    table = torch.empty(len(kinds), depth, length, dtype=torch.float64)
    cells = [(k, kind, layer) for k, kind in enumerate(kinds) for layer in range(depth)]
    for k, kind, layer in tqdm(cells, desc="causal trace", disable=not progress):
        span = [layer] if kind == "resid_post" else window_layers(layer, window, depth)
        table[k, layer] = runs.restored({sites[kind, other]: clean[sites[kind, other]] for other in span})
    return CausalTrace(
        prompt=prompt,
        subject=subject,
        answer=model.tokenizer.decode([target]),
        str_tokens=asked.str_tokens,
        subject_span=asked.subject_span,
        kinds=tuple(kinds),
        clean_prob=float(log_probs[target].exp()),
        corrupted_prob=runs.corrupted(),
        restored_prob=table,
        window=window,
        noise_std=noise_std,
        n_samples=n_samples,
        provenance=host.provenance(model, prepend_bos=bos, seed=seed),
    )


def window_layers(layer: int, window: int, depth: int) -> list[int]:
    """Layers of a window around ``layer``: [layer - window // 2, layer + ceil(window / 2)), within the model.

    For 10 that is [l - 5, l + 4], as the published program has it; the paper's appendix says [l - 4, l + 5].
    """
    return list(range(max(0, layer - window // 2), min(depth, layer - (-window // 2))))


class _Runs:
    """Corrupted runs of one prompt: ``n_samples`` rows for each position that is restored."""

    def __init__(
        self,
        model: Model,
        prompt: tokens.Prompt,
        target: int,
        draws: Float[Tensor, "sample pos d_model"],
        batch_size: int,
    ) -> None:
        self.model, self.prompt, self.target, self.draws = model, prompt, target, draws
        self.cells_per_batch = max(1, batch_size // len(draws))

    def corrupted(self) -> float:
        """Mean probability with nothing restored."""
        return float(self._mean_probs(1, [])[0])

    def restored(self, clean: dict[str, Float[Tensor, "1 pos d_model"]]) -> Float[Tensor, " pos"]:
        """Mean probability with the given clean states restored at each position in turn."""
        probs: list[Tensor] = []
        for positions in torch.split(torch.arange(len(self.prompt.tokens)), self.cells_per_batch):
            rows = positions.repeat_interleave(len(self.draws))
            hooks = [(name, _restore_each(act, rows)) for name, act in clean.items()]
            probs.append(self._mean_probs(len(positions), hooks))
        return torch.cat(probs)

    def _mean_probs(self, cells: int, hooks: Sequence[NamedHook]) -> Float[Tensor, " pos"]:
        samples, span = len(self.draws), self.prompt.subject_span
        batch = tokens.pad(self.model, [self.prompt.tokens] * (cells * samples))
        draws = repeat(self.draws, "sample pos d_model -> (cell sample) pos d_model", cell=cells)
        corrupt = (host.EMBED, _add_noise(draws, span))
        probs = last_log_probs(self.model, batch, [corrupt, *hooks])[:, self.target].cpu().double().exp()
        return reduce(probs, "(cell sample) -> cell", "mean", sample=samples)


def _add_noise(draws: Float[Tensor, "batch pos d_model"], span: tuple[int, int]) -> HookFn:
    """Add float64 noise to the subject and round once, as the published program does."""

    def hook(act: Tensor, hook: object = None) -> Tensor:
        out = act.clone()
        subject = slice(*span)
        noisy = act[:, subject].to("cpu", torch.float64) + draws
        out[:, subject] = noisy.to(act.device, act.dtype)
        return out

    return hook


def _restore_each(clean: Float[Tensor, "1 pos d_model"], positions: Int[Tensor, " batch"]) -> HookFn:
    """Restore row i at ``positions[i]``."""
    rows = torch.arange(len(positions))

    def hook(act: Tensor, hook: object = None) -> Tensor:
        out = act.clone()
        out[rows, positions] = clean[0, positions].to(device=act.device, dtype=act.dtype)
        return out

    return hook


def _target(
    model: Model, prompt: str, answer: str | None, prepend_bos: bool, log_probs: Float[Tensor, " d_vocab"]
) -> int:
    if answer is None:
        return int(log_probs.argmax())
    target = tokens.target_tokens(model, prompt, answer, prepend_bos=prepend_bos)
    if len(target) > 1:
        pieces = tokens.str_tokens(model, target)
        raise ValueError(
            f"causal_trace: the answer {answer!r} is {len(target)} tokens, {list(pieces)}; expected one; pass its "
            "first piece, or None for the token that the model predicts."
        )
    return int(target[0])


def _check_settings(
    model: Model,
    kinds: Sequence[Kind],
    window: int | None,
    noise: float,
    noise_std: float | None,
    n_samples: int,
    batch_size: int,
) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"causal_trace: kinds {list(kinds)}; expected some of {', '.join(KINDS)}.")
    scale = noise if noise_std is None else noise_std
    if n_samples < 1 or batch_size < 1 or not 0 <= scale < math.inf:
        raise ValueError(
            f"causal_trace: n_samples {n_samples}, batch_size {batch_size}, noise {noise}, noise_std {noise_std}; "
            "expected at least 1 sample and row, and finite noise of 0 or more; the paper's are 10 and 3."
        )
    if window is not None and window < 1:
        raise ValueError(
            f"causal_trace: window {window}; expected 1 to {host.n_layers(model)} layers; the paper's is 10 of 48."
        )
