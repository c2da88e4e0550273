"""Figures of numbers over numbers: lines with their intervals, bars, points."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit.extras import extra
from tl_edit.show.figures import GREY, add_scale, fitted, label_places, one_axes, say, several_axes, wrapped
from tl_edit.show.text import drawable

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours of Okabe and Ito for colour-blind readers, those that are seen both on white and on black."""
MARKERS = "o^vDsP"
"""With a colour each; from the seventh line on colours come again, with other markers."""
HATCHES = ("", "///", "...", "xxx", "---", "+++")
MOST_MARKERS = 16
MOST_BARS = 60
"""Groups of lying bars that are drawn, the first ones."""
MOST_NUMBERS = 32
"""Bars that have their numbers."""

Values = Float[Tensor, " point"]
Interval = tuple[Values, Values]
"""Lower and upper ends; NaN where there are none."""


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
    bands: Mapping[str, Interval] | None = None,
    levels: Mapping[str, float] | None = None,
    shade: Mapping[str, float] | None = None,
    shade_label: str = "",
    yscale: str = "linear",
    whole: bool = False,
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
        bands: Intervals of some of the lines, by their names.
        levels: Horizontal lines for comparison, by name.
        shade: Of each line a number that tells its colour, on a scale at the side in place of a legend; for more lines
            than can be told apart by name.
        shade_label: What these are.
        yscale: matplotlib's name of the scale, e.g. "log".
        whole: Whether ``x`` are whole numbers, and nothing lies between them.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    made, axis = one_axes(ax, (5.5, 3.6))
    drawn = _draw_lines(axis, x, lines, bands or {})
    if shade:
        _shade_lines(axis, drawn, [shade[name] for name in lines], shade_label)
        drawn = []
    for i, (name, level) in enumerate((levels or {}).items()):
        drawn.append(axis.axhline(level, color=GREY, linestyle=("--", ":", "-.")[i % 3], label=in_legend(name)))
    if right:
        other = axis.twinx()
        order = x.argsort()
        for i, (name, values) in enumerate(right.items()):
            look = {"color": GREY, "linestyle": ("--", ":", "-.")[i % 3], "marker": "s", "markersize": 4}
            drawn += other.plot(x[order].numpy(), values[order].numpy(), label=in_legend(name), **look)
        other.set_ylabel(wrapped(right_label, 35), parse_math=False)
    axis.set_yscale(yscale)
    if whole:
        _whole_ticks(axis)
    say(axis, xlabel, ylabel, title)
    legend_below(made, axis, drawn)
    return fitted(made, axis)


def plot_losses(
    losses: Sequence[float], terms: Sequence[tuple[float, float, float]], ax: Any, *, title: str = ""
) -> Any:
    """A loss over the evaluations of a search, on a logarithmic scale, and the terms that it is the sum of, if known.

    Terms that are zero, as at the first evaluation, are left out.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    lines = {"loss": torch.tensor(losses, dtype=torch.float64)}
    if terms:
        columns = torch.tensor(terms, dtype=torch.float64).T
        lines |= dict(zip(("negative log-likelihood", "KL", "weight decay"), columns, strict=True))
    lines = {name: torch.where(values > 0, values, torch.nan) for name, values in lines.items()}
    x = torch.arange(1, len(losses) + 1, dtype=torch.float64)
    return plot_lines(x, lines, ax, xlabel="evaluation", ylabel="loss (nats)", title=title, yscale="log", whole=True)


def plot_panels(
    x: Float[Tensor, " point"],
    panels: Mapping[str, Mapping[str, Float[Tensor, " point"]]],
    ax: Any,
    *,
    xlabels: Sequence[str],
    ylabel: str,
    heading: str = "",
    bands: Mapping[str, Mapping[str, Interval]] | None = None,
) -> Any:
    """Lines in panels side by side, with one scale and one legend; returns the axes, one or a list.

    Args:
        x: Where the values stand.
        panels: By the panel's title: values by name, the same names in all.
        ax: Axes to draw on, one for each panel; None for a new figure.
        xlabels: What ``x`` is, for each panel.
        ylabel: What the values are.
        heading: Text above all of a new figure.
        bands: Intervals, by panel and name.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If ``ax`` are not as many axes as panels.
    """
    size = (3.4 * len(panels) + 0.6, 3.9)
    made, axes = several_axes(ax, len(panels), size, what="panels", sharey=True)
    drawn: list[Any] = []
    for axis, xlabel, (title, lines) in zip(axes, xlabels, panels.items(), strict=True):
        drawn = _draw_lines(axis, x, lines, (bands or {}).get(title, {}))
        _whole_ticks(axis)
        axis.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        say(axis, xlabel, ylabel if axis is axes[0] else "", title)
    legend_below(made, axes[-1], drawn)
    if made is None:
        # One scale for axes that were made apart, too.
        ends = [end for axis in axes for end in axis.get_ylim()]
        for axis in axes:
            axis.set_ylim(min(ends), max(ends))
    return fitted(made, axes[0] if len(axes) == 1 else axes, heading)


def plot_bars(
    bars: Mapping[str, Float[Tensor, " group"]],
    ax: Any,
    *,
    groups: Sequence[str],
    ylabel: str,
    title: str = "",
    intervals: Mapping[str, tuple[Float[Tensor, " group"], Float[Tensor, " group"]]] | None = None,
    flat: bool = False,
) -> Any:
    """Bars in groups, side by side by name, with their intervals; returns the axes.

    Args:
        bars: Values by name, one for each group; NaN is shown as a dash.
        ax: Axes to draw on; None for a new figure.
        groups: Names of the groups.
        ylabel: What the values are.
        title: Text above.
        intervals: Lower and upper ends, by name; NaN where there are none.
        flat: Whether bars lie, first at the top, as suits long names of groups; of many the first are drawn.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if flat and len(groups) > MOST_BARS:
        ylabel += f" ({len(groups) - MOST_BARS:,} more are left out)"
        groups, bars = groups[:MOST_BARS], {name: values[:MOST_BARS] for name, values in bars.items()}
        intervals = {name: (low[:MOST_BARS], high[:MOST_BARS]) for name, (low, high) in (intervals or {}).items()}
    n = len(groups) * (len(bars) + 0.6)
    longest = 0.07 * min(80, max(map(len, groups), default=0))
    # Names of groups stand side by side, a line of them as wide as its letters.
    named = 0.085 * sum(2 + max(map(len, group.split("\n"))) for group in groups)
    made, axis = one_axes(ax, (3.5 + longest, 1.4 + 0.24 * n) if flat else (1.0 + max(named, 1.4 + 0.34 * n), 3.8))
    width = 0.8 / max(1, len(bars))
    ink, paper = (extra("matplotlib.pyplot", "plot").rcParams[name] for name in ("text.color", "axes.facecolor"))
    drawn: list[Any] = []
    for i, (name, values) in enumerate(bars.items()):
        places = [group + width * (i + 0.5) - 0.4 for group in range(len(groups))]
        look = {"color": PALETTE[i % 6], "hatch": HATCHES[(i + i // 6) % 6], "edgecolor": paper, "linewidth": 0}
        sizes = {"height": 0.92 * width} if flat else {"width": 0.92 * width}
        drawn.append((axis.barh if flat else axis.bar)(places, values.numpy(), label=in_legend(name), **sizes, **look))
        ends = (intervals or {}).get(name, (values, values))
        if intervals and name in intervals:
            _add_whiskers(axis, places, values, ends, flat, ink)
        if len(bars) * len(groups) <= MOST_NUMBERS:
            _add_numbers(axis, places, values, ends, flat)
    label_places(axis, range(len(groups)), groups, rows=flat)
    axis.axvline(0, color=GREY, linewidth=0.8) if flat else axis.axhline(0, color=GREY, linewidth=0.8)
    if flat:
        axis.set_ylim(len(groups) - 0.4, -0.6)
        axis.margins(x=0.12)
    else:
        axis.margins(y=0.1)
    say(axis, ylabel if flat else "", "" if flat else ylabel, "" if flat and made is not None else title)
    if len(bars) > 1:
        legend_below(made, axis, drawn)
    return fitted(made, axis, title if flat else "")


def plot_points(
    x: Float[Tensor, " point"],
    y: Float[Tensor, " point"],
    ax: Any,
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    shade: Float[Tensor, " point"] | None = None,
    shade_label: str = "",
) -> Any:
    """Points in matplotlib, perhaps shaded by a third number; returns the axes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    made, axis = one_axes(ax, (4.8, 3.6))
    axis.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    look = {"color": PALETTE[0]} if shade is None else {"c": shade.numpy(), "cmap": "viridis"}
    points = axis.scatter(x.numpy(), y.numpy(), s=18, alpha=0.8, edgecolors=GREY, linewidths=0.7, **look)
    if shade is not None:
        _whole_scale(add_scale(axis, points, shade_label), list(map(float, shade)))
    say(axis, xlabel, ylabel, title)
    return fitted(made, axis)


def _shade_lines(axis: Any, drawn: Sequence[Any], numbers: Sequence[float], label: str) -> None:
    pyplot = extra("matplotlib.pyplot", "plot")
    scale = pyplot.cm.ScalarMappable(pyplot.Normalize(min(numbers), max(numbers)), "viridis")
    for line, number in zip(drawn, numbers, strict=True):
        line.set(color=scale.to_rgba(number), marker="")
    _whole_scale(add_scale(axis, scale, label), numbers)


def _whole_scale(bar: Any, numbers: Sequence[float]) -> None:
    """No halves of layers beside a scale of layers."""
    bar.locator.set_params(integer=all(number == round(number) for number in numbers))
    bar.update_ticks()


def _draw_lines(axis: Any, x: Values, lines: Mapping[str, Values], bands: Mapping[str, Interval]) -> list[Any]:
    order = x.argsort()
    at = x[order].numpy()
    few = len(lines) < 4 and len(x) < 50
    drawn: list[Any] = []
    for i, (name, values) in enumerate(lines.items()):
        # Of few lines the first ones are wider, so that they are seen behind others that coincide with them.
        look = {"color": PALETTE[i % 6], "linewidth": 1.5 + (len(lines) - 1 - i if few else 0)}
        look |= {
            "marker": MARKERS[(i + i // 6) % 6],
            "markersize": 5,
            "markevery": -(-len(x) // MOST_MARKERS),
            "alpha": 0.85,
        }
        drawn += axis.plot(at, values[order].numpy(), label=in_legend(name), **look)
        if name in bands:
            low, high = (end[order].numpy() for end in bands[name])
            axis.fill_between(at, low, high, color=PALETTE[i % 6], alpha=0.2, linewidth=0)
    return drawn


def _add_whiskers(axis: Any, places: Sequence[float], values: Values, ends: Interval, flat: bool, ink: str) -> None:
    low, high = ends
    known = ~(values + low + high).isnan()
    # An interval may leave out what it belongs to by a rounding; lengths must not be negative.
    sizes = [size[known].clamp(min=0).numpy() for size in (values - low, high - values)]
    at = [place for place, has in zip(places, known, strict=True) if has]
    where = (values[known].numpy(), at) if flat else (at, values[known].numpy())
    axis.errorbar(*where, **{"xerr" if flat else "yerr": sizes}, fmt="none", ecolor=ink, elinewidth=1.2, capsize=2.5)


def _add_numbers(axis: Any, places: Sequence[float], values: Values, ends: tuple[Values, Values], flat: bool) -> None:
    """The values beyond the ends of their bars; a dash for what is not there."""
    for place, value, low, high in zip(places, *(map(float, each) for each in (values, *ends)), strict=True):
        down = value < 0
        end = low if down else high
        at = 0.0 if value != value else value if end != end else min(value, end) if down else max(value, end)
        text = "–" if value != value else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        sides = {"ha": "right" if down else "left", "va": "center"}
        look: dict[str, Any] = sides if flat else {"ha": "center", "va": "top" if down else "bottom"}
        away = -1 if down else 1
        shift = (4 * away, 0) if flat else (0, 2 * away)
        place_at = (at, place) if flat else (place, at)
        axis.annotate(text, place_at, shift, textcoords="offset points", fontsize="x-small", **look)


def _whole_ticks(axis: Any) -> None:
    axis.xaxis.set_major_locator(extra("matplotlib.pyplot", "plot").MaxNLocator(integer=True))


def in_legend(name: str) -> str:
    """In a legend, which leaves out what begins with an underscore."""
    return drawable(f" {name}" if name.startswith("_") else name)


def legend_below(figure: Any, axis: Any, drawn: Sequence[Any]) -> None:
    """Below the axes of a new figure, where it hides nothing."""
    if not drawn:
        return
    widest = max(len(each.get_label()) for each in drawn)
    room = 11 * (figure.get_figwidth() if figure is not None else axis.get_window_extent().width / axis.figure.dpi)
    columns = max(1, min(len(drawn), int(room / (widest + 7))))
    # As many in each line.
    columns = -(-len(drawn) // -(-len(drawn) // columns))
    if figure is None:
        look: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "fontsize": "small"}
        legend = axis.legend(handles=drawn, ncols=columns, frameon=False, **look)
    else:
        legend = figure.legend(handles=drawn, loc="outside lower center", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
