"""Texts by name or from files, local first."""

import json
import random
import reprlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from tl_edit import sources
from tl_edit.moment.texts import column_of, column_of_row, holds_strings

OPERATION = "read_texts"
NEEDED = "everything but .txt and .json files"
NAMED: dict[str, dict[str, Any]] = {
    "wikipedia": {"path": "wikimedia/wikipedia", "name": "20231101.en", "split": "train"},
    "pile": {"path": "NeelNanda/pile-10k", "split": "train"},
}
"""What of the Hugging Face hub stands behind a name."""


def read_texts(
    source: str | Path, *, column: str | None = None, n_texts: int | None = None, seed: int = 0
) -> Sequence[str]:
    """Texts for `second_moment`: from a file, a folder, or a corpus by its name.

    Args:
        source: A file ("~" is your home): ``.txt`` (one text per line, empty lines left out), ``.jsonl`` or ``.json``
            (a list) of strings or objects, ``.csv`` or ``.parquet``; a folder that ``datasets.save_to_disk`` wrote; or
            a name, for which a network is needed once: "wikipedia" (wikimedia/wikipedia 20231101.en; the published
            statistics are of 20200501.en, which is no longer offered) or "pile" (NeelNanda/pile-10k, 10,000 texts of
            the Pile). A file that exists comes first. Everything but ``.txt`` and ``.json`` files needs the package
            `datasets`, which transformer-lens brings.
        column: Which column or key holds the texts; None for "text", or the only one of strings, by the first item in
            ``.json`` and ``.jsonl`` files. Plain text files have none.
        n_texts: Take so many of them, drawn with ``seed``; None for all.
        seed: Of the draw: the first ``n_texts`` of ``random.Random(seed).shuffle``, the published programs' rule with
            seed 1.

    Returns:
        The texts; those of a dataset are read when they are asked for.

    Raises:
        ValueError: If there is no such source, it is damaged, it has no column of texts, or the hub cannot be reached.
    """
    if not isinstance(cast(object, source), str | Path):
        raise ValueError(
            f"{OPERATION}: source is of type {type(source).__name__}; expected a path, or one of {list(NAMED)}; texts "
            "that you have in memory go to second_moment as they are."
        )
    if n_texts is not None and (type(n_texts) is not int or n_texts < 1):
        raise ValueError(f"{OPERATION}: n_texts is {n_texts!r}; expected an integer of at least 1, or None for all.")
    if type(seed) is not int:
        raise ValueError(f"{OPERATION}: seed is {seed!r}; expected an integer; the published programs' is 1.")
    if source == "":
        raise ValueError(f"{OPERATION}: source is ''; expected a path, or one of {list(NAMED)}; pass '.' for here.")
    path = sources.given_path(source)
    if path.exists():
        texts = _local(path, column)
    elif str(source) in NAMED:
        texts = _from_hub(str(source), column)
    else:
        raise ValueError(
            f"{OPERATION}: there is no file or folder {str(source)!r}; expected one that exists, or one of "
            f"{list(NAMED)}; check the path."
        )
    if not len(texts):
        raise ValueError(f"{OPERATION}: {source} holds no texts; expected some; choose another file.")
    if n_texts is None:
        return texts
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    return _Chosen(texts, order[:n_texts])


class _Chosen(Sequence[str]):
    """Some of the texts, in an order of their own."""

    def __init__(self, texts: Sequence[str], order: Sequence[int]) -> None:
        self._texts, self._order = texts, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._texts[i] for i in self._order[index]]
        return self._texts[self._order[index]]


class _Column(Sequence[str]):
    """One column of a dataset, read row by row; older versions of `datasets` read the whole column."""

    def __init__(self, dataset: Any, column: str) -> None:
        self._dataset, self._column = dataset.select_columns([column]), column

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index][self._column]


def _local(path: Path, column: str | None) -> Sequence[str]:
    kinds: dict[str, Callable[[Path, str | None], Sequence[str]]] = {
        ".txt": _lines,
        ".json": _json,
        ".jsonl": _json,
        ".csv": _table,
        ".parquet": _table,
    }
    if path.is_dir():
        return _folder(path, column)
    read = kinds.get(path.suffix.lower())
    if read is None:
        raise ValueError(
            f"{OPERATION}: {path} ends in {path.suffix!r}; expected one of {', '.join(kinds)}, or a folder of "
            "datasets.save_to_disk; rename or convert it."
        )
    return read(path, column)


def _lines(path: Path, column: str | None) -> Sequence[str]:
    if column is not None:
        raise ValueError(
            f"{OPERATION}: column is {column!r}, but {path} is a plain text file without columns; expected None; leave "
            "column out."
        )
    # Not splitlines, which also ends lines at rare characters within texts.
    return [line for line in sources.content(path, OPERATION).split("\n") if line.strip()]


def _json(path: Path, column: str | None) -> Sequence[str]:
    content = sources.content(path, OPERATION)
    try:
        if path.suffix.lower() == ".jsonl":
            found: Any = [json.loads(line) for line in content.split("\n") if line.strip()]
        else:
            found = json.loads(content)
    except ValueError as error:
        raise ValueError(
            f"{OPERATION}: {path} is not valid JSON ({error}); expected a list of strings or objects, in .jsonl one on "
            "each line; repair the file."
        ) from error
    if not isinstance(found, list):
        raise ValueError(
            f"{OPERATION}: {path} holds a {type(found).__name__}; expected a list of strings or objects; choose the "
            "list within it."
        )
    return _texts_of(cast(list[object], found), column, path)


def _texts_of(items: list[object], column: str | None, path: Path) -> list[str]:
    """The texts of all items, from one key: the one given, or the one that the first item decides."""
    first = items[0] if items else None
    if column is None and isinstance(first, dict):
        try:
            column = column_of_row(cast(dict[str, object], first), OPERATION)
        except ValueError as error:
            raise _no_text(cast(object, first), 0, column, path) from error
    texts: list[str] = []
    for number, item in enumerate(items):
        text = cast(dict[str, object], item).get(column or "") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise _no_text(cast(object, item), number, column, path)
        texts.append(text)
    return texts


def _no_text(item: object, number: int, column: str | None, path: Path) -> ValueError:
    wanted = f"under {column!r}" if column else "under 'text' or with a single string"
    return ValueError(
        f"{OPERATION}: item {number:,} of {path} (counted from 0) is {reprlib.repr(item)}; expected a string, or an "
        f"object with a string {wanted}; pass column=, the key of the texts, or take items without a text out."
    )


def _table(path: Path, column: str | None) -> Sequence[str]:
    kind = path.suffix.lower()[1:]
    return _guarded(path, lambda datasets: datasets.load_dataset(kind, data_files=str(path), split="train"), column)


def _folder(path: Path, column: str | None) -> Sequence[str]:
    return _guarded(path, lambda datasets: datasets.load_from_disk(str(path)), column)


def _guarded(path: Path, load: Callable[[Any], Any], column: str | None) -> Sequence[str]:
    datasets = sources.datasets_package(OPERATION, NEEDED)
    try:
        found = load(datasets)
    except Exception as error:  # whatever the libraries below raise
        raise ValueError(
            f"{OPERATION}: {path} cannot be read ({sources.reason(error)}); expected a file as its "
            "ending says, or a folder of datasets.save_to_disk; choose another."
        ) from error
    return _chosen_column(found, column, str(path))


def _chosen_column(dataset: Any, column: str | None, source: str) -> Sequence[str]:
    if isinstance(dataset, dict):
        splits = list(cast(Iterable[str], dataset))
        raise ValueError(
            f"{OPERATION}: {source} holds the splits {splits}; expected one; choose its folder, e.g. "
            f"{source}/{splits[0] if splits else 'train'}."
        )
    if column is not None and column not in dataset.column_names:
        raise ValueError(
            f"{OPERATION}: {source} has columns {dataset.column_names}, not {column!r}; expected one of them; pass "
            "column=."
        )
    if column is not None and not holds_strings(dataset, column):
        raise ValueError(
            f"{OPERATION}: the column {column!r} of {source} does not hold strings; expected texts; choose another of "
            f"{dataset.column_names}."
        )
    return _Column(dataset, column or cast(str, column_of(dataset, OPERATION)))


def _from_hub(name: str, column: str | None) -> Sequence[str]:
    datasets = sources.datasets_package(OPERATION, NEEDED)
    found = sources.from_hub(
        OPERATION,
        NAMED[name]["path"],
        lambda: datasets.load_dataset(**NAMED[name]),
        remedy="pass texts of your own, e.g. read_texts('texts.txt')",
    )
    return _chosen_column(found, column, name)
