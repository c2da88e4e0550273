"""What a causal trace computes: which states are put back in which runs, and what is read at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit.forward import at_least_float32
from tl_edit.host import HookFn, Model, NamedHook
from tl_edit.tokens import TokenBatch

Kind = Literal["resid_post", "mlp_out", "attn_out"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Severed = Literal["mlp_out", "attn_out"]

Measure = Literal["prob", "log_prob", "logit_diff", "kl"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


def hook_name(kind: Kind, layer: int) -> str:
    """The hook point of a state."""
    return f"blocks.{layer}.hook_{kind}"


def window_layers(layer: int, window: int, depth: int) -> list[int]:
    """Layers of a window around ``layer``: [layer - window // 2, layer + ceil(window / 2)), within the model.

    For 10 that is [l - 5, l + 4], as the published program has it; the paper's appendix says [l - 4, l + 5].
    """
    return list(range(max(0, layer - window // 2), min(depth, layer - (-window // 2))))


@dataclass(frozen=True)
class Branch:
    """States of one kind that are restored together, at one position: those of layers ``first`` to ``end`` - 1."""

    kind: Kind
    first: int
    end: int

    @classmethod
    def around(cls, kind: Kind, layer: int, window: int, depth: int) -> "Branch":
        """The branch whose result belongs to ``layer``."""
        span = [layer] if kind == "resid_post" else window_layers(layer, window, depth)
        return cls(kind, span[0], span[-1] + 1)

    @property
    def layers(self) -> range:
        """The restored layers."""
        return range(self.first, self.end)


@dataclass(frozen=True, eq=False)
class Corruption:
    """The corrupted runs: tokens, and the hooks that spoil their embeddings."""

    batch: TokenBatch
    hooks: tuple[NamedHook, ...]
    first: int
    """The first position that differs from the clean run; earlier ones cannot have an effect."""

    @property
    def samples(self) -> int:
        """Number of corrupted runs."""
        return len(self.batch.lengths)


@dataclass(frozen=True, eq=False)
class Readout:
    """What is read from the logits that predict the answer's tokens."""

    target: Int[Tensor, " pos"]
    other: int | None
    """Token that the answer is compared with in ``logit_diff``."""
    clean_log_probs: Float[Tensor, " d_vocab"]
    """Of the token after the prompt, in the clean run."""
    measures: tuple[Measure, ...]

    @property
    def length(self) -> int:
        """Number of positions that are read: the last ones."""
        return len(self.target)

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch measure"]:
        """Each measure of each row, in float64 on the CPU."""
        wide = at_least_float32(logits)
        total = torch.logsumexp(wide, dim=-1)
        target = self.target.to(wide.device)
        answer = wide.gather(-1, target.expand(len(wide), -1)[..., None])[..., 0]
        log_prob = (answer - total).cpu().double().sum(-1)
        columns: list[Tensor] = []
        for measure in self.measures:
            if measure == "prob":
                columns.append(log_prob.exp())
            elif measure == "log_prob":
                columns.append(log_prob)
            elif measure == "logit_diff":
                columns.append((wide[:, 0, target[0]] - wide[:, 0, self.other]).cpu().double())
            else:
                clean = self.clean_log_probs.to(wide.device, wide.dtype)
                terms = torch.nn.functional.kl_div(
                    wide[:, 0] - total[:, :1], clean.expand(len(wide), -1), log_target=True, reduction="none"
                )
                # Of a token that is ruled out in the clean run nothing is lost.
                columns.append(0.0 - terms.masked_fill(clean.isneginf(), 0.0).sum(-1).cpu().double())
        return torch.stack(columns, dim=-1)


@dataclass(frozen=True, eq=False)
class Task:
    """One trace, as both engines take it."""

    model: Model
    batch: TokenBatch
    """The clean run, one row: the prompt, and all but the last token of the answer."""
    corruption: Corruption
    readout: Readout
    branches: tuple[Branch, ...]
    positions: tuple[int, ...]
    """Where states are restored."""
    severed: Severed | None
    """States that stay as they are in the corrupted run while a block output is restored."""
    max_rows: int
    """Token positions that are in memory at a time, in units of the residual stream."""
    progress: bool

    @property
    def reached(self) -> tuple[int, ...]:
        """Positions that the corruption reaches; before them causal attention leaves nothing to restore."""
        return tuple(pos for pos in self.positions if pos >= self.corruption.first)


@dataclass(frozen=True, eq=False)
class LayerStates:
    """States of one layer in whole runs; row 0 is the clean run, the others are the corrupted ones."""

    pre: Float[Tensor, "batch pos d_model"]
    post: Float[Tensor, "batch pos d_model"]
    past: tuple[Tensor, Tensor]
    """Keys and values of the corrupted runs."""
    outs: dict[Kind, Float[Tensor, "batch pos d_model"]]

    def of(self, kind: Kind) -> Float[Tensor, "batch pos d_model"]:
        """The states of one kind."""
        return self.post if kind == "resid_post" else self.outs[kind]


@dataclass(frozen=True, eq=False)
class Readings:
    """What an engine measured, per noise sample; float64 on the CPU."""

    corrupted: Float[Tensor, "sample measure"]
    restored: Float[Tensor, "branch pos sample measure"]


def put_back(batch: int, rows: Tensor, positions: Tensor, states: Float[Tensor, "state d_model"]) -> HookFn:
    """A hook that puts ``states[i]`` back in row ``rows[i]`` at ``positions[i]``, in a run of so many rows."""

    def hook(act: Tensor, hook: object = None) -> Tensor:
        # Some Hugging Face MLPs see [batch * pos, d_model].
        out = act.reshape(batch, -1, act.shape[-1]).clone()
        out[rows, positions] = states.to(device=act.device, dtype=act.dtype)
        return out.reshape(act.shape)

    return hook


def sources(task: Task) -> Sequence[Kind]:
    """Kinds of states that are put back, from the clean run or (severed) from the corrupted one."""
    kinds: set[Kind] = {branch.kind for branch in task.branches}
    if task.severed is not None:
        kinds.add(task.severed)
    return [kind for kind in KINDS if kind in kinds]
