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

import math
import operator
from collections.abc import MutableMapping, Sequence
from typing import Any, SupportsIndex, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit.host import HookFn

Positions = SupportsIndex | slice | Sequence[SupportsIndex]
"""Where in the sequence: one position, a slice (``slice(*prompt.subject_span)``), or a list of positions."""


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
            embeddings, row by row. (The paper's is 3 times that over a list of subjects; pass it as ``noise_std``.)
        noise_std: Standard deviation in absolute units of the embedding; overrides ``noise``.
        seed: Seed of the draws.
        rows: Which rows of the batch to corrupt; e.g. ``slice(1, None)`` keeps row 0 clean.

    Raises:
        ValueError: If the span is empty or the noise negative; when run, if the span is outside the prompt.
    """
    start, end = _bounds(span)
    if not 0 <= start < end:
        raise ValueError(f"corrupt_subject: span {span} is empty; expected (first, one past last), e.g. (1, 4).")
    if not 0 <= (noise if noise_std is None else noise_std) < math.inf:
        raise ValueError(f"corrupt_subject: noise {noise}, noise_std {noise_std}; expected 0 or more.")

    def hook(act: Float[Tensor, "batch pos d_model"], hook: Any = None) -> Float[Tensor, "batch pos d_model"]:
        _inside(act, end - 1, "corrupt_subject")
        out = act.clone()
        # Added in float64 and rounded once, as the published program does; on the CPU, as some devices lack it.
        subject = out[rows, start:end].to("cpu", torch.float64)
        # Of each row alone, so that the noise does not depend on how many rows there are.
        scale = noise * subject.std(dim=(1, 2), keepdim=True) if noise_std is None else noise_std
        noisy = subject + scale * gaussian_draws(subject.shape, seed=seed)
        out[rows, start:end] = noisy.to(act.device, act.dtype)
        return out

    return hook


def gaussian_draws(shape: Sequence[int], *, seed: int) -> Tensor:
    """Standard normal draws in float64 from numpy's ``RandomState(seed)``, the published programs' stream."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"drawing noise: seed is {seed!r}; expected an integer of 0 or more; the published one is 1.")
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))


def restore(clean: Float[Tensor, "batch pos ..."], positions: Positions, *, rows: slice = slice(None)) -> HookFn:
    """Put clean activations back at ``positions``.

    Args:
        clean: What `capture` stored in the clean run: one row, or as many as the run has.
        positions: Where to restore.
        rows: Which rows of the batch to restore.

    Raises:
        ValueError: When run, if a position is outside the prompt or outside ``clean``, is another one there
            (counted from the end of a longer text), or if ``clean`` has another number of rows.
    """

    def hook(act: Tensor, hook: Any = None) -> Tensor:
        where = _inside(act, positions, "restore")
        there = _inside(clean, positions, "restore (clean activations)")
        if where != there or len(clean) not in (1, len(act)):
            raise ValueError(
                f"restore: {positions} of clean activations {list(clean.shape)} in a run of {list(act.shape)}; "
                "expected the same positions, and one clean row or as many as the run has; capture the clean run again."
            )
        out = act.clone()
        source = clean if len(clean) == 1 else clean[rows]
        out[rows, where] = source[:, where].to(device=act.device, dtype=act.dtype)
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

    def hook(act: Tensor, hook: Any = None) -> Tensor:
        where = _inside(act, positions, "shift")
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

    def hook(act: Tensor, hook: Any = None) -> None:
        where = _inside(act, positions, "capture")
        store[name] = act.detach()[:, positions if isinstance(positions, slice) else where].clone()

    return hook


def _inside(act: Tensor, positions: Positions, what: str) -> list[int]:
    """The positions, counted from 0, as an index that keeps their axis.

    Axis 1 of the activation must be the sequence, as it is everywhere but in attention patterns and scores, whose axis
    1 is the head. Refuses positions outside the sequence, which torch would wrap or clip silently in part, and
    activations that have no axis for the sequence or are known by their shape for a pattern.
    """
    if act.ndim < 3:
        raise ValueError(
            f"{what}: the activation is of shape {list(act.shape)}; expected [batch, pos, width]; choose a hook point "
            "that keeps the sequence as an axis."
        )
    if act.ndim == 4 and act.shape[2] == act.shape[3] != act.shape[1]:
        raise ValueError(
            f"{what}: the activation is of shape {list(act.shape)}, an attention pattern [batch, head, query, key]; "
            "expected [batch, pos, ...], with the sequence as axis 1; choose another hook point, or write a hook of "
            "your own for patterns."
        )
    return inside(act.shape[1], positions, what)


def inside(
    size: int,
    positions: Any,
    what: str,
    axis: str = "a sequence of {} tokens",
    hint: str = "was the subject located in another prompt, or without its BOS?",
) -> list[int]:
    """Positions along an axis of this size, counted from 0; refuses those outside of it.

    Raises:
        ValueError: saying ``what`` they are for, with a ``hint``; ``axis`` describes the axis.
    """
    if isinstance(positions, tuple):
        raise ValueError(
            f"{what}: positions are the tuple {positions}, which could mean a span or single positions; write "
            f"slice(*{positions}) for the span, or list({positions}) for the positions."
        )
    if isinstance(positions, slice):
        ends = cast(tuple[int | None, int | None], (positions.start, positions.stop))
        bounds = [bound for bound in ends if bound is not None]
        outside = [bound for bound in bounds if not -size <= bound <= size]
        listed: Sequence[int] = range(size)[positions]
    else:
        listed = _integers(positions, what)
        outside = [position for position in listed if not -size <= position < size]
    if outside:
        raise ValueError(
            f"{what}: position {outside[0]} is outside {axis.format(size)}; expected 0 to {size - 1}; {hint}"
        )
    return [position % size for position in listed]


def _bounds(span: Any) -> list[int]:
    """The two integers of a span."""
    several = span.tolist() if hasattr(span, "tolist") else span
    bounds = list(cast(Sequence[Any], several)) if isinstance(several, tuple | list) else []
    if len(bounds) != 2 or any(isinstance(bound, bool) or not hasattr(bound, "__index__") for bound in bounds):
        raise ValueError(
            f"corrupt_subject: span is {span!r}; expected two integers, (first, one past last); pass "
            "Prompt.subject_span, or e.g. (1, 4)."
        )
    return [operator.index(bound) for bound in bounds]


def _integers(positions: Any, what: str) -> list[int]:
    """One position or several as plain integers, whatever library they come from; a mask is not a list of positions."""
    several: object = positions.tolist() if hasattr(positions, "tolist") else positions
    listed = cast(Sequence[Any], several if isinstance(several, Sequence) else [several])
    if any(isinstance(position, bool) or not hasattr(position, "__index__") for position in listed):
        raise ValueError(
            f"{what}: positions are {positions!r}; expected integers, a slice, or a list of integers; for a mask write "
            "mask.nonzero().flatten()."
        )
    return [operator.index(position) for position in listed]
