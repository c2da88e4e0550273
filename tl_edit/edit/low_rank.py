"""Changes of ``W_out`` as factors: what they are worth as matrices, without making the matrices."""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit.digest import digest


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change ``left @ right`` of ``W_out``, in TransformerLens' orientation: key @ left weighs right."""

    left: Float[Tensor, "d_mlp rank"]
    right: Float[Tensor, "rank d_model"]

    @property
    def matrix(self) -> Float[Tensor, "d_mlp d_model"]:
        """The change as a full matrix."""
        return self.left @ self.right

    @property
    def rank(self) -> int:
        """The number of factors; that of the matrix may be lower."""
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_mlp, d_model)``."""
        return self.left.shape[0], self.right.shape[1]

    def norm(self) -> float:
        """Frobenius norm, from the factors alone."""
        gram = (self.left.T @ self.left) @ (self.right @ self.right.T)
        return float(gram.trace().clamp(min=0).sqrt())

    def __mul__(self, scale: float | int) -> "LowRank":
        return LowRank(self.left, self.right * scale)

    def __add__(self, other: "LowRank") -> "LowRank":
        """The sum; where the factors would take more room than the matrix, that stands in one of them."""
        both = LowRank(torch.cat([self.left, other.left], dim=1), torch.cat([self.right, other.right]))
        d_mlp, d_model = both.shape
        if both.rank <= min(d_mlp, d_model):
            return both
        if d_model <= d_mlp:
            return LowRank(self.matrix + other.matrix, torch.eye(d_model, dtype=both.left.dtype))
        return LowRank(torch.eye(d_mlp, dtype=both.left.dtype), self.matrix + other.matrix)

    def truncated(self, rank: int) -> "LowRank":
        """The nearest change of this rank in the Frobenius norm (Eckart and Young), from the factors alone."""
        if rank >= self.rank:
            return self
        factor = cast(Callable[[Tensor], tuple[Tensor, Tensor]], torch.linalg.qr)
        decompose = cast(Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], torch.linalg.svd)
        (basis, mix), (other_basis, other_mix) = factor(self.left), factor(self.right.T)
        u, sizes, v = decompose(mix @ other_mix.T)
        return LowRank(basis @ (u[:, :rank] * sizes[:rank]), v[:rank] @ other_basis.T)

    def at(self, device: torch.device, dtype: torch.dtype) -> "LowRank":
        """The same there; cast first, as not every device has float64."""
        return LowRank(self.left.to(dtype).to(device), self.right.to(dtype).to(device))

    def shift(self, key: Float[Tensor, "*rows d_mlp"]) -> Float[Tensor, "*rows d_model"]:
        """What the change adds to the answer to a key."""
        return key @ self.left @ self.right


def plus(weight: Tensor, delta: LowRank) -> Tensor:
    """``weight`` plus a change, summed in float64 and rounded once to its dtype; on the CPU.

    So every device rounds alike; not all have float64.
    """
    return (weight.to("cpu", torch.float64) + delta.matrix).to(weight.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """Changes of ``W_out`` of several layers, and what made them."""

    method: str
    """What computed it, e.g. "ROME"; algebra shows, as in "0.5 * ROME"."""
    deltas: Mapping[int, LowRank]
    """By layer, ascending: the change of ``W_out``, on the CPU in float64."""

    def __post_init__(self) -> None:
        """Sort the layers, and refuse factors that would destroy a model.

        Raises:
            ValueError: If there are no layers, a layer is no integer, or factors do not fit or are not finite.
        """
        if not isinstance(cast(object, self.method), str):
            raise ValueError(
                f"making an edit: method is {self.method!r} of type {type(self.method).__name__}; expected a name; "
                "write e.g. method='ROME'."
            )
        if not self.deltas or any(type(layer) is not int or layer < 0 for layer in self.deltas):
            raise ValueError(
                f"{self.method} edit: the layers are {list(self.deltas)}; expected at least one, each an integer of 0 "
                "or more; pass e.g. deltas={5: LowRank(left, right)}."
            )
        for layer, delta in self.deltas.items():
            if delta.left.ndim != 2 or delta.right.ndim != 2 or delta.left.shape[1] != delta.right.shape[0]:
                raise ValueError(
                    f"{self.method} edit: the factors of layer {layer} are of shape {list(delta.left.shape)} and "
                    f"{list(delta.right.shape)}; expected [d_mlp rank] and [rank d_model]; transpose them."
                )
            if not (torch.isfinite(delta.left).all() and torch.isfinite(delta.right).all()):
                raise ValueError(
                    f"{self.method} edit: the change of layer {layer} is not finite; expected finite factors; check "
                    "the second moment and the loss curve, or load the model in a wider dtype."
                )
        object.__setattr__(self, "deltas", dict(sorted(self.deltas.items())))

    def __eq__(self, other: object) -> bool:
        """Whether it is the same, or a copy: the same method and factors."""
        return isinstance(other, Change) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the factors: equal for a copy of the edit, different for any other."""
        parts: list[Tensor | str] = [self.method]
        for layer, delta in self.deltas.items():
            parts += [f"{layer}", delta.left, delta.right]
        return digest(parts, size=8)


def as_deltas(deltas: object, operation: str) -> dict[int, LowRank]:
    """Changes by layer, on the CPU in float64.

    Raises:
        ValueError: If they are something else.
    """
    example = "pass e.g. {5: LowRank(left, right)}, or {5: rome_update(...)}"
    if not isinstance(deltas, Mapping):
        raise ValueError(
            f"{operation}: deltas is of type {type(deltas).__name__}; expected changes of W_out by layer; {example}."
        )
    ready: dict[Any, LowRank] = {}
    for layer, delta in cast(Mapping[object, object], deltas).items():
        if not isinstance(delta, LowRank):
            raise ValueError(
                f"{operation}: the change of layer {layer} is of type {type(delta).__name__}; expected LowRank; "
                f"{example}."
            )
        for factor in (delta.left, delta.right):
            if not isinstance(cast(object, factor), Tensor) or not factor.is_floating_point():
                raise ValueError(
                    f"{operation}: a factor of layer {layer} is {reprlib.repr(factor)}; expected a floating point "
                    "tensor; convert it, e.g. torch.as_tensor(...).double()."
                )
        # Copies: what the caller does with his tensors must not reach an edit that may be applied.
        ready[layer] = LowRank(*(f.detach().to("cpu", torch.float64, copy=True) for f in (delta.left, delta.right)))
    return ready


def as_scale(scale: object, operation: str) -> float:
    """A number to scale a change by.

    Raises:
        ValueError: If it is none, or not finite.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real) or not math.isfinite(scale):
        raise ValueError(
            f"{operation}: the scale is {scale!r}; expected a finite number, such as 0.5; the edit itself is 1."
        )
    return float(scale)
