"""A hash of tensors and texts, to tell one from another."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(parts: Iterable[Tensor | str], *, size: int = 16) -> str:
    """BLAKE2b of all parts in order, as ``2 * size`` hexadecimal digits; a billion bytes take about a second."""
    found = hashlib.blake2b(digest_size=size)
    for part in parts:
        if isinstance(part, str):
            # Texts may hold lone surrogates, which UTF-8 proper has no bytes for.
            found.update(part.encode("utf-8", "surrogatepass"))
        else:
            found.update(part.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
