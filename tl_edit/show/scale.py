"""Colour scales: their ends, their colours, and the ink that is read on them.

Colours do not let the page through: white is zero on dark pages, too, and small values are seen there.
"""

from collections.abc import Sequence

from torch import Tensor

BLUE, RED = (33, 102, 172), (178, 24, 43)
"""Of positive and negative values; told apart by colour-blind readers, too."""
HALFWAY = 0.179
"""Luminance at which black and white are read as well as each other, with a contrast of 4.6 (WCAG 2)."""


def largest(tables: Sequence[Tensor]) -> float:
    """The largest size of a value, 0 where there is none; infinities have the colour at the end and do not set it."""
    finite = [table[table.isfinite()] for table in tables]
    return max((float(values.abs().max()) for values in finite if values.numel()), default=0.0)


def shade(value: float, top: float) -> str:
    """The style of a background: blue for positive values, red for negative ones, full at ``top``; NaN has none."""
    if value != value:
        return ""
    red, green, blue = _colour(value, top)
    return f"background-color:rgb({red},{green},{blue})"


def shade_text(value: float, top: float) -> str:
    """The same for what has text on it, which is black or white then."""
    return "" if value != value else f"{shade(value, top)};color:{ink(*_colour(value, top))}"


def ink(red: int, green: int, blue: int) -> str:
    """Black or white, whichever is read better on a colour."""
    parts = [part / 3294.6 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return "#000" if luminance > HALFWAY else "#fff"


def scale_note(unit: str, top: float, colours: tuple[str, str] = ("red", "blue")) -> str:
    """What colours mean, in words."""
    return f"{unit}; colours from -{top:.3g} ({colours[0]}) to {top:.3g} ({colours[1]})."


def _colour(value: float, top: float) -> tuple[int, int, int]:
    strength = min(1.0, abs(value) / top)
    red, green, blue = (round(255 + strength * (part - 255)) for part in (BLUE if value >= 0 else RED))
    return red, green, blue
