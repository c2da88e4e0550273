"""Figures: matplotlib's axes, drawn on and returned, never shown; `curves` and `depth` touch matplotlib, too.

Labels are drawn as they are: nothing is taken for mathematics. Colours are told apart by colour-blind readers, and what
is neither data nor text is grey, so that all is seen under dark styles, too.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_edit.extras import extra
from tl_edit.show.scale import largest
from tl_edit.show.text import visible

BOTH_WAYS = "RdBu"
"""Colours of values below and above zero: red and blue, as in HTML."""
MOST_LABELS = 60
"""Labels of rows that a heatmap shows; of more rows every second, third, ... has one."""
MOST_NUMBERS = 12
"""Rows and columns up to which a matrix has its numbers in it."""
GREY = "0.55"


def plot_heatmaps(
    tables: Sequence[Float[Tensor, "row column"]],
    ax: Any,
    *,
    titles: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    colours: Sequence[str],
    low: float | None,
    unit: str,
    heading: str = "",
    xlabels: Sequence[str] = (),
    per_line: int | None = None,
) -> Any:
    """Heatmaps side by side in matplotlib, on one scale; returns the axes, one or a list.

    Args:
        tables: The values; NaN is left blank.
        ax: One for each table; None for a new figure.
        titles: One for each table.
        rows: Labels of the rows (tokens).
        columns: Labels of the columns (layers).
        colours: A colour map for each table.
        low: Where the scale begins; None for a scale that is symmetric around zero.
        unit: What the values are.
        heading: Text above all of a new figure.
        xlabels: What columns are, for each table; "layer" where not given.
        per_line: Heatmaps in a line; None for all.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``ax`` are not as many axes as tables.
    """
    across = per_line or len(tables)
    lines = -(-len(tables) // across)
    widest = max((len(visible(label)) for label in rows), default=1)
    height = 0.6 + 0.22 * min(len(rows), MOST_LABELS)
    size = (2.7 * across + 0.09 * min(widest, 40) + 0.8, (height + 0.6) * lines + 0.3 * bool(heading))
    made, axes = several_axes(ax, len(tables), size, lines, what="heatmaps", hint=", or choose with kind=")
    top = max(1e-9, largest(tables))
    tops = [float(values.max()) for table in tables if (values := table[table.isfinite()]).numel()]
    bounds = (-top, top) if low is None else (low, max([low + 1e-9, *tops]))
    shared = len(set(colours)) == 1
    mesh: Any = None
    for i, (axis, table, title, colour) in enumerate(zip(axes, tables, titles, colours, strict=True)):
        mesh = axis.pcolormesh(table.numpy(), cmap=colour, vmin=bounds[0], vmax=bounds[1])
        axis.invert_yaxis()
        _label_columns(axis, columns)
        if made is None or i % across == 0:
            _label_rows(axis, rows)
        else:
            axis.set_yticks([])
        axis.set_title(title, fontsize="medium", parse_math=False)
        axis.set_xlabel(xlabels[i] if xlabels else "layer", parse_math=False)
        if made is None or not shared:
            last = made is None or i % across == across - 1
            _add_scale(axis.figure.colorbar(mesh, ax=axis, aspect=30), unit if last else "")
    if made is not None and shared:
        _add_scale(made.colorbar(mesh, ax=axes, aspect=30), unit)
    if made is not None and heading:
        made.suptitle(wrapped(heading, int(14 * size[0])), fontsize="medium", parse_math=False)
    shown_once(made)
    return axes[0] if len(axes) == 1 else axes


def plot_matrix(
    table: Float[Tensor, "row column"],
    ax: Any,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    unit: str,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
) -> Any:
    """A table with labels on both sides, on a scale that is symmetric around zero; small ones with their numbers.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    size = tuple(min(12.0, 2.6 + 0.42 * n) for n in (len(columns), len(rows)))
    made, axis = one_axes(ax, (size[0] + 1.2, size[1]))
    top = max(1e-9, largest([table]))
    mesh = axis.pcolormesh(table.numpy(), cmap=BOTH_WAYS, vmin=-top, vmax=top)
    axis.invert_yaxis()
    _label_rows(axis, rows)
    _label_columns(axis, columns, upright=max((len(name) for name in columns), default=0) > 2, most=MOST_LABELS)
    if max(table.shape) <= MOST_NUMBERS:
        for r, values in enumerate(table):
            for c, value in enumerate(map(float, values)):
                # White on what is dark, whatever the style.
                ink = "white" if abs(value) > 0.6 * top else "black"
                if value == value:
                    axis.text(c + 0.5, r + 0.5, f"{value:.2g}", color=ink, ha="center", va="center", fontsize="x-small")
    axis.set_xlabel(xlabel, parse_math=False)
    axis.set_ylabel(ylabel, parse_math=False)
    axis.set_title(wrapped(title), fontsize="medium", parse_math=False)
    _add_scale(axis.figure.colorbar(mesh, ax=axis), unit)
    return shown_once(made, axis)


def several_axes(
    ax: Any, n: int, size: tuple[float, float], lines: int = 1, *, what: str, hint: str = "", **shared: Any
) -> tuple[Any, list[Any]]:
    """A new figure, None if ``ax`` are given; and ``n`` axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``ax`` are not ``n`` axes.
    """
    pyplot = extra("matplotlib.pyplot", "plot")
    made: Any = None
    if ax is None:
        made, ax = pyplot.subplots(lines, n // lines, figsize=size, layout="constrained", squeeze=False, **shared)
        shown_once(made)
    given: Any = ax.flat if hasattr(ax, "flat") else ax
    axes: list[Any] = [given] if hasattr(given, "pcolormesh") else list(given)
    if len(axes) != n:
        raise ValueError(f"plot: {len(axes)} axes for {n} {what}; expected one each; pass ax=None{hint}.")
    return made, axes


def one_axes(ax: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    """A new figure, None if ``ax`` are given; and the axes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    pyplot = extra("matplotlib.pyplot", "plot")
    if ax is not None:
        return None, ax
    made, ax = pyplot.subplots(figsize=size, layout="constrained")
    shown_once(made)
    return made, ax


def shown_once(figure: Any, ax: Any = None) -> Any:
    """The axes; their new figure is closed, unless matplotlib is interactive.

    So figures do not pile up, also where drawing fails, as it is closed before. Notebooks are interactive: they show
    what is open at a cell's end, and close it then.
    """
    if figure is not None:
        pyplot = extra("matplotlib.pyplot", "plot")
        if not pyplot.isinteractive():
            pyplot.close(figure)
    return ax


def wrapped(title: str, width: int = 60) -> str:
    """In lines that fit a small figure; matplotlib's own wrapping takes a dollar sign for mathematics."""
    return "\n".join(textwrap.wrap(title, width))


def label_places(axis: Any, places: Sequence[float], labels: Sequence[str], *, rows: bool = False, **look: Any) -> None:
    """Labels on one side of axes, as they are."""
    side = "y" if rows else "x"
    getattr(axis, f"set_{side}ticks")(list(places))
    getattr(axis, f"set_{side}ticklabels")(list(labels), parse_math=False, **look)


def _label_rows(axis: Any, rows: Sequence[str]) -> None:
    step = -(-len(rows) // MOST_LABELS) or 1
    names = [visible(label) for label in rows[::step]]
    label_places(axis, [r + 0.5 for r in range(0, len(rows), step)], names, rows=True)


def _label_columns(axis: Any, columns: Sequence[str], *, upright: bool = False, most: int = MOST_NUMBERS) -> None:
    """Some of many: every second, fifth, tenth, ..., as a ruler has them."""
    steps = (size * power for power in (1, 10, 100, 1000) for size in (1, 2, 5))
    step = next((step for step in steps if len(columns) <= step * most), 10_000)
    look: dict[str, Any] = {"rotation": 90} if upright else {}
    names = [visible(label) for label in columns[::step]]
    label_places(axis, [c + 0.5 for c in range(0, len(columns), step)], names, **look)


def _add_scale(bar: Any, unit: str) -> None:
    bar.set_label(unit, parse_math=False)
    bar.outline.set_visible(False)
