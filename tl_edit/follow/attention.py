"""Where heads look, without and with an edit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import forward, host, show, stream
from tl_edit.counted import counted
from tl_edit.edit import Edit
from tl_edit.follow.runs import Followed, Runs
from tl_edit.host import Model, NamedHook

OPERATION = "attention_change"
MAX_ROWS = 12
"""Heads in the table of a notebook."""

Which = Literal["difference", "before", "after"]


@dataclass(frozen=True, kw_only=True)
class HeadChange:
    """Where a head's attention changes most."""

    layer: int
    head: int
    dest: int
    """Position that looks."""
    src: int
    """Position that is looked at."""
    before: float
    """Attention, from 0 to 1."""
    after: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def name(self) -> str:
        """As "layer.head"."""
        return f"{self.layer}.{self.head}"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttentionChange(Followed):
    """Attention patterns by run; see `attention_change`."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    """The heads of each layer that were kept."""
    patterns: Float[Tensor, "run layer head dest src"]
    """Attention from each token to each, from 0 to 1, in float32 on the CPU; each row of ``src`` sums to 1."""

    @property
    def change(self) -> Float[Tensor, "layer head dest src"]:
        """After less before.

        Raises:
            ValueError: For the model alone.
        """
        return self.difference(self.patterns, "AttentionChange.change")

    def _by_run(self) -> tuple[Float[Tensor, "run ..."], ...]:
        return (self.patterns,)

    def strongest(self, k: int = MAX_ROWS) -> tuple[HeadChange, ...]:
        """The heads whose attention changes most, each at the place where it does, strongest first.

        Args:
            k: How many.

        Raises:
            ValueError: For the model alone, or a number that is none.
        """
        if type(k) is not int or k < 1:
            raise ValueError(
                f"AttentionChange.strongest: k is {k!r}; expected an integer of 1 or more; the default is {MAX_ROWS}."
            )
        size, place = self.change.abs().flatten(2).max(dim=2)
        order = size.flatten().argsort(descending=True, stable=True)[:k]
        n = len(self.tokens)
        found: list[HeadChange] = []
        for i in map(int, order):
            layer, head = divmod(i, len(self.heads))
            dest, src = divmod(int(place[layer, head]), n)
            values = [float(value) for value in self.patterns[:, layer, head, dest, src]]
            found.append(
                HeadChange(
                    layer=self.layers[layer],
                    head=self.heads[head],
                    dest=dest,
                    src=src,
                    before=values[0],
                    after=values[1],
                )
            )
        return tuple(found)

    def view(self, which: Which | None = None) -> show.View:
        """Patterns as circuitsvis shows them: hover over a token for what it looks at; strongest heads first.

        Args:
            which: "difference" (after less before), "before" or "after", with the heads in the order of their
                differences; None for the difference, or for the model alone its patterns.

        Raises:
            ValueError: If it is something else, or the difference of the model alone.
        """
        chosen: Which = which or ("difference" if self.compares else "before")
        if chosen not in get_args(Which) or (chosen == "after" and not self.compares):
            raise ValueError(
                f"AttentionChange.view: which is {which!r}; expected 'difference', 'before' or 'after' (of the model "
                "alone 'before'); leave it out."
            )
        shown = self.change if chosen == "difference" else self.patterns[int(chosen == "after")]
        unit = "attention after − before" if chosen == "difference" else "attention"
        return show.attention_view(
            shown.flatten(0, 1),
            [f"{layer}.{head}" for layer in self.layers for head in self.heads],
            self.tokens,
            heading=self.heading(f"Attention, {chosen if self.compares else self.runs[0]}, heads as layer.head"),
            unit=unit,
            strength=self.change.abs().flatten(2).amax(dim=2).flatten() if self.compares else None,
        )

    def to_dataframe(self) -> Any:
        """A pandas frame: one row for each layer, head, ``dest`` and ``src`` up to it, with the attention of each run.

        Raises:
            ImportError: If pandas is not installed.
        """
        n = len(self.tokens)
        # The pairs are chosen before there are rows: all of a long prompt are too many.
        dest, src = torch.tril_indices(n, n)
        axes = {"layer": self.layers, "head": self.heads, "pair": range(len(dest))}
        values = {run: each[..., dest, src] for run, each in zip(self.runs, self.patterns, strict=True)}
        frame = show.frame("AttentionChange.to_dataframe", axes, values)
        pair = frame.pop("pair").to_numpy()
        frame.insert(2, "dest", dest.numpy()[pair])
        frame.insert(3, "src", src.numpy()[pair])
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Heatmap, layer by head: the largest change of attention, wherever it is.

        Of the model alone the largest attention to an earlier token, the first one aside, on which many heads rest.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        values = self.change if self.compares else self._elsewhere()
        return show.plot_grid(
            values.abs().flatten(2).amax(dim=2),
            ax,
            rows=list(map(str, self.layers)),
            columns=list(map(str, self.heads)),
            ylabel="layer",
            xlabel="head",
            unit="largest |change| of attention" if self.compares else "largest attention to an earlier token",
            title=self.title("Attention"),
        )

    def _elsewhere(self) -> Float[Tensor, "layer head dest src"]:
        """Attention to earlier tokens than the own one, the first token aside, on which many heads rest."""
        n = len(self.tokens)
        mask = torch.ones(n, n).tril(-1)
        mask[:, 0] = 0
        return self.patterns[0] * mask

    def __repr__(self) -> str:
        heads = f"{counted(len(self.layers), 'layer')} of {counted(len(self.heads), 'head')}"
        if not self.compares or self.unchanged:
            return self.line(heads)
        top = self.strongest(1)[0]
        return self.line(f"{heads}, most {_signed(top.change)} in {top.name} {self._where(top)}")

    def _where(self, at: HeadChange) -> str:
        return f"{show.spaced(self.tokens[at.dest])} ← {show.spaced(self.tokens[at.src])}"

    def _repr_html_(self) -> str:
        if not self.compares:
            return show.heatmaps_html(
                [self._elsewhere().flatten(2).amax(dim=2).flip(0)],
                titles=["layer by head"],
                # The first one at the bottom, as in the figure.
                rows=[f"layer {layer}" for layer in reversed(self.layers)],
                columns=list(map(str, self.heads)),
                heading=self.heading("Largest attention to an earlier token, the first aside"),
                unit="attention",
            )
        listed = () if self.unchanged else self.strongest()
        rows = [
            (
                at.name,
                self._where(at),
                f"{at.dest} ← {at.src}",
                f"{at.before:.3f}",
                f"{at.after:.3f}",
                _signed(at.change),
            )
            for at in listed
        ]
        if not rows:
            return show.table([], heading=self.heading("Heads whose attention changes"))
        columns = ("layer.head", "dest ← src", "positions", "before", "after", "change")
        return show.table(rows, columns=columns, heading=self.heading("Heads whose attention changes most, and where"))


def _signed(change: float) -> str:
    """With three digits that tell something."""
    return f"{change:+.3f}" if abs(change) >= 0.0005 or change == 0 else f"{change:+.1e}"


def attention_change(
    model: Model,
    prompt: str,
    *,
    edit: Edit | None = None,
    hooks: Sequence[NamedHook] = (),
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    prepend_bos: bool | None = None,
) -> AttentionChange:
    """Attention patterns of a prompt, without and with an edit.

    Args:
        model: The model, without the edit. Other edits that are applied stay on in both runs.
        prompt: A string.
        edit: What is switched on for the second run, and off again; None for the model alone.
        hooks: Hooks of your own for the second run, as (name, function) pairs.
        layers: Whose patterns to keep, one or several; None for all.
        heads: Which heads of these layers to keep, one or several; None for all.
        prepend_bos: Whether the prompt begins with a BOS; None for what the edit was computed with, and without an edit
            for the model's own default.

    Returns:
        `AttentionChange`: ``patterns`` ``[run layer head dest src]``, ``change``; ``strongest(k)`` ranks heads,
        ``view()`` is interactive.

    Raises:
        ValueError: For a prompt that is too long, layers or heads that do not exist, an edit that is applied already or
            is another model's, hooks with an unknown name, active dropout, a model that does not show its patterns, or
            probabilities that are not finite.
    """
    runs = Runs.of(model, prompt, edit, hooks, prepend_bos, OPERATION)
    here = _chosen("layers", layers, host.n_layers(model))
    kept_heads = _chosen("heads", heads, int(model.cfg.n_heads))
    ids = runs.ids(prompt)

    # Room is made once, as all patterns of a long prompt are gigabytes.
    patterns = torch.empty(len(runs.names), len(here), len(kept_heads), len(ids), len(ids))
    free = iter(patterns)

    def measure(hooks: Sequence[NamedHook]) -> None:
        readers = {
            stream.pattern_name(layer): _into(to, kept_heads) for layer, to in zip(here, next(free), strict=True)
        }
        forward.log_probs(model, runs.watch(ids, readers, hooks))  # Refuses what is no number.

    runs.each(measure)
    return AttentionChange(**runs.labels(prompt, ids), layers=here, heads=kept_heads, patterns=patterns)


def _into(place: Float[Tensor, "head dest src"], heads: Sequence[int]) -> Callable[[Tensor], None]:
    """A reader that copies some heads' patterns to their place."""

    def read(act: Tensor) -> None:
        place.copy_(act[0, list(heads)])

    return read


def _chosen(what: str, given: object, n: int) -> tuple[int, ...]:
    """Numbers from 0 to ``n - 1``, ascending, each once; of one number, or a sequence, or None for all."""
    if given is None:
        return tuple(range(n))
    listed = list(cast(Sequence[object], given)) if isinstance(given, Sequence) else [given]
    if not listed or any(type(i) is not int or not 0 <= i < n for i in listed):
        raise ValueError(
            f"{OPERATION}: {what} is {given!r}; expected one or some of the numbers 0 to {n - 1}; pass e.g. {what}=0, "
            f"{what}=[0, 1], or leave it out for all."
        )
    return tuple(sorted(set(cast(list[int], listed))))
