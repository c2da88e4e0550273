"""What a search found."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_edit import show
from tl_edit.forward import length
from tl_edit.values.settings import Site


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OptimizedValue:
    """What the search found; tensors on the CPU, float32, or float64 for a float64 model."""

    v_star: Float[Tensor, " d_model"]
    """The value to write; for ``site="resid_post"`` the block output to reach (MEMIT's z*)."""
    v0: Float[Tensor, " d_model"]
    """What is there now, in the bare prompt."""
    losses: tuple[float, ...]
    """Total loss at each evaluation, in nats; the last belongs to ``v_star``."""
    target_prob: float
    """Probability of the target at the end: geometric mean over its tokens and over prefixes."""
    prepend_bos: bool
    """Whether the prompts began with a BOS."""
    site: Site = "value"
    engine: str = ""
    """How it was computed; see `optimize_values`."""
    loss_terms: tuple[tuple[float, float, float], ...] = ()
    """What each loss is the sum of, in nats and with their weights: the target's negative log-likelihood, the KL term,
    the weight decay. Empty where a file of an earlier version had none."""

    @property
    def delta_ratio(self) -> float:
        """``|v* - v0| / |v0|``; at ``clamp_norm_factor`` the clamp was active."""
        return float(length(self.v_star - self.v0) / length(self.v0))

    def plot(self, ax: Any = None) -> Any:
        """The loss and its terms over the evaluations of the search.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        title = f"{len(self.losses)} evaluations, target probability {self.target_prob:.3f} at the end"
        return show.plot_losses(self.losses, self.loss_terms, ax, title=title)

    def _repr_html_(self) -> str:
        """A small table."""
        rows = [
            ("loss (nats)", f"{self.losses[0]:.4g} → {self.losses[-1]:.4g} in {len(self.losses)} evaluations"),
            ("target probability", f"{self.target_prob:.3f}"),
            ("|v* - v0| / |v0|", f"{self.delta_ratio:.3g}"),
        ]
        if self.loss_terms:
            names = ("negative log-likelihood", "KL", "weight decay")
            last = ", ".join(f"{name} {term:.3g}" for name, term in zip(names, self.loss_terms[-1], strict=True))
            rows.append(("last loss", last))
        rows += [("site", self.site), ("engine", self.engine)]
        return show.table(rows)

    def __repr__(self) -> str:
        return (
            f"OptimizedValue(loss {self.losses[0]:.3f} → {self.losses[-1]:.3f} in {len(self.losses)} evaluations, "
            f"|delta|/|v0| {self.delta_ratio:.2f}, target probability {self.target_prob:.3f})"
        )
