"""Second moments in files: which are ours, and the published programs' npz."""

import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import archive

KIND = archive.Kind(
    owner="SecondMoment",
    schema="tl_edit second moment 2",
    remedy="compute the moment again, or restore the file; files of the published programs are for "
    "SecondMoment.from_npz; a folder of them is for SecondMoments.load",
)
NPZ_NONE = struct.unpack(">d", struct.pack(">Q", 0xFFF8000000000002))[0]
"""What the published programs write for None: a NaN with these bits."""
NPZ_CONSTRUCTOR = "util.runningstats.SecondMoment()"


def read_layer(path: Path) -> int:
    """The layer that a file is for, from its head alone.

    Raises:
        ValueError: If the file is not one of ours.
    """
    layer = archive.read_plain(path, KIND).get("layer")
    if type(layer) is not int:
        raise archive.unreadable(path, KIND, f"its layer is {layer!r}")
    return layer


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
