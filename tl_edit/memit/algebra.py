"""The updates of MEMIT and its relatives, as algebra on tensors: no model, no settings.

In TransformerLens' row convention a change ``D`` of ``W_out`` moves the answer to key ``k`` by ``k @ D``. The keys are
the rows of ``K``, what their answers shall move by those of ``R``, ``C`` is the second moment of all keys::

    MEMIT      minimises  sum |R_i - K_i D|^2 + weight tr(D^T C D)        (Meng et al. 2023, eq. 14, transposed)
               D = (weight C + K^T K)^-1 K^T R                            primal: d_mlp x d_mlp
                 = C^-1 K^T (K C^-1 K^T + weight I)^-1 R                  dual: request x request
    EMMET      minimises  tr(D^T C D)  where  K D = R                     (arXiv 2403.14236): the dual with weight 0
    AlphaEdit  minimises  sum |R_i - K_i D|^2 + sum |k D|^2 over remembered keys + weight |D|^2
               where  D = U0 Y, U0 the directions that C hardly has       (arXiv 2410.02355)

Both forms of MEMIT's are equal; which is faster depends on the number of requests alone. Everything is solved in
float64 through Cholesky factors and nothing is inverted: in float32 the error is some percent for moments as
ill-conditioned as real ones.
"""

import math
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit.edit import LowRank

Form = Literal["auto", "dual", "primal"]

DUAL_BELOW = 2 / 3
"""With a factor at hand, the dual is taken for fewer requests than this part of d_mlp (at d_mlp 3072 and d_model 768 it
is the faster one up to some 2,500 requests)."""


def memit_update(
    second_moment: Float[Tensor, "d_mlp d_mlp"],
    keys: Float[Tensor, "request d_mlp"],
    residuals: Float[Tensor, "request d_model"],
    *,
    weight: float,
    factor: Float[Tensor, "d_mlp d_mlp"] | None = None,
    form: Form = "auto",
) -> LowRank:
    """The change of ``W_out`` that moves the answers to ``keys`` by about ``residuals``, and typical answers little.

    Args:
        second_moment: ``C``, the mean of ``k k^T`` over text.
        keys: One for each request.
        residuals: What their answers shall move by. One key alone moves by the share ``q / (1 + q)`` of it, where
            ``q = k^T C^-1 k / weight``.
        weight: Of what typical keys move by (``mom2_update_weight``, lambda), in keys: how many typical keys weigh as
            much as one request.
        factor: Lower Cholesky factor of ``C``, if there is one already.
        form: "dual" solves ``request x request``, "primal" ``d_mlp x d_mlp``; "auto" takes the dual if there is a
            factor and there are few requests.

    Returns:
        The change in float64: ``left`` [d_mlp request] and ``right`` the residuals, or, for more requests than
        d_model, the whole change and an identity, so that the rank is never above d_model.

    Raises:
        ValueError: If shapes do not fit, numbers are not finite or the weight is not positive, and for a second moment
            that is not positive definite (primal: if the keys do not make it so).
    """
    operation = "memit_update"
    K, R = _checked(operation, second_moment, keys, residuals)
    _check_weight(operation, "weight", weight, least=math.ulp(0.0))
    if form not in get_args(Form):
        raise ValueError(f"{operation}: form is {form!r}; expected one of {', '.join(get_args(Form))}.")
    _check_symmetric(operation, second_moment)
    if factor is not None and factor.shape != second_moment.shape:
        raise ValueError(
            f"{operation}: factor has the shape {list(factor.shape)}; expected {list(second_moment.shape)}, that of "
            "the second moment; pass moments[layer].cholesky."
        )
    if factor is not None:
        _check_lower(operation, factor)
    few = factor is not None and len(K) < DUAL_BELOW * K.shape[1]
    if form == "dual" or (form == "auto" and few):
        known = _cholesky(operation, _wide(second_moment), "second moment") if factor is None else _wide(factor)
        return _dual(operation, known, K, R, weight)
    system = torch.addmm(_wide(second_moment), K.T, K, beta=weight)
    return _solved(_cholesky(operation, system, "second moment"), K, R)


def emmet_update(
    factor: Float[Tensor, "d_mlp d_mlp"],
    keys: Float[Tensor, "request d_mlp"],
    residuals: Float[Tensor, "request d_model"],
    *,
    damping: float = 0.0,
) -> LowRank:
    """The least-disturbing change of ``W_out`` that moves the answers to ``keys`` by exactly ``residuals``.

    With one request it is ROME's; with damping it is MEMIT's of that weight.

    Args:
        factor: Lower Cholesky factor of the second moment ``C``.
        keys: One for each request, linearly independent unless there is damping.
        residuals: What their answers shall move by.
        damping: Added to the diagonal of ``K C^-1 K^T``; 0 for exactly.

    Returns:
        The change in float64, as `memit_update` returns it.

    Raises:
        ValueError: For keys that depend on one another and what `memit_update` refuses.
    """
    operation = "emmet_update"
    K, R = _checked(operation, factor, keys, residuals)
    _check_lower(operation, factor)
    _check_weight(operation, "damping", damping, least=0.0)
    return _dual(operation, _wide(factor), K, R, damping)


def alpha_update(
    null_basis: Float[Tensor, "d_mlp _"],
    keys: Float[Tensor, "request d_mlp"],
    residuals: Float[Tensor, "request d_model"],
    *,
    weight: float = 10.0,
    cache: Float[Tensor, "d_mlp d_mlp"] | None = None,
) -> LowRank:
    """The change of ``W_out`` within the null space of what is to be kept that moves ``keys`` by about ``residuals``.

    Keys outside the null space are not moved at all. The program solves the same in ``d_mlp`` dimensions, unsymmetric
    and in float32.

    Args:
        null_basis: Orthonormal basis of the null space, from `tl_edit.memit.null_space`.
        keys: One for each request.
        residuals: What their answers shall move by.
        weight: Of ``|D|^2`` (program: 10).
        cache: Sum of ``k k^T`` over keys of earlier edits, which shall stay; None for none.

    Returns:
        The change in float64, as `memit_update` returns it.

    Raises:
        ValueError: What `memit_update` refuses.
    """
    operation = "alpha_update"
    K, R = _checked(operation, null_basis, keys, residuals)
    _check_weight(operation, "weight", weight, least=math.ulp(0.0))
    if not null_basis.shape[1]:
        raise ValueError(
            f"{operation}: null_basis has no columns, so nothing can change; expected an orthonormal basis of some "
            "directions; pass tl_edit.memit.null_space(second_moment, threshold) with a higher threshold."
        )
    if cache is not None and cache.shape != (K.shape[1], K.shape[1]):
        raise ValueError(
            f"{operation}: cache has the shape {list(cache.shape)}; expected {[K.shape[1]] * 2}, [d_mlp d_mlp]; pass "
            "the sum of k k^T over the keys to keep."
        )
    basis = _wide(null_basis)
    inside = K @ basis
    system = inside.T @ inside
    if cache is not None:
        system += basis.T @ _wide(cache) @ basis
    system.diagonal().add_(weight)
    found = _solved(_cholesky(operation, system, "sum of what is kept"), inside, R)
    return LowRank(left=basis @ found.left, right=found.right)


def null_space(
    second_moment: Float[Tensor, "d_mlp d_mlp"], threshold: float, *, relative: bool = False
) -> Float[Tensor, "d_mlp _"]:
    """Orthonormal basis of the directions in which keys have less than ``threshold``, in float64.

    Args:
        second_moment: ``C``.
        threshold: Of the eigenvalues of ``C``, squared units of the keys; so it depends on how large a model's
            activations are.
        relative: Whether it counts in mean eigenvalues, which does not.

    Raises:
        ValueError: If there is no such direction.
    """
    values, vectors = cast(tuple[Tensor, Tensor], torch.linalg.eigh(_wide(second_moment)))
    bound = threshold * float(values.mean()) if relative else threshold
    within = values < bound
    if not within.any():
        raise ValueError(
            f"null_space: no eigenvalue of the second moment is below {bound:.3g} (they are {float(values[0]):.3g} to "
            f"{float(values[-1]):.3g}, on average {float(values.mean()):.3g}); expected some directions that keys "
            "hardly take; raise nullspace_threshold, or let it be relative to the mean."
        )
    return vectors[:, within]


def rarity(factor: Float[Tensor, "d_mlp d_mlp"], keys: Float[Tensor, "request d_mlp"]) -> Float[Tensor, " request"]:
    """``k^T C^-1 k / d_mlp``: how far out a key is; the mean over text is 1, and rare keys are easier to edit."""
    half = _triangular(_wide(factor), _wide(keys).T)
    return half.square().sum(0) / half.shape[0]


def _dual(operation: str, factor: Tensor, K: Tensor, R: Tensor, weight: float) -> LowRank:
    """``C^-1 K^T (K C^-1 K^T + weight I)^-1 R`` with C = factor factor^T."""
    half = _triangular(factor, K.T)
    gram = half.T @ half
    gram.diagonal().add_(weight)
    found = _solved(_independent(operation, gram), half.T, R, kernel=True)
    return LowRank(left=_triangular(factor.T, found.left, upper=True), right=found.right)


def _solved(factor: Tensor, K: Tensor, R: Tensor, *, kernel: bool = False) -> LowRank:
    """``S^-1 K^T R`` with S = factor factor^T, or, with S as the kernel of the rows, ``K^T S^-1 R``; rank d_model."""
    if len(K) > R.shape[1]:
        whole = K.T @ torch.cholesky_solve(R, factor) if kernel else torch.cholesky_solve(K.T @ R, factor)
        return LowRank(left=whole, right=torch.eye(R.shape[1], dtype=R.dtype, device=R.device))
    left = torch.cholesky_solve(K, factor).T if kernel else torch.cholesky_solve(K.T, factor)
    return LowRank(left=left, right=R)


def _triangular(factor: Tensor, right: Tensor, *, upper: bool = False) -> Tensor:
    return cast(Tensor, torch.linalg.solve_triangular(factor, right, upper=upper))


def _cholesky(operation: str, matrix: Tensor, what: str) -> Tensor:
    factor, info = cast(tuple[Tensor, Tensor], torch.linalg.cholesky_ex(matrix))
    if info.item() or not torch.isfinite(factor.diagonal()).all():
        raise ValueError(
            f"{operation}: the {what} is not positive definite; expected that of many more tokens than its "
            f"{len(matrix)} dimensions; call second_moment(...) with more texts."
        )
    return factor


def _independent(operation: str, gram: Tensor) -> Tensor:
    """The factor of ``K C^-1 K^T + weight I``; refused if keys depend on one another and nothing is added."""
    factor, info = cast(tuple[Tensor, Tensor], torch.linalg.cholesky_ex(gram))
    pivots = factor.diagonal() ** 2 / gram.diagonal()
    bad = (pivots < 1e-12) | ~torch.isfinite(pivots)
    if info.item() or bad.any():
        which = int(info.item()) - 1 if info.item() else int(bad.nonzero()[0])
        raise ValueError(
            f"{operation}: the key of request {which} depends on the keys before it; expected independent keys, at "
            f"most d_mlp of them, where every value is to be met exactly; drop requests that share subject and words "
            "before it, or allow a damping above 0."
        )
    return factor


def _checked(operation: str, matrix: Tensor, keys: Tensor, residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and residuals in float64."""
    shapes = {"the matrix": matrix, "keys": keys, "residuals": residuals}
    for name, tensor in shapes.items():
        if not isinstance(cast(object, tensor), Tensor):
            raise ValueError(
                f"{operation}: {name} is of type {type(tensor).__name__}; expected a tensor; write "
                "torch.as_tensor(...)."
            )
    fits = matrix.ndim == keys.ndim == residuals.ndim == 2
    square = operation == "alpha_update" or (fits and matrix.shape[0] == matrix.shape[1])
    if not (fits and square and keys.shape == (len(residuals), len(matrix)) and len(keys)):
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in shapes.items())
        raise ValueError(
            f"{operation}: shapes are {found}; expected a matrix of d_mlp rows, keys [request d_mlp] and residuals "
            "[request d_model]; pass one row for each of at least one request."
        )
    # Of the matrix only the diagonal: all of it takes longer than a solve for few requests.
    for name, tensor in {"the matrix": matrix.diagonal(), "keys": keys, "residuals": residuals}.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"{operation}: {name} holds numbers that are not finite; expected finite ones; load the model in "
                "float32 or bfloat16 (float16 overflows on some models)."
            )
    return _wide(keys), _wide(residuals)


def _check_symmetric(operation: str, matrix: Tensor) -> None:
    """Refuse what is plainly no second moment; only one row and column are looked at, as all of it takes long."""
    row, column = matrix[0].double(), matrix[:, 0].double()
    if not torch.allclose(row, column, rtol=1e-5, atol=1e-5 * float(matrix.diagonal().double().abs().mean())):
        raise ValueError(
            f"{operation}: the second moment is not symmetric; expected the mean of k k^T; pass moments[layer].matrix, "
            "not its factor."
        )


def _check_lower(operation: str, factor: Tensor) -> None:
    """Refuse what is plainly no lower factor; only the first row is looked at."""
    if factor[0, 1:].any():
        raise ValueError(
            f"{operation}: the factor is not lower triangular; expected the lower Cholesky factor of the second "
            "moment; pass moments[layer].cholesky, neither the second moment itself nor a transposed factor."
        )


def _check_weight(operation: str, name: str, weight: object, *, least: float) -> None:
    if not isinstance(weight, float | int) or isinstance(weight, bool) or not least <= weight < math.inf:
        raise ValueError(
            f"{operation}: {name} is {weight!r}; expected a finite number {'above 0' if least else 'of 0 or more'}; "
            "MEMIT's published weights are 15000 (GPT-J) and 20000 (GPT-2 XL), AlphaEdit's is 10."
        )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float64)
