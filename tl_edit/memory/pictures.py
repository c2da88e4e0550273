"""How memories show themselves: their triggers as lines of a table, and as bars."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tl_edit import show

if TYPE_CHECKING:
    from tl_edit.memory.result import Trigger

SHOWN_TRIGGERS, SHOWN_TOKENS, SHOWN_CONTEXT = 5, 6, 16
"""Of each memory in a table: triggers, tokens, and tokens of a trigger."""
BARS = 20
"""Triggers of a picture."""
BEFORE = 40
"""Letters before a bar's token."""


def trigger_lines(triggers: Sequence["Trigger"]) -> list[str | show.Marked]:
    """The first triggers of a memory, the same contexts as one."""
    several = _same(triggers)[:SHOWN_TRIGGERS]
    # Tokens at which a coefficient is negative may be further from zero than any trigger.
    top = max((float(each[0].coefficients.nan_to_num(0.0).abs().max()) for each in several), default=0.0) or 1.0
    return [
        show.Marked(
            tokens=each[0].tokens[-SHOWN_CONTEXT:],
            values=each[0].coefficients[-SHOWN_CONTEXT:],
            top=top,
            label=f"{each[0].coefficient:.3g}",
            before="…" if len(each[0].tokens) > SHOWN_CONTEXT else "",
            after=_after(each),
        )
        for each in several
    ]


def token_lines(tokens: Sequence[tuple[str, float]]) -> list[str | show.Marked]:
    """The first tokens of a value, with their scores."""
    none = torch.full((1,), torch.nan)
    return [
        show.Marked(tokens=[token], values=none, framed=False, label=f"{score:.2f}")
        for token, score in tokens[:SHOWN_TOKENS]
    ]


def plot_triggers(triggers: Sequence[tuple[str, Sequence["Trigger"]]], ax: Any, *, unit: str, title: str) -> Any:
    """Bars of the strongest triggers of some memories, each memory with a name; returns the axes.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    found = [(each, f"{name}: " if name else "") for name, several in triggers for each in _same(several)]
    strongest = sorted(found, key=lambda pair: -pair[0][0].coefficient)[:BARS]
    return show.plot_bars(
        {"": torch.tensor([each[0].coefficient for each, _ in strongest], dtype=torch.float64)},
        ax,
        groups=[f"{name}{_in_context(each[0])}{_after(each)}" for each, name in strongest],
        ylabel=unit,
        title=title,
        flat=True,
    )


def _same(triggers: Sequence["Trigger"]) -> list[list["Trigger"]]:
    """Triggers by their context."""
    same: dict[tuple[str, ...], list[Trigger]] = {}
    for trigger in triggers:
        same.setdefault(trigger.tokens, []).append(trigger)
    return list(same.values())


def _in_context(trigger: "Trigger") -> str:
    """The token in brackets behind what stands before it."""
    *earlier, token = trigger.tokens
    return f"{show.ending(earlier, BEFORE)}[{show.visible(token)}]"


def _after(same: Sequence["Trigger"]) -> str:
    """What stands behind triggers with the same context: the tokens that follow."""
    following = dict.fromkeys(
        (each.next_token, each.agrees) if each.next_token is not None else ("(end)", False) for each in same
    )
    said = "  ".join(f"{show.visible(token)}{' ✓' if agrees else ''}" for token, agrees in list(following)[:3])
    more = ", …" if len(following) > 3 else ""
    times = f"  ({len(same)} times)" if len(same) > 1 else ""
    return f" → {said}{more}{times}"
