"""Values kept in a folder, one file for each request: a search that was stopped goes on, and none is made twice.

A file's name is a hash of all that its value depends on, so one folder serves many runs.
"""

import json
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tl_edit import attach, host
from tl_edit.digest import digest
from tl_edit.forward import length
from tl_edit.identity import weights_digest
from tl_edit.request import EditRequest
from tl_edit.values.asked import Asked
from tl_edit.values.result import OptimizedValue
from tl_edit.values.settings import ValueSearch


class ValueFolder:
    """The values of one run among those in a folder.

    Raises:
        ValueError: If the path is no folder, or the model carries hooks of the user's, as what they do cannot be told
            from the files.
    """

    def __init__(self, path: Path, asked: Asked) -> None:
        """The folder is made at once, so that one that cannot be written is known before the search."""
        self.path, self.operation = path, asked.operation
        if path.exists() and not path.is_dir():
            raise ValueError(f"{asked.operation}: {path} is a file; expected a folder for values; choose another path.")
        stranger = attach.foreign_hook(asked.model)
        if stranger:
            raise ValueError(
                f"{asked.operation}: a hook is attached at {stranger}; expected none with folder=, since a folder "
                "cannot tell what a hook does and might hold other values; take it off, or search without a folder."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"{asked.operation}: values cannot be kept in {path} ({error}); expected a folder where you may write; "
                "choose another path."
            ) from error
        settings = {field.name: getattr(asked.settings, field.name) for field in fields(ValueSearch)}
        self.run: dict[str, Any] = {
            "model": host.model_name(asked.model),
            "dtype": str(host.w_out(asked.model, asked.layer).dtype),
            "weights": weights_digest(asked.model),
            "layer": asked.layer,
            "sites": list(asked.sites),
            "search": settings,
            "prefixes": list(asked.prefixes),
            "prepend_bos": asked.prepend_bos,
        }

    def find(self, request: EditRequest, v0: Float[Tensor, " d_model"]) -> OptimizedValue | None:
        """The value of a request, if it is kept and was found where the model has ``v0``.

        Raises:
            ValueError: If the file is damaged, or the model now has something else there.
        """
        path = self._file(request)
        if not path.exists():
            return None
        try:
            with cast(Any, safe_open)(str(path), framework="pt") as file:
                kept: dict[str, Tensor] = {name: file.get_tensor(name) for name in ("v_star", "v0")}
                told = cast(dict[str, str], file.metadata())
            result: Any = json.loads(told["result"])
            losses = tuple(map(float, result.pop("losses")))
            # Files of earlier versions have no terms.
            terms = tuple(cast(Any, tuple)(map(float, each)) for each in result.pop("loss_terms", ()))
            found = OptimizedValue(v_star=kept["v_star"], v0=kept["v0"], losses=losses, loss_terms=terms, **result)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(
                f"{self.operation}: {path} is damaged ({type(error).__name__}: {error}); expected a value that was "
                "kept there; remove the file to search again."
            ) from error
        off = float(length(found.v0 - v0.cpu()) / length(v0.cpu()))
        # Of the same weights, only rounding may differ.
        if not off <= (0.02 if "16" in self.run["dtype"] else 1e-3):
            raise ValueError(
                f"{self.operation}: {path} was found where the model had something else (relative difference {off:.1e} "
                f"for {request}); expected a model with the same weights to compute the same; choose another folder."
            )
        return found

    def keep(self, request: EditRequest, found: OptimizedValue) -> None:
        """Keep a value; its file is there whole or not at all."""
        names = ("losses", "loss_terms", "target_prob", "prepend_bos", "site", "engine")
        told = {
            "request": json.dumps(asdict(request)),
            "run": json.dumps(self.run),
            "result": json.dumps({name: getattr(found, name) for name in names}),
        }
        path = self._file(request)
        half = path.with_suffix(".part")
        save_file({"v_star": found.v_star.contiguous(), "v0": found.v0.contiguous()}, half, metadata=told)
        half.replace(path)

    def _file(self, request: EditRequest) -> Path:
        parts = [json.dumps(self.run, sort_keys=True), json.dumps(astuple(request)[:3])]
        return self.path / f"{digest(parts)}.safetensors"
