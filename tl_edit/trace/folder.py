"""Traces of many facts kept in a folder, so that a run that was stopped goes on with equal results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tl_edit import attach, forward, host, tokens
from tl_edit.data import KnownFact
from tl_edit.digest import digest
from tl_edit.host import Model
from tl_edit.identity import weights_digest
from tl_edit.trace.result import CausalTrace
from tl_edit.trace.settings import Settings

MANIFEST = "traces.json"
SAYS = "first log-probabilities"
OPERATION = "trace_facts"


class TraceFolder:
    """One file for each fact, and a manifest that says which run they belong to.

    Raises:
        ValueError: For a folder of another run or with other files, and for a model with hooks of the user's, as what
            they do cannot be told apart.
    """

    def __init__(self, path: Path, model: Model, facts: Sequence[KnownFact], settings: Settings, bos: bool) -> None:
        """Nothing is written before the first fact is kept."""
        self.path, self.first = path, facts[0].prompt
        stranger = attach.foreign_hook(model)
        if stranger:
            raise ValueError(
                f"{OPERATION}: a hook is attached at {stranger}; expected none with folder=, since a folder cannot "
                "tell what a hook does and might go on with other results; take it off, or trace without a folder."
            )
        made_on = host.provenance(model, prepend_bos=bos)
        self.run = {
            "model": made_on.model_name,
            "dtype": made_on.dtype,
            "weights": weights_digest(model),
            "facts": digest([json.dumps(facts)]),
            "tokens": digest(tokens.encode(model, fact.prompt, prepend_bos=bos) for fact in facts),
            **settings.identity(),
            "prepend_bos": repr(bos),
        }
        self.says = _says(model, facts[0], bos)
        try:
            self._check(0.05 if made_on.dtype in ("torch.float16", "torch.bfloat16") else 1e-3)
        except OSError as error:
            raise ValueError(
                f"{OPERATION}: the folder {path} cannot be read ({error}); expected a folder, or a path where one can "
                "be made."
            ) from error

    def _check(self, limit: float) -> None:
        manifest = self.path / MANIFEST
        if not self.path.exists():
            return
        if not manifest.exists():
            if any(file.suffix != ".part" and not file.name.startswith(".") for file in self.path.iterdir()):
                raise ValueError(
                    f"{OPERATION}: the folder {self.path} holds other files; expected a new one, or one of the same "
                    "run; choose another folder."
                )
            return
        try:
            before: object = json.loads(manifest.read_text("utf-8"))
        except ValueError:
            before = None
        if not isinstance(before, dict) or not isinstance(cast(Any, before).get(SAYS), list):
            raise ValueError(
                f"{OPERATION}: {manifest} is damaged; expected the manifest that {OPERATION} wrote; choose another "
                "folder, or restore the file."
            )
        was = cast(dict[str, Any], before)
        said: list[float] = was.pop(SAYS)
        different = [name for name in {**self.run, **was} if was.get(name) != self.run.get(name)]
        if not different and not _close(said, self.says, limit):
            raise ValueError(
                f"{OPERATION}: the folder {self.path} holds a run of a model with the same weights that computes "
                f"something else: after {self.first!r} it said {said}, now {self.says} (log-probabilities); expected "
                "the same model; choose another folder."
            )
        if different:
            changes = ", ".join(f"{name} {was.get(name)} (now {self.run.get(name)})" for name in different)
            raise ValueError(
                f"{OPERATION}: the folder {self.path} holds another run: {changes}; expected the same model, facts and "
                "settings; choose another folder."
            )

    def find(self, i: int, fact: KnownFact) -> CausalTrace | str | None:
        """What is kept of fact ``i``.

        Raises:
            ValueError: If the file is damaged, or of another fact.
        """
        trace, skipped = self._files(i)
        if skipped.exists():
            return skipped.read_text("utf-8")
        if not trace.exists():
            return None
        try:
            found = CausalTrace.load(trace)
        except ValueError as error:
            raise ValueError(f"{error} Remove the file to trace this fact again.") from error
        if (found.prompt, found.subject) != (fact.prompt, fact.subject):
            raise ValueError(
                f"{OPERATION}: {trace} is a trace of {found.prompt!r}; expected {fact.prompt!r}; remove the file."
            )
        return found

    def keep(self, i: int, found: CausalTrace | str) -> None:
        """Keep what was found of fact ``i``; a file is there whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / MANIFEST).exists():
            _write(self.path / MANIFEST, json.dumps(self.run | {SAYS: self.says}, indent=1))
        trace, skipped = self._files(i)
        if isinstance(found, str):
            _write(skipped, found)
        else:
            half = trace.with_suffix(".part")
            found.save(half)
            half.replace(trace)

    def _files(self, i: int) -> tuple[Path, Path]:
        return self.path / f"{i:05d}.safetensors", self.path / f"{i:05d}.unknown.txt"


def _write(path: Path, text: str) -> None:
    half = path.with_suffix(".part")
    half.write_text(text, "utf-8")
    half.replace(path)


def _says(model: Model, fact: KnownFact, bos: bool) -> list[float]:
    """A few log-probabilities after the first prompt: they tell a model that computes otherwise with equal weights."""
    found = forward.next_log_probs(model, fact.prompt, prepend_bos=bos).double().cpu()
    chosen = [int(found.argmax()), *range(0, len(found), max(1, len(found) // 4))]
    return [round(float(found[i]), 5) for i in chosen]


def _close(said: Sequence[float], says: Sequence[float], limit: float) -> bool:
    """Whether two lists of log-probabilities are equal but for rounding; infinite ones are."""
    return len(said) == len(says) and all(
        was == now or abs(was - now) <= limit * max(1.0, abs(was)) for was, now in zip(said, says, strict=True)
    )
