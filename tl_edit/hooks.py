"""Hook factories in TransformerLens' style, for your own ``run_with_hooks`` as much as for ours.

Each factory returns ``hook(activation, hook)``. The hooks close over what they need and never read
``hook.name``, which the two TransformerLens interfaces spell differently; those that change something return
a new tensor and leave the given one alone. A causal-tracing run by hand::

    clean = {}
    model.run_with_hooks(tokens, fwd_hooks=[("blocks.3.hook_resid_post", capture(clean, "resid"))])
    logits = model.run_with_hooks(tokens.expand(10, -1), fwd_hooks=[
        ("hook_embed", corrupt_subject(prompt.subject_span)),
        ("blocks.3.hook_resid_post", restore(clean["resid"], positions=prompt.subject_last)),
    ])
"""

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit.host import HookFn

Positions = int | slice | Sequence[int]
"""Where in the sequence: one position, a slice, or a list of positions."""


def corrupt_subject(
    span: tuple[int, int],
    *,
    noise: float = 3.0,
    noise_std: float | None = None,
    seed: int = 1,
    rows: slice = slice(None),
) -> HookFn:
    """Add Gaussian noise to the subject's token embeddings; use it at ``hook_embed``.

    Every row gets its own draw, and the same call gets the same draws each time: they are those of numpy's
    ``RandomState(seed)`` in float64, shaped [rows, subject tokens, d_model], which is how the published
    program draws (Meng et al. 2022, section 2.1; its seed is 1).

    Args:
        span: First subject position and one past the last, as `Prompt.subject_span` has it.
        noise: Standard deviation of the noise as a multiple of the standard deviation of the subject's own
            embeddings. (The paper's is 3 times that over a list of subjects; pass it as ``noise_std``.)
        noise_std: Standard deviation in absolute units of the embedding; overrides ``noise``.
        seed: Seed of the draws.
        rows: Which rows of the batch to corrupt; e.g. ``slice(1, None)`` keeps row 0 clean.

    Raises:
        ValueError: If the span is empty or the noise negative; when run, if the span is outside the prompt.
    """
    start, end = span
    if not 0 <= start < end:
        raise ValueError(f"corrupt_subject: span {span} is empty; expected (first, one past last), e.g. (1, 4).")
    if noise < 0 or (noise_std is not None and noise_std < 0):
        raise ValueError(f"corrupt_subject: noise {noise}, noise_std {noise_std}; expected 0 or more.")

    def hook(act: Float[Tensor, "batch pos d_model"], hook: Any = None) -> Float[Tensor, "batch pos d_model"]:
        _check_positions(act, end - 1, "corrupt_subject")
        out = act.clone()
        subject = out[rows, start:end]
        scale = noise * float(subject.double().std()) if noise_std is None else noise_std
        draws = gaussian_draws(subject.shape, seed=seed).to(act.device)
        # Added in float64 and rounded once, as the published program does.
        out[rows, start:end] = (subject.double() + scale * draws).to(act.dtype)
        return out

    return hook


def gaussian_draws(shape: Sequence[int], *, seed: int) -> Tensor:
    """Standard normal draws in float64 from numpy's ``RandomState(seed)``, the published programs' stream."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))


def restore(clean: Float[Tensor, "batch pos ..."], positions: Positions, *, rows: slice = slice(None)) -> HookFn:
    """Put clean activations back at ``positions``.

    Args:
        clean: What `capture` stored in the clean run: one row, or as many as the run has.
        positions: Where to restore.
        rows: Which rows of the batch to restore.

    Raises:
        ValueError: When run, if a position is outside the prompt or outside ``clean``.
    """
    where = _as_index(positions)

    def hook(act: Tensor, hook: Any = None) -> Tensor:
        _check_positions(act, positions, "restore")
        _check_positions(clean, positions, "restore (clean activations)")
        out = act.clone()
        out[rows, where] = clean[:, where].to(device=act.device, dtype=act.dtype)
        return out

    return hook


def shift(vector: Tensor, positions: Positions, *, rows: slice = slice(None)) -> HookFn:
    """Add ``vector`` at ``positions``; gradients flow to it.

    Args:
        vector: Anything that broadcasts to [rows, positions, width]: one vector, or one per row or position.
        positions: Where to add it.
        rows: Which rows of the batch to shift.

    Raises:
        ValueError: When run, if a position is outside the prompt.
    """
    where = _as_index(positions)

    def hook(act: Tensor, hook: Any = None) -> Tensor:
        _check_positions(act, positions, "shift")
        out = act.clone()
        out[rows, where] = out[rows, where] + vector.to(device=act.device, dtype=act.dtype)
        return out

    return hook


def capture(store: MutableMapping[str, Tensor], name: str, positions: Positions = slice(None)) -> HookFn:
    """Store a detached copy of the activation at ``positions`` as ``store[name]``; changes nothing.

    Positions stay an axis of what is stored: ``[batch pos width]``, also for a single one.

    Raises:
        ValueError: When run, if a position is outside the prompt.
    """
    where = _as_index(positions)

    def hook(act: Tensor, hook: Any = None) -> None:
        _check_positions(act, positions, "capture")
        store[name] = act.detach()[:, where].clone()

    return hook


def _as_index(positions: Positions) -> slice | list[int]:
    """An index that keeps the position axis."""
    if isinstance(positions, slice):
        return positions
    return [positions] if isinstance(positions, int) else list(positions)


def _check_positions(act: Tensor, positions: Positions, what: str) -> None:
    """Refuse positions outside the sequence; torch would wrap or clip some of them silently."""
    if isinstance(positions, slice):
        return
    length = act.shape[1]
    listed = [positions] if isinstance(positions, int) else positions
    for position in listed:
        if not -length <= position < length:
            raise ValueError(
                f"{what}: position {position} is outside a sequence of {length} tokens; expected 0 to "
                f"{length - 1}; was the subject located in another prompt, or without its BOS?"
            )
