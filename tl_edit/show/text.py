"""Tokens as people see them: nothing is invisible, and nothing is taken for markup."""

import re
from collections.abc import Sequence
from html import escape

ZERO_WIDTH_SPACE = "\u200b"

HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""Characters without a shape: they turn round the text behind them, end a line, or are none (halves of a character).
Those that join others, as in emoji, are left alone."""


def visible(token: str) -> str:
    """A token as text that shows its line breaks and what else is hidden, and that it is there at all."""
    shown = _named(token)
    return shown if shown.strip() else "␣" * max(1, len(shown))


def literal(text: str) -> str:
    """A text of an HTML document or of an attribute: nothing in it is markup, and nothing turns others round."""
    return escape(_named(text))


def spaced(token: str) -> str:
    """`visible`, and leading spaces are seen, too, where tokens with and without one stand in tables."""
    shown = visible(token)
    bare = shown.lstrip(" ")
    return "␣" * (len(shown) - len(bare)) + bare


def drawable(text: str) -> str:
    """A text for matplotlib, in the same lines: nothing turns others round, and no half of a character stops it."""
    return "\n".join(map(_named, text.split("\n")))


def ending(tokens: Sequence[str], most: int) -> str:
    """The last tokens as one text of so many letters at most, none of them in part unless it alone is longer."""
    if not tokens:
        return ""
    text = visible("".join(tokens))
    if len(text) <= most:
        return text
    first = len(tokens) - 1
    while first > 0 and len(visible("".join(tokens[first - 1 :]))) < most:
        first -= 1
    return f"…{visible(''.join(tokens[first:]))[1 - most :]}"


def cell_text(token: str) -> str:
    """A token as text of an HTML document."""
    return escape(visible(token))


def for_components(token: str) -> str:
    """A token for circuitsvis, which takes some tokens for HTML and others for text.

    A space without width after ``<`` and ``&`` reads the same either way, and ends all markup.
    """
    shown = visible(token)
    return shown.replace("<", f"<{ZERO_WIDTH_SPACE}").replace("&", f"&{ZERO_WIDTH_SPACE}")


def _named(text: str) -> str:
    """Line breaks as signs, and what else is hidden by its number."""
    shown = text.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥")
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", shown)
