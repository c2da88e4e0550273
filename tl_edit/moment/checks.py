"""What a second moment refuses."""

import math
from typing import cast

from jaxtyping import Float
from torch import Tensor


def with_ridge(matrix: Float[Tensor, "d_mlp d_mlp"], added: float) -> Float[Tensor, "d_mlp d_mlp"]:
    """The matrix with a number added to its diagonal; itself where that is 0."""
    if not added:
        return matrix
    regular = matrix.clone()
    regular.diagonal().add_(added)
    return regular


def check_matrix(given: object, what: str, axis: int, d_mlp: int, example: str) -> None:
    """Refuse what is no matrix whose ``axis`` is ``d_mlp`` wide."""
    if not isinstance(given, Tensor) or given.ndim != 2 or given.shape[axis] != d_mlp:
        found = f"of shape {list(given.shape)}" if isinstance(given, Tensor) else f"of type {type(given).__name__}"
        shape = "[n d_mlp]" if axis else "[d_mlp n]"
        raise ValueError(f"{what} is {found}; expected a tensor {shape} with d_mlp {d_mlp}; pass {example}.")


def check_ridge(ridge: object, operation: str) -> None:
    """Refuse a ridge that is not a number of 0 or more."""
    if type(ridge) not in (int, float) or not 0 <= cast(float, ridge) < math.inf:
        raise ValueError(
            f"{operation}: ridge is {ridge!r}; expected a number of 0 or more, relative to the mean of the diagonal; "
            "try 1e-3."
        )
