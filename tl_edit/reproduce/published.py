"""The numbers that the papers print, as they print them: per cent, and generation entropy times 100."""

from collections.abc import Mapping
from dataclasses import dataclass

ROME_PAPER, MEMIT_PAPER = "Meng et al. 2022, arXiv 2202.05262", "Meng et al. 2023, arXiv 2210.07229"
PAPER_MODELS = ("gpt2-medium", "gpt2-large", "gpt2-xl", "gpt-j-6b", "gpt-neox-20b")
"""Models of the papers, by the names that `published_name` gives; they were asked without a BOS."""


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A line of a paper's table."""

    model: str
    editor: str
    """As in `tl_edit.sweep.named.NAMES`."""
    data: str
    """"CounterFact" or "zsRE"."""
    n_records: int
    n_edits: int
    """Edits in the model at once."""
    values: Mapping[str, float]
    """By metric, see `tl_edit.evaluate.MEASURES`."""
    source: str
    """Paper and table."""


def published_name(model_name: str) -> str:
    """A model's name without its owner, in small letters."""
    return model_name.split("/")[-1].lower()


def published_row(model_name: str, editor: str, *, data: str, n_edits: int) -> PublishedRow | None:
    """What was published for a model, an editor, a data set and a number of edits at once; None where nothing was."""
    wanted = (published_name(model_name), editor, data, n_edits)
    return next((row for row in PUBLISHED if (row.model, row.editor, row.data, row.n_edits) == wanted), None)


_SINGLE = ("S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS")
_MASS = ("S", "ES", "PS", "NS", "GE", "RS")
_ZSRE = ("ET", "PT", "UT")
_Numbers = Mapping[str, Mapping[str, tuple[float, ...]]]
"""By model and editor."""

_COUNTERFACT: _Numbers = {
    "gpt2-medium": {
        "none": (33.4, 25.0, -3.3, 27.4, -3.0, 74.9, 3.6, 625.8, 31.4),
        "rome": (87.4, 100.0, 94.9, 96.4, 56.9, 71.8, 2.8, 625.0, 41.7),
    },
    "gpt2-large": {
        "none": (32.8, 23.9, -4.0, 27.4, -3.5, 75.7, 4.3, 625.4, 31.8),
        "rome": (88.2, 99.9, 98.2, 96.3, 60.4, 73.4, 3.5, 622.5, 41.9),
    },
    "gpt2-xl": {
        "none": (30.5, 22.2, -4.8, 24.7, -5.0, 78.1, 5.0, 626.6, 31.9),
        "rome": (89.2, 100.0, 97.9, 96.4, 62.7, 75.4, 4.2, 621.9, 41.9),
    },
    "gpt-j-6b": {
        "none": (23.6, 16.3, -7.2, 18.6, -7.4, 83.0, 7.3, 621.8, 29.8),
        "rome": (91.5, 99.9, 99.4, 99.1, 74.1, 78.9, 5.2, 620.1, 43.0),
    },
}
_ZSRE_SINGLE: _Numbers = {
    "gpt2-medium": {"none": (18.8, 18.1, 21.3), "rome": (96.6, 79.8, 21.3)},
    "gpt2-large": {"none": (20.6, 19.8, 22.5), "rome": (99.6, 84.7, 22.5)},
    "gpt2-xl": {"none": (22.2, 21.3, 24.2), "rome": (99.8, 88.1, 24.2)},
}
_COUNTERFACT_MASS: _Numbers = {
    "gpt-j-6b": {
        "none": (22.4, 15.2, 17.7, 83.5, 622.4, 29.4),
        "memit": (85.8, 98.9, 88.6, 73.7, 619.9, 40.1),
    },
    "gpt-neox-20b": {
        "none": (23.7, 16.8, 18.3, 81.6, 620.4, 29.3),
        "memit": (82.0, 97.2, 82.2, 70.8, 606.4, 36.9),
    },
}
_ZSRE_MASS: _Numbers = {
    "gpt-j-6b": {"none": (26.4, 26.4, 25.8, 27.0), "memit": (50.7, 96.7, 89.7, 26.6)},
}


def _rows(
    table: _Numbers, keys: tuple[str, ...], source: str, *, n_edits: int = 1, n_records: int = 10_000
) -> tuple[PublishedRow, ...]:
    """The rows of one table; GPT-J's single edits were of fewer records."""
    return tuple(
        PublishedRow(
            model=model,
            editor=editor,
            data="CounterFact" if "ES" in keys else "zsRE",
            n_records=2000 if model == "gpt-j-6b" and n_edits == 1 else n_records,
            n_edits=n_edits,
            values=dict(zip(keys, numbers, strict=True)),
            source=source,
        )
        for model, editors in table.items()
        for editor, numbers in editors.items()
    )


PUBLISHED: tuple[PublishedRow, ...] = (
    *_rows(_COUNTERFACT, _SINGLE, f"{ROME_PAPER}, single edits on CounterFact", n_records=7500),
    *_rows(_ZSRE_SINGLE, _ZSRE, f"{ROME_PAPER}, single edits on zsRE"),
    *_rows(_COUNTERFACT_MASS, _MASS, f"{MEMIT_PAPER}, 10,000 edits on CounterFact", n_edits=10_000),
    *_rows(_ZSRE_MASS, ("TS", *_ZSRE), f"{MEMIT_PAPER}, 10,000 edits on zsRE", n_edits=10_000),
)
"""All rows: the editors that are here, and the models as they were."""


@dataclass(frozen=True, kw_only=True)
class PublishedEffect:
    """A mean probability or effect of causal tracing, in per cent."""

    value: float
    layer: int | None = None
    """Where it is strongest."""


TRACED, TRACED_DATA = "gpt2-xl", "KnownFacts"
TRACE_SOURCE = f"{ROME_PAPER}, causal tracing of GPT-2 XL"
TRACED_FACTS = 1000
TRACED_MEANS: Mapping[str, PublishedEffect] = {
    "clean probability": PublishedEffect(value=27.0),
    "corrupted probability": PublishedEffect(value=8.47),
    "total effect": PublishedEffect(value=18.6),
}
TRACED_PEAKS: Mapping[tuple[str, str], PublishedEffect] = {
    ("resid_post", "last subject token"): PublishedEffect(value=8.7, layer=15),
    ("mlp_out", "last subject token"): PublishedEffect(value=6.6, layer=17),
    ("attn_out", "last subject token"): PublishedEffect(value=1.6),
    # Printed is the probability with restoration, 16.5; the corrupted one is 8.47.
    ("attn_out", "last token"): PublishedEffect(value=8.0, layer=32),
}
"""Strongest mean indirect effects, by kind and role of the token."""
