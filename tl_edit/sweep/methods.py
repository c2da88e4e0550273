"""What a sweep runs: methods, and the baselines without which their numbers say little.

A method is anything that takes a model and requests and returns something that can be switched on, with ``.on(model)``
as `Edit` has it. The editors of this package are methods once their other arguments are given::

    partial(rome_edit, moments=moments, apply=False)
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from tl_edit.digest import digest
from tl_edit.edit import Edit, LowRank
from tl_edit.evaluate import TfIdf
from tl_edit.host import Model
from tl_edit.moment import SecondMoment
from tl_edit.request import EditRequest


@runtime_checkable
class Switchable(Protocol):
    """What can be switched on for the duration of a ``with`` block, and leaves the model as it was."""

    def on(self, model: Model) -> AbstractContextManager[Any]:
        """Switch it on."""
        ...


Method = Callable[[Model, Sequence[EditRequest]], Switchable]
"""Computes, for a model and requests, what is to be switched on; it leaves the model as it is."""


class Unedited:
    """The model as it is."""

    def on(self, model: Model) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()


def no_edit(model: Model, requests: Sequence[EditRequest]) -> Unedited:
    """The baseline without an edit."""
    return Unedited()


@dataclass(frozen=True)
class Derived:
    """A method that alters the edit of another; a sweep that runs both computes that one once."""

    method: Method
    seed: int

    def __call__(self, model: Model, requests: Sequence[EditRequest]) -> Edit:
        """Of an edit that is computed here."""
        return self.derive(self.method(model, requests))

    def derive(self, edit: Switchable) -> Edit:
        """Of the other method's edit.

        Raises:
            ValueError: If that is no `Edit`.
        """
        if not isinstance(edit, Edit):
            raise ValueError(
                f"random_direction: the method returned something of type {type(edit).__name__}; expected an Edit, as "
                "the control takes its norms and ranks; pass a method that returns one."
            )
        asked = digest([str(self.seed), *(repr(request) for request in edit.requests)], size=7)
        return random_edit(edit, int(asked, 16))


def random_direction(method: Method, *, seed: int = 0) -> Method:
    """The control for how large an edit is: random directions of the rank and norm of the method's change, by layer.

    Args:
        method: The method whose norms are taken.
        seed: Seed of the directions, which also depend on the edit's requests.

    Raises:
        ValueError: If the method is no function, or the seed no integer.
    """
    if not callable(cast(object, method)) or type(cast(object, seed)) is not int:
        raise ValueError(
            f"random_direction: method is of type {type(method).__name__} and seed is {seed!r}; expected a function of "
            "a model and requests, and an integer; write e.g. random_direction(partial(rome_edit, moments=moments, "
            "apply=False))."
        )
    return Derived(method, seed)


def random_edit(edit: Edit, seed: int) -> Edit:
    """An edit of random directions with the ranks and norms of ``edit``."""
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[int, LowRank] = {}
    for layer, delta in edit.deltas.items():
        left = torch.randn(delta.left.shape, generator=generator, dtype=torch.float64)
        right = torch.randn(delta.right.shape, generator=generator, dtype=torch.float64)
        size = LowRank(left, right).norm()
        deltas[layer] = LowRank(left, right * (delta.norm() / size if size else 0.0))
    return replace(edit, method="random direction", deltas=deltas, diagnostics={})


def describe(value: object) -> str:
    """What a method or one of its arguments is, as far as its content can be told; equal ones are described alike."""
    if isinstance(value, functools.partial):
        bound = cast(functools.partial[Any], value)
        arguments = [describe(each) for each in bound.args]
        arguments += [f"{name}={describe(each)}" for name, each in sorted(bound.keywords.items())]
        return f"{describe(bound.func)}({', '.join(arguments)})"
    if isinstance(value, Derived):
        return f"random_direction({describe(value.method)}, seed={value.seed})"
    if isinstance(value, SecondMoment):
        # Not its digest: several processes sum in another order, which is the same method.
        return f"{value!r} with trace {float(value.matrix.diagonal().double().sum()):.4g}"
    if isinstance(value, Tensor):
        return f"tensor {digest([value], size=4)}"
    if isinstance(value, Edit):
        return f"{value!r} {value.fingerprint}"
    if isinstance(value, TfIdf):
        return f"{value!r} {value.fingerprint}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(describe(each) for each in cast(set[object], value))) + "}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = (f"{field.name}={describe(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__qualname__}({', '.join(parts)})"
    if isinstance(value, Mapping):
        several = cast(Mapping[object, object], value)
        return "{" + ", ".join(f"{key!r}: {describe(several[key])}" for key in several) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(describe(each) for each in cast(Sequence[object], value)) + "]"
    if callable(value) and hasattr(value, "__qualname__"):
        function = cast(Any, value)
        return f"{function.__module__}.{function.__qualname__}"
    if callable(value):
        return f"{type(value).__qualname__}({describe(vars(value)) if hasattr(value, '__dict__') else ''})"
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        array = cast(Any, value)
        return f"{array.dtype} {array.shape} {digest([array.tobytes().hex()], size=4)}"
    # Numbers, texts, ranges, paths show what they are; an address would differ in the next run.
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
