"""Second moments in files: safetensors of our own, and the published programs' npz."""

import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from tl_edit.digest import digest

SCHEMA = "tl_edit second moment 1"
NPZ_NONE = struct.unpack(">d", struct.pack(">Q", 0xFFF8000000000002))[0]
"""What the published programs write for None: a NaN with these bits."""
NPZ_CONSTRUCTOR = "util.runningstats.SecondMoment()"


def write(path: Path, tensors: Mapping[str, Tensor], plain: Mapping[str, object]) -> None:
    """Write tensors, plain values as JSON, and a hash of both; the file is there whole or not at all.

    Raises:
        ValueError: If it cannot be written.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    said = json.dumps(plain)
    half = path.with_name(path.name + ".part")
    try:
        metadata = {"schema": SCHEMA, "moment": said, "digest": _digest(ready, said)}
        save_file(ready, str(half), metadata=metadata)
        half.replace(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"SecondMoment.save: {path} cannot be written ({error}); expected a path in a folder that exists, and "
            "enough space."
        ) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values that `write` wrote.

    Raises:
        ValueError: If the file is not such a one, or is damaged.
    """
    tensors: dict[str, Tensor] = {}
    if path.is_dir():
        raise ValueError(
            f"SecondMoment.load: {path} is a folder; expected a file written by SecondMoment.save; for a folder use "
            "SecondMoments.load."
        )
    try:
        with cast(Any, safe_open)(str(path), framework="pt") as file:
            metadata = _metadata(path, file)
            for name in list(file.keys()):
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    if metadata.get("digest") != _digest(tensors, metadata["moment"]):
        raise _unreadable(path, "its content is not what was written")
    try:
        return tensors, cast(dict[str, Any], json.loads(metadata["moment"]))
    except ValueError as error:
        raise _unreadable(path, str(error)) from error


def read_layer(path: Path) -> int:
    """The layer that a file is for, from its head alone.

    Raises:
        ValueError: If the file is not one of ours.
    """
    try:
        with cast(Any, safe_open)(str(path), framework="pt") as file:
            return int(json.loads(_metadata(path, file)["moment"])["layer"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        if str(error).startswith("SecondMoment.load"):
            raise
        raise _unreadable(path, str(error)) from error


def _metadata(path: Path, file: Any) -> dict[str, str]:
    metadata: dict[str, str] = file.metadata() or {}
    if metadata.get("schema") != SCHEMA or "moment" not in metadata:
        raise _unreadable(path, f"schema {metadata.get('schema')!r}")
    return metadata


def _digest(tensors: Mapping[str, Tensor], said: str) -> str:
    ordered = [part for name in sorted(tensors) for part in (name, str(tensors[name].dtype), tensors[name])]
    return digest([said, *ordered])


def _unreadable(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"SecondMoment.load: {path} cannot be read ({reason}); expected a file written by SecondMoment.save; compute "
        "the moment again, or restore the file; files of the published programs are for SecondMoment.from_npz."
    )


class Published(NamedTuple):
    """What a file of the published programs holds."""

    matrix: Float[Tensor, "d_mlp d_mlp"]
    """The mean, in float64."""
    n_tokens: int
    sample_size: int | None


def read_npz(path: Path) -> Published:
    """Read ``C`` from the published programs' layout.

    Raises:
        ValueError: If the file is not of this layout, or its numbers cannot be a second moment.
    """
    what = "expected the published programs' keys mom2.mom2 [d_mlp d_mlp], a sum, and mom2.count"
    remedy = "download it again, or compute the moment with second_moment(...)"
    try:
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, Any] = {name: file[name] for name in file.files}
    except (AttributeError, TypeError) as error:
        # What np.load gives for a .npy file is an array, which is nothing to open.
        raise ValueError(
            f"SecondMoment.from_npz: {path} cannot be read (it is a single array, no .npz); {what}; {remedy}."
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ValueError(f"SecondMoment.from_npz: {path} cannot be read ({error}); {what}; {remedy}.") from error
    missing = {"mom2.mom2", "mom2.count"} - found.keys()
    if missing:
        raise ValueError(
            f"SecondMoment.from_npz: {path} has the keys {sorted(found)}, but not {sorted(missing)}; {what}; {remedy}."
        )
    total, count = found["mom2.mom2"], found["mom2.count"]
    wrong = _wrong(total, count, str(found.get("mom2.constructor", NPZ_CONSTRUCTOR)))
    if wrong:
        raise ValueError(f"SecondMoment.from_npz: in {path} {wrong}; {what}; {remedy}.")
    sample_size = found.get("sample_size", np.array(NPZ_NONE))
    known = sample_size.ndim == 0 and np.issubdtype(sample_size.dtype, np.integer)
    matrix = torch.from_numpy(total.astype(np.float64)).div_(int(count))
    return Published(matrix, int(count), int(sample_size) if known else None)


def _wrong(total: Any, count: Any, constructor: str) -> str:
    """What makes the numbers no second moment; "" if nothing."""
    if "SecondMoment" not in constructor:
        return f"mom2 is a {constructor}"
    if (
        total.ndim != 2
        or total.shape[0] != total.shape[1]
        or not total.size
        or not np.issubdtype(total.dtype, np.floating)
    ):
        return f"mom2.mom2 is {total.dtype} of shape {list(total.shape)}"
    real = np.issubdtype(count.dtype, np.integer) or np.issubdtype(count.dtype, np.floating)
    if count.ndim != 0 or not real or not 1 <= float(count) < np.inf or float(count) != int(count):
        return f"mom2.count is {count}, no whole number of 1 or more"
    if not np.isfinite(total).all():
        return "mom2.mom2 has numbers that are not finite"
    if not total.any():
        return "mom2.mom2 is 0 everywhere"
    if (total.diagonal() < 0).any() or not _symmetric(total):
        return "mom2.mom2 is not symmetric with a diagonal of 0 or more"
    return ""


def _symmetric(total: Any) -> bool:
    """Whether each number is the one across the diagonal, to 1e-3 of what its row and column allow at most.

    By Cauchy and Schwarz that is the root of the product of the two numbers on the diagonal, so that one large neuron
    does not hide the others.
    """
    sizes = np.sqrt(total.diagonal().astype(np.float64))
    tiny = 1e-9 * sizes.max()
    # A few rows at a time, as the matrix may be of some gigabytes.
    for start in range(0, len(total), 256):
        rows = slice(start, start + 256)
        difference = np.abs(total[rows].astype(np.float64) - total[:, rows].T)
        if (difference > 1e-3 * np.outer(sizes[rows] + tiny, sizes + tiny)).any():
            return False
    return True


def warn_of_name(path: Path, layer: int) -> None:
    """Warn if a file's name says another layer, as in ``transformer.h.17.mlp.c_proj_float32_mom2_100000.npz``."""
    named = re.search(r"(?:^|\.)(?:h|layers|blocks?)\.(\d+)\.", path.name)
    if named and int(named[1]) != layer:
        warnings.warn(
            f"SecondMoment.from_npz: layer is {layer}, and the file is {path.name}; expected the layer in the file's "
            f"name; pass layer={named[1]} if the name is right.",
            stacklevel=3,
        )


def write_npz(path: Path, matrix: Float[Tensor, "d_mlp d_mlp"], count: int, sample_size: int | None) -> None:
    """Write ``C`` as a float32 sum in the published programs' layout; the file is there whole or not at all.

    Raises:
        ValueError: If the file cannot be written, or float32 cannot hold the sum.
    """
    total = (matrix.cpu() * count).to(torch.float32)
    if not torch.isfinite(total).all():
        raise ValueError(
            f"SecondMoment.to_npz: the sum over {count:,} tokens is not finite in float32; expected numbers below "
            "3e38; use SecondMoment.save."
        )
    values: dict[str, Any] = {
        "mom2.constructor": np.array(NPZ_CONSTRUCTOR),
        "mom2.count": np.array(count),
        "mom2.mom2": total.numpy(),
        "sample_size": np.array(NPZ_NONE if sample_size is None else sample_size),
    }
    half = path.with_name(path.name + ".part")
    try:
        with half.open("wb") as file:
            np.savez(file, **values)
        half.replace(path)
    except OSError as error:
        raise ValueError(
            f"SecondMoment.to_npz: {path} cannot be written ({error}); expected a path in a folder that exists."
        ) from error
