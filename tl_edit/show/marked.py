"""Tables with coloured texts in their cells."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tl_edit.show.scale import shade_text
from tl_edit.show.tables import ROW, TABLE
from tl_edit.show.text import cell_text, literal
from tl_edit.show.view import card

CELL = "text-align:left;vertical-align:top;padding:4px 14px 4px 0;border-top:1px solid rgba(128,128,128,.4)"
FRAME = "outline:1px solid #888;outline-offset:-1px;padding:0 2px"
"""Seen on white and on black."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Marked:
    """One line of a cell: coloured tokens, the last of them perhaps framed, between a label and what follows."""

    tokens: Sequence[str]
    values: Float[Tensor, " token"]
    """NaN for no colour."""
    top: float = 1.0
    """The value of full colour."""
    framed: bool = True
    label: str = ""
    before: str = ""
    """What stands before the tokens, in grey."""
    after: str = ""
    """What stands behind them, in grey."""


def marked_table(
    rows: Sequence[Sequence[Sequence[str | Marked]]], *, columns: Sequence[str], heading: str, note: str
) -> str:
    """An HTML table whose cells are several lines each, in the colours of the page; narrow ones scroll sideways.

    Args:
        rows: Of each row, of each cell, its lines.
        columns: Names of the columns.
        heading: Text above.
        note: Text below: what colours mean, what was left out.
    """
    head = "".join(f'<th style="text-align:left;padding:2px 14px 2px 0">{literal(name)}</th>' for name in columns)
    lines = ["".join(f'<td style="{CELL}">{_lines(cell)}</td>' for cell in cells) for cells in rows]
    body = "".join(f"{ROW}{line}</tr>" for line in lines)
    whole = f'<table style="{TABLE};font-size:12px">{ROW}{head}</tr>{body}</table>'
    return card(heading, f'<div style="overflow-x:auto">{whole}</div>', note)


def _lines(cell: Sequence[str | Marked]) -> str:
    return "".join(
        f'<div style="white-space:pre">{literal(line) if isinstance(line, str) else _marked(line)}</div>'
        for line in cell
    )


def _value(value: float) -> str:
    """Seen by hovering, where there is one."""
    return "" if value != value else f' title="{value:.4g}"'


def _marked(line: Marked) -> str:
    last = len(line.tokens) - 1
    spans = "".join(
        f'<span{_value(float(value))} style="{shade_text(float(value), line.top)}'
        f'{f";{FRAME}" if line.framed and i == last else ""}">{cell_text(token)}</span>'
        for i, (token, value) in enumerate(zip(line.tokens, line.values, strict=True))
    )
    label = f'<span style="display:inline-block;min-width:52px">{literal(line.label)}</span>' if line.label else ""
    before, after = (f'<span style="opacity:.65">{literal(text)}</span>' for text in (line.before, line.after))
    return f"{label}{before}{spans}{after}"
