"""Heatmaps and tables as HTML."""

import math
import re
from html import unescape

import pytest
import torch
from hostile import TOKENS, Document

from tl_edit import show
from tl_edit.show.heatmaps import MAX_CELLS, MAX_ROWS, shade
from tl_edit.show.text import literal


def heatmap(table, **given):
    rows, columns = table.shape
    labels = {"titles": ["t"], "rows": [f"r{i}" for i in range(rows)], "columns": list(map(str, range(columns)))}
    return show.heatmaps_html([table], **(labels | {"heading": "h", "unit": "u"} | given))


def colours(page):
    return re.findall(r"rgba\((\d+,\d+,\d+),([\d.]+)\);width", page)


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
    blue, red = "33,102,172", "178,24,43"
    assert found == [(blue, "0.250"), (red, "0.250"), (red, "1.000"), (blue, "0.500")]
    assert "colours from -2 (red) to 2 (blue)" in show.heatmaps_html([small, large], **labels)


def test_nan_has_no_colour_and_does_not_spoil_the_scale():
    assert [strength for _, strength in colours(heatmap(torch.tensor([[math.nan, 4.0, -2.0]])))] == [
        "0.000",
        "1.000",
        "0.500",
    ]
    assert shade(math.nan, 1.0).endswith(",0.000)")
    assert shade(5.0, 1.0).endswith(",1.000)")


def test_infinities_have_full_colour_and_do_not_spoil_the_scale():
    found = colours(heatmap(torch.tensor([[math.inf, -math.inf, 1.0, 0.5]])))
    assert [strength for _, strength in found] == ["1.000", "1.000", "1.000", "0.500"]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_tables_are_shown(shape):
    assert Document(heatmap(torch.zeros(shape))).titles == []
    assert Document(heatmap(torch.zeros(2, 2))).titles[0] == "r0, 0: 0.0000"


def test_no_tables_are_shown():
    assert "u; colours" in show.heatmaps_html([], titles=[], rows=[], columns=[], heading="h", unit="u")
    assert show.table([]) == '<table style="border-collapse:collapse"></table>'


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
