"""Whether a second moment has seen enough tokens for what is asked of it: the directions ``C^-1 k``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import show
from tl_edit.counted import counted
from tl_edit.forward import length

FEW, ENOUGH = 0.5, 0.9
"""Mean split-half cosine below which directions are mostly noise, and from which more tokens change little.

On the bundled model it is 0.51, 0.74, 0.87 and 0.94 at 5, 10, 20 and 40 tokens per dimension (layer 0). Each half has
half the tokens, so the whole does better: by the rule of Spearman and Brown, a cosine c of the halves is one of
sqrt(2 c / (1 + c)) with what infinitely many tokens would give, 0.92 for 0.74.
"""
STEEP = 1e6
"""Condition number from which some directions are so rare that a ridge does more than tokens."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Convergence:
    """How far a second moment can be trusted; from `SecondMoment.convergence`."""

    layer: int
    count: int
    """Tokens."""
    d_mlp: int
    ridge: float
    condition_number: float
    """Of what is solved with, ridge included; infinite if it is singular."""
    cosine_mean: float | None
    """Cosine between ``C^-1 k`` of the two halves of the tokens, averaged over keys; None where it is not known."""
    cosine_lowest: float | None
    """The lowest of these cosines."""
    n_keys: int
    """Keys that the cosines are of."""
    cosines: tuple[float, ...] = ()
    """Of each key."""
    advice: str = ""
    """Why there is no cosine, and what gives one."""

    @property
    def tokens_per_dimension(self) -> float:
        """``count / d_mlp``."""
        return self.count / self.d_mlp

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.count == 0:
            return "The identity: a control, not a measurement."
        if self.condition_number == float("inf"):
            return "Singular: nothing can be solved with it; take more tokens, or a ridge."
        if self.cosine_mean is None:
            few = self.tokens_per_dimension < 10
            return f"{'Few' if few else 'Ordinary'} tokens for the width; how stable it is, is not known: {self.advice}"
        if self.cosine_mean >= ENOUGH:
            return "Converged: other texts of the same kind would give nearly the same directions."
        ridge = " Some directions are very rare: a ridge, e.g. moment.with_ridge(1e-3), may do more than tokens."
        hint = ridge if self.condition_number > STEEP else ""
        if self.cosine_mean < FEW:
            return f"Not converged: other texts of the same kind would give other directions; take more tokens.{hint}"
        return f"Usable: other texts would give similar directions; more tokens would still move them.{hint}"

    def _rows(self) -> list[tuple[str, str]]:
        ridge = f" with ridge {self.ridge:g}" if self.ridge else ""
        rows = [
            ("tokens", f"{self.count:,} ({self.tokens_per_dimension:.1f} per dimension of {self.d_mlp:,})"),
            ("condition number", f"{self.condition_number:.1e}{ridge}"),
        ]
        cosine = f"not known: {self.advice}"
        if self.cosine_mean is not None and self.cosine_lowest is not None:
            cosine = f"mean {self.cosine_mean:.3f}, lowest {self.cosine_lowest:.3f} over {counted(self.n_keys, 'key')}"
        return [*rows, ("split-half cosine of C^-1 k", cosine), ("verdict", self.verdict)]

    def plot(self, ax: Any = None) -> Any:
        """The split-half cosine of each key, from the lowest to the highest, beside what would be enough.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If no cosines are known.
        """
        if not self.cosines:
            raise ValueError(
                f"Convergence.plot: layer {self.layer} has no split-half cosines; expected some; "
                f"{self.advice or 'call second_moment(..., split_halves=True).'}"
            )
        found = torch.tensor(sorted(self.cosines), dtype=torch.float64)
        return show.plot_lines(
            torch.arange(1, len(found) + 1, dtype=torch.float64),
            {"cosine of C^-1 k of the two halves": found},
            ax,
            xlabel="keys, from the lowest",
            ylabel="split-half cosine",
            title=f"layer {self.layer}: {self.tokens_per_dimension:.1f} tokens per dimension of {self.d_mlp:,}",
            levels={f"mean that is enough ({ENOUGH})": ENOUGH, f"mean that is too few ({FEW})": FEW},
            whole=True,
        )

    def __repr__(self) -> str:
        return f"Convergence(layer {self.layer}: {'; '.join(f'{name} {value}' for name, value in self._rows())})"

    def _repr_html_(self) -> str:
        """A small table."""
        return show.table([("layer", str(self.layer)), *self._rows()])


def largest_eigenvalue(
    times: Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]], start: Float[Tensor, " n"], steps: int = 80
) -> float:
    """Of a symmetric matrix that is known by its products, by Lanczos' method; to about a per cent.

    It is never above the right value. Exact for up to ``steps`` dimensions.
    """
    basis = [start / length(start)]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(steps, len(start))):
        product = times(basis[-1])
        diagonal.append(basis[-1] @ product)
        known = torch.stack(basis, dim=1)
        for _ in range(2):  # once is not enough in floating point
            product = product - known @ (known.T @ product)
        size = length(product)
        if float(size) <= 1e-10 * float(diagonal[0].abs()):
            break
        beside.append(size)
        basis.append(product / size)
    n = len(diagonal)
    small = torch.diag(torch.stack(diagonal))
    if n > 1:
        off = torch.diag(torch.stack(beside[: n - 1]), 1)
        small = small + off + off.T
    return float(cast(Tensor, torch.linalg.eigvalsh(small))[-1])


def condition_number(matrix: Float[Tensor, "d_mlp d_mlp"], ridge: float, factor: Float[Tensor, "d_mlp d_mlp"]) -> float:
    """Largest over smallest eigenvalue of ``matrix`` + ``ridge`` on its diagonal, whose Cholesky factor is ``factor``.

    By Lanczos' method, which reads the matrix some eighty times; `eigvalsh` takes minutes at a width of 16384.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), generator=generator, dtype=torch.float64).to(factor.device)
    largest = largest_eigenvalue(lambda x: matrix @ x + ridge * x, start)
    inverse = largest_eigenvalue(lambda x: torch.cholesky_solve(x[:, None], factor)[:, 0], start)
    return largest * inverse


def split_half_cosines(
    halves: tuple[Float[Tensor, "d_mlp d_mlp"], Float[Tensor, "d_mlp d_mlp"]], keys: Float[Tensor, "key d_mlp"]
) -> Float[Tensor, " key"] | None:
    """Cosines between ``C^-1 k`` of two halves, for each key; None if one of them is singular."""
    solved: list[Tensor] = []
    for half in halves:
        factor, info = cast(tuple[Tensor, Tensor], torch.linalg.cholesky_ex(half))
        if info.item() or not torch.isfinite(factor).all():
            return None
        solved.append(torch.cholesky_solve(keys.T.to(factor), factor))
        del factor
    return torch.cosine_similarity(solved[0], solved[1], dim=0).cpu()
