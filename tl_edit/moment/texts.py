"""What texts are: their order, their tokens, and windows of them that one stretch of the run takes.

Things that know their length and give items by number (lists, the rows of a `datasets` dataset) are taken in a seeded
order without being read as a whole. ``random.Random(seed).shuffle`` makes it, so with seed 1 it is the order of the
published programs. What can only be iterated is taken as it comes.
"""

import random
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from tl_edit import host, tokens
from tl_edit.digest import digest
from tl_edit.host import Model
from tl_edit.processes import Processes

OPERATION = "second_moment"
SPOTS = 64
"""Texts, evenly spaced, by which processes compare what gives items by number."""


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

    def __init__(self, given: object, seed: int, operation: str = OPERATION) -> None:
        _check_collection(given, operation)
        self.operation = operation
        """Who asks, for advice."""
        self._column = column_of(given, operation)
        if self._column is not None and hasattr(given, "select_columns"):
            given = cast(Any, given).select_columns([self._column])
        # A Series of pandas gives items by label otherwise.
        self._given: Any = getattr(given, "iloc", given)
        self.n: int | None = len(cast(Sized, given)) if hasattr(given, "__len__") else None
        self._unordered = isinstance(given, set | frozenset)
        self._whole = isinstance(given, list | tuple)
        self.walked = 0
        """Items of a stream that were walked past, whichever process they fall to; counted with several processes."""
        self.chain = ""
        """Hash of these."""
        self._order: list[int] | None = None
        if self.n is not None and hasattr(self._given, "__getitem__"):
            self._order = list(range(self.n))
            random.Random(seed).shuffle(self._order)

    def __call__(self, own: Processes | None) -> Iterator[tuple[int, object]]:
        """Texts with their numbers in the order: all of them, or what falls to one process."""
        rank, world = (own.rank, own.world) if own is not None else (0, 1)
        if self._order is not None:
            for number in range(rank, len(self._order), world):
                yield number, self._text(number, self._given[self._order[number]])
            return
        for number, item in enumerate(self._given):
            # Also of items that fall to others, so that all processes take the column of the first row.
            text = self._text(number, item)
            if world > 1:
                self.walked, self.chain = number + 1, chained(self.chain, text)
            if number % world == rank:
                yield number, text

    def place(self, number: int) -> int:
        """Where the text that is taken as this number stands in what the user gave."""
        return number if self._order is None else self._order[number]

    def said(self) -> str:
        """A hash of the texts, as far as it can be known before they are read.

        Of all of a list; of `SPOTS` of what gives items by number, which may have to fetch each; of a stream nothing.
        """
        if self.n is None or self._order is None:
            return "a stream"
        step = 1 if self._whole else max(1, self.n // SPOTS)
        found = ""
        for number in range(0, self.n, step):
            # Not of the whole row, whose other columns may be shown in another way in each process.
            found = chained(found, self._text(number, self._given[self._order[number]]))
        return f"{self.n} with hash {found[:8]}"

    def check_shared(self, own: Processes) -> None:
        """Refuse, for several processes, what comes in another order in each.

        Raises:
            ValueError: For sets.
        """
        if own.world > 1 and self._unordered:
            raise ValueError(
                f"{self.operation}: texts is a set, in each of {own.world} processes in another order; expected the "
                "same order in all of them; pass sorted(texts)."
            )

    def _text(self, number: int, item: object) -> object:
        """The text of a dataset's row, from the column that the first row decides; anything else is as it is."""
        if not isinstance(item, Mapping):
            return item
        row = cast(Mapping[str, object], item)
        if self._column is None:
            first = row if self._order is None else self._given[0]
            # Lists may hold strings and rows.
            self._column = column_of_row(
                cast(Mapping[str, object], first) if isinstance(first, Mapping) else row, self.operation
            )
        if self._column not in row:
            raise ValueError(
                f"{self.operation}: row {self.place(number):,} of the texts (counted from 0) has the columns "
                f"{list(row)}; expected {self._column!r}, which the first row decided; give every row that column, or "
                "pass its texts as strings."
            )
        return row[self._column]


def _check_collection(given: object, operation: str) -> None:
    kind = type(given).__name__
    if isinstance(given, str):
        raise ValueError(f"{operation}: texts is one string; expected several texts; pass [text, ...].")
    if isinstance(given, Tensor):
        raise ValueError(
            f"{operation}: texts is one tensor of shape {list(given.shape)}; expected several texts, since padding "
            "in a token matrix would count as text; pass a list of its rows without their padding, or strings."
        )
    if isinstance(given, Mapping) or not (isinstance(given, Iterable) or hasattr(given, "__getitem__")):
        raise ValueError(
            f"{operation}: texts is of type {kind}; expected several texts; pass a list of strings, "
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
    strings = [name for name in features if holds_strings(given, name)]
    return _chosen(cast(list[str], names), strings if features else None, operation)


def holds_strings(dataset: object, column: str) -> bool:
    """Whether a column of a `datasets` dataset holds strings; True where that is not known."""
    features = cast(Mapping[str, Any], getattr(dataset, "features", None) or {})
    return column not in features or getattr(features[column], "dtype", None) in ("string", "large_string")


def column_of_row(row: Mapping[str, object], operation: str) -> str:
    """The column of the texts by one row: "text", or the only one whose value is a string or null.

    Raises:
        ValueError: If there is no such column.
    """
    return _chosen(
        list(row), [name for name, value in row.items() if value is None or isinstance(value, str)], operation
    )


def chained(before: str, text: object) -> str:
    """The hash of what ``before`` is the hash of, and one more text."""
    return digest([before, text if isinstance(text, str | Tensor) else repr(text)])


def _chosen(names: list[str], strings: list[str] | None, operation: str) -> str:
    """``strings`` are those of ``names`` that hold strings, None where that is not known."""
    if "text" in (names if strings is None else strings):
        return "text"
    strings = strings or []
    if "text" in names or len(strings) != 1:
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
        self.emptied = False
        """Whether there was a text of which the settings left no token to count."""
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
                self.emptied |= len(row.tokens) > 0
                continue
            self.taken += row.counted
            if self._max_tokens is None or number % self._own.world == self._own.rank:
                yield row

    def _note(self, text: object) -> None:
        self.read += 1
        self.chain = chained(self.chain, text)

    def _row(self, number: int, text: object) -> Row:
        """The tokens, cut at the context and at ``max_tokens``."""
        bos = getattr(self._model.tokenizer, "bos_token_id", None)
        place = f"text {self._texts.place(number):,} (counted from 0)"
        ids = (
            self._tokenised(text, place)
            if isinstance(text, str)
            else _checked_ids(self._model, text, place, self._texts.operation)
        )
        skipped = int(not self._count_bos and len(ids) > 0 and int(ids[0]) == bos)
        left = len(ids) if self._max_tokens is None else self._max_tokens - self.taken + skipped
        return Row(number, ids[: min(self._max_length, left)], skipped)

    def _tokenised(self, text: str, place: str) -> Int[Tensor, " _"]:
        """Token ids of a string; none where there is nothing but a BOS."""
        tokens.resolve_bos(self._model, self._prepend_bos)
        try:
            ids = self._model.to_tokens(text, prepend_bos=self._prepend_bos, truncate=False)[0].to("cpu", torch.long)
        except (UnicodeError, TypeError) as error:  # which of them depends on the tokenizer
            raise ValueError(
                f"{self._texts.operation}: {place} cannot be tokenised ({error}); expected text that UTF-8 can hold; "
                "repair it, e.g. text.encode('utf-8', 'replace').decode()."
            ) from error
        return ids[:0] if len(ids) == int(self._prepend_bos) else ids

    def walked(self) -> dict[str, object]:
        """What must be equal in all processes at the end: how many texts they walked past, and their hash.

        Where each process reads its own texts only, there is nothing to compare but what `Texts.said` says before.
        """
        if self._max_tokens is not None:
            return {"texts read": self.read, "hash of the texts": self.chain}
        return {"texts read": self._texts.walked, "hash of the texts": self._texts.chain}

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


def _checked_ids(model: Model, ids: object, place: str, operation: str) -> Int[Tensor, " _"]:
    """Token ids of one text, on the CPU."""
    if not isinstance(ids, Tensor):
        raise ValueError(
            f"{operation}: {place} is {reprlib.repr(ids)} of type {type(ids).__name__}; expected a string, or a "
            "one-dimensional tensor of token ids; leave texts out that are missing, and convert others, e.g. with "
            "torch.tensor(ids)."
        )
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not whole or ids.ndim != 1:
        raise ValueError(
            f"{operation}: {place} is a tensor of {ids.dtype}, shape {list(ids.shape)}; expected strings, or "
            "one-dimensional tensors of token ids; pass the rows of a token matrix one by one, without their padding."
        )
    row = ids.to("cpu", torch.long)
    size = int(model.cfg.d_vocab)
    if len(row) and not 0 <= int(row.min()) <= int(row.max()) < size:
        raise ValueError(
            f"{operation}: {place} holds token ids from {int(row.min())} to {int(row.max())}; {host.model_name(model)} "
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
