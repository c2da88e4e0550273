"""One self-contained HTML page with everything in it."""

import base64
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any, cast

from tl_edit import sources
from tl_edit.show.view import View, library_script

STYLE = (
    "body{font-family:sans-serif;font-size:14px;max-width:1100px;margin:24px auto;padding:0 16px;line-height:1.5}"
    "@media (prefers-color-scheme:dark){body{background:#161616;color:#e4e4e4}}"
    "section{margin:16px 0;overflow-x:auto}h2{margin:24px 0 0}p{margin:0}img{max-width:100%}"
)
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""The page may run what is in it and fetch nothing."""


def page(views: Sequence[object], *, title: str) -> str:
    """An HTML page.

    Args:
        views: A text is a paragraph, and a heading where it begins with "# "; anything with ``_repr_html_`` stands as
            in a notebook; axes of matplotlib become images, those of one figure one; lists hold any of these.
        title: Of the page.

    Raises:
        ValueError: For anything else.
    """
    each = _each(views)
    body = "".join(f"<section>{_section(view)}</section>" for view in each)
    script = library_script() if any(isinstance(view, View) for view in each) else ""
    whole = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{script}<h1>{escape(title)}</h1>{body}"
        "</body></html>"
    )
    # No document holds halves of characters, or zeros.
    return re.sub("[\0\ud800-\udfff]", "\ufffd", whole)


def save_html(path: str | Path, *views: object, title: str = "tl_edit") -> None:
    """Write results, views and texts as one page that opens anywhere, without the network; whole, or not at all.

    Args:
        path: The file; what was there is replaced.
        views: Results of this package, `View`s, axes of matplotlib, texts (headings with "# " before them), or anything
            else that shows itself in a notebook as HTML; lists of these, too.
        title: Of the page.

    Raises:
        ValueError: If there is nothing to show, something cannot be shown, or the file cannot be written.
    """
    if not _each(views):
        raise ValueError("save_html: found nothing to show; expected results, views or texts; pass some, e.g. a trace.")
    if not isinstance(cast(object, path), str | Path) or not isinstance(cast(object, title), str):
        what, given = ("path", path) if not isinstance(cast(object, path), str | Path) else ("title", title)
        raise ValueError(
            f"save_html: {what} is {given!r} of type {type(given).__name__}; expected the path of a file, then what to "
            "show, and title= a string; call e.g. save_html('page.html', trace)."
        )
    whole = page(views, title=title)
    target = sources.given_path(path)
    try:
        _replace(target, whole)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"save_html: {target} cannot be written ({sources.reason(error)}); expected a file in a folder that is "
            "there; choose another path."
        ) from error


def _replace(target: Path, whole: str) -> None:
    half = target.with_name(target.name + ".part")
    try:
        # The same bytes on every system.
        with half.open("w", encoding="utf-8", newline="\n") as file:
            file.write(whole)
        half.replace(target)
    finally:
        with suppress(OSError, ValueError):
            half.unlink(missing_ok=True)


def _each(views: object) -> list[object]:
    """Views of lists and tuples, one after the other; of axes after each other those of one figure once."""
    if hasattr(views, "_repr_html_") or not isinstance(views, list | tuple):
        return [views]
    each = [inner for view in cast(Sequence[object], views) for inner in _each(view)]
    figures = [_figure(view) for view in each]
    return [view for i, view in enumerate(each) if figures[i] is None or i == 0 or figures[i] is not figures[i - 1]]


def _section(view: object) -> str:
    if isinstance(view, str):
        return f"<h2>{escape(view[2:])}</h2>" if view.startswith("# ") else f"<p>{escape(view)}</p>"
    if isinstance(view, View):
        return view.markup()
    shown = cast(Any, view)
    if not isinstance(view, type) and hasattr(view, "_repr_html_") and (html := shown._repr_html_()) is not None:
        return html
    figure = _figure(shown)
    if figure is None:
        raise ValueError(
            f"save_html: found something of type {type(view).__name__}; expected results of this package, views, "
            "axes of matplotlib, texts, or what shows itself in a notebook; leave it out."
        )
    image = io.BytesIO()
    # Text is dark on a figure that has no background of its own.
    background = figure.get_facecolor() if figure.get_facecolor()[3] else "white"
    figure.savefig(image, format="png", dpi=150, facecolor=background)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}">'


def _figure(axes: Any) -> Any:
    """Of axes, or of the first of an array of them; None for anything else."""
    several: list[Any] = list(getattr(axes, "flat", [axes]))
    figure = getattr(several[0], "figure", None) if several else None
    return figure if hasattr(figure, "savefig") else None
