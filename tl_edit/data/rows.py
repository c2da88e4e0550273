"""Rows of a data set, each with the place where a user finds it again.

What is wrong with one row is said of that row, and the others are read. Only where a file can no longer be told into
rows, it is refused as a whole.
"""

import csv
import io
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

from tl_edit import sources

ENDINGS = (".json", ".jsonl", ".csv")
"""Of the files that can be read."""

_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Row:
    """One record of a data set, before anybody knows what its columns mean."""

    where: str
    """Its place in words: "line 17" is where it begins in a file (counted from 1, as editors do), "line 1, record 3"
    where others begin on that line; "row 16" is its index in a data set of the hub."""
    fields: dict[str, object]
    """Its columns; none where something is wrong."""
    wrong: str = ""
    """Why it is no row; empty where it is one."""


def file_rows(path: Path, operation: str) -> Iterator[Row]:
    """The rows of a file, one after the other, so that what is not asked for is not read.

    Raises:
        ValueError: If the file cannot be read, has another ending, or cannot be told into rows from some line on.
    """
    ending = path.suffix.lower()
    if path.is_dir() or ending not in ENDINGS:
        found = "is a folder" if path.is_dir() else f"ends in {ending!r}"
        raise ValueError(
            f"{operation}: {path} {found}; expected a file of one of the kinds {', '.join(ENDINGS)}; choose or convert "
            "one."
        )
    text = sources.content(path, operation)
    return {".json": _list_rows, ".jsonl": _line_rows, ".csv": _table_rows}[ending](text, path, operation)


def as_row(where: str, value: object, twice: Sequence[str] = ()) -> Row:
    """A row of what should be an object with columns; some keys may have been there ``twice``."""
    if twice:
        return Row(where, {}, f"it has the key {twice[0]!r} twice; expected each once")
    if isinstance(value, dict):
        return Row(where, cast(dict[str, object], value))
    return Row(where, {}, f"it is of type {type(value).__name__}; expected an object with a record's columns")


def _noted(twice: list[str]) -> Callable[[list[tuple[str, object]]], dict[str, object]]:
    """For JSON's objects: which keys are there twice, of which only the last would be seen, goes into ``twice``."""

    def made(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice.extend(key for key in found if keys.count(key) > 1)
        return found

    return made


def _list_rows(text: str, path: Path, operation: str) -> Iterator[Row]:
    """The elements of a JSON list, decoded one by one, since a list decoded at once has forgotten the lines."""

    def refuse(found: str, line: int, remedy: str = "repair the file") -> NoReturn:
        raise ValueError(
            f"{operation}: {path} is no valid JSON list (line {line}: {found}); expected [record, ...]; {remedy}."
        )

    def beyond_space(place: int) -> int:
        return cast(re.Match[str], _SPACE.match(text, place)).end()

    place = beyond_space(0)
    if text[place : place + 1] != "[":
        one = text[place : place + 1] == "{"
        refuse(
            f"it begins with {text[place : place + 12]!r}",
            1 + text.count("\n", 0, place),
            "choose the list within it, or call a file with one record on each line .jsonl" if one else "repair it",
        )
    twice: list[str] = []
    decode = json.JSONDecoder(object_pairs_hook=_noted(twice)).raw_decode
    line, counted, number, last = 1, 0, 0, 0
    place = beyond_space(place + 1)
    more = text[place : place + 1] != "]"
    while more:
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decode(text, place)
        except json.JSONDecodeError as error:
            refuse(error.msg, error.lineno)
        except RecursionError:
            refuse("it is nested too deeply", line)
        except ValueError as error:  # an integer of thousands of digits
            refuse(str(error), line)
        number += 1
        # Where several records stand on a line, it does not tell them apart.
        yield as_row(f"line {line}, record {number}" if line == last else f"line {line}", value, twice)
        twice.clear()
        last = line
        place = beyond_space(place)
        more = text[place : place + 1] == ","
        if not more and text[place : place + 1] != "]":
            refuse("',' or ']' is missing after a record", 1 + text.count("\n", 0, place))
        place = beyond_space(place + 1) if more else place
    after = beyond_space(place + 1)
    if after < len(text):
        refuse(f"{text[after : after + 12]!r} comes after the end of the list", 1 + text.count("\n", 0, after))


def _line_rows(text: str, path: Path, operation: str) -> Iterator[Row]:
    """Each line alone."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        twice: list[str] = []
        try:
            value = json.loads(line, object_pairs_hook=_noted(twice))
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            yield Row(where, {}, f"it is no JSON ({said}); expected one record on each line")
        else:
            yield as_row(where, value, twice)


_CSV = threading.Lock()
"""Held while the limit on cells, which all of a process's readers share, is another."""


def _next_cells(reader: Iterator[list[str]], longest: int) -> list[str] | None:
    """The next row of a table whose cells are at most so long; None at the end."""
    with _CSV:
        limit = csv.field_size_limit()
        if longest <= limit:
            return next(reader, None)
        try:
            csv.field_size_limit(min(longest, 2**31 - 1))  # the limit's limit, on some systems
            return next(reader, None)
        finally:
            csv.field_size_limit(limit)


def _table_rows(text: str, path: Path, operation: str) -> Iterator[Row]:
    """The rows of a table; empty cells are absent."""
    # Strict, so that a quote which is never closed is noticed.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    head: list[str] | None = None
    end = False
    while not end:
        begin = reader.line_num + 1
        try:
            cells = _next_cells(reader, len(text))
        except csv.Error as error:
            if head is None or "unexpected end" in str(error):  # what comes after is in that cell
                raise ValueError(
                    f"{operation}: {path} is no valid CSV from line {begin} on ({error}); expected cells in quotes "
                    "that are closed, with quotes inside doubled; repair it there."
                ) from error
            yield Row(f"line {begin}", {}, f"it is no CSV ({error}); expected quotes inside doubled")
            continue
        end = cells is None
        if not cells:
            continue
        if head is None:
            head = _head(cells, path, operation)
        elif len(cells) != len(head):
            yield Row(f"line {begin}", {}, f"it has {len(cells)} cells; expected {len(head)}, one for each column")
        else:
            # A column is known though all its cells be empty.
            present = [cell if cell.strip() else None for cell in cells]
            yield Row(f"line {begin}", dict(zip(head, present, strict=True)))


def _head(cells: list[str], path: Path, operation: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    other = next((sign for sign in (";", "\t") if len(names) == 1 and sign in names[0]), None)
    if other is not None:
        raise ValueError(
            f"{operation}: the columns of {path} seem to be separated by {other!r}; expected commas; save it with "
            "commas."
        )
    if len(set(names)) < len(names):
        raise ValueError(
            f"{operation}: the columns of {path} are {names}; expected a name for each, and each once; rename them in "
            "the file's first line."
        )
    return names
