"""matplotlib's figures: what is drawn, and that labels are drawn as they are."""

import io
import math
import warnings
from itertools import pairwise

import pytest
import torch
from hostile import TOKENS

from tl_edit import show
from tl_edit.show.curves import MOST_BARS, PALETTE
from tl_edit.show.figures import MOST_LABELS

pyplot = pytest.importorskip("matplotlib.pyplot")

X = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
"""Not in order."""


def drawn(axes):
    """Draw for true, where mathematics in a label would fail; returns all text of the figure."""
    axis = axes[0] if isinstance(axes, list) else axes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # The canvas of a figure that is closed draws nothing.
        axis.figure.savefig(io.BytesIO())
    return [text.get_text() for text in axis.figure.findobj(lambda each: hasattr(each, "get_text"))]


def heatmaps(tables, **given):
    rows, columns = tables[0].shape
    labels = {"titles": ["t"] * len(tables), "rows": [f"r{i}" for i in range(rows)], "unit": "u", "low": 0.0}
    labels |= {"columns": list(map(str, range(columns))), "colours": ["Greens", "Reds", "Blues"][: len(tables)]}
    return show.plot_heatmaps(tables, **({"ax": None} | labels | given))


def each_figure(token):
    """Every kind of figure with a token wherever text can be."""
    values = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    said = {"xlabel": token, "ylabel": token, "title": token}
    panels = {token: {token: values}}
    table = values.repeat(3, 1)
    yield heatmaps([table], titles=[token], rows=[token] * 3, columns=[token] * 3, unit=token, heading=token)
    yield show.plot_matrix(table, None, rows=[token] * 3, columns=[token] * 3, unit=token, **said)
    yield show.plot_lines(X, {token: values}, None, **said, right={token: values}, right_label=token)
    yield show.plot_lines(X, {token: values}, None, **said, levels={token: 1.0})
    yield show.plot_panels(X, panels, None, xlabels=[token], ylabel=token, heading=token)
    yield show.plot_bars({token: values, "b": values}, None, groups=[token] * 3, ylabel=token, title=token)
    yield show.plot_bars({token: values}, None, groups=[token] * 3, ylabel=token, title=token, flat=True)
    yield show.plot_points(X, values, None, **said, shade=X, shade_label=token)
    yield show.plot_depth(["0", "1", "2"], {token: values}, None, per_colour=1, **said)
    yield show.plot_probabilities([token] * 3, {token: -values.abs(), "b": -values.abs()}, None, xlabel=token)
    yield show.plot_grid(table, None, rows=[token] * 3, columns=[token, "1", "2"], unit=token, **said)


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_labels_are_drawn_as_they_are(token, style):
    with pyplot.style.context(style):
        for axes in each_figure(token):
            texts = drawn(axes)
            if token.strip():
                assert any(token in text for text in texts), texts
    assert not pyplot.get_fignums()


def ends(axes):
    """Of a figure, and of its titles, labels and legends, as (left, bottom, right, top); as `savefig` draws them."""
    figure = (axes[0] if isinstance(axes, list) else axes).figure
    figure.draw_without_rendering()
    texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    legends = [*figure.legends, *(legend for axis in figure.axes if (legend := axis.get_legend()))]
    texts += [*figure.texts, *(text for legend in legends for text in legend.get_texts())]
    boxes = {each.get_text(): each.get_window_extent().extents for each in texts if each.get_text()}
    return figure.bbox.extents, boxes


@pytest.mark.parametrize("letter", "iaW")
def test_long_titles_and_labels_end_within_the_figure(letter):
    long, label = (" ".join([7 * letter] * n) for n in (10, 5))
    values = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    said = {"xlabel": label, "ylabel": label, "title": long}
    names = {"rows": ["a"] * 12, "columns": ["b"] * 3, "unit": label}
    table = values.repeat(12, 1)
    two = {"a": {label: values}, "b": {label: values}}
    for axes in (
        heatmaps([table], titles=["MLP"], heading=long, xlabels=[label], unit=label),
        heatmaps([table] * 3, titles=[label] * 3, heading=long, xlabels=[label] * 3),
        show.plot_matrix(table, None, **names, **said),
        show.plot_lines(X, {"a": values}, None, **said, right={"b": values}, right_label=label, levels={label: 0.1}),
        show.plot_panels(X, two, None, xlabels=[label] * 2, ylabel=label, heading=long),
        show.plot_bars({"a": values, label: values}, None, groups=["a"] * 3, ylabel=label, title=long),
        show.plot_bars({"a": values}, None, groups=["a" * 40] * 3, ylabel=label, title=long, flat=True),
        show.plot_points(X, values, None, **said, shade=X, shade_label=label),
        show.plot_depth(["0", "1", "2"], {label: values, "a": values}, None, per_colour=1, **said),
        show.plot_probabilities(["a"] * 12, {"b": -table[:, 0], "c": -table[:, 0]}, None, xlabel=label, title=long),
        show.plot_grid(table, None, **names, **said),
    ):
        whole, texts = ends(axes)
        for text, box in texts.items():
            assert (box[:2] >= whole[:2] - 2).all(), (text, box, whole)
            assert (box[2:] <= whole[2:] + 2).all(), (text, box, whole)


def test_titles_side_by_side_do_not_meet():
    long = "restoring what the attention of a layer adds, window of 10"
    axes = heatmaps([torch.rand(3, 3)] * 3, titles=[long] * 3)
    axes[0].figure.draw_without_rendering()
    boxes = [axis.title.get_window_extent() for axis in axes]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_halves_of_characters_are_drawn_as_numbers():
    for axes in each_figure("a\ud800\0"):
        assert any("a\\ud800\\u0000" in text for text in drawn(axes))


def test_where_matplotlib_is_interactive_figures_stay_open_to_be_shown():
    with pyplot.ion():
        axis = heatmaps([torch.zeros(1, 1)])
        line = show.plot_lines(X, {"a": torch.zeros(3)}, None, xlabel="x", ylabel="y")
        assert pyplot.get_fignums() == [axis.figure.number, line.figure.number]
        pyplot.close("all")


def test_tokens_of_nothing_are_seen():
    axis = heatmaps([torch.zeros(2, 1)], rows=["", "\n"])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["␣", "↵"]


def clims(axes):
    return {mesh.get_clim() for axis in axes for mesh in axis.collections if hasattr(mesh, "get_clim")}


def test_heatmaps_share_a_scale():
    tables = [torch.tensor([[0.1, -3.0]]), torch.tensor([[0.5, math.nan]])]
    assert clims(heatmaps(tables)) == {(0.0, 0.5)}
    assert clims(heatmaps(tables, low=None)) == {(-3.0, 3.0)}
    assert clims(heatmaps([torch.full((1, 2), math.nan)] * 2)) == {(0.0, 0.01)}


def test_infinities_have_the_colours_at_the_ends():
    table = torch.tensor([[math.inf, -math.inf, 2.0]])
    names = {"rows": ["r"], "columns": list("abc"), "unit": "u"}
    matrix = show.plot_matrix(table, None, **names)
    grid = show.plot_grid(table, None, **names, xlabel="x", ylabel="y", signed=True)
    for axis in (heatmaps([table], low=None), matrix, grid):
        assert drawn(axis)
        assert clims([axis]) == {(-2.0, 2.0)}
    assert clims([heatmaps([table])]) == {(0.0, 2.0)}


def test_heatmaps_of_one_colour_have_one_scale_at_the_side():
    tables = [torch.rand(2, 3)] * 2
    assert len(heatmaps(tables)[0].figure.axes) == 4
    one = heatmaps(tables, colours=[show.BOTH_WAYS] * 2, per_line=1, xlabels=["first", "second"])
    assert len(one[0].figure.axes) == 3
    assert [axis.get_xlabel() for axis in one] == ["first", "second"]


def test_many_labels_are_thinned_as_on_a_ruler():
    axis = heatmaps([torch.rand(2 * MOST_LABELS + 1, 48)])
    assert [label.get_text() for label in axis.get_xticklabels()][:3] == ["0", "5", "10"]
    assert len(axis.get_yticklabels()) <= MOST_LABELS
    assert axis.figure.get_figheight() < 16


def test_axes_of_ones_own_are_drawn_on_and_stay_open():
    figure, axes = pyplot.subplots(1, 2)
    values = torch.rand(3, dtype=torch.float64)
    assert show.plot_lines(X, {"a": values}, axes[0], xlabel="x", ylabel="y") is axes[0]
    assert show.plot_bars({"a": values}, axes[1], groups=["1", "2", "3"], ylabel="y") is axes[1]
    panels = {"a": {"v": values}, "b": {"v": 10 * values}}
    assert show.plot_panels(X, panels, axes, xlabels=["x", "x"], ylabel="y") == list(axes)
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert pyplot.get_fignums() == [figure.number]
    for wrong in (lambda: heatmaps([torch.rand(1, 1)] * 3, ax=axes),):
        with pytest.raises(ValueError, match="2 axes for 3 heatmaps; expected one each; pass those of .* or ax=None"):
            wrong()
    with pytest.raises(ValueError, match="1 axes for 2 panels; expected one each; pass those of .* or ax=None"):
        show.plot_panels(X, panels, axes[0], xlabels=["x", "x"], ylabel="y")
    pyplot.close(figure)
    for wrong in (5, "ax", figure, pyplot, [axes[0], None]):
        with pytest.raises(ValueError, match=r"plot: ax is .* of type .*; expected axes of matplotlib; pass those of"):
            show.plot_lines(X, {"a": values}, wrong, xlabel="x", ylabel="y")
        with pytest.raises(ValueError, match=r"plot: ax is .* of type .*; expected axes of matplotlib; pass those of"):
            heatmaps([torch.rand(1, 1)] * 2, ax=wrong)
    # Axes that are in no grid.
    free = pyplot.figure()
    assert show.plot_lines(X, {"a": values}, free.add_axes((0.1, 0.1, 0.8, 0.8)), xlabel="x", ylabel="y")
    pyplot.close(free)


def test_lines_are_in_order_with_bands_and_markers_of_their_own():
    values = torch.tensor([2.0, 0.0, 1.0], dtype=torch.float64)
    bands = {"b": (values - 1, values + 1)}
    axis = show.plot_lines(X, {"a": 10 * values, "b": values}, None, xlabel="x", ylabel="y", bands=bands)
    assert [list(line.get_xdata()) for line in axis.lines] == [[0.0, 1.0, 2.0]] * 2
    assert list(axis.lines[0].get_ydata()) == [0.0, 10.0, 20.0]
    assert [line.get_color() for line in axis.lines] == list(PALETTE[:2])
    assert len({line.get_marker() for line in axis.lines}) == 2
    (band,) = axis.collections
    assert (band.get_datalim(axis.transData).y0, band.get_datalim(axis.transData).y1) == (-1.0, 3.0)


def test_many_points_have_few_markers():
    many = torch.arange(1000, dtype=torch.float64)
    axis = show.plot_lines(many, {"a": many}, None, xlabel="x", ylabel="y")
    assert axis.lines[0].get_markevery() > 50


def test_losses_of_zero_are_left_out_of_a_logarithmic_scale():
    axis = show.plot_losses([2.0, 1.0], [(2.0, 0.0, 0.0), (0.5, 0.25, 0.25)], None)
    assert axis.get_yscale() == "log"
    found = {line.get_label(): [None if value != value else value for value in line.get_ydata()] for line in axis.lines}
    assert found == {
        "loss": [2.0, 1.0],
        "negative log-likelihood": [2.0, 0.5],
        "KL": [None, 0.25],
        "weight decay": [None, 0.25],
    }
    assert len(show.plot_losses([2.0, 1.0], (), None).lines) == 1


def test_bars_have_their_intervals_and_a_dash_for_what_is_not_there():
    values = {"a": torch.tensor([0.5, math.nan]), "b": torch.tensor([0.25, 1.0])}
    ends = {"a": (torch.tensor([0.25, math.nan]), torch.tensor([1.0, math.nan]))}
    axis = show.plot_bars(values, None, groups=["x", "y"], ylabel="u", intervals=ends)
    heights = [patch.get_height() for patch in axis.patches]
    assert [height for height in heights if height == height] == [0.5, 0.25, 1.0]
    (whisker,) = [each for each in axis.collections if hasattr(each, "get_segments")]
    assert [segment[:, 1].tolist() for segment in whisker.get_segments()] == [[0.25, 1.0]]
    assert sorted(text.get_text() for text in axis.texts) == ["0.25", "0.5", "1", "–"]
    assert len({patch.get_hatch() for patch in axis.patches}) == 2


def test_an_interval_that_leaves_its_value_out_draws():
    one = torch.tensor([0.5])
    assert drawn(show.plot_bars({"a": one}, None, groups=["x"], ylabel="u", intervals={"a": (one + 1e-9, one - 1e-9)}))


def test_numbers_of_bars_that_go_down_stand_below_them():
    axis = show.plot_bars({"a": torch.tensor([5.0, -5.0])}, None, groups=["up", "down"], ylabel="%")
    up, down = axis.texts
    assert (up.get_va(), down.get_va()) == ("bottom", "top")
    assert (up.xy[1], down.xy[1]) == (5.0, -5.0)


def test_names_of_groups_have_room():
    """They would be written over each other."""
    groups = [f"key {i}\nneighborhood success" for i in range(9)]
    axis = show.plot_bars({"a": torch.arange(9.0)}, None, groups=groups, ylabel="%")
    axis.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize(("low", "extend"), [(0.0, "min"), (-3.0, "neither"), (None, "neither")])
def test_a_scale_says_that_values_lie_below_it(low, extend):
    axis = heatmaps([torch.tensor([[0.1, -3.0, math.nan]])], low=low)
    assert axis.collections[0].colorbar.extend == extend


def test_a_narrow_scale_has_numbers_that_can_be_read():
    axis = heatmaps([torch.tensor([[0.3237, 0.3238]])], low=0.3237)
    axis.figure.canvas.draw()
    scale = axis.collections[0].colorbar.ax.yaxis
    assert not scale.get_offset_text().get_text()
    assert len({label.get_text() for label in scale.get_ticklabels()}) > 1


def test_lying_bars_begin_at_the_top():
    axis = show.plot_bars({"": torch.tensor([2.0, 1.0])}, None, groups=["first", "second"], ylabel="u", flat=True)
    low, high = axis.get_ylim()
    assert low > high
    assert axis.get_xlabel() == "u"
    assert axis.get_legend() is None


def test_of_many_lying_bars_the_first_are_drawn_and_the_others_told_of():
    n = MOST_BARS + 2000
    values = torch.arange(n, dtype=torch.float64)
    names = {"groups": [f"g{i}" for i in range(n)], "ylabel": "u", "flat": True}
    axis = show.plot_bars({"a": values}, None, **names, intervals={"a": (values, values)})
    assert [patch.get_width() for patch in axis.patches] == list(range(MOST_BARS))
    assert axis.get_xlabel() == "u (2,000 more are left out)"
    assert axis.figure.get_figheight() < 30


def test_many_lines_are_told_apart_by_a_scale():
    lines = {f"layer {i}": X + i for i in range(48)}
    shade = {name: float(i) for i, name in enumerate(lines)}
    axis = show.plot_lines(X, lines, None, xlabel="x", ylabel="y", shade=shade, shade_label="layer")
    assert len({line.get_color() for line in axis.lines}) == 48
    assert axis.figure.axes[1].get_ylabel() == "layer"
    assert not axis.figure.legends


def test_a_matrix_has_its_numbers_where_there_is_room():
    table = torch.tensor([[1.0, -0.5], [math.nan, 0.0]])
    axis = show.plot_matrix(table, None, rows=["a", "b"], columns=["a", "b"], unit="u")
    assert [text.get_text() for text in axis.texts] == ["1", "-0.5", "0"]
    assert clims([axis]) == {(-1.0, 1.0)}
    wide = show.plot_matrix(torch.rand(40, 40), None, rows=["r"] * 40, columns=["c"] * 40, unit="u")
    assert not wide.texts


def test_where_drawing_fails_no_figure_is_left():
    line, table, names = {"a": X}, torch.rand(1, 2), {"xlabel": "x", "ylabel": "y"}
    for draw in (
        lambda: show.plot_lines(X, line, None, **names, yscale="none"),
        lambda: show.plot_depth(["0", "1", "2"], line, None, per_colour=0, **names),
        lambda: show.plot_panels(X, {"a": line}, None, xlabels=["x", "y"], ylabel="y"),
        lambda: heatmaps([table], titles=["t", "u"]),
    ):
        with pytest.raises((ValueError, IndexError, ZeroDivisionError)):
            draw()
        assert not pyplot.get_fignums()


def test_of_many_tokens_the_first_are_drawn_and_the_others_told_of():
    names = [f"t{i}" for i in range(MOST_LABELS + 1200)]
    axis = show.plot_probabilities(names, {"a": -torch.rand(len(names))}, None, xlabel="p")
    assert [label.get_text() for label in axis.get_yticklabels()] == names[:MOST_LABELS]
    assert axis.get_xlabel() == "p (1,200 more tokens are left out)"
    assert axis.figure.get_figheight() < 20


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_and_one_are_drawn(n):
    few = torch.zeros(n, dtype=torch.float64)
    names = ["x"] * n
    drawn(heatmaps([torch.zeros(n, n)]))
    drawn(show.plot_matrix(torch.zeros(n, n), None, rows=names, columns=names, unit="u"))
    drawn(show.plot_lines(few, {"a": few}, None, xlabel="x", ylabel="y"))
    drawn(show.plot_bars({"a": few}, None, groups=names, ylabel="y"))
    drawn(show.plot_points(few, few, None, xlabel="x", ylabel="y", shade=few))


def test_colours_are_seen_on_white_and_on_black():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for colour in PALETTE:
        assert 1.05 / (luminance(colour) + 0.05) > 2  # on white
        assert (luminance(colour) + 0.05) / 0.05 > 3.5  # on black


def test_more_than_there_are_colours_are_told_apart():
    values = {str(i): torch.tensor([float(i), 0.0]) for i in range(12)}
    lines = show.plot_lines(torch.arange(2.0), values, None, xlabel="x", ylabel="y").lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 12
    bars = show.plot_bars(values, None, groups=["a", "b"], ylabel="y").patches
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 12
