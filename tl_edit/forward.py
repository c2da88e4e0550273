"""Running (part of) a model on a padded batch, with hooks of ours beside the user's.

The forward pass ends as soon as nobody needs the rest: a run that only reads activations stops at the last
one it reads, so no logits are computed for it.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_edit import tokens
from tl_edit.attach import attached, before_forward
from tl_edit.hooks import capture
from tl_edit.host import HookFn, Model, NamedHook, model_name
from tl_edit.tokens import TokenBatch

LOGIT_BYTES = 2**28
"""Bytes of logits that are computed at a time, unless those of one row are more."""


class _StopForwardError(Exception):
    """Raised by our last hook to end a forward pass; never leaves this file."""


def logits(model: Model, batch: TokenBatch, hooks: Sequence[NamedHook] = ()) -> Float[Tensor, "batch pos d_vocab"]:
    """Logits at every position, computed with ``hooks`` attached; gradients flow if they are enabled."""
    with attached(model, hooks):
        return model(batch.tokens, attention_mask=_mask(model, batch), return_type="logits")


def logits_at(model: Model, batch: TokenBatch, places: Int[Tensor, " read"]) -> Float[Tensor, "read d_vocab"] | None:
    """Logits at some places, counted row by row over the padded batch; those of the others are not computed.

    The module that unembeds is shown the states of these places alone. None where that does not lead to logits of so
    many places; the numbers are for the caller to check.
    """
    shown: list[int] = []

    def show(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shown.append(len(places))
        return (args[0].flatten(0, 1)[places.to(args[0].device)][None], *args[1:])

    with before_forward([(cast(Any, model).unembed, show)]):
        found = model(batch.tokens, attention_mask=_mask(model, batch), return_type="logits")
    return found[0] if len(shown) == 1 and found.shape[:2] == (1, len(places)) else None


def most_logits(model: Model) -> int:
    """Positions whose logits fit into `LOGIT_BYTES`."""
    size = next(cast(nn.Module, model).parameters()).dtype.itemsize
    return max(1, LOGIT_BYTES // (size * int(model.cfg.d_vocab)))


def batches(model: Model, lengths: Sequence[int], size: int, *, one_length: bool) -> Generator[list[int], None, None]:
    """`tokens.chunks`, with fewer rows where their logits do not fit into `LOGIT_BYTES`."""
    most = most_logits(model)
    for chunk in tokens.chunks(lengths, size, one_length=one_length):
        first, longest = 0, 0
        for i, row in enumerate(chunk):
            longest = max(longest, lengths[row])
            if i > first and (i + 1 - first) * longest > most:
                yield chunk[first:i]
                first, longest = i, lengths[row]
        yield chunk[first:]


def _mask(model: Model, batch: TokenBatch) -> Tensor:
    """The attention mask that the model is given.

    With padding on the right and attention that only looks back, nothing real sees padding, masked or not. Masked, a
    padded position may see no key at all (behind a sliding window), where some models have no number; and what is not
    a number spreads to the real positions of later layers, as zero times it is not zero.
    """
    causal = getattr(model.cfg, "attention_dir", "causal") == "causal"
    return torch.ones_like(batch.attention_mask) if causal else batch.attention_mask


def last_log_probs(model: Model, batch: TokenBatch, hooks: Sequence[NamedHook] = ()) -> Float[Tensor, "batch d_vocab"]:
    """Log-probabilities of the token after each row's last real one, in at least float32; see `log_probs`."""
    rows = torch.arange(len(batch.lengths))
    with torch.no_grad():
        last = logits(model, batch, hooks)[rows, torch.tensor(batch.lengths) - 1]
    return log_probs(model, last)


def next_log_probs(model: Model, text: str, *, prepend_bos: bool | None = None) -> Float[Tensor, " d_vocab"]:
    """Log-probabilities of the token after ``text``; see `log_probs`."""
    return last_log_probs(model, tokens.pad(model, [tokens.encode(model, text, prepend_bos=prepend_bos)]))[0]


def log_probs(model: Model, logits: Float[Tensor, "_ d_vocab"]) -> Float[Tensor, "_ d_vocab"]:
    """Log-probabilities of the next token in at least float32.

    Raises:
        ValueError: If they are not numbers, as after an overflow.
    """
    found = torch.log_softmax(at_least_float32(logits), dim=-1)
    if found.isnan().any():
        raise ValueError(
            f"running {model_name(model)}: its next-token probabilities are not finite; expected numbers from 0 to 1; "
            "load the model in float32 or bfloat16 (float16 overflows on some models), and look for weights and hooks "
            "that are not finite."
        )
    return found


@torch.no_grad()
def activations(
    model: Model, batch: TokenBatch, names: Sequence[str], hooks: Sequence[NamedHook] = ()
) -> dict[str, Float[Tensor, "batch pos _"]]:
    """Activations at ``names``, in one pass that stops after the last of them.

    Raises:
        ValueError: If a name does not fire on this model.
    """
    store: dict[str, Tensor] = {}
    visit(model, batch, {name: capture(store, name) for name in names}, hooks)
    return store


@torch.no_grad()
def visit(
    model: Model, batch: TokenBatch, readers: Mapping[str, Callable[[Tensor], None]], hooks: Sequence[NamedHook] = ()
) -> None:
    """Show each reader the activation ``[batch pos _]`` at its name, in one pass that stops after the last of them.

    Nothing is copied; readers must not write.

    Raises:
        ValueError: If a name does not fire on this model.
    """
    seen: set[str] = set()

    def watch(name: str) -> HookFn:
        def read(act: Tensor, hook: object = None) -> None:
            # Some Hugging Face MLPs see [batch * pos, width]; give the sequence its axis back.
            readers[name](act.detach().reshape(*batch.tokens.shape, -1))
            seen.add(name)
            if len(seen) == len(readers):
                raise _StopForwardError

        return read

    try:
        with attached(model, [*hooks, *((name, watch(name)) for name in readers)]):
            model(batch.tokens, attention_mask=_mask(model, batch), return_type="logits")
    except _StopForwardError:
        pass
    missing = readers.keys() - seen
    if missing:
        raise ValueError(
            f"reading activations: {sorted(missing)} did not fire in the forward pass; expected hook points that "
            "this architecture computes; see model.hook_dict. Under torch.compile hooks may not fire: use the model as "
            "it was before."
        )


@contextmanager
def no_graph_left(model: Model) -> Generator[None, None, None]:
    """Whatever happens in the block, no module holds a gradient graph of it afterwards; what had one before keeps it.

    The attention of a TransformerBridge keeps its last pattern: after a pass with gradients that keeps the whole graph
    in memory, and the model cannot be deep-copied.
    """
    before = {(id(module), name): kept for module, name, kept in _graphs(model)}
    try:
        yield
    finally:
        for module, name, kept in _graphs(model):
            if before.get((id(module), name)) is not kept:
                vars(module)[name] = kept.detach()


def _graphs(model: Model) -> list[tuple[nn.Module, str, Tensor]]:
    """The tensors with a graph among the plain attributes of modules."""
    return [
        (module, name, kept)
        for module in cast(nn.Module, model).modules()
        for name, kept in vars(module).items()
        if isinstance(kept, Tensor) and kept.grad_fn is not None
    ]


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out."""
    # The CPU's allocator has no class of its own.
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


@contextmanager
def memory_advice(operation: str, argument: str, value: int) -> Generator[None, None, None]:
    """Turn running out of memory into advice: half of what ``argument`` was.

    Raises:
        MemoryError: naming the value to try.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"{operation}: memory ran out with {argument}={value} ({error}); expected the activations of so many "
            f"positions to fit; pass {argument}={max(1, value // 2)}."
        ) from error


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is if it is float64: half precision is no place for sums."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def lengths(rows: Float[Tensor, "row _"]) -> Float[Tensor, " row"]:
    """Euclidean norm of each row."""
    return cast(Tensor, torch.linalg.vector_norm(rows, dim=1))


def length(tensor: Tensor) -> Float[Tensor, ""]:
    """Euclidean (Frobenius) norm; its gradient at zero is zero."""
    return cast(Tensor, torch.linalg.vector_norm(tensor))
