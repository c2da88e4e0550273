"""What a search found."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

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

    @property
    def delta_ratio(self) -> float:
        """``|v* - v0| / |v0|``; at ``clamp_norm_factor`` the clamp was active."""
        return float(length(self.v_star - self.v0) / length(self.v0))

    def __repr__(self) -> str:
        return (
            f"OptimizedValue(loss {self.losses[0]:.3f} → {self.losses[-1]:.3f} in {len(self.losses)} evaluations, "
            f"|delta|/|v0| {self.delta_ratio:.2f}, target probability {self.target_prob:.3f})"
        )
