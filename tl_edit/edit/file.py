"""An edit in a file: factors as tensors, all else as JSON. No pickle."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from tl_edit import archive
from tl_edit.edit.base import Base
from tl_edit.edit.low_rank import LowRank
from tl_edit.host import Provenance, ValueSite
from tl_edit.request import EditRequest
from tl_edit.settings import Settings

KIND = archive.Kind(owner="Edit", schema="tl_edit edit 1", remedy="restore the file, or compute the edit again")

_CLASS, _PAIRS, _FLOAT = "__class__", "__pairs__", "__float__"


def write(path: str | Path, edit: Any) -> None:
    """Write an edit; see `Edit.save`."""
    operation = "Edit.save"
    tensors = {
        f"{side}.{layer}": getattr(delta, side) for layer, delta in edit.deltas.items() for side in ("left", "right")
    }
    base: Base | None = edit.base
    plain: dict[str, object] = {
        "method": edit.method,
        "requests": [asdict(request) for request in edit.requests],
        "config": to_plain(edit.config, f"{operation}: config"),
        "provenance": asdict(edit.provenance),
        "diagnostics": to_plain(dict(edit.diagnostics), f"{operation}: diagnostics"),
        "base": None if base is None else to_plain(_base_fields(base), f"{operation}: base"),
        "statistics": to_plain(dict(edit.statistics), f"{operation}: statistics"),
    }
    archive.write(path, KIND, tensors, plain)


def read(path: str | Path) -> dict[str, Any]:
    """The fields of an edit; see `Edit.load`."""
    tensors, plain = archive.read(path, KIND)
    try:
        layers = sorted(int(name.removeprefix("left.")) for name in tensors if name.startswith("left."))
        deltas = {layer: LowRank(tensors[f"left.{layer}"], tensors[f"right.{layer}"]) for layer in layers}
        base = from_plain(plain["base"])
        return {
            "method": plain["method"],
            "deltas": deltas,
            "requests": tuple(EditRequest(**request) for request in plain["requests"]),
            "config": from_plain(plain["config"]),
            "provenance": Provenance(**plain["provenance"]),
            "diagnostics": from_plain(plain["diagnostics"]),
            "base": None if base is None else _base(base),
            "statistics": from_plain(plain["statistics"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise archive.unreadable(path, KIND, f"it has other fields: {type(error).__name__}: {error}") from error


def _base_fields(base: Base) -> dict[str, Any]:
    sites = {layer: asdict(site) for layer, site in base.sites.items()}
    return {"weights": dict(base.weights), "sites": sites, "edits": base.edits}


def _base(plain: Mapping[str, Any]) -> Base:
    sites = {layer: ValueSite(**site) for layer, site in plain["sites"].items()}
    return Base(weights=plain["weights"], sites=sites, edits=plain["edits"])


def to_plain(value: Any, what: str) -> Any:
    """A value as JSON can hold it; `from_plain` gives it back, lists as tuples.

    Raises:
        ValueError: If it is something that JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        # JSON has no such numbers.
        return float(value) if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, tuple | list):
        return [to_plain(each, what) for each in cast(list[Any], value)]
    if isinstance(value, Settings | EditRequest) and is_dataclass(value):
        named = {field.name: to_plain(getattr(value, field.name), what) for field in fields(value)}
        return {_CLASS: type(value).__name__, **named}
    if isinstance(value, Mapping):
        pairs = cast(Mapping[Any, Any], value)
        if all(isinstance(name, str) and not name.startswith("__") for name in pairs):
            return {name: to_plain(each, what) for name, each in pairs.items()}
        return {_PAIRS: [[to_plain(name, what), to_plain(each, what)] for name, each in pairs.items()]}
    raise ValueError(
        f"{what} holds something of type {type(value).__name__}, which a file cannot hold; expected numbers, texts, "
        "lists, dictionaries, requests, or settings of tl_edit; leave it out with dataclasses.replace(edit, ...)."
    )


def from_plain(value: Any) -> Any:
    """What `to_plain` was given; settings of a class that is not there any more come as a dictionary."""
    if isinstance(value, list):
        return tuple(from_plain(each) for each in cast(list[Any], value))
    if not isinstance(value, dict):
        return value
    found = cast(dict[str, Any], value)
    if _FLOAT in found:
        return float(found[_FLOAT])
    if _PAIRS in found:
        return {from_plain(name): from_plain(each) for name, each in found[_PAIRS]}
    named = {name: from_plain(each) for name, each in found.items() if name != _CLASS}
    if _CLASS not in found:
        return named
    kind: Any = EditRequest if found[_CLASS] == EditRequest.__name__ else Settings.named(str(found[_CLASS]))
    known = {field.name for field in fields(kind)} if kind is not None else set[str]()
    if kind is None or not named.keys() <= known:
        return {"class": found[_CLASS], **named}
    return kind(**named)
