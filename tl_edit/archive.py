"""Files of results: safetensors with plain values as JSON in the head, and a hash of both. No pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tl_edit.digest import digest

_HEAD = 2**20
"""Bytes of JSON that go into a file's head; more become a tensor of their own."""
_PLAIN = "plain values as JSON"


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    owner: str
    """The class whose ``save`` and ``load`` these are."""
    schema: str
    """Name and version of the layout, e.g. "tl_edit edit 1"."""
    remedy: str
    """What to do where a file cannot be read."""


def write(given: str | Path, kind: Kind, tensors: Mapping[str, Tensor], plain: Mapping[str, object]) -> None:
    """Write tensors, plain values as JSON, and a hash of both; the file is there whole or not at all.

    Raises:
        ValueError: If it cannot be written.
    """
    path = _as_path(given, kind)
    if path.is_dir() or not path.name:
        raise ValueError(
            f"{kind.owner}.save: {str(given)!r} is a folder; expected a file's path; write e.g. "
            f"{str(path / 'result.safetensors')!r}."
        )
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = json.dumps(plain)
    metadata = {"schema": kind.schema, "digest": _digest(ready, said)}
    if len(said) > _HEAD:
        # A safetensors file has no room for more than 100 MB in its head.
        ready[_PLAIN] = torch.frombuffer(bytearray(said.encode("ascii")), dtype=torch.uint8)
    else:
        metadata["plain"] = said
    half = path.with_name(path.name + ".part")
    try:
        save_file(ready, str(half), metadata=metadata)
        half.replace(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{kind.owner}.save: {path} cannot be written ({error}); expected a path in a folder that exists, and "
            "enough space; choose another path."
        ) from error


def read(given: str | Path, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values that `write` wrote.

    Raises:
        ValueError: If the file is not such a one, or is damaged.
    """
    path, tensors = _as_path(given, kind), dict[str, Tensor]()
    try:
        with cast(Any, safe_open)(str(path), framework="pt") as file:
            metadata = _metadata(path, kind, file)
            said = _said(metadata, file)
            for name in list(file.keys()):
                if name != _PLAIN:
                    tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise unreadable(path, kind, "it is a folder" if path.is_dir() else str(error)) from error
    if metadata.get("digest") != _digest(tensors, said):
        raise unreadable(path, kind, "its content is not what was written")
    return tensors, cast(dict[str, Any], json.loads(said))


def read_plain(given: str | Path, kind: Kind) -> dict[str, Any]:
    """The plain values alone, from the file's head, unchecked.

    Raises:
        ValueError: If the file is not one of this kind.
    """
    path = _as_path(given, kind)
    try:
        with cast(Any, safe_open)(str(path), framework="pt") as file:
            plain: object = json.loads(_said(_metadata(path, kind, file), file))
    except (SafetensorError, OSError) as error:
        raise unreadable(path, kind, str(error)) from error
    except json.JSONDecodeError as error:
        raise unreadable(path, kind, f"its head is no JSON: {error}") from error
    if not isinstance(plain, dict):
        raise unreadable(path, kind, "its head holds no names and values")
    return cast(dict[str, Any], plain)


def unreadable(path: str | Path, kind: Kind, reason: str) -> ValueError:
    """The advice where a file cannot be read."""
    return ValueError(
        f"{kind.owner}.load: {path} cannot be read ({reason}); expected a file written by {kind.owner}.save; "
        f"{kind.remedy}."
    )


def _as_path(given: object, kind: Kind) -> Path:
    if not isinstance(given, str | Path):
        raise ValueError(
            f"{kind.owner} in a file: the path is {given!r}; expected a string or a Path; write e.g. "
            "'edit.safetensors'."
        )
    # "~" is your home.
    return Path(given).expanduser()


def _metadata(path: Path, kind: Kind, file: Any) -> dict[str, str]:
    metadata: dict[str, str] = file.metadata() or {}
    schema = metadata.get("schema")
    if schema != kind.schema or ("plain" not in metadata and _PLAIN not in set(file.keys())):
        family = kind.schema.rsplit(" ", 1)[0]
        newer = "; another version of tl_edit wrote it" if schema and schema.rsplit(" ", 1)[0] == family else ""
        raise unreadable(path, kind, f"schema {schema!r}{newer}")
    return metadata


def _said(metadata: Mapping[str, str], file: Any) -> str:
    """The plain values as JSON, from the head or from a tensor of their own."""
    said = metadata.get("plain")
    return bytes(file.get_tensor(_PLAIN).numpy()).decode("ascii", "replace") if said is None else said


def _digest(tensors: Mapping[str, Tensor], said: str) -> str:
    ordered = [part for name in sorted(tensors) for part in (name, str(tensors[name].dtype), tensors[name])]
    return digest([said, *ordered])
