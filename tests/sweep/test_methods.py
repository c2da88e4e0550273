"""What methods are described by: equal content alike, other content otherwise."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from some_edits import make_edit

from tl_edit import Generation, MEMITConfig, ROMEConfig, SecondMoments, TfIdf, rome_edit
from tl_edit.sweep import no_edit, random_direction
from tl_edit.sweep.methods import describe


@dataclass(frozen=True)
class Settings:
    values: object


class Callable:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, model, requests): ...


def values(which: int) -> dict[str, object]:
    """Values of many kinds; those of two numbers differ in content only."""
    model = tiny_models.build("gpt2")
    return {
        "range": range(which, which + 3),
        "set": {which, 7},
        "path": Path(f"folder {which}"),
        "numpy number": np.float32(which),
        "array": np.arange(3) + which,
        "tensor": torch.arange(3) + which,
        "dataclass": Settings({"a": [which]}),
        "callable": Callable(which),
        "moments": SecondMoments([replace(SecondMoments.identity(model, [0])[0], count=5 + which)]),
        "partial": partial(rome_edit, moments=SecondMoments.identity(model, [which]), layer=which),
        "config": (ROMEConfig(layer=which), MEMITConfig(share=(1 + which) / 10)),
        "derived": random_direction(no_edit, seed=which),
        "edit": make_edit(model, seed=which),
        "generation": Generation(tfidf=TfIdf.fit([f"word{which} other", "other words"])),
        "text": f"x{which}",
    }


@pytest.mark.parametrize("kind", list(values(0)))
def test_equal_values_are_described_alike_and_others_otherwise(kind):
    assert describe(values(0)[kind]) == describe(values(0)[kind])
    assert describe(values(0)[kind]) != describe(values(1)[kind])
    assert "0x" not in describe(values(0)[kind])
