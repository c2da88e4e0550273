"""A few keys of the sample, drawn evenly from all tokens however they come: to judge a second moment by.

Every token has a mark, a number that looks random and depends on the seed, its text and its position only; the tokens
with the lowest marks are the sample. So it is the same for any batches, any number of processes and any interruption.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

SIZE = 64

_WRAP = 2**64


def marks(seed: int, text: int, length: int) -> Int[Tensor, " pos"]:
    """The marks of one text's tokens: splitmix64 (Steele et al. 2014) of seed, text and position."""
    start = (seed * 0xD1342543DE82EF95 + text * 0x2545F4914F6CDD1D) % _WRAP
    mixed = np.arange(length, dtype=np.uint64) + np.array([start], dtype=np.uint64)
    mixed = mixed * np.array([0x9E3779B97F4A7C15], dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.array([factor], dtype=np.uint64)
    # One bit less, so that it fits torch's integers.
    return torch.from_numpy(((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)).astype(np.int64))


class Sample:
    """The keys with the lowest marks so far, by layer, on the CPU."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.marks: Int[Tensor, " sample"] = torch.zeros(0, dtype=torch.int64)
        """In ascending order."""
        self.keys: dict[int, Float[Tensor, "sample d_mlp"]] = {}
        self.layers = tuple(layers)

    def wanted(self, found: Int[Tensor, " token"]) -> Int[Tensor, " some"]:
        """Which of these tokens belong to the sample as it is now, by index."""
        limit = int(self.marks[-1]) if len(self.marks) == SIZE else np.iinfo(np.int64).max
        below = (found < limit).nonzero().flatten()
        return below[found[below].argsort()[:SIZE]]

    def add(self, found: Int[Tensor, " some"], keys: Mapping[int, Float[Tensor, "some d_mlp"]]) -> None:
        """Take these tokens in, and let those go that do not belong any more."""
        if not len(found):
            return
        together = torch.cat([self.marks, found])
        lowest = together.argsort(stable=True)[:SIZE]
        self.marks = together[lowest]
        for layer in self.layers:
            before = self.keys.get(layer)
            both = keys[layer] if before is None else torch.cat([before, keys[layer].to(before.dtype)])
            self.keys[layer] = both[lowest]
