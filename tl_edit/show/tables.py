"""Tables: HTML with inline styles only, and pandas frames."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_edit.extras import extra
from tl_edit.show.text import literal

TABLE = "border-collapse:collapse;margin:0;color:inherit"
"""The style of every table: notebooks have colours, stripes and a place in the middle of their own for tables, in the
colours of their theme, which may not be those of what a table stands on."""
ROW = '<tr style="background:none">'


def table(rows: Sequence[tuple[str, ...]], *, columns: Sequence[str] = (), heading: str = "") -> str:
    """An HTML table of names and what stands beside them, perhaps with names of the columns and a line above."""
    style = 'style="text-align:left;padding:2px 12px 2px 0"'
    lines = [f"{ROW}{''.join(f'<th {style}>{literal(name)}</th>' for name in columns)}</tr>"] if columns else []
    lines += [
        f"{ROW}<th {style}>{literal(name)}</th>{''.join(f'<td {style}>{literal(value)}</td>' for value in values)}</tr>"
        for name, *values in rows
    ]
    above = f'<div style="margin:4px 0">{literal(heading)}</div>' if heading else ""
    return f'{above}<div style="overflow-x:auto"><table style="{TABLE}">{"".join(lines)}</table></div>'


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
