"""The circuit of an edit: which heads and MLPs carry what it changes to the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import host, show, stream, tokens
from tl_edit.edit import Edit
from tl_edit.follow.attribution import Parts, names_read, parts
from tl_edit.follow.runs import Followed, Runs, keep
from tl_edit.host import Model, NamedHook

OPERATION = "edit_circuit"
MAX_ROWS = 12
"""Components in the table of a notebook."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A part of the model and what it adds to the logit difference, in nats."""

    name: str
    """As "head 3.7", "MLP 3", "attention bias 3", "embedding", "positions", or "final bias"."""
    layer: int | None
    head: int | None
    before: float
    """Of the model alone, what it adds."""
    after: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EditCircuit(Followed):
    """Direct logit attribution by run; see `edit_circuit`. In logits (nats), float64, on the CPU."""

    answer: str
    other_answer: str
    answer_tokens: tuple[str, str]
    """Their first tokens, whose logits are taken apart."""
    embedding: Float[Tensor, " run"]
    """What the last token's own embedding adds to logit(answer) - logit(other answer)."""
    positions: Float[Tensor, " run"]
    """Of learned positions; 0 where there are none."""
    heads: Float[Tensor, "run layer head"]
    attention_biases: Float[Tensor, "run layer"]
    """Of ``b_O``, where processing has folded values' biases into it, too."""
    mlps: Float[Tensor, "run layer"]
    """Of MLPs with their biases."""
    bias: Float[Tensor, " run"]
    """Of the final norm and the unembedding."""
    logit_difference: Float[Tensor, " run"]
    """What the model said, before a cap on logits (Gemma 2); the sum of all parts up to its own rounding."""
    subject: str | None
    subject_last: int | None
    """Position of the subject's last token."""
    subject_attention: Float[Tensor, "run layer head"] | None
    """Attention from the prompt's last token to the subject's last, from 0 to 1; None without a subject."""

    @property
    def total(self) -> Float[Tensor, " run"]:
        """The sum of all parts."""
        layers = self.heads.sum(dim=(1, 2)) + self.attention_biases.sum(dim=1) + self.mlps.sum(dim=1)
        return self.embedding + self.positions + layers + self.bias

    def _by_run(self) -> tuple[Float[Tensor, "run ..."], ...]:
        several = (self.embedding, self.positions, self.heads, self.attention_biases, self.mlps, self.bias)
        return (*several, self.logit_difference)

    def components(self) -> tuple[Component, ...]:
        """All parts; those that change most first, and where nothing changes the largest first."""
        found = [self._component("embedding", self.embedding), self._component("positions", self.positions)]
        for layer in range(self.heads.shape[1]):
            for head in range(self.heads.shape[2]):
                found.append(self._component(f"head {layer}.{head}", self.heads[:, layer, head], layer, head))
            found.append(self._component(f"attention bias {layer}", self.attention_biases[:, layer], layer))
            found.append(self._component(f"MLP {layer}", self.mlps[:, layer], layer))
        found.append(self._component("final bias", self.bias))
        return tuple(sorted(found, key=lambda part: abs(part.change if self._moves else part.before), reverse=True))

    @property
    def _moves(self) -> bool:
        """Whether there are changes to speak of."""
        return self.compares and not self.unchanged

    def _component(
        self, name: str, values: Float[Tensor, " run"], layer: int | None = None, head: int | None = None
    ) -> Component:
        return Component(name=name, layer=layer, head=head, before=float(values[0]), after=float(values[-1]))

    def to_dataframe(self) -> Any:
        """A pandas frame: one row for each component, those that change most first.

        Raises:
            ImportError: If pandas is not installed.
        """
        rows = [self._row(part) for part in self.components()]
        return show.frame_of_rows("EditCircuit.to_dataframe", rows)

    def _row(self, part: Component) -> dict[str, Any]:
        row: dict[str, Any] = {"component": part.name, "layer": part.layer, "head": part.head}
        row |= {"before": part.before, "after": part.after, "change": part.change} if self.compares else {}
        row |= {} if self.compares else {"logits": part.before}
        if self.subject_attention is not None:
            seen = self._attention(part) or [None] * len(self.runs)
            row |= {f"subject_attention_{run}": value for run, value in zip(self.runs, seen, strict=True)}
        return row

    def _attention(self, part: Component) -> list[float] | None:
        """To the subject, by run; of other parts than heads, and without a subject, None."""
        if self.subject_attention is None or part.head is None or part.layer is None:
            return None
        return [float(value) for value in self.subject_attention[:, part.layer, part.head]]

    def plot(self, ax: Any = None) -> Any:
        """Heatmap, layers by heads, attention biases and MLPs: the change; of the model alone what they add.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        values = torch.cat([self.heads, self.attention_biases[..., None], self.mlps[..., None]], dim=-1)
        what = "Change of the direct effect" if self.compares else "Direct effect"
        return show.plot_grid(
            values[1] - values[0] if self.compares else values[0],
            ax,
            rows=[str(layer) for layer in range(self.heads.shape[1])],
            columns=[*map(str, range(self.heads.shape[2])), "bias", "MLP"],
            ylabel="layer",
            xlabel="head, attention bias, MLP",
            unit=f"{self._difference} (nats)",
            title=self.title(what),
            signed=True,
        )

    @property
    def _difference(self) -> str:
        first, second = map(show.spaced, self.answer_tokens)
        return f"logit({first}) − logit({second})"

    def __repr__(self) -> str:
        values = " → ".join(f"{float(value):+.2f}" for value in self.logit_difference)
        first = self.components()[0]
        most = f"{first.name} {first.change if self._moves else first.before:+.2f}"
        return self.line(f"{self._difference} {values}; {'most by' if self._moves else 'most from'} {most}")

    def _repr_html_(self) -> str:
        listed = self.components()
        rest = listed[MAX_ROWS:]
        sums: dict[str, tuple[float, float]] = {}
        if rest:
            sums[f"the other {len(rest)}"] = sum(part.before for part in rest), sum(part.after for part in rest)
        missed = self.logit_difference - self.total
        # What three digits show: of weights in half precision the model itself rounds each step.
        if float(missed.abs().max()) >= 0.0005:
            sums["rounding"] = float(missed[0]), float(missed[-1])
        sums["logit difference"] = float(self.logit_difference[0]), float(self.logit_difference[-1])
        last = [
            Component(name=name, layer=None, head=None, before=before, after=after)
            for name, (before, after) in sums.items()
        ]
        columns = ["component", *self.runs, *(["change"] * self.compares)]
        columns += [f"attention to the end of {self.subject}"] * (self.subject is not None)
        what = f"Direct effect on {self._difference} in nats"
        rows = [self._cells(part) for part in (*listed[:MAX_ROWS], *last)]
        return show.table(rows, columns=columns, heading=self.heading(what))

    def _cells(self, part: Component) -> tuple[str, ...]:
        values = (part.before, part.after, part.change) if self.compares else (part.before,)
        cells = (part.name, *(f"{value:+.3f}" for value in values))
        if self.subject_attention is None:
            return cells
        return (*cells, " → ".join(f"{value:.3f}" for value in self._attention(part) or ()))


def edit_circuit(
    model: Model,
    prompt: str,
    answer: str,
    other_answer: str,
    *,
    edit: Edit | None = None,
    hooks: Sequence[NamedHook] = (),
    subject: str | None = None,
    prepend_bos: bool | None = None,
) -> EditCircuit:
    """Which parts of the model carry an edit to the answer: direct logit attribution without and with it.

    At the prompt's last token, ``logit(answer) - logit(other answer)`` is the sum of what the embedding, positions,
    each head, each MLP and biases add to it through the unembedding, if the scale of the final norm is held at the
    run's own (Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021; TransformerLens'
    ``logit_attrs``). Both runs have a scale of their own, so a part may change a little though what it writes does not.
    Of effects through later parts nothing is seen here: a head that copies what an edited MLP wrote has the effect, not
    the MLP.

    Args:
        model: The model, without the edit. Other edits that are applied stay on in both runs.
        prompt: A string.
        answer: Usually the new object; its first token is read.
        other_answer: Usually the old one.
        edit: What is switched on for the second run, and off again; None for the model alone.
        hooks: Hooks of your own for the second run, as (name, function) pairs.
        subject: A part of the prompt, to see how much each head attends to its last token; None for the edit's own, if
            it is in the prompt.
        prepend_bos: Whether the prompt begins with a BOS; None for what the edit was computed with, and without an edit
            for the model's own default.

    Returns:
        `EditCircuit`: ``heads`` ``[run layer head]``, ``mlps`` ``[run layer]`` and so on; ``components()`` ranks them.

    Raises:
        ValueError: For a prompt that is too long, a subject that is not in it, answers that begin with the same token,
            an edit that is applied already or is another model's, hooks with an unknown name, active dropout; for parts
            that do not add up, as behind hooks that change the output of attention, or on an architecture that puts
            them together in another way.
    """
    runs = Runs.of(model, prompt, edit, hooks, prepend_bos, OPERATION)
    ids, pair = runs.ids(prompt), runs.first_tokens(prompt, [answer, other_answer])
    named = runs.own_subject(prompt, subject)
    about = runs.subject_last(prompt, named)
    names = names_read(model)
    patterns = [] if about is None else [stream.pattern_name(layer) for layer in range(host.n_layers(model))]

    def measure(hooks: Sequence[NamedHook]) -> tuple[Parts, Tensor | None]:
        kept: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}  # Columns only: all patterns of a long prompt are gigabytes.
        said: list[Tensor] = []
        readers = {name: keep(kept, name, slice(-1, None)) for name in names}
        if about is not None:
            readers |= {name: keep(seen, name, slice(None), -1, about) for name in patterns}
        with stream.shown_unembedded(model, lambda logits: said.append(logits[0, -1, pair.to(logits.device)].cpu())):
            runs.watch(ids, readers, hooks)
        taken = parts(model, {name: value[0] for name, value in kept.items()}, pair, said[-1], OPERATION)
        attention = [seen[name].double().cpu() for name in patterns]
        return taken, torch.stack(attention) if attention else None

    found = runs.each(measure)

    def by_run(part: str) -> Tensor:
        return torch.stack([torch.as_tensor(getattr(taken, part), dtype=torch.float64) for taken, _ in found])

    seen = [attention for _, attention in found if attention is not None]
    first, second = tokens.str_tokens(model, pair)
    return EditCircuit(
        **runs.labels(prompt, ids),
        embedding=by_run("embedding"),
        positions=by_run("positions"),
        heads=by_run("heads"),
        attention_biases=by_run("attention_biases"),
        mlps=by_run("mlps"),
        bias=by_run("bias"),
        logit_difference=by_run("logit_difference"),
        answer=answer,
        other_answer=other_answer,
        answer_tokens=(first, second),
        subject=named,
        subject_last=about,
        subject_attention=torch.stack(seen) if seen else None,
    )
