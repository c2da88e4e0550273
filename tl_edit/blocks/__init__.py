"""Blocks of a model called one at a time, on some rows and on the positions from a given one on.

A forward pass through whole layers computes much that is known already. With `Blocks` a caller goes on from any
layer and any position: the keys and values of the positions before it are given (`Past`), as causal attention never
changes them.

Nothing is taken on trust: before use, the clean prompt is run through the blocks, from position 0 and from a later
one, and compared with the ordinary pass. Where they differ, or a block cannot be called so, or a hook is on the model
that must see whole passes, `blocks_of` says why.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from tl_edit import attach
from tl_edit.blocks.base import TOUCHED, Block, Blocks, CannotCallBlocksError, OrdinaryPass, Past, Touch, tolerance
from tl_edit.blocks.packed import PackedBlocks, check_common
from tl_edit.blocks.ragged import Layout, RaggedBlocks, Tails
from tl_edit.blocks.recorded import RecordedBlocks
from tl_edit.blocks.tree import Forest, TreeBlocks, forests
from tl_edit.host import Model
from tl_edit.tokens import TokenBatch

__all__ = [
    "TOUCHED",
    "Block",
    "Blocks",
    "CannotCallBlocksError",
    "Forest",
    "Layout",
    "OrdinaryPass",
    "PackedBlocks",
    "Past",
    "RaggedBlocks",
    "Tails",
    "Touch",
    "TreeBlocks",
    "blocks_of",
    "check_common",
    "forests",
    "tolerance",
    "why_not",
]

Made = TypeVar("Made")


def blocks_of(model: Model, batch: TokenBatch, check_from: int, *, packed: bool = True) -> Blocks:
    """The blocks of ``model`` for prompts like ``batch`` (one row), checked from position 0 and from ``check_from``.

    Args:
        model: A HookedTransformer or TransformerBridge.
        batch: The prompt, one row without padding.
        check_from: The later position of the check.
        packed: Whether to try packed weights first.

    Raises:
        CannotCallBlocksError: Why they cannot be called alone.
    """
    stranger = attach.foreign_hook(model)
    if stranger:
        raise CannotCallBlocksError(f"a hook is attached at {stranger}")
    if getattr(model.cfg, "attention_dir", "causal") != "causal":
        raise CannotCallBlocksError("its attention is not causal")
    ordinary = _or_why_not(lambda: OrdinaryPass.of(model, batch))

    def checked(blocks: Blocks) -> Blocks:
        blocks.check(check_from)
        return blocks

    if packed:
        with suppress(CannotCallBlocksError):
            return _or_why_not(lambda: checked(PackedBlocks(model, ordinary)))
    return _or_why_not(lambda: checked(RecordedBlocks(model, ordinary)))


def _or_why_not(make: Callable[[], Made]) -> Made:
    """What ``make`` gives; whatever an unknown architecture raises becomes the reason."""
    try:
        return make()
    except CannotCallBlocksError:
        raise
    except Exception as error:
        raise CannotCallBlocksError(why_not(error)) from error


def why_not(error: Exception) -> str:
    """The reason that an exception gives for not calling blocks alone."""
    if isinstance(error, CannotCallBlocksError):
        return str(error)
    return f"its blocks cannot be called alone ({type(error).__name__}: {error})"
