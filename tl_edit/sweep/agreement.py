"""How far trace effects and edit scores go together, as numbers and as a picture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import show
from tl_edit.evaluate.ranks import spearman

Among = Literal["cells", "layers", "records"]


def correlated(effect: Float[Tensor, "record layer"], scores: Float[Tensor, "record layer"], among: Among) -> float:
    """Rank correlation; NaN where there is none."""
    if among == "records":
        found = [spearman(effect[:, i], scores[:, i]) for i in range(effect.shape[1])]
        there = [value for value in found if value is not None]
        return sum(there) / len(there) if there else math.nan
    if among == "layers":
        effect, scores = effect.mean(dim=0, keepdim=True), scores.mean(dim=0, keepdim=True)
    value = spearman(effect.flatten(), scores.flatten())
    return math.nan if value is None else value


def r_squared(design: Float[Tensor, "cell term"], y: Float[Tensor, " cell"]) -> float:
    """Share of the variance that a linear regression explains; NaN where there is none."""
    # Of equal scores rounding leaves something.
    total = float((y - y.mean()).square().sum()) if float(y.max() - y.min()) > 1e-12 * float(y.abs().max()) else 0.0
    residual: Tensor = y - design @ cast(Tensor, torch.linalg.pinv(design) @ y)
    return 1 - float(residual.square().sum()) / total if total > 0 else math.nan


def plot_agreement(
    layers: Sequence[int],
    effect_name: str,
    effect: Float[Tensor, "record layer"],
    scores: Mapping[str, Float[Tensor, "record layer"]],
    ax: Any,
) -> Any:
    """Means by layer with 95 % intervals (1.96 standard errors over records), and the first score over the effect.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``ax`` are not two axes.
    """
    _, axes = show.several_axes(ax, 2, (10.0, 3.9), what="pictures")
    values = {effect_name: effect, **scores}
    means = {name: each.nanmean(dim=0) for name, each in values.items()}
    bands: dict[str, tuple[Tensor, Tensor]] = {}
    for name, each in values.items():
        n = (~each.isnan()).sum(dim=0)
        spread = ((each - means[name]).square().nansum(dim=0) / (n - 1)).sqrt()
        half = torch.where(n > 1, 1.96 * spread / n.sqrt(), math.nan)
        bands[name] = means[name] - half, means[name] + half
    x = torch.tensor(layers, dtype=torch.float64)
    first = next(iter(scores))
    show.plot_lines(x, means, axes[0], xlabel="layer", ylabel="mean over records", bands=bands, whole=True)
    found = correlated(effect, scores[first], "cells") if not scores[first].isnan().any() else math.nan
    title = "each record at each layer" + ("" if math.isnan(found) else f", rank correlation {found:+.2f}")
    show.plot_points(
        effect.flatten(),
        scores[first].flatten(),
        axes[1],
        xlabel=effect_name,
        ylabel=first,
        title=title,
        shade=x.repeat(len(effect)),
        shade_label="layer",
    )
    return axes
