"""Figures: matplotlib's axes, drawn on and returned, never shown; the only file that touches matplotlib."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_edit.extras import extra
from tl_edit.show.text import spaced, visible

COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#b35806")
"""Of lines; told apart by colour-blind readers, too."""


def plot_heatmaps(
    tables: Sequence[Float[Tensor, "row column"]],
    ax: Any,
    *,
    titles: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    colours: Sequence[str],
    low: float,
    unit: str,
) -> Any:
    """Heatmaps side by side in matplotlib, on one scale that begins at ``low``; returns the axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``ax`` are not as many axes as tables.
    """
    pyplot = extra("matplotlib.pyplot", "plot")
    made = None
    if ax is None:
        size = (3.2 * len(tables) + 1, 0.22 * len(rows) + 1.4)
        made, ax = pyplot.subplots(1, len(tables), figsize=size, layout="constrained", squeeze=False)
    given: Any = ax.flat if hasattr(ax, "flat") else ax
    axes: list[Any] = [given] if hasattr(given, "pcolormesh") else list(given)
    if len(axes) != len(tables):
        raise ValueError(
            f"plot: {len(axes)} axes for {len(tables)} heatmaps; expected one each; pass ax=None, or choose with kind=."
        )
    top = max(low + 1e-9, *(float(table.max()) for table in tables))
    step = max(1, len(columns) // 12)
    for axis, table, title, colour in zip(axes, tables, titles, colours, strict=True):
        mesh = axis.pcolormesh(table.numpy(), cmap=colour, vmin=low, vmax=top)
        axis.invert_yaxis()
        axis.set_yticks([r + 0.5 for r in range(len(rows))])
        axis.set_yticklabels([visible(label) for label in rows], parse_math=False)
        axis.set_xticks([c + 0.5 for c in range(0, len(columns), step)])
        axis.set_xticklabels(columns[::step])
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel("layer")
        axis.figure.colorbar(mesh, ax=axis, label=unit)
    if made is not None:
        # Otherwise a notebook shows the figure a second time.
        pyplot.close(made)
    return axes[0] if len(axes) == 1 else axes


def _wrapped(title: str, width: int = 60) -> str:
    """In lines that fit a small figure; matplotlib's own wrapping takes a dollar sign for mathematics."""
    return "\n".join(textwrap.wrap(title, width))


def plot_lines(
    x: Float[Tensor, " point"],
    lines: Mapping[str, Float[Tensor, " point"]],
    ax: Any,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    right: Mapping[str, Float[Tensor, " point"]] | None = None,
    right_label: str = "",
) -> Any:
    """Lines over a common axis in matplotlib, with their names in a legend; returns the axes.

    Args:
        x: Where the values stand, in any order.
        lines: Values by name.
        ax: Axes to draw on; None for a new figure.
        xlabel: What ``x`` is.
        ylabel: What the values are.
        title: Text above.
        right: Further values, in another unit, on an axis of their own on the right.
        right_label: What these are.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    made, axis = _axes(ax, (5.5, 3.6))
    order = x.argsort()
    drawn: list[Any] = []
    for i, (name, values) in enumerate(lines.items()):
        # The first ones wider, so that they are seen behind others that coincide with them.
        look = {"marker": "o^vD"[i % 4], "linewidth": 1.5 + 1.5 * (len(lines) - 1 - i), "alpha": 0.8}
        drawn += axis.plot(x[order].numpy(), values[order].numpy(), label=name, **look)
    if right:
        other = axis.twinx()
        for i, (name, values) in enumerate(right.items()):
            look = {"color": "0.35", "linestyle": ("--", ":", "-.")[i % 3], "marker": "s", "markersize": 4}
            drawn += other.plot(x[order].numpy(), values[order].numpy(), label=name, **look)
        other.set_ylabel(right_label)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_title(_wrapped(title), fontsize="medium", parse_math=False)
    if drawn:
        # Below the axes, where it hides no line.
        axis.legend(handles=drawn, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=len(drawn), frameon=False)
    return _shown_once(made, axis)


def plot_points(
    x: Float[Tensor, " point"], y: Float[Tensor, " point"], ax: Any, *, xlabel: str, ylabel: str, title: str = ""
) -> Any:
    """Points in matplotlib; returns the axes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    made, axis = _axes(ax, (4.8, 3.6))
    axis.axhline(0, color="0.8", linewidth=1, zorder=0)
    axis.scatter(x.numpy(), y.numpy(), s=18, alpha=0.6)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_title(_wrapped(title), fontsize="medium", parse_math=False)
    return _shown_once(made, axis)


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
    made, axis = _axes(ax, (5.5, 0.26 * len(labels) + 1.5))
    rows = range(len(labels))
    # An axis of its own kind ends where float64 does.
    values = [each.double().clamp(min=-600).exp().numpy() for each in log_probs.values()]
    for first, second in pairwise(values):
        axis.hlines(rows, first, second, color="0.7", zorder=1)
    for i, (name, each) in enumerate(zip(log_probs, values, strict=True)):
        look = {"facecolor": COLOURS[0] if i + 1 == len(values) else "white", "edgecolor": COLOURS[0]}
        axis.scatter(each, rows, label=name, zorder=2, **look)
    axis.set_xscale("log")
    axis.invert_yaxis()
    axis.set_yticks(rows)
    axis.set_yticklabels([spaced(label) for label in labels], parse_math=False)
    axis.set_xlabel(xlabel)
    # The labels of tokens leave it less room.
    axis.set_title(_wrapped(title, 48), fontsize="medium", parse_math=False)
    if len(values) > 1:
        axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return _shown_once(made, axis)


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
    made, axis = _axes(ax, (max(5.5, min(12.0, 0.25 * len(points) + 2.0)), 3.6))
    for i, (name, values) in enumerate(lines.items()):
        colour, run = divmod(i, per_colour)
        first = run == 0 and per_colour > 1
        look = {"linestyle": "--" if first else "-", "marker": "os^vD"[colour % 5], "markersize": 4}
        look |= {"color": COLOURS[colour % len(COLOURS)], "markerfacecolor": "none" if first else None}
        axis.plot(range(len(points)), values.numpy(), label=name.replace("$", r"\$"), **look)
    step = max(1, len(points) // 16)
    axis.set_xticks(range(0, len(points), step))
    axis.set_xticklabels(points[::step])
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_title(_wrapped(title), fontsize="medium", parse_math=False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    return _shown_once(made, axis)


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
    made, axis = _axes(ax, (min(12.0, 0.32 * len(columns) + 2.6), min(8.0, max(2.4, 0.28 * len(rows) + 1.5))))
    top = float(values.abs().max()) or 1.0
    mesh = axis.pcolormesh(values.numpy(), cmap="RdBu" if signed else "Blues", vmin=-top if signed else 0, vmax=top)
    for place, labels in ((axis.xaxis, columns), (axis.yaxis, rows)):
        # From the end, where layers' MLPs stand.
        shown = sorted(range(len(labels) - 1, -1, -max(1, len(labels) // 24)))
        place.set_ticks([i + 0.5 for i in shown], [labels[i] for i in shown])
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.set_title(_wrapped(title), fontsize="medium", parse_math=False)
    axis.figure.colorbar(mesh, ax=axis, label="").set_label(unit, parse_math=False)
    return _shown_once(made, axis)


def _axes(ax: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    """A new figure, None if ``ax`` are given; and the axes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    pyplot = extra("matplotlib.pyplot", "plot")
    return (None, ax) if ax is not None else pyplot.subplots(figsize=size, layout="constrained")


def _shown_once(figure: Any, ax: Any) -> Any:
    """The axes, their new figure closed: otherwise a notebook shows it a second time."""
    if figure is not None:
        extra("matplotlib.pyplot", "plot").close(figure)
    return ax
