"""What was read: records or facts, with where they come from and what could not be read."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeVar, cast, overload

from tl_edit import show
from tl_edit.counted import counted
from tl_edit.data.record import EditRecord, KnownFact
from tl_edit.data.rows import Row
from tl_edit.data.schema import Schema
from tl_edit.request import EditRequest

T = TypeVar("T")
L = TypeVar("L", bound=tuple[Any, ...])

_SHOWN = 5
"""Malformed rows that a message names."""
_ROWS = 10
"""Records or facts that a table shows."""


@dataclass(frozen=True)
class Malformed:
    """A row that is no record."""

    where: str
    """Its place: "line 17" of a file, counted from 1, where the row begins; "row 16" of a hub's data set, its index."""
    why: str
    """What is wrong with it."""

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Listed(tuple[T, ...]):
    """A tuple that knows where it was read."""

    source: str
    """The file, or the data set on the hub."""
    schema: str
    """Which layout it has, e.g. "CounterFact"."""
    malformed: tuple[Malformed, ...]
    """What was left out, and why."""

    def __new__(
        cls, items: Iterable[T] = (), *, source: str = "", schema: str = "", malformed: Sequence[Malformed] = ()
    ) -> "Listed[T]":
        """Of ``items`` and what is to be known of them."""
        made = super().__new__(cls, items)
        made.source, made.schema, made.malformed = source, schema, tuple(malformed)
        return made

    @overload
    def __getitem__(self, key: SupportsIndex) -> T: ...

    @overload
    def __getitem__(self: L, key: slice) -> L: ...

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        """One of them; or several, of the same source. What was malformed is a matter of the whole."""
        found = super().__getitem__(key)
        return (
            type(self)(cast(tuple[T, ...], found), source=self.source, schema=self.schema)
            if isinstance(key, slice)
            else found
        )

    def _table(self, columns: Sequence[str], row: Callable[[T], tuple[str, ...]]) -> str:
        """The first of them as HTML."""
        left_out = f"; the first {_ROWS} are shown" if len(self) > _ROWS else ""
        rows = [(str(i), *row(each)) for i, each in enumerate(self[:_ROWS])]
        return show.table(rows, columns=("", *columns), heading=f"{self!r}{left_out}")

    def __repr__(self) -> str:
        left_out = f"; {len(self.malformed)} malformed" if self.malformed else ""
        return f"{type(self).__name__}({len(self)} from {self.source}, {self.schema}{left_out})"


class Records(Listed[EditRecord]):
    """Records of edits as `read_records` reads them: a tuple that knows its source."""

    @property
    def requests(self) -> tuple[EditRequest, ...]:
        """The request of each, as editing methods take them."""
        return tuple(record.request for record in self)

    def _repr_html_(self) -> str:
        """A table of the first records."""

        def row(record: EditRecord) -> tuple[str, ...]:
            request = record.request
            counts = (
                record.paraphrase_prompts,
                record.neighborhood_prompts,
                record.other_facts,
                record.unrelated_facts,
            )
            said = (request.prompt, request.target_new, request.target_true or "–")
            return (*said, *(str(len(each)) for each in counts))

        columns = ("prompt", "new", "true", "paraphrases", "neighborhood", "other facts", "unrelated facts")
        return self._table(columns, row)


class KnownFacts(Listed[KnownFact]):
    """Facts as `read_known_facts` reads them, for `trace_facts`: a tuple that knows its source."""

    def _repr_html_(self) -> str:
        """A table of the first facts."""

        def row(fact: KnownFact) -> tuple[str, ...]:
            return fact.prompt, fact.subject, "–" if fact.answer is None else fact.answer

        return self._table(("prompt", "subject", "answer"), row)


def made(
    rows: Sequence[Row], schema: Schema[T], operation: str, source: str, *, stacklevel: int
) -> tuple[list[T], list[Malformed]]:
    """The records of all rows, and the rows that are none, of which a warning tells.

    Raises:
        ValueError: If all of them are none.
    """
    items: list[T] = []
    malformed: list[Malformed] = []
    for row in rows:
        try:
            if row.wrong:
                raise ValueError(row.wrong)
            items.append(schema.make(row.fields))
        except ValueError as error:
            malformed.append(Malformed(row.where, str(error).rstrip(".")))
    if malformed:
        named = [f"  {each}" for each in malformed[:_SHOWN]]
        if len(malformed) > _SHOWN:
            named.append(f"  and {len(malformed) - _SHOWN:,} more")
        text = (
            f"{operation}: {len(malformed):,} of {counted(len(rows), 'row')} of {source} are malformed "
            f"(expected: {schema.name}):\n" + "\n".join(named) + "\n"
        )
        if not items:
            raise ValueError(f"{text}Nothing is left; repair them, or choose another file.")
        warnings.warn(
            f"{text}They are left out, and all are in .malformed; repair them, or go on without them.",
            stacklevel=stacklevel + 1,
        )
    return items, malformed
