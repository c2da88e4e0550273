"""What memories hold: the contexts that trigger their keys, and the tokens that their values speak for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import show
from tl_edit.counted import counted
from tl_edit.host import Provenance
from tl_edit.memory.pictures import plot_triggers, token_lines, trigger_lines

By = Literal["layer", "trigger", "context"]

SHOWN = 20
"""Memories of a table."""
VIEWED = 50
"""Memories of a view."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trigger:
    """A context that triggers a key: a text up to the token at which the coefficient is that large."""

    coefficient: float
    text_index: int
    """Which of the texts, counted from 0."""
    position: int
    """Of the triggering token, BOS counted."""
    tokens: tuple[str, ...]
    """The triggering token and those before it, as many as were kept."""
    coefficients: Float[Tensor, " token"]
    """At these tokens; NaN at a BOS."""
    next_token: str | None
    """The token that follows in the text; None at its end."""
    agrees: bool
    """Whether that is the value's top token."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class KeyValueMemory:
    """Keys by their triggers and values by their tokens; tensors on the CPU.

    A memory is a neuron of an MLP (its key a column of ``W_in``, its value a row of ``W_out``), or a factor of an edit
    (the direction of keys it answers to, and what it answers). Memories of all layers stand on one axis.
    """

    title: str
    """Whose memories they are."""
    of_edit: bool
    """Whether they are factors of an edit; otherwise neurons."""
    layers: tuple[int, ...]
    """Of each memory."""
    neurons: tuple[int, ...]
    """Number of each memory in its layer: of the neuron, or of the edit's factor."""
    names: tuple[str, ...]
    """E.g. "layer 1, neuron 64", or the subject that an edit's factor is for."""
    coefficient: Float[Tensor, "memory trigger"]
    """At the triggers, strongest first: the neuron's post-activation, or how far the edit's factor moves the answer, in
    units of the MLP's output. NaN where the texts have no more places."""
    text_index: Int[Tensor, "memory trigger"]
    """Which text a trigger is in, counted from 0; -1 where there is none."""
    position: Int[Tensor, "memory trigger"]
    """Of the triggering token, BOS counted; -1 where there is none."""
    next_id: Int[Tensor, "memory trigger"]
    """The token that follows; -1 where there is none."""
    context_ids: Int[Tensor, "memory trigger window"]
    """Tokens up to the triggering one, which is the last; -1 before a text's first."""
    context_coefficient: Float[Tensor, "memory trigger window"]
    """The coefficient at these; NaN at a BOS and before a text's first token."""
    top_ids: Int[Tensor, "memory token"]
    """The tokens that the value speaks for most, most first; of equal ones the lower number first."""
    top_scores: Float[Tensor, "memory token"]
    """What a coefficient of 1 adds to their logits, before the division by the norms' lengths, less the mean over the
    vocabulary."""
    bottom_ids: Int[Tensor, "memory token"]
    """The tokens that it speaks against, the worst first."""
    bottom_scores: Float[Tensor, "memory token"]
    next_rank: Int[Tensor, " memory"]
    """Rank from 0 of the first trigger's next token in the value; -1 where there is none."""
    control_rank: Int[Tensor, " memory"]
    """The same in the value of another memory of the layer, drawn by ``seed``; -1 where there is none."""
    value_norm: Float[Tensor, " memory"]
    """Length of the value, in units of the MLP's output: a coefficient of 1 moves it so far. 1 of an edit's factor."""
    vocabulary: Mapping[int, str]
    """All tokens that occur here, decoded."""
    n_vocab: int
    n_texts: int
    n_tokens: int
    """How many were read and counted."""
    one_per_text: bool
    final_norm: bool
    negative: bool
    seed: int
    provenance: Provenance

    # --- agreement ---------------------------------------------------------------------------------

    @property
    def layer_axis(self) -> tuple[int, ...]:
        """The layers, each once, in their order."""
        return tuple(dict.fromkeys(self.layers))

    @property
    def agrees(self) -> Float[Tensor, "memory trigger"]:
        """1 where a trigger's next token is the value's top token, 0 where not, NaN where there is no next token."""
        return (self.next_id == self.top_ids[:, :1]).double().masked_fill(self.next_id < 0, torch.nan)

    @property
    def agreement(self) -> Float[Tensor, "layer trigger"]:
        """Share of the memories whose trigger is followed by the value's top token; the paper's is at trigger 0."""
        return self._by_layer(self.agrees)

    @property
    def chance(self) -> Float[Tensor, "layer trigger"]:
        """The same with every value but the memory's own, of its layer, in its place: the mean over all of them."""
        return self._by_layer(self._agrees_elsewhere())

    def permuted_agreement(self, n_draws: int = 1000, *, seed: int = 0) -> Float[Tensor, "layer draw"]:
        """The agreement of first triggers with values permuted among the memories of a layer, none at its own place.

        NaN for layers of one memory.

        Raises:
            ValueError: If ``n_draws`` is no integer of 1 or more, or ``seed`` is no integer.
        """
        if type(n_draws) is not int or n_draws < 1 or type(seed) is not int:
            raise ValueError(
                f"KeyValueMemory.permuted_agreement: n_draws is {n_draws!r} and seed is {seed!r}; expected integers, 1 "
                "or more draws; the defaults are 1000 and 0."
            )
        generator = torch.Generator().manual_seed(seed)
        found: list[Tensor] = []
        for own in self._of_layers():
            following, top = self.next_id[own, 0], self.top_ids[own, 0]
            n = int((following >= 0).sum()) if len(top) > 1 else 0
            hits = torch.full((n_draws,), torch.nan, dtype=torch.float64)
            for draw in range(n_draws if n else 0):
                # One cycle, as `elsewhere` draws it: nothing stays at its place.
                order = torch.randperm(len(top), generator=generator)
                hits[draw] = (following[order] == top[order].roll(1)).sum()
            found.append(hits / n if n else hits)
        return torch.stack(found)

    def _agrees_elsewhere(self) -> Float[Tensor, "memory trigger"]:
        """Of each trigger, the share of the layer's other values whose top token follows it."""
        found = torch.full(self.next_id.shape, torch.nan, dtype=torch.float64)
        for own in self._of_layers():
            top, following = self.top_ids[own, 0], self.next_id[own]
            counts = torch.bincount(top, minlength=int(max(top.max(), following.max())) + 1)
            others = counts[following.clamp(min=0)] - (following == top[:, None]).long()
            share = others.double() / (len(own) - 1) if len(own) > 1 else torch.full_like(others.double(), torch.nan)
            found[own] = share.masked_fill(following < 0, torch.nan)
        return found

    def _by_layer(self, values: Float[Tensor, "memory trigger"]) -> Float[Tensor, "layer trigger"]:
        return torch.stack([values[own].nanmean(dim=0) for own in self._of_layers()])

    def _of_layers(self) -> list[Int[Tensor, " some"]]:
        """Which memories are of each layer."""
        layers = torch.tensor(self.layers)
        return [(layers == layer).nonzero()[:, 0] for layer in self.layer_axis]

    # --- one memory --------------------------------------------------------------------------------

    def triggers(self, neuron: int, *, layer: int | None = None) -> list[Trigger]:
        """The contexts that trigger a memory most, strongest first.

        Args:
            neuron: Its number.
            layer: Its layer; None where the number is there once.

        Raises:
            ValueError: If there is no such memory, or there are several.
        """
        return self._triggers(self._index(neuron, layer, "triggers"))

    def _triggers(self, i: int) -> list[Trigger]:
        return [self._trigger(i, int(j)) for j in (self.text_index[i] >= 0).nonzero()[:, 0]]

    def top_tokens(self, neuron: int, n: int | None = None, *, layer: int | None = None) -> list[tuple[str, float]]:
        """The tokens that a memory's value speaks for most, with their scores; see `triggers`.

        Raises:
            ValueError: If ``n`` is more than were kept, and as `triggers`.
        """
        return self._tokens("top_tokens", self.top_ids, self.top_scores, neuron, n, layer)

    def bottom_tokens(self, neuron: int, n: int | None = None, *, layer: int | None = None) -> list[tuple[str, float]]:
        """The tokens that a memory's value speaks against, the worst first; see `top_tokens`."""
        return self._tokens("bottom_tokens", self.bottom_ids, self.bottom_scores, neuron, n, layer)

    def _tokens(
        self, name: str, ids: Tensor, scores: Tensor, neuron: int, n: int | None, layer: int | None
    ) -> list[tuple[str, float]]:
        kept = ids.shape[1]
        if n is not None and (type(n) is not int or not 1 <= n <= kept):
            raise ValueError(
                f"KeyValueMemory.{name}: n is {n!r}; expected an integer from 1 to {kept}, as so many were kept; pass "
                "n_tokens= for more when the memories are read."
            )
        i = self._index(neuron, layer, name)
        return self._decoded(ids[i], scores[i])[:n]

    def _decoded(self, ids: Int[Tensor, " token"], scores: Float[Tensor, " token"]) -> list[tuple[str, float]]:
        return [(self.vocabulary[int(token)], float(score)) for token, score in zip(ids, scores, strict=True)]

    def _index(self, neuron: object, layer: object, name: str) -> int:
        there = [
            i
            for i, (of, number) in enumerate(zip(self.layers, self.neurons, strict=True))
            if number == neuron and (layer is None or of == layer)
        ]
        if len(there) == 1 and type(neuron) is int:
            return there[0]
        where = "" if layer is None else f" in layer {layer!r}"
        if there:
            raise ValueError(
                f"KeyValueMemory.{name}: {neuron!r} is in layers {[self.layers[i] for i in there]}; expected one; pass "
                f"layer={self.layers[there[0]]}."
            )
        pairs = list(zip(self.layers, self.neurons, strict=True))
        known = "; ".join(f"{number} of layer {of}" for of, number in pairs[:8])
        more = "; ..." if len(pairs) > 8 else ""
        remedy = "choose another" if self.of_edit else f"read it, with neurons=[{neuron!r}], or choose another"
        raise ValueError(
            f"KeyValueMemory.{name}: there is no memory {neuron!r}{where}; expected the number of one of {known}"
            f"{more}; {remedy}."
        )

    def _trigger(self, i: int, j: int) -> Trigger:
        ids = self.context_ids[i, j]
        real = ids >= 0
        following = int(self.next_id[i, j])
        return Trigger(
            coefficient=float(self.coefficient[i, j]),
            text_index=int(self.text_index[i, j]),
            position=int(self.position[i, j]),
            tokens=tuple(self.vocabulary[token] for token in map(int, ids[real])),
            coefficients=self.context_coefficient[i, j][real],
            next_token=self.vocabulary[following] if following >= 0 else None,
            agrees=following >= 0 and following == int(self.top_ids[i, 0]),
        )

    # --- pictures ----------------------------------------------------------------------------------

    def view(self, *, n_triggers: int = 10) -> show.View:
        """The triggers in circuitsvis, coloured by the coefficient at every token, with a choice of the memory.

        Raises:
            ValueError: If ``n_triggers`` is no integer of 1 or more.
        """
        if type(n_triggers) is not int or n_triggers < 1:
            raise ValueError(
                f"KeyValueMemory.view: n_triggers is {n_triggers!r}; expected an integer of 1 or more; the default is "
                "10."
            )
        shown = range(min(VIEWED, len(self.names)))
        triggers = [self._triggers(i)[:n_triggers] for i in shown]
        left_out = f" (the first {VIEWED})" if len(self.names) > VIEWED else ""
        return show.samples_view(
            [[each.tokens for each in several] for several in triggers],
            [[each.coefficients for each in several] for several in triggers],
            [self.names[i] for i in shown],
            heading=f"{self.title}: what triggers {self._counted()}{left_out}",
            unit=f"coefficient ({self._unit})",
        )

    def plot(self, ax: Any = None, *, by: By | None = None) -> Any:
        """Agreement of keys and values beside chance, or the strongest triggers, in matplotlib; returns the axes.

        Args:
            ax: Axes to draw on; None for a new figure.
            by: "layer": agreement over layers, of first triggers (the paper's figure), with the end of 200
                permutations; "trigger": agreement over triggers, of all memories; "context": bars of the contexts that
                trigger a memory most. None for contexts of an edit's memories or a single one, and otherwise for
                layers where there are several.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If ``by`` is something else.
        """
        if by not in (None, *get_args(By)):
            raise ValueError(
                f"KeyValueMemory.plot: by is {by!r}; expected one of {', '.join(get_args(By))}, or None; the "
                "default is None."
            )
        if by == "context" or (by is None and (self.of_edit or len(self.names) == 1)):
            return self._plot_contexts(ax)
        agreed = f"next token is the value's top token ({self._counted()})"
        if by == "layer" or (by is None and len(self.layer_axis) > 1):
            lines = {"agreement": self.agreement[:, 0], "other values": self.chance[:, 0]}
            upper = self.permuted_agreement(200, seed=self.seed).quantile(0.975, dim=1)
            lines["permuted, 97.5 %"] = upper
            x, label, title = torch.tensor(self.layer_axis).double(), "layer", f"first trigger's {agreed}"
        else:
            lines = {"agreement": self.agrees.nanmean(dim=0)}
            lines["other values"] = self._agrees_elsewhere().nanmean(dim=0)
            x, label = torch.arange(1, 1 + self.coefficient.shape[1]).double(), "trigger, strongest first"
            title = f"trigger's {agreed}"
        shown = {name: 100 * line for name, line in lines.items() if not line.isnan().all()}
        return show.plot_lines(x, shown, ax, xlabel=label, ylabel="memories (%)", title=f"{self.title}: {title}")

    def _plot_contexts(self, ax: Any) -> Any:
        one = len(self.names) == 1
        tokens = (show.spaced(token) for token, _ in self._decoded(self.top_ids[0], self.top_scores[0])[:3])
        said = f"; the value of {self.names[0]} says {', '.join(tokens)}" if one else ""
        moved = "how far the MLP's answer is moved (its own units)" if self.of_edit else "activation"
        return plot_triggers(
            [("" if one else name, self._triggers(i)) for i, name in enumerate(self.names)],
            ax,
            unit=f"coefficient: {moved}{', negative' if self.negative else ''}",
            title=f"{self.title}: what triggers {self._counted()} most{said}",
        )

    def to_dataframe(self) -> Any:
        """A pandas frame: a row for each trigger of each memory, trigger 0 the strongest.

        Raises:
            ImportError: If pandas is not installed.
        """
        rows: list[dict[str, Any]] = []
        for i, name in enumerate(self.names):
            about: dict[str, Any] = {"layer": self.layers[i], "neuron": self.neurons[i], "name": name}
            value: dict[str, Any] = {
                "top_token": self.vocabulary[int(self.top_ids[i, 0])],
                "top_score": float(self.top_scores[i, 0]),
                "bottom_token": self.vocabulary[int(self.bottom_ids[i, 0])],
                "bottom_score": float(self.bottom_scores[i, 0]),
                "value_norm": float(self.value_norm[i]),
            }
            for j, trigger in enumerate(self._triggers(i)):
                found: dict[str, Any] = {
                    "trigger": j,
                    "coefficient": trigger.coefficient,
                    "text_index": trigger.text_index,
                    "position": trigger.position,
                    "context": "".join(trigger.tokens),
                    "token": trigger.tokens[-1],
                    "next_token": trigger.next_token,
                    "agrees": trigger.agrees,
                    "next_rank": int(self.next_rank[i]) if j == 0 and self.next_rank[i] >= 0 else None,
                }
                rows.append(about | found | value)
        return show.frame_of_rows("KeyValueMemory.to_dataframe", rows)

    @property
    def _unit(self) -> str:
        return "turned round, so that positive is what was negative" if self.negative else "positive blue, negative red"

    def __repr__(self) -> str:
        layers = list(self.layer_axis)
        where = f"layers {layers}" if len(layers) > 1 else f"layer {layers[0]}"
        read = counted(self.n_tokens, "token")
        # Rates and medians of one memory tell nothing.
        summary = f"; {self._summary()}" if len(self.names) > 1 else ""
        return f"KeyValueMemory({self.title}: {self._counted()} of {where}, {read}{summary})"

    def _counted(self) -> str:
        return counted(len(self.names), "memory", "memories")

    def _summary(self) -> str:
        """Agreement and ranks, beside chance."""
        rates = [each[:, 0].nanmean() for each in (self.agrees, self._agrees_elsewhere())]
        agreed, chance = ("–" if rate.isnan() else f"{float(rate):.1%}" for rate in rates)
        ranks = [each[each >= 0] for each in (self.next_rank, self.control_rank)]
        own, other = (f"{int(each.median()) + 1:,}" if len(each) else "–" for each in ranks)
        return (
            f"next token of the first trigger is the value's top token in {agreed} (of other values {chance}), its "
            f"median rank {own} (in others {other}) of {self.n_vocab:,}"
        )

    def _repr_html_(self) -> str:
        shown = range(min(SHOWN, len(self.names)))
        rows = [
            [
                [self.names[i]],
                trigger_lines(self._triggers(i)),
                token_lines(self._decoded(self.top_ids[i], self.top_scores[i])),
                token_lines(self._decoded(self.bottom_ids[i], self.bottom_scores[i])),
            ]
            for i in shown
        ]
        left_out = f" The first {SHOWN} of {len(self.names):,} memories are shown." if len(self.names) > SHOWN else ""
        return show.marked_table(
            rows,
            columns=("memory", "triggers, with the coefficient", "value: top tokens", "bottom tokens"),
            heading=repr(self),
            note=f"Framed: the triggering token; behind it the next one, ✓ where the value's top token. Colours: the "
            f"coefficient at each token ({self._unit}), up to the memory's largest. Scores: logits that a coefficient "
            f"of 1 adds, up to the norms' divisors.{left_out}",
        )


def elsewhere(n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """A random permutation of ``n`` in one cycle, so that for two or more nothing stays at its place."""
    order = torch.randperm(n, generator=generator)
    found = torch.empty_like(order)
    found[order] = order.roll(1)
    return found
