"""Labelled arrays as components of circuitsvis, each with a static form; colours are symmetric and shared."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor

from tl_edit.show.heatmaps import heatmaps_html
from tl_edit.show.scale import BLUE, RED, largest, scale_note, shade_text
from tl_edit.show.tables import table
from tl_edit.show.text import ZERO_WIDTH_SPACE, cell_text, for_components, visible
from tl_edit.show.view import Part, View

MAX_TOKENS = 120
"""Tokens that a view shows; the last ones, since prompts end with what matters."""
_OWN = ("red or orange", "blue or violet")
"""In static forms, or where circuitsvis takes no other colours than its own."""
MAX_HEADS = 12
"""Heads that a view shows."""
MAX_LIKELIEST = 20
"""Tokens that a view lists in each place."""
NEVER = 1e4
"""What stands for an infinite log-probability, in nats."""


def tokens_view(
    tokens: Sequence[str],
    values: Float[Tensor, "token column"],
    columns: Sequence[str],
    *,
    heading: str,
    unit: str,
) -> View:
    """Coloured tokens, with a button for each column; all columns have one symmetric scale, and so one unit."""
    start = max(0, len(tokens) - MAX_TOKENS)
    kept, shown = list(tokens[start:]), values[start:]
    top = _largest(shown)
    props: dict[str, Any] = {
        "tokens": list(map(for_components, kept)),
        "values": _plain(shown, top),
        "labels": list(columns),
        "positiveBounds": [top] * len(columns),
        "negativeBounds": [-top] * len(columns),
    }
    static = "".join(
        f'<div style="margin:2px 0">{_static(name)}{_spans(kept, shown[:, i], top)}</div>'
        for i, name in enumerate(columns)
    )
    note = scale_note(unit, top, _OWN) + _left_out(start, "tokens")
    return View(parts=(Part(component="ColoredTokensMulti", props=props, static=static),), heading=heading, note=note)


def layers_view(
    tokens: Sequence[str],
    values: Float[Tensor, "kind token layer"],
    kinds: Sequence[str],
    layers: Sequence[str],
    *,
    heading: str,
    unit: str,
) -> View:
    """Coloured tokens, a row for each kind, with a choice of the layer; one symmetric scale for all of it."""
    start = max(0, len(tokens) - MAX_TOKENS)
    kept, shown = list(tokens[start:]), values[:, start:]
    top = _largest(shown)
    width = max(map(len, kinds))
    # The first token of each row is its name. The component scales colours by what there is, positive and negative
    # values apart, and two tokens without width make that symmetric and the same for all layers.
    names = [f"{kind:>{width}} │ " for kind in kinds]
    rows = [[for_components(name), *map(for_components, kept), ZERO_WIDTH_SPACE, ZERO_WIDTH_SPACE] for name in names]
    zero, ends = [[0.0]] * len(layers), [[[top]] * len(layers), [[-top]] * len(layers)]
    activations = [[zero, *([[value] for value in token] for token in _plain(kind, top)), *ends] for kind in shown]
    props: dict[str, Any] = {
        "tokens": rows,
        "activations": activations,
        "firstDimensionName": "Layer",
        "secondDimensionName": "Unit",
        "firstDimensionLabels": list(layers),
        "secondDimensionLabels": [unit],
    }
    static = heatmaps_html(
        list(shown), titles=kinds, rows=kept, columns=layers, heading="", unit="", per_line=len(kinds)
    )
    note = scale_note(unit, top, _OWN) + _left_out(start, "tokens")
    return View(
        parts=(Part(component="TextNeuronActivations", props=props, static=static),), heading=heading, note=note
    )


def log_probs_view(
    tokens: Sequence[str],
    likeliest: Mapping[str, Sequence[Sequence[str]]],
    log_probs: Mapping[str, Float[Tensor, "token k"]],
    ranks: Mapping[str, Int[Tensor, " token"]],
    own: Mapping[str, Float[Tensor, " token"]],
    *,
    heading: str,
) -> View:
    """What a model says behind each token, once for each name (before, after), below each other.

    Args:
        tokens: One more than there are predictions: the last is only predicted.
        likeliest: Of each place, the tokens that are the likeliest next, by name.
        log_probs: Their log-probabilities.
        ranks: Of each place, the rank of the token that follows, from 1; the component counts from 0.
        own: Its log-probability.
        heading: Text above.
    """
    start = max(0, len(tokens) - MAX_TOKENS)
    parts: list[Part] = []
    for name in likeliest:
        props: dict[str, Any] = {
            "prompt": list(map(for_components, tokens[start:])),
            "topKLogProbs": _plain(log_probs[name][start:, :MAX_LIKELIEST], NEVER),
            "topKTokens": [list(map(for_components, several[:MAX_LIKELIEST])) for several in likeliest[name][start:]],
            "correctTokenRank": (ranks[name][start:] - 1).tolist(),
            "correctTokenLogProb": _plain(own[name][start:], NEVER),
        }
        rows = [
            (
                visible(tokens[i + 1]),
                f"{float(own[name][i]):.2f}",
                str(int(ranks[name][i])),
                "  ".join(
                    f"{visible(said)} {float(value):.2f}"
                    for said, value in zip(likeliest[name][i][:3], log_probs[name][i][:3], strict=True)
                ),
            )
            for i in range(start, len(tokens) - 1)
        ]
        static = table(rows, columns=("token", "log p", "rank", "likeliest here"))
        parts.append(Part(component="TokenLogProbs", props=props, static=static, title=name))
    note = (
        "Colours: probability of each token behind those before it, the redder, the likelier (circuitsvis has no "
        "others here). Hover over a token for the likeliest in its place: log-probabilities in nats, ranks from 0, as "
        "circuitsvis counts them."
    )
    return View(parts=tuple(parts), heading=heading, note=note + _left_out(start, "tokens"), beside=True)


def attention_view(
    patterns: Float[Tensor, "head dest src"],
    names: Sequence[str],
    tokens: Sequence[str],
    *,
    heading: str,
    unit: str,
    strength: Float[Tensor, " head"] | None = None,
) -> View:
    """Attention patterns or their differences, on one symmetric scale, strongest heads first.

    Args:
        patterns: Of each head.
        names: Of the heads.
        tokens: Of the text.
        heading: Text above.
        unit: What the values are.
        strength: What to order the heads by; None for their largest values.
    """
    ranked = patterns.abs().flatten(1).amax(dim=1) if strength is None else strength
    order = ranked.argsort(descending=True, stable=True)[:MAX_HEADS]
    start = max(0, len(tokens) - MAX_TOKENS // 2)
    kept, shown = list(tokens[start:]), patterns[order][:, start:, start:]
    labels = [names[int(i)] for i in order]
    top = _largest(shown)
    red, blue = (f"rgb{colour}" for colour in (RED, BLUE))
    props: dict[str, Any] = {
        "attention": _plain(shown, top),
        "tokens": list(map(for_components, kept)),
        "attentionHeadNames": labels,
        "maxValue": top,
        "minValue": -top,
        "positiveColor": blue,
        "negativeColor": red,
        "maskUpperTri": True,
    }
    static = heatmaps_html(list(shown), titles=labels, rows=kept, columns=_numbered(kept), heading="", unit="")
    note = scale_note(unit, top) + _left_out(start, "tokens") + _left_out(len(names) - len(labels), "heads", "weakest")
    return View(parts=(Part(component="AttentionHeads", props=props, static=static),), heading=heading, note=note)


def samples_view(
    contexts: Sequence[Sequence[Sequence[str]]],
    values: Sequence[Sequence[Float[Tensor, " _"]]],
    names: Sequence[str],
    *,
    heading: str,
    unit: str,
) -> View:
    """Texts by neuron, strongest first, their tokens coloured by its activation.

    Args:
        contexts: Of each neuron, of each text, the tokens.
        values: Of each neuron, of each text, the value at each token.
        names: Of the neurons.
        heading: Text above.
        unit: What the values are.
    """
    tops = [max((_largest(each) for each in several), default=1.0) for several in values]
    # The component scales positive and negative values apart: two tokens without width make that symmetric.
    ends = [ZERO_WIDTH_SPACE, ZERO_WIDTH_SPACE]
    props: dict[str, Any] = {
        "tokens": [[[[*map(for_components, text), *ends] for text in texts] for texts in contexts]],
        "activations": [
            [[[*_plain(each, top), top, -top] for each in several] for several, top in zip(values, tops, strict=True)]
        ],
        "zerothDimensionName": "Layer",
        "firstDimensionName": "Neuron",
        "zerothDimensionLabels": ["all"],
        "firstDimensionLabels": list(names),
    }
    static = "".join(
        f'<div style="margin:4px 0">{_static(name)}'
        + "".join(
            f'<div style="margin:2px 0 2px 12px">{_spans(text, each, top)}</div>'
            for text, each in zip(texts, several, strict=True)
        )
        + "</div>"
        for name, texts, several, top in zip(names, contexts, values, tops, strict=True)
    )
    part = Part(component="TopkSamples", props=props, static=static)
    return View(parts=(part,), heading=heading, note=f"{unit}; colours of each neuron up to its largest value.")


def _largest(values: Tensor) -> float:
    """The largest size of a value, rounded up so that none is beyond the scale; 1 where there is none."""
    return float(f"{1.0005 * largest([values]):.4g}") or 1.0


def _plain(values: Tensor, end: float) -> list[Any]:
    """As nested lists of four digits, since components print what they get; what is no number is zero.

    JSON has no infinity: it is ``end``.
    """
    if values.ndim > 1:
        return [_plain(each, end) for each in values]
    shown = cast(list[float], values.double().nan_to_num(0.0, end, -end).tolist())
    return [float(f"{value:.4g}") for value in shown]


def _numbered(tokens: Sequence[str]) -> list[str]:
    return [str(i) for i in range(len(tokens))]


def _left_out(n: int, what: str, which: str = "first") -> str:
    return f" The {n} {which} {what} are left out." if n > 0 else ""


def _static(name: str) -> str:
    return f'<span style="display:inline-block;min-width:90px;opacity:.75">{cell_text(name)}</span>'


def _spans(tokens: Sequence[str], values: Float[Tensor, " token"], top: float) -> str:
    """Tokens with the value behind each of them, as a title and as a colour."""
    return "".join(
        f'<span title="{float(value):.4g}" style="white-space:pre;{shade_text(float(value), top)}">'
        f"{cell_text(token)}</span>"
        for token, value in zip(tokens, values, strict=True)
    )
