"""`read_records` and `read_known_facts`: from a source to rows, from rows to records."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

from tl_edit import sources
from tl_edit.data import counterfact
from tl_edit.data.known import FACTS_OF_RECORDS, KNOWN, OWN_FACTS
from tl_edit.data.listed import KnownFacts, Records, made
from tl_edit.data.own import OWN
from tl_edit.data.published import FILES, published_file
from tl_edit.data.rows import ENDINGS, Row, as_row, file_rows
from tl_edit.data.schema import Schema, columns_of, renamed, told, with_lists, without_index
from tl_edit.data.snippets import Snippets
from tl_edit.data.zsre import ZSRE

T = TypeVar("T")

_NAMES = {
    "read_records": ("counterfact", "multi_counterfact", "zsre"),
    "read_known_facts": ("known_1000", "counterfact", "multi_counterfact"),
}
"""The published data sets that each operation reads."""

_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
"""How a data set of the Hugging Face hub is called."""


def read_records(
    source: str | Path,
    *,
    limit: int | None = None,
    start: int = 0,
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    snippets: str | Path | None = None,
) -> Records:
    """Records to edit and judge, from a file or a published data set. The layout is told by the columns.

    ===================  ==========================================================================================
    layout               what is read
    ===================  ==========================================================================================
    CounterFact          ``requested_rewrite`` and the lists of prompts, as in counterfact.json and
                         multi_counterfact.json
    CounterFact, flat    ``prompt``, ``subject``, ``target_new``, ``ground_truth``, ``rephrase_prompt``; and
                         ``locality_prompt``, a neighbor if its ``locality_ground_truth`` is the ``ground_truth``,
                         otherwise an unrelated fact
    zsRE                 ``src``, ``subject``, ``answers`` (the first is written), ``rephrase``, and ``loc`` with
                         ``loc_ans`` as an unrelated fact; no ``target_true``
    own                  the fields of `EditRequest` and `EditRecord` by their names; or ``prompt``, with the subject
                         in it, in place of ``relation``. A field with several texts may hold a single one; in a .csv
                         file a cell that begins with "[" is a list in JSON
    ===================  ==========================================================================================

    Spaces at the end of prompts are dropped, since the one before the object is added later. An empty cell, null and
    NaN are nothing, and a column of row numbers, as pandas writes it, is left out. Rows that cannot be read
    are left out, with a warning that names their lines; all are in ``.malformed``.

    Args:
        source: A file ("~" is your home): ``.json`` (a list), ``.jsonl`` or ``.csv`` in UTF-8. Or the name of a
            published data set, "counterfact", "multi_counterfact" or "zsre", whose file is taken from the current
            folder, else fetched once into torch's hub folder. Or "owner/name" of a data set of the Hugging Face hub
            with one of these layouts. A file that exists comes first.
        limit: Take so many rows, the first ones; None for all. Malformed rows count.
        start: Leave out so many rows before.
        split: Of a data set of the hub, e.g. "train"; None for its only one.
        columns: Other names for columns, ``{"their name": "our name"}``; None as a name leaves the column out.
        snippets: The published texts, a path of attribute_snippets.json or that name without its ending: they become
            ``reference_texts`` and ``essence_texts``. For CounterFact as published only.

    Returns:
        A tuple of `EditRecord`, with ``source``, ``schema`` and ``malformed``.

    Raises:
        ValueError: If there is no such source or it cannot be fetched; it is no list of rows; it has columns of no
            known layout; nothing is selected; or all rows are malformed.
    """
    operation = "read_records"
    if snippets is not None and not isinstance(cast(object, snippets), str | Path):
        raise ValueError(
            f"{operation}: snippets is of type {type(snippets).__name__}; expected the path of "
            f"{FILES['attribute_snippets'][1]}, or None."
        )
    rows, where = _rows(source, limit, start, split, columns, operation)
    found = columns_of(rows)
    if set(KNOWN.marks) <= found.keys() and "target_new" not in found:
        raise ValueError(
            f"{operation}: {where} holds KnownFacts, which have no object to write; expected records of edits; read "
            "it with read_known_facts, for trace_facts."
        )
    schema = told(found, (counterfact.PUBLISHED, counterfact.FLAT, ZSRE), OWN, operation, where)
    if snippets is not None:
        schema = _with_snippets(schema, snippets, operation, where)
    _warn_of_unread(found, schema, operation, where, stacklevel=2)
    records, malformed = made(rows, schema, operation, where, stacklevel=2)
    if snippets is not None and not any(record.reference_texts or record.essence_texts for record in records):
        warnings.warn(
            f"{operation}: snippets= {snippets} has no texts for any of these records; expected it to know their "
            "relation_id and the ids of their objects; pass the published file, or leave it out.",
            stacklevel=2,
        )
    return cast(Records, Records(records, source=where, schema=schema.name, malformed=malformed))


def read_known_facts(
    source: str | Path,
    *,
    limit: int | None = None,
    start: int = 0,
    split: str | None = None,
    columns: Mapping[str, str | None] | None = None,
) -> KnownFacts:
    """Facts for `trace_facts`, from a file or a published data set.

    Args:
        source: As in `read_records`; the published name is "known_1000". Besides KnownFacts (``prompt``, ``subject``,
            ``attribute``) it reads CounterFact in both layouts and records of your own, of which it takes the prompt,
            the subject and the true object, and tables with ``prompt`` (or ``relation``), ``subject`` and ``answer``
            (or ``target_true``).
        limit: Take so many rows, the first ones; None for all. The paper has 1,000 of the 1,209.
        start: Leave out so many rows before.
        split: Of a data set of the hub, e.g. "train"; None for its only one.
        columns: Other names for columns, ``{"their name": "our name"}``; None as a name leaves the column out.

    Returns:
        A tuple of `KnownFact`, with ``source``, ``schema`` and ``malformed``.

    Raises:
        ValueError: As `read_records`.
    """
    operation = "read_known_facts"
    rows, where = _rows(source, limit, start, split, columns, operation)
    found = columns_of(rows)
    if set(ZSRE.marks) <= found.keys():
        raise ValueError(
            f"{operation}: {where} holds zsRE, which does not say what models know; expected facts with the answer "
            "that is to be known; use KnownFacts or CounterFact."
        )
    schema = told(found, (KNOWN, *FACTS_OF_RECORDS), OWN_FACTS, operation, where)
    _warn_of_unread(found, schema, operation, where, stacklevel=2)
    facts, malformed = made(rows, schema, operation, where, stacklevel=2)
    return cast(KnownFacts, KnownFacts(facts, source=where, schema=schema.name, malformed=malformed))


def _rows(
    source: object, limit: object, start: object, split: object, columns: object, operation: str
) -> tuple[list[Row], str]:
    """The rows that were asked for, their columns renamed, and where they are from."""
    if not isinstance(source, str | Path) or not str(source).strip():
        found = "''" if isinstance(source, str) else f"of type {type(source).__name__}"
        raise ValueError(
            f"{operation}: source is {found}; expected a path, or the name of a data set, e.g. "
            f"{operation}('{_NAMES[operation][0]}')."
        )
    first, number = _checked_selection(limit, start, operation)
    if split is not None and not isinstance(split, str):
        raise ValueError(f"{operation}: split is {split!r}; expected a name like 'train'; leave it out for a file.")
    names = _checked_names(columns, operation)
    path = _file(source, operation)
    if path is not None and split is not None:
        raise ValueError(
            f"{operation}: split is {split!r}, but {path} is a file, which has none; expected None; leave it out."
        )
    where = str(source if path is None else path)
    every = _hub_rows(where, split, operation) if path is None else file_rows(path, operation)
    before = sum(1 for _ in islice(every, first))
    rows = list(islice(every, number))
    if not rows:
        found = f"{where} holds {before:,} rows, and start is {first:,}" if before else f"{where} holds no rows"
        remedy = "choose a smaller start" if before else "choose another file"
        raise ValueError(f"{operation}: {found}; expected some to read; {remedy}.")
    rows = without_index(renamed(rows, names, operation, where))
    return [with_lists(row) for row in rows] if path is not None and path.suffix.lower() == ".csv" else rows, where


def _checked_selection(limit: object, start: object, operation: str) -> tuple[int, int | None]:
    """How many rows to leave out, and how many to take."""
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"{operation}: limit is {limit!r}; expected a number of at least 1; leave it out for all.")
    if type(start) is not int or start < 0:
        raise ValueError(f"{operation}: start is {start!r}; expected a number of at least 0; leave it out.")
    return start, limit


def _checked_names(columns: object, operation: str) -> Mapping[str, str | None]:
    if columns is None or columns == {}:
        return {}
    names = cast(Mapping[Any, Any], columns) if isinstance(columns, Mapping) else dict[Any, Any]()
    if not names or not all(isinstance(old, str) and isinstance(new, str | None) for old, new in names.items()):
        raise ValueError(
            f"{operation}: columns is {columns!r}; expected {{'their name': 'our name'}}, None to leave one out; write "
            "e.g. {'object': 'target_new'}."
        )
    return names


def _file(source: str | Path, operation: str) -> Path | None:
    """The file that a source is, fetched if need be; None for a data set of the hub.

    Raises:
        ValueError: If it is nothing that is known.
    """
    path = sources.given_path(source)
    name, names = source if isinstance(source, str) else "", _NAMES[operation]
    if path.is_file() or (path.exists() and name not in names):
        return path
    if name in names:
        return published_file(name, operation)
    if _ON_THE_HUB.fullmatch(name) and path.suffix.lower() not in ENDINGS:
        return None
    other = next((other for other, others in _NAMES.items() if name in others), None)
    raise ValueError(
        f"{operation}: there is no file {str(source)!r}; expected one that exists ({', '.join(ENDINGS)}), one of the "
        f"published {list(names)}, or 'owner/name' of a data set of the Hugging Face hub; "
        f"{f'read it with {other}' if other else 'check the path'}."
    )


def _hub_rows(name: str, split: str | None, operation: str) -> Iterator[Row]:
    datasets = sources.datasets_package(operation, "data sets of the hub")
    found: Any = sources.from_hub(
        operation,
        name,
        lambda: datasets.load_dataset(name, split=split),
        remedy=f"get its file by hand and pass its path, {operation}('path/to/file.json')",
    )
    if isinstance(found, dict):
        splits = cast(dict[str, Any], found)
        if len(splits) != 1:
            raise ValueError(
                f"{operation}: {name} has the splits {list(splits)}; expected one; pass "
                f"split={next(iter(splits), '')!r}, or another of them."
            )
        found = next(iter(splits.values()))
    return (as_row(f"row {number}", row) for number, row in enumerate(found))


def _with_snippets(schema: Schema[Any], snippets: str | Path, operation: str, source: str) -> Schema[Any]:
    if schema is not counterfact.PUBLISHED:
        raise ValueError(
            f"{operation}: snippets= goes by the ids of objects, which {source} ({schema.name}) does not have; "
            "expected CounterFact as published; leave it out."
        )
    return replace(schema, make=counterfact.with_snippets(Snippets.read(snippets, operation)))


def _warn_of_unread(
    found: Mapping[str, str], schema: Schema[Any], operation: str, source: str, *, stacklevel: int
) -> None:
    """A column that nobody reads may be one that is spelled in another way."""
    unread = [name for name in found if name not in schema.columns]
    if unread:
        warnings.warn(
            f"{operation}: {source} has columns that are not read, {unread}; expected those of {schema.name}, "
            f"{', '.join(schema.columns)}; rename them with columns={{'their name': 'our name'}}, or say that "
            f"they are to be left out, {{{unread[0]!r}: None}}.",
            stacklevel=stacklevel + 1,
        )
