"""Heatmaps and tables as HTML."""

import math
import re
from html import unescape

import pytest
import torch
from hostile import TOKENS, Document

from tl_edit import show
from tl_edit.show.heatmaps import MAX_CELLS, MAX_ROWS
from tl_edit.show.scale import ink, shade, shade_text
from tl_edit.show.text import literal


def heatmap(table, **given):
    rows, columns = table.shape
    labels = {"titles": ["t"], "rows": [f"r{i}" for i in range(rows)], "columns": list(map(str, range(columns)))}
    return show.heatmaps_html([table], **(labels | {"heading": "h", "unit": "u"} | given))


def colours(page):
    """Of each cell, None where it has none."""
    cells = re.findall(r'<td title="[^"]*" style="([^"]*);width', page)
    return [re.sub(r"background-color:rgb\((.*)\)", r"\1", cell) or None for cell in cells]


@pytest.mark.parametrize("token", TOKENS)
def test_labels_are_literal(token):
    several = [token, token]
    page = show.heatmaps_html(
        [torch.ones(2, 1)], titles=[token], rows=several, columns=[token], heading=token, unit=token or "u"
    ) + show.table([(token, token)], columns=several, heading=token)
    read = Document(page)
    assert set(read.tags) == {"div", "table", "tr", "th", "td"}
    assert read.text.count(show.visible(token)) >= 2
    assert read.titles == [f"{show.visible(token)}, {unescape(literal(token))}: 1.0000"] * 2
    assert not re.search(r"https?:|<script|<style", page)


def test_a_scale_is_symmetric_and_shared():
    small, large = torch.tensor([[0.5, -0.5]]), torch.tensor([[-2.0, 1.0]])
    labels = {"titles": ["a", "b"], "rows": ["r"], "columns": ["0", "1"], "heading": "", "unit": "u"}
    found = colours(show.heatmaps_html([small, large], **labels))
    # Zero is white, the largest value of all tables blue or red.
    assert found == ["200,217,234", "236,197,202", "178,24,43", "144,178,214"]
    assert "colours from -2 (red) to 2 (blue)" in show.heatmaps_html([small, large], **labels)


def test_nan_has_no_colour_and_does_not_spoil_the_scale():
    found = colours(heatmap(torch.tensor([[math.nan, 4.0, -2.0, 0.0]])))
    assert found == [None, "33,102,172", "216,140,149", "255,255,255"]
    assert shade(math.nan, 1.0) == shade_text(math.nan, 1.0) == ""


def test_infinities_have_full_colour_and_do_not_spoil_the_scale():
    found = colours(heatmap(torch.tensor([[math.inf, -math.inf, 1.0, 0.5]])))
    assert found == ["33,102,172", "178,24,43", "33,102,172", "144,178,214"]
    assert shade(5.0, 1.0) == shade(1.0, 1.0)


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_is_read_on_every_colour_of_the_scale():
    for value in range(-100, 101):
        style = shade_text(value / 100, 1.0)
        paper = luminance([int(part) / 255 for part in re.findall(r"\d+", style.split(";")[0])])
        text = {"#000": 0.0, "#fff": 1.0}[style.split("color:")[-1]]
        assert (max(paper, text) + 0.05) / (min(paper, text) + 0.05) >= 4.5, style
    assert (ink(255, 255, 255), ink(0, 0, 0), ink(10, 10, 10)) == ("#000", "#fff", "#fff")


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_tables_are_shown(shape):
    assert Document(heatmap(torch.zeros(shape))).titles == []
    assert Document(heatmap(torch.zeros(2, 2))).titles[0] == "r0, 0: 0.0000"


def test_no_tables_are_shown():
    assert "u; colours" in show.heatmaps_html([], titles=[], rows=[], columns=[], heading="h", unit="u")
    assert Document(show.table([])).tags == ["div", "table"]


def test_large_tables_are_capped_with_a_note():
    page = heatmap(torch.rand(100, 3 * MAX_CELLS // 100))
    assert len(Document(page).titles) == MAX_CELLS
    assert "One column in 3 is shown." in page
    assert "is shown" not in heatmap(torch.rand(100, MAX_CELLS // 100))


def test_of_many_rows_some_are_left_out_before_columns_are():
    table = torch.arange(10 * MAX_ROWS).double()[:, None].expand(-1, 12)
    page = heatmap(table)
    assert "One row in 10 is shown." in page
    assert "column" not in page
    titles = Document(page).titles
    assert len(titles) == 12 * MAX_ROWS
    assert titles[12] == "r10, 0: 10.0000"
    assert len(Document(heatmap(torch.zeros(5 * MAX_ROWS, 400))).titles) <= MAX_CELLS


def test_the_same_bytes_twice():
    table = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert heatmap(table) == heatmap(table)
