"""Which data set a table is, told by its columns."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from tl_edit.data.fields import Fields, shown
from tl_edit.data.record import FACTS, PROMPTS, TEXTS
from tl_edit.data.rows import Row

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Schema(Generic[T_co]):
    """A layout of columns, and how a row of it becomes a record."""

    name: str
    marks: tuple[str, ...]
    """Columns by which it is told from others: each of them in some row."""
    columns: tuple[str, ...]
    """All that it has, read or not."""
    make: Callable[[Fields], T_co]
    """A row's record. Raises ValueError with what is wrong with the row."""


LISTS = frozenset({"answers", *PROMPTS, *FACTS, *TEXTS})
"""Columns that hold several things, in any schema."""


_NUMBERS = ("case_id", "name")
_WORDS = frozenset(
    [
        "relation",
        "prompt",
        "subject",
        "target_new",
        "target_true",
        "answer",
        "attribute",
        "ground_truth",
        "rephrase_prompt",
        "locality_prompt",
        "locality_ground_truth",
        "src",
        "rephrase",
        "loc",
        "loc_ans",
    ]
)
"""Columns that hold a name or number of the record, and such that hold one text, in any schema."""
_A_LIST = re.compile(r"""\[\s*(["']).*\1\s*\]""", re.DOTALL)
"""A cell with a list of texts, as JSON or Python write it."""


def columns_of(rows: Iterable[Row]) -> dict[str, str]:
    """The columns that occur, each with the place where it first does."""
    found: dict[str, str] = {}
    for row in rows:
        for name in row.fields:
            found.setdefault(name, row.where)
    return found


def renamed(rows: Sequence[Row], names: Mapping[str, str | None], operation: str, source: str) -> list[Row]:
    """The rows with columns called as ``names`` says; None leaves a column out.

    Raises:
        ValueError: If a column to rename is not there, or two would be called the same.
    """
    found = columns_of(rows)
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{operation}: columns= renames {missing}, which {source} does not have; expected some of {list(found)}; "
            "write {'their name': 'our name'}."
        )
    kept = [name for name in (names.get(name, name) for name in found) if name is not None]
    twice = sorted({name for name in kept if kept.count(name) > 1})
    if twice:
        raise ValueError(
            f"{operation}: with columns= {source} has two columns called {twice}; expected one of each; leave one out "
            "with {'its name': None}."
        )

    def rename(row: Row) -> Row:
        fields = {names.get(name, name): value for name, value in row.fields.items()}
        fields.pop(None, None)
        return Row(row.where, cast(dict[str, object], fields), row.wrong)

    return [rename(row) for row in rows]


_INDEX = ("", "Unnamed: 0", "__index_level_0__")
"""What pandas, and what reads its tables, call a column of row numbers."""


def without_index(rows: Sequence[Row]) -> list[Row]:
    """The rows without their numbers, as pandas writes them in a column of its own."""

    def numbered(name: str) -> bool:
        found = [str(row.fields[name]) for row in rows if row.fields.get(name) is not None]
        return all(value.isdecimal() for value in found)

    left_out = [name for name in _INDEX if numbered(name)]
    return [
        Row(row.where, {name: value for name, value in row.fields.items() if name not in left_out}, row.wrong)
        for row in rows
    ]


def with_lists(row: Row) -> Row:
    """A table's row with its lists: a cell that begins with "[" is one in JSON, any other is a single text.

    Numbers that name a record are whole, though pandas writes 1.0 in a column that lacks some.
    """
    fields = dict(row.fields)
    for name, cell in row.fields.items():
        if name in _NUMBERS and isinstance(cell, str) and re.fullmatch(r"\d+\.0", cell):
            fields[name] = cell[:-2]
        if name in _WORDS and isinstance(cell, str) and _A_LIST.fullmatch(cell):
            return Row(row.where, {}, f"{name} is {shown(cell)}; expected words, not a list of them")
    for name in LISTS & fields.keys():
        cell = fields[name]
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                fields[name] = json.loads(cell)
            except (ValueError, RecursionError):
                return Row(row.where, {}, f"{name} begins with '[' and is no JSON; expected a list like [\"one\"]")
    return Row(row.where, fields, row.wrong)


def told(
    columns: Mapping[str, str], published: Sequence[Schema[T_co]], own: Schema[T_co], operation: str, source: str
) -> Schema[T_co]:
    """The schema that a table with these columns has.

    Raises:
        ValueError: If it is none of the ``published`` ones and has columns that our ``own`` does not have, or too few.
    """
    if not columns:
        return own  # no row is one, which is said of each
    for schema in published:
        if set(schema.marks) <= columns.keys():
            return schema
    unknown = [f"{name!r} ({where})" for name, where in columns.items() if name not in own.columns]
    missing = [name for name in own.marks if name not in columns]
    if unknown or missing:
        wrong = [f"of which {', '.join(unknown)} are unknown"] if unknown else []
        wrong += [f"without {', '.join(missing)}"] if missing else []
        known = "; ".join(f"{', '.join(schema.marks)} ({schema.name})" for schema in published)
        raise ValueError(
            f"{operation}: {source} has the columns {list(columns)}, {' and '.join(wrong)}; expected "
            f"some of {', '.join(own.columns)}; or those of a published data set, at least {known}; rename or "
            "leave out with columns={'their name': 'our name', 'another': None}."
        )
    return own
