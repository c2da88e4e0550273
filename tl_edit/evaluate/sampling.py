"""The model goes on from prompts, a token at a time; how fast, and with which random numbers.

All rows stand at the same position always. They begin where the shortest prompt ends; a row whose prompt is longer
takes its own next token, not the drawn one. So no row is ever padded, and the keys and values of all earlier positions
can be kept: after the first pass each token costs one position, not the whole text.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.attach import foreign_hook
from tl_edit.blocks import Block, Blocks, CannotCallBlocksError, PackedBlocks, Past, blocks_of, tolerance, why_not
from tl_edit.blocks.ragged import KEPT_BYTES
from tl_edit.digest import digest
from tl_edit.forward import at_least_float32
from tl_edit.host import Model, NamedHook
from tl_edit.tokens import TokenBatch

EngineName = Literal["auto", "plain"]


@dataclass(frozen=True, eq=False)
class Start:
    """A prompt to go on from, and the random numbers of its text."""

    tokens: Int[Tensor, " pos"]
    uniform: Float[Tensor, " n"]
    """For each position of the text a number from 0 to 1 (float64); those of the prompt are not used."""


def uniforms(prompts: Sequence[str], n_tokens: int, seed: int) -> list[Float[Tensor, " n"]]:
    """Random numbers for the text of each prompt.

    They depend on the seed, the prompt, and how many equal prompts come before it; not on the other prompts.
    """
    found: list[Tensor] = []
    before: Counter[str] = Counter()
    for prompt in prompts:
        own = int(digest([f"{seed} {before[prompt]} ", prompt], size=8), 16)
        generator = torch.Generator().manual_seed(own)
        found.append(torch.rand(n_tokens, generator=generator, dtype=torch.float64))
        before[prompt] += 1
    return found


Following = Callable[[Tensor], Tensor]
"""From rows [row pos], which begin with those of the call before, to the log-probabilities of the token after each of
them, [row d_vocab]."""


class WholePasses:
    """Every call runs the rows from their beginning."""

    def __init__(self, model: Model, hooks: Sequence[NamedHook] = ()) -> None:
        self.model, self.hooks = model, hooks

    def __call__(self, rows: Int[Tensor, "row pos"]) -> Float[Tensor, "row d_vocab"]:
        """See `Following`."""
        return forward.last_log_probs(self.model, _unpadded(self.model, rows), self.hooks)


class KeptPasses:
    """Every call runs the new positions only; keys and values of the others are kept."""

    def __init__(self, blocks: Blocks, size: int, ready: Sequence[Block] = ()) -> None:
        """``size``: positions there is to be room for; ``ready``: the blocks, or none to open them at every call."""
        self.blocks, self.ready, self.size = blocks, ready, size
        self._pasts: list[Past] = []

    def __call__(self, rows: Int[Tensor, "row pos"]) -> Float[Tensor, "row d_vocab"]:
        """See `Following`."""
        model, name = self.blocks.model, host.resid_pre_name(0)
        depth = host.n_layers(model)
        if not self._pasts:
            self._pasts = [_RoomyPast(self.blocks.dim, len(rows), self.size) for _ in range(depth)]
        # The embeddings of all positions: cheap, and right whatever the model does with positions.
        resid = forward.activations(model, _unpadded(model, rows), [name])[name]
        resid = resid[:, self._pasts[0].get_seq_length() :]
        for layer, past in enumerate(self._pasts):
            context = nullcontext(self.ready[layer]) if self.ready else self.blocks.layer(layer)
            with context as block:
                resid = block(resid, past, last=1 if layer == depth - 1 else None)
        return forward.log_probs(model, self.blocks.unembed(resid)[:, -1])


class _RoomyPast(Past):
    """A cache with room for so many positions, into which a block writes what it adds."""

    def __init__(self, dim: int, rows: int, size: int) -> None:
        super().__init__(None, None, dim, rows)
        self._size, self._filled = size, 0

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values up to now."""
        if self.keys is None or self.values is None:
            self.keys, self.values = (self._room(part) for part in (keys, values))
        width = keys.shape[self.dim]
        for part, new in ((self.keys, keys), (self.values, values)):
            part.narrow(self.dim, self._filled, width).copy_(new)
        self._filled += width
        self.new = keys, values
        return self.keys.narrow(self.dim, 0, self._filled), self.values.narrow(self.dim, 0, self._filled)

    def get_seq_length(self, *_: object, **__: object) -> int:
        """See `Past.get_seq_length`."""
        return self._filled

    def _room(self, part: Tensor) -> Tensor:
        shape = list(part.shape)
        shape[self.dim] = self._size
        return part.new_empty(shape)


@dataclass(frozen=True, eq=False)
class Grown:
    """Rows that grew, and what they were drawn from."""

    rows: Int[Tensor, "row pos"]
    candidates: Int[Tensor, "row n _"]
    """The likeliest tokens of each step, the first of which follows the shortest prompt."""
    log_probs: Float[Tensor, "row n _"]
    """Of these, in float64."""


def grow(starts: Sequence[Start], following: Following, n_tokens: int, top_k: int) -> Grown:
    """Let prompts grow to ``n_tokens``, each token drawn among the ``top_k`` likeliest in proportion to probability."""
    lengths = torch.tensor([len(start.tokens) for start in starts])
    rows = torch.zeros(len(starts), n_tokens, dtype=torch.long)
    for row, start in zip(rows, starts, strict=True):
        row[: len(start.tokens)] = start.tokens
    uniform = torch.stack([start.uniform for start in starts])
    candidates: list[Tensor] = []
    log_probs: list[Tensor] = []
    for stop in range(int(lengths.min()), n_tokens):
        found = following(rows[:, :stop])
        top = found.topk(min(top_k, found.shape[-1]))
        values, indices = top.values.cpu().double(), top.indices.cpu()
        share = values.exp().cumsum(dim=-1)
        # Which of the shares, one after another, the random number falls into.
        place = (share <= uniform[:, stop, None] * share[:, -1:]).sum(dim=-1).clamp(max=share.shape[-1] - 1)
        drawn = indices.gather(-1, place[:, None])[:, 0]
        rows[:, stop] = torch.where(lengths > stop, rows[:, stop], drawn)
        candidates.append(indices)
        log_probs.append(values)
    return Grown(rows, torch.stack(candidates, dim=1), torch.stack(log_probs, dim=1))


@torch.no_grad()
def sample(
    model: Model,
    starts: Sequence[Start],
    hooks: Sequence[NamedHook] = (),
    *,
    n_tokens: int,
    top_k: int,
    batch_size: int,
    engine: EngineName = "auto",
) -> tuple[list[Int[Tensor, " pos"]], str]:
    """Let prompts grow to ``n_tokens``; also says how it was computed.

    Args:
        model: A HookedTransformer or TransformerBridge.
        starts: Prompts of less than ``n_tokens`` tokens, at least one.
        hooks: Attached to all passes, which then are whole ones, over rows whose prompts are of one length.
        n_tokens: Length of the texts, prompts included.
        top_k: Each token is drawn among so many likeliest.
        batch_size: Rows per forward pass.
        engine: "auto", or "plain" for whole passes only.
    """
    lengths = [len(start.tokens) for start in starts]
    blocks, reason = None, "asked for" if engine == "plain" else "hooks are given"
    if engine == "auto" and not hooks:
        blocks, reason = _blocks(model, starts, n_tokens)
    # A hook may be about positions of the prompt.
    one_length = bool(hooks) or foreign_hook(model) is not None
    # Rows of like length together: the shortest of a batch tells how many steps it takes.
    order = sorted(range(len(starts)), key=lambda i: lengths[i])
    found: dict[int, Tensor] = {}
    for chunk in tokens.chunks([lengths[i] for i in order], batch_size, one_length=one_length):
        numbers = [order[i] for i in chunk]
        batch = [starts[i] for i in numbers]
        rows = None
        if blocks is not None:
            try:
                rows = _kept(blocks, batch, n_tokens, top_k)
            except Exception as error:  # whatever a module of the user's does when it is called alone
                if forward.is_out_of_memory(error):
                    raise
                blocks, reason = None, why_not(error)
        if rows is None:
            rows = grow(batch, WholePasses(model, hooks), n_tokens, top_k).rows
        found |= zip(numbers, rows, strict=True)
    how = f"blocks ({blocks.description})" if blocks is not None else f"whole passes ({reason})"
    return [found[i] for i in range(len(starts))], how


def _blocks(model: Model, starts: Sequence[Start], n_tokens: int) -> tuple[Blocks | None, str]:
    """The blocks of the model for rows of ``n_tokens``; or None, and why."""
    shortest = min((start.tokens for start in starts), key=len)
    # Any text of the length will do.
    row = shortest.repeat(-(-n_tokens // len(shortest)))[:n_tokens]
    try:
        return blocks_of(model, tokens.pad(model, [row]), len(shortest)), ""
    except CannotCallBlocksError as error:
        return None, str(error)


def _kept(blocks: Blocks, starts: Sequence[Start], n_tokens: int, top_k: int) -> Int[Tensor, "row pos"]:
    """Rows grown with keys and values kept; the shortest and the longest prompt are repeated as one whole pass.

    Raises:
        CannotCallBlocksError: If that pass says something else.
    """
    with ExitStack() as stack:
        # Packed once for all steps, where memory allows.
        small = _packed_bytes(blocks) < KEPT_BYTES
        depth = host.n_layers(blocks.model) if small else 0
        ready = [stack.enter_context(blocks.layer(layer)) for layer in range(depth)]
        grown = grow(starts, KeptPasses(blocks, n_tokens, ready), n_tokens, top_k)
    _spot_check(blocks, grown, min(len(start.tokens) for start in starts))
    return grown.rows


def _packed_bytes(blocks: Blocks) -> int:
    """What the packed weights of all blocks take."""
    cfg = blocks.model.cfg
    if not isinstance(blocks, PackedBlocks):
        return 0
    return int(cfg.n_layers * 3 * cfg.d_model * cfg.n_heads * cfg.d_head * torch.finfo(cfg.dtype).bits // 8)


def _spot_check(blocks: Blocks, grown: Grown, begin: int) -> None:
    """Repeat the first and the last row as one whole pass.

    Raises:
        CannotCallBlocksError: If the model says something else than was found.
    """
    picked = [0, len(grown.rows) - 1]
    logits = forward.logits(blocks.model, _unpadded(blocks.model, grown.rows[picked, :-1]))[:, begin - 1 :]
    said = torch.log_softmax(at_least_float32(logits), dim=-1).gather(-1, grown.candidates[picked].to(logits.device))
    off = float((said.cpu().double() - grown.log_probs[picked]).abs().max())
    if not off <= tolerance(blocks.ordinary.resid.dtype, logits):
        raise CannotCallBlocksError(f"its blocks, called alone, are off by {off:.1e} nats at the end of a text")


def _unpadded(model: Model, rows: Int[Tensor, "row pos"]) -> TokenBatch:
    """Rows of one length as a batch."""
    return tokens.pad(model, list(rows))
