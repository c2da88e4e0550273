"""How second moments show themselves: a table of what was measured, and their spectrum."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tl_edit import show
from tl_edit.counted import counted

if TYPE_CHECKING:
    from tl_edit.moment.result import SecondMoment

ROUNDING = 1e-14
"""Eigenvalues below this, over the largest, are rounding."""
MOST_NAMED = 6
"""Layers whose lines are named in a legend; of more the colour tells."""


def told(moment: "SecondMoment") -> list[tuple[str, str]]:
    """Rows of a table."""
    per_dimension = moment.count / moment.d_mlp
    tokens = f"{moment.count:,} ({per_dimension:.1f} per dimension of {moment.d_mlp:,})"
    rows = [("layer", str(moment.layer)), ("tokens", tokens if moment.count else "none: the identity, a control")]
    if moment.count:
        rows.append(("keys at a BOS", "count" if moment.counts_bos else "are left out"))
        if moment.count < moment.d_mlp and not moment.ridge:
            rows.append(("solving", "not possible: fewer tokens than dimensions; take more texts, or a ridge"))
    if moment.corpus:
        rows.append(("texts", moment.corpus))
    rows.append(("mean of the diagonal", f"{float(moment.matrix.diagonal().double().mean()):.3g}"))
    if moment.ridge:
        rows.append(("ridge", f"{moment.ridge:g}, adds {moment.added:.3g} to the diagonal"))
    if moment.provenance is not None:
        rows.append(("model", f"{moment.provenance.model_name} ({moment.provenance.dtype})"))
    return rows


def plot_spectra(moments: Sequence["SecondMoment"], ax: Any) -> Any:
    """Eigenvalues from the largest, on a logarithmic scale, and, of few layers, what ridges add; returns the axes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    lines: dict[str, Tensor] = {}
    several = len(moments) > MOST_NAMED
    levels: dict[str, float] = {}
    for moment in moments:
        values = moment.eigenvalues
        positive = values > ROUNDING * values.max()
        if moment.count:
            positive[moment.count :] = False  # no more directions than tokens; the rest is the sums' rounding
        none = int((~positive).sum())
        per_dimension = f"{moment.count / moment.d_mlp:.1f} tokens per dimension" if moment.count else "identity"
        zeros = f", {counted(none, 'eigenvalue')} of 0" if none else ""
        name = f"layer {moment.layer}: {per_dimension}{zeros}"
        lines[name] = torch.where(positive, values, torch.nan)
        if moment.ridge and not several:
            levels[f"layer {moment.layer}: ridge {moment.ridge:g}"] = moment.added
    return show.plot_lines(
        torch.arange(1, max(map(len, lines.values())) + 1, dtype=torch.float64),
        lines,
        ax,
        xlabel="eigenvalues, from the largest",
        ylabel="eigenvalue of C = E[k k^T]",
        levels=levels,
        shade=dict(zip(lines, (float(moment.layer) for moment in moments), strict=True)) if several else None,
        shade_label="layer",
        yscale="log",
        whole=True,
    )
