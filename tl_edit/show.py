"""Pictures: labelled arrays in, HTML, axes or frames out. Knows no method; the only file that touches matplotlib.

HTML uses inline styles only, no script and nothing from the network, so that it survives untrusted notebooks and
saved pages. Labels are escaped here and nowhere else.
"""

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_edit.extras import extra

MAX_CELLS = 6_000
"""Cells that one HTML heatmap shows; larger ones show every second, third, ... column."""

BLUE, RED = (33, 102, 172), (178, 24, 43)
"""Of positive and negative values; told apart by colour-blind readers, too."""


def table(rows: Sequence[tuple[str, ...]], *, columns: Sequence[str] = (), heading: str = "") -> str:
    """An HTML table of names and what stands beside them, perhaps with names of the columns and a line above."""
    style = 'style="text-align:left;padding:2px 12px 2px 0"'
    lines = [f"<tr>{''.join(f'<th {style}>{escape(name)}</th>' for name in columns)}</tr>"] if columns else []
    lines += [
        f"<tr><th {style}>{escape(name)}</th>{''.join(f'<td {style}>{escape(value)}</td>' for value in values)}</tr>"
        for name, *values in rows
    ]
    above = f'<div style="margin:4px 0">{escape(heading)}</div>' if heading else ""
    return f'{above}<table style="border-collapse:collapse">{"".join(lines)}</table>'


def frame(operation: str, axes: Mapping[str, Sequence[Any]], values: Mapping[str, Float[Tensor, "..."]]) -> Any:
    """A pandas frame of labelled arrays with the same axes: one row for each entry, one column for each axis and array.

    Raises:
        ImportError: If pandas is not installed, naming ``operation``.
    """
    pandas = extra("pandas", operation)
    index = pandas.MultiIndex.from_product(list(axes.values()), names=list(axes))
    return pandas.DataFrame({name: value.flatten().tolist() for name, value in values.items()}, index).reset_index()


def frame_of_rows(operation: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """A pandas frame of rows that name their values.

    Raises:
        ImportError: If pandas is not installed, naming ``operation``.
    """
    return extra("pandas", operation).DataFrame(list(rows))


def visible(token: str) -> str:
    """A token as text that shows its line breaks, and that it is there at all."""
    shown = token.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥")
    return shown if shown.strip() else "␣" * max(1, len(shown))


def heatmaps_html(
    tables: Sequence[Float[Tensor, "row column"]],
    *,
    titles: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    heading: str,
    unit: str,
    per_line: int | None = None,
) -> str:
    """Heatmaps with the same rows and columns on one symmetric scale; hovering shows the value.

    Args:
        tables: The values.
        titles: One for each table.
        rows: Labels of the rows (tokens).
        columns: Labels of the columns (layers).
        heading: Text above.
        unit: What the values are.
        per_line: Tables that stand side by side, in columns; None for as many as there is room for.
    """
    top = max((float(table.abs().max()) for table in tables if table.numel()), default=0.0) or 1.0
    step = -(-len(rows) * len(columns) // MAX_CELLS)
    cells = [_table(table, title, rows, columns, top, step) for table, title in zip(tables, titles, strict=True)]
    layout = "display:flex;flex-wrap:wrap"
    if per_line is not None:
        layout = f"display:grid;grid-template-columns:repeat({per_line},max-content);overflow-x:auto"
    lines = f'<div style="{layout};gap:8px 16px">{"".join(cells)}</div>'
    note = f" Every {step}th column is shown." if step > 1 else ""
    scale = f"{escape(unit)}; colours from -{top:.3g} (red) to {top:.3g} (blue).{note}"
    return (
        f'<div style="font-family:sans-serif;font-size:12px"><div style="margin:4px 0">{escape(heading)}</div>{lines}'
        f'<div style="margin:4px 0;opacity:.75">{scale}</div></div>'
    )


def _table(
    table: Float[Tensor, "row column"], title: str, rows: Sequence[str], columns: Sequence[str], top: float, step: int
) -> str:
    shown = range(0, len(columns), max(1, step))
    head = "".join(f'<th style="font-weight:normal;padding:0 2px">{escape(columns[c])}</th>' for c in shown)
    body = "".join(
        f'<tr><td style="text-align:right;padding:0 6px;white-space:pre">{escape(visible(label))}</td>'
        + "".join(_cell(float(table[r, c]), top, f"{visible(label)}, {columns[c]}") for c in shown)
        + "</tr>"
        for r, label in enumerate(rows)
    )
    return (
        f'<div><div style="text-align:center">{escape(title)}</div>'
        f'<table style="border-collapse:collapse;font-size:12px">'
        f"<tr><th></th>{head}</tr>{body}</table></div>"
    )


def _cell(value: float, top: float, label: str) -> str:
    red, green, blue = BLUE if value >= 0 else RED
    shade = f"background-color:rgba({red},{green},{blue},{min(1.0, abs(value) / top):.3f})"
    size = "width:18px;min-width:18px;height:14px;padding:0"
    return (
        f'<td title="{escape(label)}: {value:.4f}" style="{shade};{size};border:1px solid rgba(128,128,128,.15)"></td>'
    )


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


def _wrapped(title: str) -> str:
    """In lines that fit a small figure; matplotlib's own wrapping takes a dollar sign for mathematics."""
    return "\n".join(textwrap.wrap(title, 60))


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
