"""The logit lens: what the residual stream would say if the model ended after each layer, without and with an edit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import attach, forward, host, show, tokens
from tl_edit.counted import counted
from tl_edit.edit import Edit
from tl_edit.follow.runs import Followed, Runs, keep
from tl_edit.host import HookFn, Model, NamedHook

OPERATION = "logit_lens"
LAST, SUBJECT = "last token", "subject's last token"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LogitLens(Followed):
    """Answers as the residual stream after each layer would give them, by run; see `logit_lens`."""

    answers: tuple[str, ...]
    answer_tokens: tuple[str, ...]
    """The first token of each, which is what is read."""
    places: tuple[str, ...]
    """Where it is read: at the last token of the prompt, and at the subject's, if one was given."""
    points: tuple[str, ...]
    """What the stream is read after: "embed", the embeddings, then the layers."""
    log_prob: Float[Tensor, "run place point answer"]
    """In nats."""
    rank: Int[Tensor, "run place point answer"]
    """Counted from 1, the likeliest token."""

    @property
    def logit_difference(self) -> Float[Tensor, "run place point"]:
        """The first answer's logit less the second's (their log-odds), in nats; of logits as the model gives them.

        Raises:
            ValueError: If there is only one answer.
        """
        if len(self.answers) < 2:
            raise ValueError(
                "LogitLens.logit_difference: there is one answer; expected two or more; pass e.g. answers=['Rome', "
                "'Paris'] to logit_lens."
            )
        return self.log_prob[..., 0] - self.log_prob[..., 1]

    def _by_run(self) -> tuple[Float[Tensor, "run ..."], ...]:
        return (self.log_prob,)

    def to_dataframe(self) -> Any:
        """A pandas frame: one row for each run, place, point and answer.

        Raises:
            ImportError: If pandas is not installed.
        """
        axes = {"run": self.runs, "place": self.places, "point": self.points, "answer": self.answers}
        values = {"log_prob": self.log_prob, "rank": self.rank.double()}
        return show.frame("LogitLens.to_dataframe", axes, values)

    def plot(self, ax: Any = None, *, place: str = LAST) -> Any:
        """Lines over depth: the log-probability of each answer in each run.

        Args:
            ax: Axes of matplotlib; None for a new figure.
            place: One of ``places``.

        Raises:
            ValueError: If nothing was read there.
            ImportError: If matplotlib is not installed.
        """
        at = self._place(place)
        lines = {
            f"{name}, {run}": self.log_prob[i, at, :, j]
            for j, name in enumerate(self._names())
            for i, run in enumerate(self.runs)
        }
        return show.plot_depth(
            self.points,
            lines,
            ax,
            per_colour=len(self.runs),
            xlabel="residual stream after",
            ylabel="log-probability (nats)",
            title=self.title(f"Logit lens at the {place}"),
        )

    def _place(self, place: str) -> int:
        if place not in self.places:
            raise ValueError(
                f"LogitLens.plot: nothing was read at the place {place!r}; expected one of {list(self.places)}; "
                "pass subject= to logit_lens for the subject's last token."
            )
        return self.places.index(place)

    def _names(self) -> list[str]:
        """The answers' names; of longer ones what is read of them, the first token."""
        pairs = zip(self.answers, self.answer_tokens, strict=True)
        return [answer if answer == token.strip() else f"{show.spaced(token)} of {answer}" for answer, token in pairs]

    def __repr__(self) -> str:
        says = [
            f"p({name}) " + " → ".join(f"{float(value.exp()):.3g}" for value in self.log_prob[:, 0, -1, j])
            for j, name in enumerate(self._names())
        ]
        return self.line(f"{counted(len(self.points) - 1, 'layer')}, {', '.join(says)}")

    def _repr_html_(self) -> str:
        odds = len(self.answers) > 1
        named = self._names()
        # Logarithms of what no state before the first layer says are so far down that all others would look alike.
        values = self.logit_difference if odds else self.log_prob[..., 0].exp()
        rows = [*self.runs, "change"] if self.compares else list(self.runs)
        tables = [
            torch.cat([values[:, at], values[1:, at] - values[:1, at]]) if self.compares else values[:, at]
            for at in range(len(self.places))
        ]
        what = f"log p({named[0]}) − log p({named[1]})" if odds else f"p({named[0]})"
        if len(named) > 2:
            what += f" (of {', '.join(named[2:])} see .plot() and .log_prob)"
        return show.heatmaps_html(
            tables,
            titles=[f"at the {place}" for place in self.places],
            rows=rows,
            columns=self.points,
            heading=self.heading(f"Logit lens, {what}"),
            unit=f"{'nats' if odds else 'probability'}, read after each layer",
            per_line=1,
        )


def logit_lens(
    model: Model,
    prompt: str,
    answers: Sequence[str],
    *,
    edit: Edit | None = None,
    hooks: Sequence[NamedHook] = (),
    subject: str | None = None,
    prepend_bos: bool | None = None,
) -> LogitLens:
    """Read answers from the residual stream after each layer, without and with an edit.

    The logit lens (nostalgebraist, "interpreting GPT: the logit lens", 2020): the stream after a layer goes through the
    final norm, with its own scale, and the unembedding, as if the layers in between did nothing. The model itself does
    that, caps on logits included: its last block's output is replaced by the stream, so after the last layer this is
    what the model says.

    Args:
        model: The model, without the edit. Other edits that are applied stay on in both runs.
        prompt: A string.
        answers: One or more, usually the new object and the old one; the first token of each is read.
        edit: What is switched on for the second run, and off again; None for the model alone.
        hooks: Hooks of your own for the second run, as (name, function) pairs. They also see the passes that read the
            stream, which repeat the prompt in several rows.
        subject: A part of the prompt, to read at its last token, too; None for the edit's own, if it is in the prompt.
        prepend_bos: Whether the prompt begins with a BOS; None for what the edit was computed with, and without an edit
            for the model's own default.

    Returns:
        `LogitLens`: ``log_prob``, ``rank`` (from 1) ``[run place point answer]``, ``logit_difference`` of the first two
        answers.

    Raises:
        ValueError: For a prompt that is too long, a subject that is not in it, answers that begin with the same token,
            an edit that is applied already or is another model's, hooks with an unknown name, active dropout.
    """
    runs = Runs.of(model, prompt, edit, hooks, prepend_bos, OPERATION)
    ids, firsts = runs.ids(prompt), runs.first_tokens(prompt, answers)
    about = runs.subject_last(prompt, runs.own_subject(prompt, subject))
    where = [len(ids) - 1] if about is None else [len(ids) - 1, about]
    depth = host.n_layers(model)
    names = [host.resid_pre_name(0), *map(host.resid_post_name, range(depth))]

    def measure(hooks: Sequence[NamedHook]) -> tuple[Tensor, ...]:
        kept: dict[str, Tensor] = {}
        runs.watch(ids, {name: keep(kept, name, where) for name in names}, hooks)
        states = torch.cat([kept[name].to(kept[names[0]].device) for name in names])
        read = _read(model, ids, states, firsts, hooks)
        return tuple(found.view(len(names), len(where), len(firsts)).transpose(0, 1) for found in read)

    found = runs.each(measure)
    return LogitLens(
        **runs.labels(prompt, ids),
        answers=tuple(answers),
        answer_tokens=tokens.str_tokens(model, firsts),
        places=(LAST,) if about is None else (LAST, SUBJECT),
        points=("embed", *map(str, range(depth))),
        log_prob=torch.stack([log_probs for log_probs, _ in found]),
        rank=torch.stack([ranks for _, ranks in found]),
    )


def _read(
    model: Model,
    ids: Int[Tensor, " pos"],
    states: Float[Tensor, "state d_model"],
    asked: Int[Tensor, " answer"],
    hooks: Sequence[NamedHook],
) -> tuple[Float[Tensor, "state answer"], Int[Tensor, "state answer"]]:
    """Log-probabilities and ranks (from 1) of tokens, as the model's end reads them from states of the residual stream.

    The states take the places of the last block's output, as many in a row as the prompt has tokens.
    """
    last = host.resid_post_name(host.n_layers(model) - 1)
    log_probs: list[Tensor] = []
    ranks: list[Tensor] = []
    size = max(1, forward.most_logits(model) // len(ids)) * len(ids)
    points = host.hook_points(model)
    for start in range(0, len(states), size):
        some = states[start : start + size]
        n_rows = -(-len(some) // len(ids))
        filled = torch.cat([some, some[-1:].expand(n_rows * len(ids) - len(some), -1)])
        batch = tokens.pad(model, [ids] * n_rows)
        with attach.attached(model, [*hooks, (last, _replaced(filled.view(n_rows, len(ids), -1)))], points):
            logits = forward.logits(model, batch)
        read = forward.log_probs(model, logits.flatten(0, 1)[: len(some)])
        own = read[:, asked.to(read.device)]
        log_probs.append(own.cpu())
        ranks.append(1 + torch.stack([(read > one[:, None]).sum(dim=1) for one in own.T], dim=1).cpu())
    return torch.cat(log_probs), torch.cat(ranks)


def _replaced(states: Float[Tensor, "batch pos d_model"]) -> HookFn:
    def hook(act: Tensor, hook: object = None) -> Tensor:
        return states.to(act.device, act.dtype)

    return cast(HookFn, hook)
