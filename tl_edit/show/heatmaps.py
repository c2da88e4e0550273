"""Heatmaps as HTML tables: inline styles only, no script; hovering shows the value."""

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float
from torch import Tensor

from tl_edit.show.scale import largest, scale_note, shade
from tl_edit.show.tables import ROW, TABLE
from tl_edit.show.text import literal, visible

MAX_CELLS = 6_000
"""Cells that one HTML heatmap shows; of larger ones some columns are left out."""
MAX_ROWS = 500
"""Rows that it shows; of more some are left out, evenly."""


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
        unit: What the values are; empty where something else says it, and the scale.
        per_line: Tables that stand side by side, in columns; None for as many as there is room for.
    """
    top = largest(tables) or 1.0
    down = max(1, -(-len(rows) // MAX_ROWS))
    step = max(1, -(-len(rows[::down]) * len(columns) // MAX_CELLS))
    rows, columns = rows[::down], columns[::step]
    cells = [
        _table(table[::down, ::step], title, rows, columns, top) for table, title in zip(tables, titles, strict=True)
    ]
    layout = "display:flex;flex-wrap:wrap"
    if per_line is not None:
        layout = f"display:grid;grid-template-columns:repeat({per_line},max-content);overflow-x:auto"
    lines = f'<div style="{layout};gap:8px 16px">{"".join(cells)}</div>'
    note = f" One row in {down} is shown." if down > 1 else ""
    note += f" One column in {step} is shown." if step > 1 else ""
    scale = f"{literal(scale_note(unit, top))}{note}" if unit else note
    above = f'<div style="margin:4px 0">{literal(heading)}</div>' if heading else ""
    below = f'<div style="margin:4px 0;opacity:.75">{scale}</div>' if scale else ""
    return f'<div style="font-family:sans-serif;font-size:12px">{above}{lines}{below}</div>'


def _table(
    table: Float[Tensor, "row column"], title: str, rows: Sequence[str], columns: Sequence[str], top: float
) -> str:
    head = "".join(f'<th style="font-weight:normal;padding:0 2px">{literal(name)}</th>' for name in columns)
    body = "".join(
        f'{ROW}<td style="text-align:right;padding:0 6px;white-space:pre">{literal(visible(label))}</td>'
        + "".join(_cell(value, top, f"{visible(label)}, {name}") for value, name in zip(values, columns, strict=True))
        + "</tr>"
        for label, values in zip(rows, cast(list[list[float]], table.double().tolist()), strict=True)
    )
    return (
        f'<div style="max-width:100%;overflow-x:auto"><div style="text-align:center">{literal(title)}</div>'
        f'<table style="{TABLE};font-size:12px">{ROW}<th></th>{head}</tr>{body}</table></div>'
    )


def _cell(value: float, top: float, label: str) -> str:
    size = "width:18px;min-width:18px;height:14px;padding:0;border:1px solid rgba(128,128,128,.15)"
    return f'<td title="{literal(label)}: {value:.4f}" style="{shade(value, top)};{size}"></td>'
