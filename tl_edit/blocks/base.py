"""What both ways of calling blocks have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_edit import host
from tl_edit.attach import before_forward
from tl_edit.forward import at_least_float32
from tl_edit.host import Model
from tl_edit.tokens import TokenBatch

Touch = Callable[[str, Tensor], Tensor | None]
"""``touch(kind, out)`` sees the output of attention ("attn_out") or MLP ("mlp_out"), as TransformerLens' hook points
of these names do, or the raw output of ``W_out`` ("value"), and returns another, or None to leave it.
Packed blocks also show it the input of ``W_out`` ("key")."""

TOUCHED = ("attn_out", "mlp_out")
"""What a touch sees unless it asks for more."""


def tolerance(dtype: torch.dtype, logits: Tensor) -> float:
    """Greatest accepted difference of log-probabilities to the ordinary pass, in nats; ``dtype`` is of the states.

    Not less in float64, because some Hugging Face models have steps in float32, whatever their dtype. In half precision
    logits themselves are rounded, large ones more.
    """
    fixed = {torch.float64: 1e-5, torch.float32: 2e-4}.get(dtype)
    if fixed is not None:
        return fixed
    return max(0.05, 2 * torch.finfo(dtype).eps * float(logits.abs().max()))


class CannotCallBlocksError(Exception):
    """Why the blocks of a model cannot be called alone; its message goes into results, it never reaches a user."""


@dataclass
class Past:
    """Keys and values of the positions before those that a block is called on, and those that it adds.

    It answers to what TransformerLens' and Hugging Face's attention ask of a cache, and is not changed by use.
    """

    keys: Tensor | None
    values: Tensor | None
    dim: int
    """Axis of the positions: 1 for TransformerLens [row pos head d_head], 2 for Hugging Face [row head pos d_head]."""
    rows: int
    """Rows of the call; the rows of ``keys`` are repeated to as many."""
    new: tuple[Tensor, Tensor] | None = None
    """What the block added."""

    @property
    def added(self) -> tuple[Tensor, Tensor]:
        """What the block added.

        Raises:
            CannotCallBlocksError: If it did not use this cache.
        """
        if self.new is None:
            raise CannotCallBlocksError("a block does not use the cache that it is given")
        return self.new

    @property
    def past_keys(self) -> Tensor:
        """What TransformerLens asks for the number of positions before."""
        size = [1, 1, 1, 1]
        size[self.dim] = self.get_seq_length()
        return torch.empty(size, device="meta")

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, as TransformerLens' attention asks for them."""
        self.new = keys, values
        if self.keys is None or self.values is None:
            return keys, values
        return self._join(self.keys, keys), self._join(self.values, values)

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """All keys and values, as Hugging Face's attention asks for them."""
        return self.append(keys, values)

    def get_seq_length(self, *_: object, **__: object) -> int:
        """The number of positions before."""
        return 0 if self.keys is None else self.keys.shape[self.dim]

    def _join(self, past: Tensor, new: Tensor) -> Tensor:
        times = self.rows // len(past)
        parts = [past.expand(times, *past.shape), new.view(times, len(past), *new.shape[1:])]
        return torch.cat(parts, dim=self.dim + 1).flatten(0, 1)


@dataclass(frozen=True)
class Call:
    """The arguments a model passed to a block, apart from the residual stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, eq=False)
class OrdinaryPass:
    """One pass of the clean prompt: how each block was called, and what went in and came out."""

    calls: tuple[Call, ...]
    resid: Float[Tensor, "1 pos d_model"]
    """Before the first block."""
    logits: Float[Tensor, "1 pos d_vocab"]

    @classmethod
    def of(cls, model: Model, batch: TokenBatch) -> "OrdinaryPass":
        """Run ``batch`` (one row) as always, and record.

        Raises:
            CannotCallBlocksError: If a block is not called, or not as blocks are.
        """
        calls: list[Call | None] = [None] * host.n_layers(model)
        first: list[Tensor] = []

        def recorder(layer: int) -> Callable[..., None]:
            def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if args:
                    calls[layer] = Call(args[1:], dict(kwargs))
                    first.extend(args[:1] if layer == 0 else ())

            return record

        with before_forward(((model.blocks[i], recorder(i)) for i in range(len(calls))), with_kwargs=True):
            cache = {} if host.interface(model) == "HookedTransformer" else {"use_cache": True}
            logits = model(batch.tokens, attention_mask=batch.attention_mask, return_type="logits", **cache)
        found = tuple(call for call in calls if call is not None)
        if len(found) < len(calls):
            raise CannotCallBlocksError(f"block {calls.index(None)} is not called in a forward pass")
        return cls(found, first[0], logits)


@runtime_checkable
class Block(Protocol):
    """One block, ready to be called."""

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"], past: Past, last: int | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Its output at the positions of ``resid``, which follow those of ``past``; or only at so many ``last``."""
        ...


class Blocks(ABC):
    """The blocks of one model for prompts of one length, and what follows the last of them."""

    description: str
    """Says in results how blocks were computed."""
    dim: int
    """See `Past.dim`."""

    def __init__(self, model: Model, ordinary: OrdinaryPass) -> None:
        self.model, self.ordinary = model, ordinary
        self.length = ordinary.resid.shape[1]

    @abstractmethod
    def layer(
        self, layer: int, touch: Touch | None = None, kinds: Sequence[str] = TOUCHED
    ) -> AbstractContextManager[Block]:
        """Block ``layer``, ready to be called while the context lasts; ``touch`` sees at least ``kinds``."""

    @abstractmethod
    def unembed(self, resid: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of the residual stream after the last block."""

    def past(self, rows: int, before: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Past:
        """A cache of the first ``start`` positions of ``before`` (keys and values of a few rows) for so many rows."""
        if before is None or start == 0:
            return Past(None, None, self.dim, rows)
        keys, values = (part.narrow(self.dim, 0, start) for part in before)
        return Past(keys, values, self.dim, rows)

    def check(self, start: int) -> None:
        """Compare with the ordinary pass: all positions, those from ``start`` (at least 1) on, and those before.

        Raises:
            CannotCallBlocksError: If the blocks compute something else than the model, cannot go on from a cache, or
                look ahead.
        """
        resid, logits = self.ordinary.resid, self.ordinary.logits
        start = max(1, start)
        full, rest, head = resid, resid[:, start:], resid[:, :start]
        for layer in range(host.n_layers(self.model)):
            past = self.past(1)
            with self.layer(layer) as block:
                full = block(full, past)
                rest = block(rest, self.past(1, past.added, start))
                head = block(head, self.past(1))
        limit = tolerance(resid.dtype, logits)
        for found, what in (
            (full, "alone"),
            (torch.cat([head, rest], dim=1), f"alone up to position {start} and after"),
        ):
            off = _difference(self.unembed(found), logits)
            if not off <= limit:
                raise CannotCallBlocksError(f"its blocks, called {what}, are off by {off:.1e} nats")


def logits_of(model: Any, normed: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits of a HookedTransformer; its own way copies ``W_U`` at every call."""
    rows = torch.addmm(model.unembed.b_U, normed.flatten(0, 1), model.unembed.W_U)
    return soft_cap(rows.view(*normed.shape[:2], -1), model.cfg.output_logits_soft_cap)


def replaced_module(model: Model) -> str | None:
    """A module or activation function that is not TransformerLens' or torch's own; None where there is none."""
    for name, module in cast(Iterable[tuple[str, nn.Module]], cast(nn.Module, model).named_modules()):
        act = getattr(module, "act_fn", None)
        makers = [type(module).__module__, *([] if act is None else [str(getattr(act, "__module__", None))])]
        foreign = any(maker.split(".")[0] not in ("transformer_lens", "torch") for maker in makers)
        if foreign or "forward" in vars(module):
            return name or "the model's class"
    return None


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """Logits held below ``cap`` as Gemma 2 does; TransformerLens says -1 for none."""
    return cap * torch.tanh(logits / cap) if cap is not None and cap > 0 else logits


def _difference(found: Float[Tensor, "1 pos d_vocab"], expected: Float[Tensor, "1 pos d_vocab"]) -> float:
    """Greatest difference of log-probabilities."""
    log_probs = [torch.log_softmax(at_least_float32(logits[0]), dim=-1) for logits in (found, expected)]
    return float((log_probs[0] - log_probs[1]).abs().max())
