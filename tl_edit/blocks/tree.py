"""Packed blocks on rows of tokens that begin alike: what they share is computed once.

Under causal attention the states of a position depend on the tokens up to it alone. So rows of tokens that begin alike
have the same states there, and are a tree: a node for each beginning of a row, with the node of one token less as its
parent. The nodes of a tree lie side by side, each at its depth as its position, and attention sees a node's ancestors
and itself. In the order of a dictionary, what a row shares with any row before it, it shares with the last one; so the
tree is built without a search, and the descendants of a node follow it without a gap.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_edit import host
from tl_edit.blocks.packed import check_common, unembed
from tl_edit.blocks.ragged import Layout, RaggedBlocks
from tl_edit.host import Model

WIDTH = 64
"""Nodes that attention looks at together. More share more, and fewer leave less that attention may not see."""

Tokens = tuple[int, ...]


class Trees(Layout):
    """Trees as rows; the descendants of each node follow it without a gap."""

    def __init__(self, sizes: Sequence[int], depths: Sequence[int], ends: Sequence[int], device: torch.device) -> None:
        """Of each node its depth, and where in its own tree its descendants end."""
        super().__init__(sizes, device)
        self.positions = torch.tensor(depths, device=device)
        self._ends, self._depths = (self._framed(torch.tensor(each, device=device)) for each in (ends, depths))
        self._seen: dict[int | None, Tensor] = {}

    def _framed(self, numbers: Int[Tensor, " n"]) -> Int[Tensor, "row pos"]:
        """With zero for padding."""
        frame = numbers.new_zeros(self.rows * self.width).index_copy(0, self.flat, numbers)
        return frame.view(self.rows, self.width)

    def seen(self, past: int, window: int | None) -> Bool[Tensor, "row 1 query key"]:
        """See `Layout.seen`; trees have no past."""
        if window not in self._seen:
            columns = torch.arange(self.width, device=self.positions.device)
            query, key = columns[:, None], columns[None]
            # Padding sees itself, as attention to nothing is no number.
            seen = (key <= query) & (query < self._ends[:, None]) | (key == query)
            if window is not None:
                seen &= self._depths[:, None] > self._depths[:, :, None] - window
            self._seen[window] = seen[:, None]
        return self._seen[window]


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees that are computed together."""

    tokens: Int[Tensor, " n"]
    layout: Trees
    paths: Mapping[int, list[int]]
    """Of each row of tokens, by its number, the nodes of its tokens."""


class _Tree:
    """A tree that rows are added to, in the order of a dictionary."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.ends: list[int] = []
        self.paths: dict[int, list[int]] = {}
        self._last: Tokens = ()
        self._path: list[int] = []

    def shared(self, row: Tokens) -> int:
        """How many tokens ``row`` begins with that are here."""
        pairs = enumerate(zip(self._last, row, strict=False))
        return next((i for i, (one, other) in pairs if one != other), min(len(self._last), len(row)))

    def add(self, number: int, row: Tokens) -> None:
        """Add what is not here."""
        shared, size = self.shared(row), len(self.tokens)
        self.tokens += row[shared:]
        self.depths += range(shared, len(row))
        self._last, self._path = row, self._path[:shared] + list(range(size, len(self.tokens)))
        self.ends += [0] * (len(row) - shared)
        for node in self._path:
            self.ends[node] = len(self.tokens)
        self.paths[number] = self._path


def forests(rows: Sequence[Tokens], *, size: int, device: torch.device, first: int | None = None) -> Iterator[Forest]:
    """All rows of tokens, in forests of at most ``size`` nodes, or of one row if it is longer.

    Rows may repeat, and be the beginnings of others. Each forest is made when it is asked for, since its mask takes
    more memory than its rows; the one with row ``first`` comes first.
    """
    plan = _planned(rows, size)
    for trees in sorted(plan, key=lambda trees: all(first not in tree.paths for tree in trees)):
        yield _forest(trees, device)


def _planned(rows: Sequence[Tokens], size: int) -> Iterator[list[_Tree]]:
    """Which trees are computed together."""
    width = min(size, max(WIDTH, *map(len, rows)))
    together: list[_Tree] = []
    tree = _Tree()
    for number in sorted(range(len(rows)), key=lambda i: rows[i]):
        row = rows[number]
        if tree.tokens and len(tree.tokens) + len(row) - tree.shared(row) > width:
            together.append(tree)
            tree = _Tree()
        tree.add(number, row)
    together.append(tree)
    chunk: list[_Tree] = []
    for tree in together:
        if chunk and sum(len(each.tokens) for each in chunk) + len(tree.tokens) > size:
            yield chunk
            chunk = []
        chunk.append(tree)
    yield chunk


def _forest(trees: Sequence[_Tree], device: torch.device) -> Forest:
    layout = Trees(
        [len(tree.tokens) for tree in trees],
        [depth for tree in trees for depth in tree.depths],
        [end for tree in trees for end in tree.ends],
        device,
    )
    paths: dict[int, list[int]] = {}
    for tree, begin in zip(trees, map(int, layout.beginnings), strict=True):
        paths |= {number: [begin + node for node in path] for number, path in tree.paths.items()}
    return Forest(torch.tensor([token for tree in trees for token in tree.tokens], device=device), layout, paths)


class TreeBlocks:
    """A whole HookedTransformer on trees, from tokens to logits; its numbers are for the caller to check."""

    def __init__(self, model: Model) -> None:
        """See `check_common`."""
        check_common(model)
        self.model = model
        self._ragged = RaggedBlocks(model, 0)

    def states(self, forest: Forest, only: Int[Tensor, " read"]) -> Float[Tensor, "read d_model"]:
        """The residual stream after the last block, at the nodes in ``only``."""
        model: Any = self.model
        resid = model.embed(forest.tokens[None])[0]
        if model.cfg.positional_embedding_type == "standard":
            resid = resid + model.pos_embed.W_pos[forest.layout.positions]
        last = host.n_layers(model) - 1
        for layer in range(last + 1):
            block = self._ragged.layer(layer)
            resid = block(resid, forest.layout, only=only if layer == last else None)
        return resid

    def unembed(self, states: Float[Tensor, "read d_model"]) -> Float[Tensor, "read d_vocab"]:
        """Their logits."""
        return unembed(self.model, states[None])[0]
