"""Tokens as people see them: nothing is invisible, and nothing is taken for markup."""

from html import escape

ZERO_WIDTH_SPACE = "\u200b"
_TURNING = {
    ord(letter): f"⟨U+{ord(letter):04X}⟩" for letter in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
}
"""What turns the text behind it round, numbers included, stands as its name."""


def visible(token: str) -> str:
    """A token as text that shows its line breaks, and that it is there at all."""
    shown = token.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥").translate(_TURNING)
    return shown if shown.strip() else "␣" * max(1, len(shown))


def spaced(token: str) -> str:
    """`visible`, and leading spaces are seen, too, where tokens with and without one stand in tables."""
    shown = visible(token)
    bare = shown.lstrip(" ")
    return "␣" * (len(shown) - len(bare)) + bare


def cell_text(token: str) -> str:
    """A token as text of an HTML document."""
    return escape(visible(token))


def for_components(token: str) -> str:
    """A token for circuitsvis, which takes some tokens for HTML and others for text.

    A space without width after ``<`` and ``&`` reads the same either way, and ends all markup.
    """
    shown = visible(token)
    return shown.replace("<", f"<{ZERO_WIDTH_SPACE}").replace("&", f"&{ZERO_WIDTH_SPACE}")
