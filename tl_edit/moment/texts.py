"""What texts are: their order, their tokens, and windows of them that one stretch of the run takes.

Things that know their length and give items by number (lists, the rows of a `datasets` dataset) are taken in a seeded
order without being read as a whole. ``random.Random(seed).shuffle`` makes it, so with seed 1 it is the order of the
published programs. What can only be iterated is taken as it comes.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from tl_edit import host, tokens
from tl_edit.digest import digest
from tl_edit.host import Model
from tl_edit.moment.processes import Processes

OPERATION = "second_moment"


@runtime_checkable
class Numbered(Protocol):
    """Texts that know how many they are and give each by its number, such as the datasets of torch."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One of them."""
        ...


class Row(NamedTuple):
    """The tokens of one text."""

    number: int
    """Of the text, in the order in which texts are taken."""
    tokens: Int[Tensor, " pos"]
    skipped: int
    """How many of the first tokens do not count: 1 for a BOS that is not to, else 0."""

    @property
    def counted(self) -> int:
        """How many tokens count."""
        return len(self.tokens) - self.skipped


class Texts:
    """The user's texts in the order in which they are taken.

    Raises:
        ValueError: For what is no collection of texts.
    """

    def __init__(self, given: object, seed: int) -> None:
        _check_collection(given)
        self._column = column_of(given, OPERATION)
        if self._column is not None and hasattr(given, "select_columns"):
            given = cast(Any, given).select_columns([self._column])
        # A Series of pandas gives items by label otherwise.
        self._given: Any = getattr(given, "iloc", given)
        self.n: int | None = len(cast(Sized, given)) if hasattr(given, "__len__") else None
        self._order: list[int] | None = None
        if self.n is not None and hasattr(self._given, "__getitem__"):
            self._order = list(range(self.n))
            random.Random(seed).shuffle(self._order)

    def __call__(self, own: Processes | None) -> Iterator[tuple[int, object]]:
        """Texts with their numbers in the order: all of them, or what falls to one process."""
        rank, world = (own.rank, own.world) if own is not None else (0, 1)
        if self._order is not None:
            for number in range(rank, len(self._order), world):
                yield number, self._text(self._given[self._order[number]])
            return
        for number, item in enumerate(self._given):
            if number % world == rank:
                yield number, self._text(item)

    def _text(self, item: object) -> object:
        """The text of a dataset's row; anything else is as it is."""
        if not isinstance(item, Mapping):
            return item
        row = cast(Mapping[str, object], item)
        if self._column is not None:
            return row[self._column]
        names = [name for name, value in row.items() if isinstance(value, str)]
        return row[_chosen(list(row), names, OPERATION)]


def _check_collection(given: object) -> None:
    kind = type(given).__name__
    if isinstance(given, str):
        raise ValueError(f"{OPERATION}: texts is one string; expected several texts; pass [text, ...].")
    if isinstance(given, Tensor):
        raise ValueError(
            f"{OPERATION}: texts is one tensor of shape {list(given.shape)}; expected several texts, since padding "
            "in a token matrix would count as text; pass a list of its rows without their padding, or strings."
        )
    if isinstance(given, Mapping) or not (isinstance(given, Iterable) or hasattr(given, "__getitem__")):
        raise ValueError(
            f"{OPERATION}: texts is of type {kind}; expected several texts; pass a list of strings, "
            "or of one-dimensional tensors of token ids; of a dataset with splits pass one, e.g. texts['train']."
        )


def column_of(given: object, operation: str) -> str | None:
    """The column of a `datasets` dataset that holds the texts; None for anything else.

    Raises:
        ValueError: If there is no column "text" and not exactly one of strings.
    """
    names = getattr(given, "column_names", None)
    if not isinstance(names, list):
        return None
    features = cast(Mapping[str, Any], getattr(given, "features", None) or {})
    strings = [name for name in features if getattr(features[name], "dtype", None) in ("string", "large_string")]
    return _chosen(cast(list[str], names), strings, operation)


def _chosen(names: list[str], strings: list[str], operation: str) -> str:
    if "text" in names:
        return "text"
    if len(strings) != 1:
        raise ValueError(
            f"{operation}: the texts have columns {names}, of which {strings} hold strings; expected one named 'text', "
            "or a single one of strings; choose one, e.g. dataset['column'], or read_texts(..., column='column')."
        )
    return strings[0]


class Reader:
    """Texts as token rows, and how far they have been read.

    Raises:
        ValueError: For texts of the wrong kind, or token ids that the model does not have.
    """

    def __init__(
        self,
        model: Model,
        texts: Texts,
        own: Processes,
        *,
        prepend_bos: bool,
        count_bos: bool,
        max_tokens: int | None,
        max_length: int | None,
    ) -> None:
        context = int(model.cfg.n_ctx)
        self._model, self._texts, self._own = model, texts, own
        self._prepend_bos, self._count_bos, self._max_tokens = prepend_bos, count_bos, max_tokens
        self._max_length = context if max_length is None else min(context, max_length)
        self.read = 0
        """Texts read by this process."""
        self.taken = 0
        """Counted tokens, with ``max_tokens`` those of all processes."""
        self.chain = ""
        """Hash of all texts read so far, in their order."""
        # With max_tokens it matters how many tokens the texts of the others have, so every process reads all.
        self._source = texts(own if max_tokens is None else None)

    def windows(self, size: int) -> Iterator[list[Row]]:
        """Rows of this process, so many at a time that they have ``size`` tokens or a little more.

        Between two windows this object describes exactly what was given out.
        """
        window: list[Row] = []
        filled = 0
        for row in self._rows():
            window.append(row)
            filled += len(row.tokens)
            if filled >= size:
                yield window
                window, filled = [], 0
        if window:
            yield window

    def _rows(self) -> Iterator[Row]:
        while self._max_tokens is None or self.taken < self._max_tokens:
            found = next(self._source, None)
            if found is None:
                return
            number, text = found
            self._note(text)
            row = self._row(number, text)
            if row.counted < 1:
                continue
            self.taken += row.counted
            if self._max_tokens is None or number % self._own.world == self._own.rank:
                yield row

    def _note(self, text: object) -> None:
        self.read += 1
        self.chain = digest([self.chain, text if isinstance(text, str | Tensor) else repr(text)])

    def _row(self, number: int, text: object) -> Row:
        """The tokens, cut at the context and at ``max_tokens``."""
        bos = getattr(self._model.tokenizer, "bos_token_id", None)
        if isinstance(text, str):
            ids = self._model.to_tokens(text, prepend_bos=self._prepend_bos, truncate=False)[0].to("cpu", torch.long)
            if len(ids) == int(self._prepend_bos):
                ids = ids[:0]
        else:
            ids = _checked_ids(self._model, text)
        skipped = int(not self._count_bos and len(ids) > 0 and int(ids[0]) == bos)
        left = len(ids) if self._max_tokens is None else self._max_tokens - self.taken + skipped
        return Row(number, ids[: min(self._max_length, left)], skipped)

    def share(self) -> float | None:
        """The share of its texts that this process has read; None where their number is not known."""
        if not self._texts.n or not self.read:
            return None
        mine = self._texts.n / (self._own.world if self._max_tokens is None else 1)
        return min(1.0, self.read / mine)

    def go_to(self, read: int, taken: int, chain: str) -> bool:
        """Read so many texts again without tokenising them; whether they are those that were read before."""
        for _, text in self._source:
            self._note(text)
            if self.read == read:
                break
        self.taken = taken
        return self.read == read and self.chain == chain


def _checked_ids(model: Model, ids: object) -> Int[Tensor, " _"]:
    """Token ids of one text, on the CPU."""
    whole = isinstance(ids, Tensor) and not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not isinstance(ids, Tensor) or not whole or ids.ndim != 1:
        found = f"a tensor of {ids.dtype}, shape {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(
            f"{OPERATION}: texts hold {found}; expected strings, or one-dimensional tensors of token ids; pass the "
            "rows of a token matrix one by one, without their padding."
        )
    row = ids.to("cpu", torch.long)
    size = int(model.cfg.d_vocab)
    if len(row) and not 0 <= int(row.min()) <= int(row.max()) < size:
        raise ValueError(
            f"{OPERATION}: texts hold token ids from {int(row.min())} to {int(row.max())}; {host.model_name(model)} "
            f"has ids 0 to {size - 1}; tokenise with the model's own tokenizer (model.to_tokens)."
        )
    return row


def batches(model: Model, rows: list[Row], batch_tokens: int) -> Iterator[tuple[list[Row], tokens.TokenBatch]]:
    """Rows of similar length together, up to ``batch_tokens`` tokens a batch, padding counted."""
    chunk: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.tokens), reverse=True):
        if chunk and (len(chunk) + 1) * len(chunk[0].tokens) > batch_tokens:
            yield chunk, tokens.pad(model, [each.tokens for each in chunk])
            chunk = []
        chunk.append(row)
    yield chunk, tokens.pad(model, [each.tokens for each in chunk])
