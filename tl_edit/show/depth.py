"""Figures of what a model says and does by layer: probabilities, lines over depth, grids of components."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_edit.show.curves import PALETTE, in_legend, legend_below
from tl_edit.show.figures import BOTH_WAYS, GREY, MOST_LABELS, add_scale, fitted, label_places, one_axes, say
from tl_edit.show.scale import largest
from tl_edit.show.text import spaced


def plot_probabilities(
    labels: Sequence[str], log_probs: Mapping[str, Float[Tensor, " row"]], ax: Any, *, xlabel: str, title: str = ""
) -> Any:
    """Probabilities as points on a logarithmic axis in matplotlib, joined where there are several; returns the axes.

    Args:
        labels: Tokens, the first one on top; two may look the same.
        log_probs: Log-probabilities in nats by name, in the order of the labels; the last ones are filled.
        ax: Axes to draw on; None for a new figure.
        xlabel: What the values are.
        title: Text above.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    left_out = max(0, len(labels) - MOST_LABELS)
    labels, log_probs = labels[:MOST_LABELS], {name: each[:MOST_LABELS] for name, each in log_probs.items()}
    made, axis = one_axes(ax, (5.5, 0.26 * len(labels) + 1.5))
    rows = range(len(labels))
    # An axis of its own kind ends where float64 does.
    values = [each.double().clamp(min=-600).exp().numpy() for each in log_probs.values()]
    for first, second in pairwise(values):
        axis.hlines(rows, first, second, color=GREY, zorder=1)
    drawn: list[Any] = []
    for i, (name, each) in enumerate(zip(log_probs, values, strict=True)):
        look = {"facecolor": PALETTE[0] if i + 1 == len(values) else "white", "edgecolor": PALETTE[0]}
        drawn.append(axis.scatter(each, rows, label=in_legend(name), zorder=2, **look))
    axis.set_xscale("log")
    axis.invert_yaxis()
    label_places(axis, rows, [spaced(label) for label in labels], rows=True)
    say(axis, f"{xlabel} ({left_out:,} more tokens are left out)" if left_out else xlabel, "", title)
    if len(values) > 1:
        legend_below(made, axis, drawn)
    return fitted(made, axis)


def plot_depth(
    points: Sequence[str],
    lines: Mapping[str, Float[Tensor, " point"]],
    ax: Any,
    *,
    per_colour: int,
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> Any:
    """Lines over the depth of a model in matplotlib; returns the axes.

    Args:
        points: Names of the layers.
        lines: Values by name; so many after each other have the same colour, the first of them dashed if there are two.
        ax: Axes to draw on; None for a new figure.
        per_colour: How many.
        xlabel: What the layers are.
        ylabel: What the values are.
        title: Text above.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    made, axis = one_axes(ax, (max(5.5, min(12.0, 0.25 * len(points) + 2.0)), 3.6))
    drawn: list[Any] = []
    for i, (name, values) in enumerate(lines.items()):
        colour, run = divmod(i, per_colour)
        first = run == 0 and per_colour > 1
        look = {"linestyle": "--" if first else "-", "marker": "os^vD"[colour % 5], "markersize": 4}
        look |= {"color": PALETTE[colour % len(PALETTE)], "markerfacecolor": "none" if first else None}
        drawn += axis.plot(range(len(points)), values.numpy(), label=in_legend(name), **look)
    step = max(1, len(points) // 16)
    label_places(axis, range(0, len(points), step), points[::step])
    say(axis, xlabel, ylabel, title)
    legend_below(made, axis, drawn)
    return fitted(made, axis)


def plot_grid(
    values: Float[Tensor, "row column"],
    ax: Any,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    xlabel: str,
    ylabel: str,
    unit: str,
    title: str = "",
    signed: bool = False,
) -> Any:
    """One heatmap in matplotlib with the first row at the bottom, as layers stand; returns the axes.

    Args:
        values: What to show.
        ax: Axes to draw on; None for a new figure.
        rows: Labels of the rows.
        columns: Labels of the columns.
        xlabel: What the columns are.
        ylabel: What the rows are.
        unit: What the values are.
        title: Text above.
        signed: Whether negative values are meant: red, and white for zero. Otherwise the scale begins at zero.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    made, axis = one_axes(ax, (min(12.0, 0.32 * len(columns) + 2.6), min(8.0, max(2.4, 0.28 * len(rows) + 1.5))))
    top = largest([values]) or 1.0
    mesh = axis.pcolormesh(values.numpy(), cmap=BOTH_WAYS if signed else "Blues", vmin=-top if signed else 0, vmax=top)
    for place, labels in ((axis.xaxis, columns), (axis.yaxis, rows)):
        # From the end, where layers' MLPs stand.
        shown = sorted(range(len(labels) - 1, -1, -max(1, len(labels) // 24)))
        label_places(axis, [i + 0.5 for i in shown], [labels[i] for i in shown], rows=place is axis.yaxis)
    say(axis, xlabel, ylabel, title)
    add_scale(axis, mesh, unit)
    return fitted(made, axis)
