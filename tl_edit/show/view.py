"""circuitsvis' components in pages and notebooks, with their script inside and a static form below it.

The package's own way to show a component asks the network on every display, lets a token be markup, and shows nothing
where scripts do not run. Here the component and its properties are kept as they are, the static form stands where the
component will be drawn, and the script (React and all, 0.5 MB compressed) is in the page. Nothing is fetched.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any

from tl_edit.show.text import literal

CARD = "padding:8px;font-family:sans-serif;font-size:12px;overflow-x:auto"
WHITE = "background:#fff;color:#222;color-scheme:light"
"""circuitsvis writes in dark grey on what is behind it; so that is white, in dark notebooks, too."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One component of circuitsvis."""

    component: str
    """Its name in circuitsvis' script."""
    props: Mapping[str, Any]
    """Its properties, JSON's own values; tokens as `text.for_components` makes them."""
    static: str
    """HTML without a script, for where scripts do not run."""
    title: str = ""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class View:
    """An interactive picture: in a notebook the last line of a cell, in a page by `save_html`."""

    parts: tuple[Part, ...]
    heading: str
    note: str = ""
    """What colours mean, and what was left out."""
    beside: bool = False
    """Whether parts stand beside each other where there is room."""

    @property
    def static(self) -> str:
        """The form without scripts, some kilobytes of HTML."""
        return card(self.heading, self._placed([part.static for part in self.parts]), self.note, WHITE)

    def markup(self) -> str:
        """What stands in a page that has the script of `library_script`."""
        body = self._placed([f'<div data-tl-edit="{_key(part)}">{part.static}</div>' for part in self.parts])
        return card(self.heading, body, self.note, WHITE) + "".join(map(_drawing, self.parts))

    def _placed(self, bodies: Sequence[str]) -> str:
        each = "flex:1 1 380px;min-width:0" if self.beside else ""
        parts = zip(self.parts, bodies, strict=True)
        body = "".join(f'<div style="{each}">{_title(part)}{own}</div>' for part, own in parts)
        return f'<div style="display:flex;flex-wrap:wrap;gap:0 24px">{body}</div>' if self.beside else body

    def _repr_html_(self) -> str:
        return library_script() + self.markup()

    def __repr__(self) -> str:
        return f"View({', '.join(part.component for part in self.parts)}: {self.heading})"


def card(heading: str, body: str, note: str = "", colours: str = "") -> str:
    """HTML with a heading above and a note below, in the colours of the page unless there are others."""
    below = f'<div style="margin:4px 0;opacity:.75">{literal(note)}</div>' if note else ""
    above = f'<div style="margin:4px 0;font-weight:bold">{literal(heading)}</div>'
    return f'<div style="{CARD};{colours}">{above}{body}{below}</div>'


def library_script() -> str:
    """Circuitsvis as one script element; where a document has several, the first is run."""
    source = files("circuitsvis").joinpath("dist/cdn/iife.js").read_text("utf-8").split("//# sourceMappingURL")[0]
    # The same bytes each time, so that saved notebooks do not change for nothing.
    packed = base64.b64encode(gzip.compress(source.encode(), mtime=0)).decode()
    return (
        "<script>window.tlEditCircuitsVis = window.tlEditCircuitsVis || (async () => {"
        f'const packed = Uint8Array.from(atob("{packed}"), (letter) => letter.charCodeAt(0));'
        'const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));'
        'const script = document.createElement("script");'
        "script.textContent = await new Response(unpacked).text();"
        "document.head.append(script); return window.CircuitsVis;})();</script>"
    )


def _title(part: Part) -> str:
    return f'<div style="margin:8px 0 2px">{literal(part.title)}</div>' if part.title else ""


def _drawing(part: Part) -> str:
    """The script that draws a part wherever it stands and is not drawn yet."""
    place = f"document.querySelectorAll('[data-tl-edit=\"{_key(part)}\"]:not([data-drawn])')"
    return (
        f"<script>window.tlEditCircuitsVis.then((library) => {place}.forEach((place) => {{"
        'place.dataset.drawn = "yes"; place.id = "tl-edit-" + Math.random().toString(36).slice(2);'
        f"library.render(place.id, library.{part.component}, {_json(part.props)});}}));</script>"
    )


def _key(part: Part) -> str:
    """Tells a part from others by its content."""
    return sha256(f"{part.component} {_json(part.props)}".encode()).hexdigest()[:16]


def _json(props: Mapping[str, Any]) -> str:
    """As a script may hold it: no markup begins in it."""
    return json.dumps(props, allow_nan=False).replace("<", "\\u003c")
