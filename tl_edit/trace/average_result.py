"""`AverageTrace`: means over facts by the role of the token, and their pictures."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import show
from tl_edit.counted import counted
from tl_edit.trace.plan import Kind
from tl_edit.trace.result import COLOURS, KIND_NAMES, layer_labels

Form = Literal["lines", "heatmaps"]

ROLES = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first token after",
    "further tokens",
    "last token",
)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AverageTrace:
    """Means over facts; tensors on the CPU, in float64."""

    kinds: tuple[Kind, ...]
    layers: tuple[int, ...]
    restored: Float[Tensor, "kind role layer"]
    """Mean restored value by the role of the token, in the order of `ROLES`; NaN for a role that no fact has."""
    standard_error: Float[Tensor, "kind role layer"]
    """Of ``restored``, over observations."""
    count: tuple[int, ...]
    """Observations by role."""
    n_facts_by_role: tuple[int, ...]
    """Facts that have the role; the others of its observations are further tokens of these."""
    clean: float
    corrupted: float
    total_effect_error: float
    """Standard error of the total effect over facts."""
    draws_error: Float[Tensor, "kind role layer"]
    """Standard error of the indirect effect over noise draws; NaN for a single draw."""
    n_facts: int
    skipped: tuple[str, ...]
    """Prompts whose answer the model does not know."""
    measure: str
    window: int
    settings: dict[str, Any]
    paired_effect: Float[Tensor, "kind role layer"]
    """Mean over observations of the restored value minus the corrupted one of the same fact: 0 wherever restoring
    changes nothing, and equal to ``indirect_effect`` for roles that every fact has once."""
    paired_error: Float[Tensor, "kind role layer"]
    """Standard error of ``paired_effect``, over observations."""

    @property
    def total_effect(self) -> float:
        """Mean clean value minus mean corrupted value."""
        return self.clean - self.corrupted

    @property
    def indirect_effect(self) -> Float[Tensor, "kind role layer"]:
        """Mean restored values minus the mean corrupted value of all facts, as published; compare ``paired_effect``."""
        return self.restored - self.corrupted

    def of(self, kind: Kind, role: str) -> Float[Tensor, " layer"]:
        """The indirect effect of one kind at one role, by layer.

        Raises:
            ValueError: If there is no such kind or role here.
        """
        if kind not in self.kinds or role not in ROLES:
            raise ValueError(
                f"AverageTrace.of: no {kind!r} at {role!r}; expected one of {', '.join(self.kinds)} and one of "
                f"{', '.join(ROLES)}."
            )
        return self.indirect_effect[self.kinds.index(kind), ROLES.index(role)]

    def confidence(self) -> Float[Tensor, "kind role layer"]:
        """Half-width of the 95 % interval of ``restored`` over observations, 1.96 standard errors as published."""
        return 1.96 * self.standard_error

    def to_dataframe(self) -> Any:
        """A pandas frame with one row per kind, role and layer.

        Raises:
            ImportError: If pandas is not installed.
        """
        frame = show.frame(
            "AverageTrace.to_dataframe",
            {"kind": self.kinds, "role": ROLES, "layer": self.layers},
            {
                "restored": self.restored,
                "indirect_effect": self.indirect_effect,
                "standard_error": self.standard_error,
                "paired_effect": self.paired_effect,
                "paired_error": self.paired_error,
                "draws_error": self.draws_error,
            },
        )
        frame.insert(3, "n", [self.count[ROLES.index(role)] for role in frame["role"]])
        return frame

    def labels(self) -> list[str]:
        """The roles, each with its number of tokens, and of facts where these are others."""
        pairs = zip(ROLES, self.count, self.n_facts_by_role, strict=True)
        return [
            f"{role} (n = {n})" if n == facts else f"{role} (n = {n} in {counted(facts, 'fact')})"
            for role, n, facts in pairs
        ]

    def uneven(self) -> list[str]:
        """Roles that rest on some of the facts, or on some more than on others, as they are pooled."""
        pairs = zip(ROLES, self.count, self.n_facts_by_role, strict=True)
        return [role for role, n, facts in pairs if 0 < facts < self.n_facts or n > facts]

    def _remark(self) -> str:
        """What keeps a reader from seeing a finding in the choice of facts that have a role."""
        roles = self.uneven()
        if not roles:
            return ""
        return (
            f". Effects are against the mean corrupted value of all {self.n_facts} facts, as published. "
            f"{' and '.join(roles).capitalize()} do not stand once in each fact, so these rows can be off 0 where "
            "restoring does nothing, by as much as their facts differ; within each fact they are .paired_effect and "
            ".plot(paired=True)"
        )

    def _repr_html_(self) -> str:
        return show.heatmaps_html(
            list(self.indirect_effect),
            titles=[f"restoring the {KIND_NAMES[kind]}" for kind in self.kinds],
            rows=self.labels(),
            columns=[str(layer) for layer in self.layers],
            heading=f"{self!r}{self._remark()}",
            unit=f"mean indirect effect ({self.measure}) against the mean corrupted value of all facts, by layer; "
            f"window {self.window} for MLP and attention",
        )

    def plot(self, ax: Any = None, *, form: Form = "lines", paired: bool = False) -> Any:
        """The mean indirect effect by role and layer, the kinds side by side on one scale.

        Args:
            ax: Axes to draw into, one for each kind; None makes new ones.
            form: "lines" over the layers with 95 % intervals over observations (as in the paper's appendix), or
                "heatmaps" with roles as rows, from 0 on (as in its figure 2).
            paired: Show ``paired_effect`` instead of ``indirect_effect``, which of roles that do not stand once in
                each fact (`uneven`) can be off 0 where restoring does nothing.

        Returns:
            The axes, one or a list.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If the number of axes is another.
        """
        if form not in get_args(Form):
            raise ValueError(f"AverageTrace.plot: form is {form!r}; expected one of {', '.join(get_args(Form))}.")
        titles = [f"restoring the {KIND_NAMES[kind]}" for kind in self.kinds]
        effects = self.paired_effect if paired else self.indirect_effect
        half = 1.96 * self.paired_error if paired else self.confidence()
        unit, xlabels = f"mean indirect effect ({self.measure})", layer_labels(self.kinds, self.window)
        facts = counted(self.n_facts, "fact")
        heading = f"{facts}, mean clean {self.clean:.3g}, mean corrupted {self.corrupted:.3g}"
        if paired:
            heading += ", effects within each fact"
        elif self.uneven():
            heading += f"; {' and '.join(self.uneven())} not once in each fact, compare paired=True"
        if form == "heatmaps":
            return show.plot_heatmaps(
                [effect.clamp(min=0) for effect in effects],
                ax,
                titles=titles,
                rows=self.labels(),
                columns=[str(layer) for layer in self.layers],
                colours=[COLOURS[kind] for kind in self.kinds],
                low=0.0,
                unit=unit,
                heading=heading,
                xlabels=xlabels,
            )
        names = self.labels()
        low, high = effects - half, effects + half
        present = [r for r, n in enumerate(self.count) if n]
        return show.plot_panels(
            torch.tensor(self.layers, dtype=torch.float64),
            {title: {names[r]: effects[k, r] for r in present} for k, title in enumerate(titles)},
            ax,
            xlabels=xlabels,
            ylabel=unit,
            heading=heading,
            bands={title: {names[r]: (low[k, r], high[k, r]) for r in present} for k, title in enumerate(titles)},
        )

    def __repr__(self) -> str:
        error = "" if math.isnan(self.total_effect_error) else f" ± {1.96 * self.total_effect_error:.3f}"
        return (
            f"AverageTrace({counted(self.n_facts, 'fact')}, {len(self.skipped)} skipped as unknown: total effect "
            f"{self.total_effect:.3f}{error})"
        )
