"""A run's sums kept in a folder, so that a run that was stopped goes on with results equal to the last bit.

Each process has a subfolder with one file of tensors per layer and a manifest. A saving writes new tensor files first
and then puts the new manifest, which names them, in the place of the old one: whenever the process is killed, the
manifest there is describes files that are there.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tl_edit import attach, host
from tl_edit.digest import digest
from tl_edit.host import Model
from tl_edit.identity import tokenizer_digest, weights_digest
from tl_edit.moment.sums import Sums
from tl_edit.moment.texts import OPERATION, Reader
from tl_edit.processes import Processes

MANIFEST = "state.json"
SCHEMA = "tl_edit second moment checkpoint 2"


class Checkpoint:
    """The folder of one process.

    Raises:
        ValueError: For a folder of another run or with other files, and for a model with hooks of the user's, as what
            they do cannot be told apart.
    """

    def __init__(
        self, folder: Path, seconds: float, model: Model, own: Processes, settings: Mapping[str, object]
    ) -> None:
        stranger = attach.foreign_hook(model)
        if stranger:
            raise ValueError(
                f"{OPERATION}: a hook is attached at {stranger}; expected none with checkpoint=, since a folder cannot "
                "tell what a hook does and might go on with other keys; take it off, or leave checkpoint out."
            )
        self._folder, self._seconds = folder, seconds
        self._path = folder / f"process-{own.rank + 1}-of-{own.world}"
        self._run = {"model": host.model_name(model), "weights": weights_digest(model)}
        self._run |= {"tokenizer": tokenizer_digest(model), "processes": own.world, **settings}
        self._last = time.monotonic()
        self._step = 0

    def resume(self, reader: Reader, sums: Sums) -> None:
        """Bring ``reader`` and ``sums`` to where the folder has them; nothing happens where it has nothing."""
        state = self._state()
        if state is None:
            return
        if not reader_goes_to(reader, state):
            raise ValueError(
                f"{OPERATION}: the checkpoint {self._folder} was made from other texts: the first {state['read']:,} "
                "that this process reads are not those that it read then; expected the same texts in the same order; "
                "choose another folder, or restore the texts."
            )
        self._step = state["step"]
        marks: Tensor | None = None
        for layer, grams in sums.grams.items():
            tensors = self._tensors(layer, state)
            marks = tensors["marks"]
            for half, gram in enumerate(grams):
                gram.upper = tensors[f"sum_{half}"]
                gram.count = state["counts"][half]
            if len(marks):
                sums.sample.keys[layer] = tensors["sample_keys"]
        if marks is not None:
            sums.sample.marks = marks

    def prepare(self) -> None:
        """Make the folder, and see whether it can be written to: not only when hours of work are to be saved.

        Raises:
            ValueError: If it cannot.
        """
        trial = self._path / "trial.part"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            trial.write_bytes(b"trial")
            trial.unlink()
        except OSError as error:
            raise self._unwritable(error) from error

    def keep_in_time(self, reader: Reader, sums: Sums) -> None:
        """Save if the last saving was long enough ago."""
        if time.monotonic() - self._last >= self._seconds:
            self.keep(reader, sums)

    def keep(self, reader: Reader, sums: Sums) -> None:
        """Save what ``reader`` has read and ``sums`` have added up; they must be at the end of a window."""
        self._step += 1
        state: dict[str, Any] = {"schema": SCHEMA, "run": self._run, "step": self._step}
        state |= {"read": reader.read, "taken": reader.taken, "chain": reader.chain, "digests": {}}
        state["counts"] = [gram.count for gram in next(iter(sums.grams.values()))]
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            for layer, grams in sums.grams.items():
                tensors = {f"sum_{half}": gram.upper for half, gram in enumerate(grams)}
                tensors["marks"] = sums.sample.marks
                if len(sums.sample.marks):
                    tensors["sample_keys"] = sums.sample.keys[layer].contiguous()
                # A folder may hold rests of a saving that was cut off.
                save_file(tensors, str(self._file(layer, self._step)))
                state["digests"][str(layer)] = _digest(tensors)
            half = self._path / f"{MANIFEST}.part"
            state["digest"] = _said(state)
            half.write_text(json.dumps(state, indent=1), "utf-8")
            half.replace(self._path / MANIFEST)
            for layer in sums.grams:
                # All others: a process that was killed may have left more than the one before.
                for other in self._path.glob(f"layer-{layer}-step-*.safetensors"):
                    if other != self._file(layer, self._step):
                        other.unlink(missing_ok=True)
        except (SafetensorError, OSError) as error:
            raise self._unwritable(error) from error
        self._last = time.monotonic()

    def _file(self, layer: int, step: int) -> Path:
        return self._path / f"layer-{layer}-step-{step}.safetensors"

    def _state(self) -> dict[str, Any] | None:
        """The manifest, of the same run; None where there is none."""
        self._check_folder()
        path = self._path / MANIFEST
        if not path.exists():
            return None
        try:
            state = cast(dict[str, Any], json.loads(path.read_text("utf-8")))
            was: dict[str, object] = state["run"]
            whole = state["schema"] == SCHEMA and all(
                type(state[name]) is kind
                for name, kind in {
                    "step": int,
                    "read": int,
                    "taken": int,
                    "chain": str,
                    "counts": list,
                    "digests": dict,
                }.items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(MANIFEST, repr(error)) from error
        if not whole or not isinstance(cast(object, was), dict):
            raise self._damaged(MANIFEST, f"schema {state['schema']!r}")
        if state.get("digest") != _said(state):
            raise self._damaged(MANIFEST, "its content is not what was written")
        changes = ", ".join(
            f"{name} {was.get(name)} (now {self._run.get(name)})"
            for name in {**self._run, **was}
            if was.get(name) != self._run.get(name)
        )
        if changes:
            raise ValueError(
                f"{OPERATION}: the checkpoint {self._folder} is of another run: {changes}; expected the same model, "
                "texts and settings; choose another folder."
            )
        return state

    def _check_folder(self) -> None:
        """Refuse a folder of other things, or of a run with another number of processes."""
        try:
            found = sorted(path.name for path in self._folder.iterdir()) if self._folder.exists() else []
        except OSError as error:
            raise ValueError(
                f"{OPERATION}: the checkpoint {self._folder} cannot be read ({error}); expected a folder, or a path "
                "where one can be made; choose another."
            ) from error
        world = self._run["processes"]
        others = [name for name in found if not name.startswith(".") and not name.endswith(f"-of-{world}")]
        if others:
            raise ValueError(
                f"{OPERATION}: the checkpoint {self._folder} holds {others[0]!r}; expected a new folder, or one of the "
                f"same run with as many processes ({world}); choose another folder."
            )

    def _tensors(self, layer: int, state: dict[str, Any]) -> dict[str, Tensor]:
        path = self._file(layer, state["step"])
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise self._damaged(path.name, str(error)) from error
        if _digest(tensors) != state["digests"].get(str(layer)):
            raise self._damaged(path.name, "its content is not what was written")
        return tensors

    def _unwritable(self, error: Exception) -> ValueError:
        return ValueError(
            f"{OPERATION}: the checkpoint {self._folder} cannot be written ({error}); expected a folder with enough "
            "space for the sums twice; choose another folder."
        )

    def _damaged(self, name: str, reason: str) -> ValueError:
        return ValueError(
            f"{OPERATION}: {self._path / name} is damaged ({reason}); expected what {OPERATION} wrote there; remove "
            f"{self._folder} to begin anew, or restore the file."
        )


def reader_goes_to(reader: Reader, state: Mapping[str, Any]) -> bool:
    """Whether the texts up to the saved place are those of that run; ``reader`` is there then."""
    return state["read"] == 0 or reader.go_to(state["read"], state["taken"], state["chain"])


def _said(state: Mapping[str, Any]) -> str:
    """A hash of all that a manifest says, but for the hash itself."""
    return digest([json.dumps({name: value for name, value in state.items() if name != "digest"}, sort_keys=True)])


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return digest(part for name in sorted(tensors) for part in (name, str(tensors[name].shape), tensors[name]))
