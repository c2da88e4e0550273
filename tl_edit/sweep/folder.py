"""Results kept in a folder as they come, one line of JSON each, so that a sweep that was stopped goes on.

``run.json`` says which run they belong to; each process appends to a file of its own, ``results.0.jsonl`` and so on. A
line that was cut off by a crash is passed over, and what it was about is done again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from tl_edit.data import EditRecord
from tl_edit.host import Provenance

OPERATION = "sweep"
MANIFEST, RECORDS = "run.json", "records.jsonl"
SCHEMA = "tl_edit sweep 1"


class SweepFolder:
    """The folder of one run.

    Raises:
        ValueError: For a folder of another run, with other files, or that cannot be read.
    """

    def __init__(
        self,
        path: Path,
        run: Mapping[str, object],
        methods: Mapping[str, str],
        asked: Sequence[str],
        made_on: Provenance,
    ) -> None:
        """``run`` tells runs apart, ``methods`` are described by name, ``asked`` are the keys of the batches."""
        self.path, self._run, self._methods, self._made_on = path, dict(run), dict(methods), made_on
        self._begun: dict[int, int] = {}
        self._trusted: dict[int, int] = {}
        """Sizes of the files of results, by process: before this run, and when the weights were last looked at."""
        self.found: dict[tuple[str, str], dict[str, Any]] = {}
        """Lines by method and key of the batch."""
        try:
            known = self._check()
            self._read()
        except OSError as error:
            raise ValueError(
                f"{OPERATION}: the folder {path} cannot be read ({error}); expected a folder, or a path where one can "
                "be made."
            ) from error
        if self.found and not {key for _, key in self.found} & set(asked):
            raise ValueError(
                f"{OPERATION}: the folder {path} holds results of other records, or of other batches of them; expected "
                "a new one, or one of the same records and batch; choose another folder."
            )
        self._methods = known | self._methods

    def begin(self, batches: Mapping[str, Sequence[EditRecord]]) -> None:
        """Write what the run is, and its records; of several processes only the first does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Another sweep may have begun here since this one looked.
            self._methods = self._check() | self._methods
            half = self.path / f"{MANIFEST}.part"
            said = {"schema": SCHEMA, **self._run, "methods": self._methods, "provenance": asdict(self._made_on)}
            half.write_text(json.dumps(said, indent=1), "utf-8")
            half.replace(self.path / MANIFEST)
            known = {line["key"] for line in _lines(self.path / RECORDS)}
            with (self.path / RECORDS).open("a", encoding="utf-8") as file:
                for key, records in batches.items():
                    if key not in known:
                        file.write(json.dumps({"key": key, "records": [asdict(record) for record in records]}) + "\n")
        except OSError as error:
            raise ValueError(
                f"{OPERATION}: the folder {self.path} cannot be written ({error}); expected one that can; choose "
                "another."
            ) from error

    def keep(self, rank: int, method: str, key: str, line: Mapping[str, object]) -> None:
        """Append a result; it is on the disk when this returns."""
        path = self._file(rank)
        self._begun.setdefault(rank, _size(path))
        with path.open("a", encoding="utf-8") as file:
            if file.tell() and not _ends_line(path):
                file.write("\n")
            file.write(json.dumps({"method": method, "key": key, **line}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def trust(self, rank: int) -> None:
        """What is there now stays, whatever comes."""
        self._trusted[rank] = _size(self._file(rank))

    def drop_untrusted(self, rank: int) -> None:
        """Take back what this process wrote since `trust`."""
        file = self._file(rank)
        if file.exists():
            os.truncate(file, self._trusted.get(rank, self._begun.get(rank, 0)))

    def reread(self) -> None:
        """Take in what others have written."""
        self._read()

    def _file(self, rank: int) -> Path:
        return self.path / f"results.{rank}.jsonl"

    def _check(self) -> dict[str, str]:
        """The methods that the folder knows already; none where it is new."""
        manifest = self.path / MANIFEST
        if not self.path.exists():
            return {}
        if not manifest.exists():
            if any(not file.name.startswith(".") and file.suffix != ".part" for file in self.path.iterdir()):
                raise ValueError(
                    f"{OPERATION}: the folder {self.path} holds other files; expected a new one, or one of the same "
                    "run; choose another folder."
                )
            return {}
        try:
            before: object = json.loads(manifest.read_text("utf-8"))
        except ValueError:
            before = None
        known = cast(dict[str, Any], before) if isinstance(before, dict) else {}
        known.pop("provenance", None)
        methods = known.pop("methods", None)
        if not isinstance(methods, dict) or known.pop("schema", None) != SCHEMA:
            raise ValueError(
                f"{OPERATION}: {manifest} is damaged, or of another version; expected what {OPERATION} wrote; choose "
                "another folder, or restore the file."
            )
        told = cast(dict[str, str], methods)
        changes = [f"{name} {known.get(name)!r} (now {self._run.get(name)!r})" for name in {**self._run, **known}
                   if known.get(name) != self._run.get(name)]  # fmt: skip
        changes += [
            f"method {name!r} {_parted(told[name], now)}"
            for name, now in self._methods.items()
            if name in told and told[name] != now
        ]
        if changes:
            raise ValueError(
                f"{OPERATION}: the folder {self.path} holds another run: {', '.join(changes)}; expected the same "
                "model, settings and methods; choose another folder, or another name for the method."
            )
        return told

    def _read(self) -> None:
        self.found |= read_results(self.path)


def _parted(before: str, now: str) -> str:
    """Where two long descriptions part."""
    letters = enumerate(zip(before, now, strict=False))
    same = next((i for i, (old, new) in letters if old != new), min(len(before), len(now)))
    begin = max(0, max(before.rfind(mark, 0, same) + len(mark) for mark in (", ", "(", " ")))
    return f"…{before[begin : same + 40]}… (now …{now[begin : same + 40]}…)"


def read_results(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Lines by method and key of the batch; of several the last."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for file in sorted(folder.glob("results.*.jsonl")):
        for line in _lines(file):
            before = found.get((line.get("method", ""), line["key"]), {})
            # A result counts more than a failure, wherever each stands.
            if "scores" in line or ("failed" in line and "scores" not in before):
                found[line.get("method", ""), line["key"]] = line
    return found


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """What the run is, and its records by the key of their batch.

    Raises:
        ValueError: If the folder holds no run.
    """
    try:
        said: object = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Sweep.load: {folder} holds no run that can be read ({error}); expected a folder that sweep(..., folder=) "
            "wrote; check the path."
        ) from error
    run = cast(dict[str, Any], said) if isinstance(said, dict) else {}
    if run.get("schema") != SCHEMA:
        raise ValueError(
            f"Sweep.load: {folder / MANIFEST} has the schema {run.get('schema')!r}; expected {SCHEMA!r}; read it with "
            "the version of tl_edit that wrote it."
        )
    return run, {line["key"]: line["records"] for line in _lines(folder / RECORDS)}


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; those that a crash cut off are passed over."""
    found: list[dict[str, Any]] = []
    text = file.read_text("utf-8", errors="replace") if file.exists() else ""
    for line in text.split("\n"):
        try:
            read: object = json.loads(line) if line.strip() else None
        except ValueError:
            continue
        if isinstance(read, dict) and "key" in read:
            found.append(cast(dict[str, Any], read))
    return found


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
