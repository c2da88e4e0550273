"""Results kept in a folder as they come, one line of JSON each, so that a sweep that was stopped goes on.

``run.json`` says which run they belong to; each process appends to a file of its own, ``results.0.jsonl`` and so on. A
line that was cut off by a crash is passed over, and what it was about is done again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

OPERATION = "sweep"
MANIFEST = "run.json"
SCHEMA = "tl_edit sweep 1"


class SweepFolder:
    """The folder of one run.

    Raises:
        ValueError: For a folder of another run, with other files, or that cannot be read.
    """

    def __init__(self, path: Path, run: Mapping[str, object], methods: Mapping[str, str], asked: Sequence[str]) -> None:
        """``run`` tells runs apart, ``methods`` are described by name, ``asked`` are the keys of the batches."""
        self.path, self._run, self._methods = path, dict(run), dict(methods)
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

    def begin(self) -> None:
        """Write what the run is; of several processes only the first does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            half = self.path / f"{MANIFEST}.part"
            said = {"schema": SCHEMA, **self._run, "methods": self._methods}
            half.write_text(json.dumps(said, indent=1), "utf-8")
            half.replace(self.path / MANIFEST)
        except OSError as error:
            raise ValueError(
                f"{OPERATION}: the folder {self.path} cannot be written ({error}); expected one that can; choose "
                "another."
            ) from error

    def keep(self, rank: int, method: str, key: str, line: Mapping[str, object]) -> None:
        """Append a result; it is on the disk when this returns."""
        with (self.path / f"results.{rank}.jsonl").open("a", encoding="utf-8") as file:
            if file.tell() and not self._ends_line(rank):
                file.write("\n")
            file.write(json.dumps({"method": method, "key": key, **line}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def reread(self) -> None:
        """Take in what other processes have written."""
        self._read()

    def _ends_line(self, rank: int) -> bool:
        with (self.path / f"results.{rank}.jsonl").open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

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
            f"method {name!r} {told[name]} (now {now})"
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
        for file in sorted(self.path.glob("results.*.jsonl")):
            for line in file.read_text("utf-8", errors="replace").split("\n"):
                found = _line(line)
                if found is not None:
                    self.found[found["method"], found["key"]] = found


def _line(text: str) -> dict[str, Any] | None:
    """What a whole line holds; None of one that a crash cut off."""
    try:
        found: object = json.loads(text) if text.strip() else None
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    line = cast(dict[str, Any], found)
    return line if {"method", "key"} <= line.keys() and ("scores" in line or "failed" in line) else None
