"""The settings of the search for a value."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from tl_edit.settings import Settings

Site = Literal["value", "resid_post", "attn_out"]
"""What the search adds to, at the lookup position: the raw output of ``W_out`` (ROME's v*), the block output (MEMIT's
z*), or the output of attention (PMET, together with the value)."""


@dataclass(frozen=True, kw_only=True)
class ValueSearch(Settings):
    """Settings of the search; the names are those of the published configuration files."""

    v_lr: float = 0.5
    """Adam's learning rate, in units of the value's entries (paper and program: 0.5)."""
    v_num_grad_steps: int = 20
    """Loss evaluations; the last makes no step, so there are at most one less steps (program: 20)."""
    v_weight_decay: float = 0.5
    """Weight of ``|delta| / |v0|^2`` (program: 0.5; paper's appendix: 1.5e-3)."""
    clamp_norm_factor: float = 4.0
    """Greatest ``|delta| / |v0|`` (ROME's program: 4, and 3 for GPT-2 medium; MEMIT's: 0.75)."""
    kl_factor: float = 0.0625
    """Weight of the KL term, which is in nats (program: 0.0625; paper's appendix: 1e2)."""
    stop_loss: float = 0.05
    """The search ends when the total loss falls below this (program: 5e-2)."""
    stop_kl: float | None = None
    """Where set (PMET: 0.01), the search also ends when every token of the target is the likeliest and the KL term,
    unweighted, is below this; while they are the likeliest, the target's loss weighs a tenth."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        numbers = {field.name: getattr(self, field.name) for field in fields(ValueSearch)}
        for name, value in numbers.items():
            if name == "stop_kl" and value is None:
                continue
            wanted = int if name == "v_num_grad_steps" else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool) or math.isnan(value):
                raise ValueError(
                    f"value search: {name} is {value!r}; expected "
                    f"{'an integer' if wanted is int else 'a number'}; the default is "
                    f"{ValueSearch.__dataclass_fields__[name].default}."
                )
        if not (self.v_num_grad_steps >= 1 and 0 < self.v_lr < math.inf and 0 < self.clamp_norm_factor < math.inf):
            raise ValueError(
                f"value search: v_num_grad_steps {self.v_num_grad_steps}, v_lr {self.v_lr}, clamp_norm_factor "
                f"{self.clamp_norm_factor}; expected at least 1 step and positive numbers; the published settings are "
                "20, 0.5 and 4."
            )
        if not (0 <= self.v_weight_decay < math.inf and 0 <= self.kl_factor < math.inf):
            raise ValueError(
                f"value search: v_weight_decay {self.v_weight_decay}, kl_factor {self.kl_factor}; expected 0 or more; "
                "the published settings are 0.5 and 0.0625."
            )
