"""Figures: matplotlib's axes, drawn on and returned, never shown; `curves` and `depth` touch matplotlib, too.

Labels are drawn as they are: nothing is taken for mathematics. Colours are told apart by colour-blind readers, and what
is neither data nor text is grey, so that all is seen under dark styles, too.
"""

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from tl_edit.extras import extra
from tl_edit.show.scale import ink, largest
from tl_edit.show.text import drawable, visible

BOTH_WAYS = "RdBu"
"""Colours of values below and above zero: red and blue, as in HTML."""
MOST_LABELS = 60
"""Labels of rows that a heatmap shows; of more rows every second, third, ... has one."""
MOST_NUMBERS = 12
"""Rows and columns up to which a matrix has its numbers in it."""
GREY = "0.55"
BELOW = "0.87"
"""The colour of what lies below a scale."""


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
    choice: str = "kind",
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
        choice: What the caller calls the choice of one of them, for who gives too few axes.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``ax`` are not as many axes as tables.
    """
    across = per_line or len(tables)
    lines = -(-len(tables) // across)
    widest = max((len(visible(label)) for label in rows), default=1)
    height = 0.6 + 0.22 * min(len(rows), MOST_LABELS)
    size = (2.7 * across + 0.09 * min(widest, 40) + 0.8, (height + 0.6) * lines + 0.3 * bool(heading))
    made, axes = several_axes(ax, len(tables), size, lines, what="heatmaps", hint=f", or choose with {choice}=")
    top = largest(tables) or 1.0
    tops = [float(values.max()) for table in tables if (values := table[table.isfinite()]).numel()]
    # A scale of one per cent at least, whose numbers can be told apart.
    bounds = (-top, top) if low is None else (low, max([low + 0.01 * (abs(low) or 1.0), *tops]))
    least = bounds[0] - 0.03 * (bounds[1] - bounds[0])
    beyond = "min" if any(bool((table < least).any()) for table in tables) else "neither"
    shared = len(set(colours)) == 1
    mesh: Any = None
    for i, (axis, table, title, colour) in enumerate(zip(axes, tables, titles, colours, strict=True)):
        # What is below the scale has a colour of its own, also in the arrow at its end; next to nothing has not.
        shades = extra("matplotlib", "plot").colormaps[colour].with_extremes(under=BELOW)
        values = table.where(table < least, table.clamp(min=bounds[0]))
        mesh = axis.pcolormesh(values.numpy(), cmap=shades, vmin=bounds[0], vmax=bounds[1])
        axis.invert_yaxis()
        _label_columns(axis, columns)
        if made is None or i % across == 0:
            _label_rows(axis, rows)
        else:
            axis.set_yticks([])
        say(axis, xlabels[i] if xlabels else "layer", "", title)
        if made is None or not shared:
            last = made is None or i % across == across - 1
            add_scale(axis, mesh, unit if last else "", aspect=30, extend=beyond)
    if made is not None and shared:
        add_scale(axes, mesh, unit, aspect=30, extend=beyond)
    return fitted(made, axes[0] if len(axes) == 1 else axes, heading)


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
    top = largest([table]) or 1.0
    mesh = axis.pcolormesh(table.numpy(), cmap=BOTH_WAYS, vmin=-top, vmax=top)
    axis.invert_yaxis()
    _label_rows(axis, rows)
    _label_columns(axis, columns, upright=max((len(name) for name in columns), default=0) > 2, most=MOST_LABELS)
    if max(table.shape) <= MOST_NUMBERS:
        for r, values in enumerate(table):
            for c, value in enumerate(map(float, values)):
                if value == value:
                    # Black or white, whatever the style.
                    look = {"color": ink(*map(int, mesh.to_rgba(value, bytes=True)[:3])), "fontsize": "x-small"}
                    axis.text(c + 0.5, r + 0.5, f"{value:.2g}", ha="center", va="center", **look)
    say(axis, xlabel, ylabel, title)
    add_scale(axis, mesh, unit)
    return fitted(made, axis)


def several_axes(
    ax: Any, n: int, size: tuple[float, float], lines: int = 1, *, what: str, hint: str = "", **shared: Any
) -> tuple[Any, list[Any]]:
    """A new figure, None if ``ax`` are given; and ``n`` axes.

    The figure is closed at once, unless matplotlib is interactive, so that figures do not pile up, also where drawing
    fails. Notebooks are interactive: they show what is open at a cell's end, and close it then. Scripts are not, also
    those with windows: there one saves ``axes.figure``, or gives axes of one's own, which ``pyplot.show()`` shows.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``ax`` are not ``n`` axes.
    """
    pyplot = extra("matplotlib.pyplot", "plot")
    if ax is None:
        made, axes = pyplot.subplots(lines, n // lines, figsize=size, layout="constrained", squeeze=False, **shared)
        if not pyplot.isinteractive():
            pyplot.close(made)
        return made, list(axes.flat)
    several: Any = ax.flat if hasattr(ax, "flat") else ax
    given: list[Any] = list(several) if hasattr(several, "__iter__") and not isinstance(several, str) else [ax]
    wrong = [each for each in given if not isinstance(each, extra("matplotlib.axes", "plot").Axes)]
    advice = f"pass those of pyplot.subplots(), or ax=None for a new figure{hint}."
    if wrong:
        kind = type(wrong[0]).__name__
        raise ValueError(f"plot: ax is {wrong[0]!r} of type {kind}; expected axes of matplotlib; {advice}")
    if len(given) != n:
        raise ValueError(f"plot: {len(given)} axes for {n} {what}; expected one each; {advice}")
    return None, given


def one_axes(ax: Any, size: tuple[float, float]) -> tuple[Any, Any]:
    """A new figure, None if ``ax`` are given; and the axes; see `several_axes`."""
    made, axes = several_axes(ax, 1, size, what="picture")
    return made, axes[0]


def say(axis: Any, xlabel: str, ylabel: str, title: str) -> None:
    """Labels that fit their sides, about; `fitted` measures them."""
    box = axis.get_window_extent()
    across, up = (max(16, int(13 * side / axis.figure.dpi)) for side in (box.width, box.height))
    axis.set_xlabel(wrapped(xlabel, across), parse_math=False)
    axis.set_ylabel(wrapped(ylabel, up), parse_math=False)
    axis.set_title(wrapped(title, across), fontsize="medium", parse_math=False)


def fitted(figure: Any, axes: Any, heading: str = "") -> Any:
    """The axes; what a new figure says, perhaps with a heading, is broken into lines that end within it.

    matplotlib makes room for the height of titles and not for their width, and its own wrapping takes a dollar sign for
    mathematics. Letters differ, so they are measured.
    """
    if figure is None:
        return axes
    if heading:
        figure.suptitle(wrapped(heading, int(14 * figure.get_figwidth())), fontsize="medium", parse_math=False)
    # What changes a height changes widths, too.
    for _ in range(2):
        with warnings.catch_warnings():
            # Of letters that a font lacks drawing warns, too.
            warnings.simplefilter("ignore")
            figure.draw_without_rendering()
            narrowed = [_narrowed(text, columns) for text, columns in _said(figure)]
        if not any(narrowed):
            break
    return axes


def _said(figure: Any) -> Iterator[tuple[Any, int]]:
    """Texts around axes, with the number of axes that stand side by side."""
    yield from ((text, 1) for text in figure.texts)
    for axis in figure.axes:
        spec = axis.get_subplotspec()
        columns = spec.get_gridspec().ncols if spec else 1
        yield from ((text, columns) for text in (axis.title, axis.xaxis.label, axis.yaxis.label))
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes)]
    yield from ((text, 1) for legend in legends if legend for text in legend.get_texts())


def _narrowed(text: Any, columns: int) -> bool:
    """Break a text into shorter lines if it ends outside of its figure, or above its neighbour."""
    whole, box = text.figure.bbox, text.get_window_extent()
    if text.get_rotation() == 90:
        size, end, room = box.height, whole.height, whole.height
    else:
        size, end, room = box.width, whole.width, whole.width / columns
    middle = (box.y0 + box.y1 if text.get_rotation() == 90 else box.x0 + box.x1) / 2
    room = min(room, 2 * middle, 2 * (end - middle)) - 4
    if not 0 < room < size:
        return False
    longest = max(map(len, text.get_text().split("\n")))
    text.set_text(wrapped(text.get_text(), max(8, int(longest * room / size))))
    return True


def wrapped(title: str, width: int = 60) -> str:
    """In lines of so many letters."""
    return "\n".join(textwrap.wrap(drawable(title), width))


def label_places(
    axis: Any, places: Sequence[float | int], labels: Sequence[str], *, rows: bool = False, **look: Any
) -> None:
    """Labels on one side of axes, as they are."""
    side = "y" if rows else "x"
    getattr(axis, f"set_{side}ticks")(list(places))
    getattr(axis, f"set_{side}ticklabels")(list(map(drawable, labels)), parse_math=False, **look)


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


def add_scale(axes: Any, shaded: Any, unit: str, **look: Any) -> Any:
    """The bar of a scale of colours."""
    first: Any = cast(list[Any], axes)[0] if isinstance(axes, list) else axes
    bar = first.figure.colorbar(shaded, ax=axes, **look)
    bar.set_label(drawable(unit), parse_math=False)
    bar.outline.set_visible(False)
    bar.formatter.set_useOffset(False)
    return bar
