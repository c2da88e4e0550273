"""What a model says behind every token of a prompt and its answer, without and with an edit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import forward, show, tokens
from tl_edit.edit import Edit
from tl_edit.follow.runs import Followed, Runs
from tl_edit.host import Model, NamedHook

OPERATION = "next_tokens"
AT_ONCE = 32
"""Positions whose log-probabilities are computed at a time."""
MAX_ROWS = 50
"""Tokens in the table of a notebook."""
MAX_POINTS = 24
"""Tokens in a figure."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NextTokens(Followed):
    """Next-token log-probabilities at every position of prompt and answer, by run; see `next_tokens`.

    Position ``i`` is what the model says behind token ``i``, so there is one position less than tokens. All
    log-probabilities are in nats, on the CPU.
    """

    answer: str
    n_prompt: int
    """Tokens of the prompt, a BOS among them; the others are the answer's."""
    log_prob: Float[Tensor, "run pos"]
    """Of the token that follows."""
    rank: Int[Tensor, "run pos"]
    """Of the token that follows, counted from 1, the likeliest."""
    top_tokens: tuple[tuple[tuple[str, ...], ...], ...]
    """By run and position: the likeliest next tokens, likeliest first."""
    top_log_prob: Float[Tensor, "run pos k"]
    """Theirs."""
    kl: Float[Tensor, " pos"] | None
    """Kullback-Leibler divergence of the distribution from the run before to the run after, ``sum_v p_before(v)
    log(p_before(v) / p_after(v))``, in nats; None for the model alone."""
    end_tokens: tuple[str, ...]
    """Likeliest tokens at the prompt's end in either run, and the answer's first; those of the last run first."""
    end_log_prob: Float[Tensor, "run candidate"]
    """Theirs in both runs."""

    @property
    def answer_log_prob(self) -> Float[Tensor, " run"]:
        """Log-probability of the whole answer behind the prompt, the sum over its tokens."""
        return self.log_prob[:, self.n_prompt - 1 :].sum(dim=1)

    def _by_run(self) -> tuple[Float[Tensor, "run ..."], ...]:
        return self.log_prob, self.top_log_prob, self.end_log_prob

    def view(self) -> show.View:
        """What each run says behind each token, as circuitsvis shows log-probabilities: hover for the likeliest.

        Its colours are its own, the redder, the likelier, and so are its ranks, which it counts from 0.
        """
        by_run = range(len(self.runs))
        return show.log_probs_view(
            self.tokens,
            {self.runs[i]: self.top_tokens[i] for i in by_run},
            {self.runs[i]: self.top_log_prob[i] for i in by_run},
            {self.runs[i]: self.rank[i] for i in by_run},
            {self.runs[i]: self.log_prob[i] for i in by_run},
            heading=self.heading("Next tokens"),
        )

    def view_change(self) -> show.View:
        """Tokens coloured by their probability before and after, and by the difference.

        Raises:
            ValueError: For the model alone.
        """
        change = self.difference(self.log_prob.exp(), "NextTokens.view_change")
        # What is asked for comes first, as it is shown first.
        values = torch.stack([change, *self.log_prob.exp()], dim=1)
        # Nothing predicts the first token.
        return show.tokens_view(
            self.tokens,
            torch.cat([torch.zeros_like(values[:1]), values]),
            ("after − before", "p before", "p after"),
            heading=self.heading("Probability of each token behind those before it"),
            unit="probability, and its difference",
        )

    def to_dataframe(self) -> Any:
        """A pandas frame: one row for each run and position, with the token that follows.

        Raises:
            ImportError: If pandas is not installed.
        """
        rows = [
            {
                "run": run,
                "pos": pos,
                "token": self.tokens[pos],
                "next_token": self.tokens[pos + 1],
                "log_prob": float(self.log_prob[i, pos]),
                "rank": int(self.rank[i, pos]),
                "likeliest": self.top_tokens[i][pos][0],
            }
            for i, run in enumerate(self.runs)
            for pos in range(len(self.tokens) - 1)
        ]
        return show.frame_of_rows("NextTokens.to_dataframe", rows)

    def plot(self, ax: Any = None) -> Any:
        """Probabilities of the likeliest tokens at the prompt's end before and after, joined, on a logarithmic axis.

        Of many the likeliest of either run are shown, and the answer's first.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        shown = self._likeliest_at_the_end()
        left_out = len(self.end_tokens) - len(shown)
        note = f"\n({left_out:,} less likely {'one is' if left_out == 1 else 'ones are'} left out)" if left_out else ""
        return show.plot_probabilities(
            [self.end_tokens[i] for i in shown],
            {run: log_probs[shown] for run, log_probs in zip(self.runs, self.end_log_prob, strict=True)},
            ax,
            xlabel=f"probability of the next token{note}",
            title=self.title("Next token"),
        )

    def _likeliest_at_the_end(self) -> list[int]:
        """Which of the end's tokens fit into a figure, in their order."""
        answer = (self.end_log_prob[-1] == self.log_prob[-1, self.n_prompt - 1]).nonzero().flatten()[:1]
        best = self.end_log_prob.amax(dim=0).argsort(descending=True, stable=True)
        return sorted(list(dict.fromkeys(map(int, torch.cat([answer, best]))))[:MAX_POINTS])

    def __repr__(self) -> str:
        answer = list(map(_probability, self.answer_log_prob))
        says = [repr(likeliest[self.n_prompt - 1][0]) for likeliest in self.top_tokens]
        return self.line(f"says {' → '.join(says)}, p({self.answer}) {' → '.join(answer)}")

    def _repr_html_(self) -> str:
        end = self.n_prompt - 1
        columns = ["", *(name for run in self.runs for name in (run, "p"))]
        rows = [
            (
                str(place + 1),
                *(
                    cell
                    for i in range(len(self.runs))
                    for cell in (
                        show.spaced(self.top_tokens[i][end][place]),
                        _probability(self.top_log_prob[i, end, place]),
                    )
                ),
            )
            for place in range(min(MAX_ROWS, self.top_log_prob.shape[2]))
        ]
        left_out = self.top_log_prob.shape[2] - len(rows)
        if left_out:
            rows.append(("", f"and {left_out:,} more"))
        answer = " → ".join(map(_probability, self.answer_log_prob))
        heading = self.heading("Likeliest next tokens")
        return show.table(rows, columns=columns, heading=f"{heading}; p({self.answer}) {answer}")


def _probability(log_prob: Float[Tensor, ""]) -> str:
    """With three digits that tell something."""
    value = float(log_prob.double().exp())
    return f"{value:.3f}" if value >= 0.0005 or value == 0 else f"{value:.1e}"


def next_tokens(
    model: Model,
    prompt: str,
    answer: str,
    *,
    edit: Edit | None = None,
    hooks: Sequence[NamedHook] = (),
    top_k: int = 10,
    prepend_bos: bool | None = None,
) -> NextTokens:
    """What the model says behind every token of prompt and answer, without and with an edit.

    Args:
        model: The model, without the edit. Other edits that are applied stay on in both runs.
        prompt: A string.
        answer: What follows, a word or several.
        edit: What is switched on for the second run, and off again; None for the model alone.
        hooks: Hooks of your own for the second run, as (name, function) pairs, e.g. ``edit.hooks(model, scale=0.5)``.
        top_k: How many of the likeliest tokens to keep of each position.
        prepend_bos: Whether the prompt begins with a BOS; None for what the edit was computed with, and without an edit
            for the model's own default.

    Returns:
        `NextTokens`: ``log_prob``, ``rank`` (from 1) ``[run pos]`` of the tokens that follow, ``kl`` ``[pos]``, the
        likeliest tokens; ``view()`` and ``view_change()`` are interactive, ``plot()`` shows the prompt's end.

    Raises:
        ValueError: For a prompt that is too long, an answer that has no tokens or merges with the prompt, an edit that
            is applied already or is another model's, hooks with an unknown name, active dropout, or probabilities that
            are not finite.
    """
    runs = Runs.of(model, prompt, edit, hooks, prepend_bos, OPERATION)
    if type(top_k) is not int or top_k < 1:
        raise ValueError(f"{OPERATION}: top_k is {top_k!r}; expected an integer of 1 or more; the default is 10.")
    said, before = runs.answer(prompt, answer), runs.ids(prompt)
    ids = torch.cat([before, said])

    first: list[Tensor] = []

    def measure(hooks: Sequence[NamedHook]) -> _Said:
        logits = runs.watch(ids[:-1], {}, hooks)
        found = _Said.of(model, logits, ids, top_k, len(before) - 1, compared=first[0] if first else None)
        first.append(logits)
        return found

    found = runs.each(measure)
    several = torch.cat([*(each.tops[len(before) - 1] for each in found), said[:1]])
    union = torch.tensor(sorted(set(map(int, several))))
    union = union[found[-1].end[union].argsort(descending=True, stable=True)]
    return NextTokens(
        **runs.labels(prompt, ids),
        answer=answer,
        n_prompt=len(before),
        log_prob=torch.stack([each.own for each in found]),
        rank=torch.stack([each.rank for each in found]),
        top_tokens=tuple(tuple(tokens.str_tokens(model, row) for row in each.tops) for each in found),
        top_log_prob=torch.stack([each.top_log_prob for each in found]),
        kl=found[-1].kl,
        end_tokens=tokens.str_tokens(model, union),
        end_log_prob=torch.stack([each.end[union] for each in found]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Said:
    """What is kept of one run's logits, on the CPU."""

    own: Float[Tensor, " pos"]
    rank: Int[Tensor, " pos"]
    tops: Int[Tensor, "pos k"]
    top_log_prob: Float[Tensor, "pos k"]
    end: Float[Tensor, " d_vocab"]
    kl: Float[Tensor, " pos"] | None

    @classmethod
    def of(
        cls,
        model: Model,
        logits: Float[Tensor, "pos d_vocab"],
        ids: Int[Tensor, " row"],
        top_k: int,
        end: int,
        compared: Float[Tensor, "pos d_vocab"] | None,
    ) -> "_Said":
        """Read a few positions at a time: of a long text and a large vocabulary all log-probabilities fill memory."""
        own: list[Tensor] = []
        ranks: list[Tensor] = []
        tops: list[Tensor] = []
        top_log_probs: list[Tensor] = []
        divergences: list[Tensor] = []
        for start in range(0, len(logits), AT_ONCE):
            log_probs = forward.log_probs(model, logits[start : start + AT_ONCE])
            said = log_probs.gather(1, ids[start + 1 : start + 1 + len(log_probs), None].to(log_probs.device))
            values, indices = log_probs.topk(min(top_k, log_probs.shape[1]), dim=1)
            own.append(said[:, 0].cpu())
            ranks.append(1 + (log_probs > said).sum(dim=1).cpu())
            tops.append(indices.cpu())
            top_log_probs.append(values.cpu())
            if compared is not None:
                before = forward.log_probs(model, compared[start : start + AT_ONCE])
                divergences.append(_divergence(before, log_probs).cpu())
        return cls(
            own=torch.cat(own),
            rank=torch.cat(ranks),
            tops=torch.cat(tops),
            top_log_prob=torch.cat(top_log_probs),
            end=forward.log_probs(model, logits[end : end + 1])[0].cpu(),
            kl=torch.cat(divergences) if divergences else None,
        )


def _divergence(before: Float[Tensor, "pos d_vocab"], after: Float[Tensor, "pos d_vocab"]) -> Float[Tensor, " pos"]:
    """KL(before || after); what has no probability before counts nothing."""
    p = before.exp()
    return torch.where(p > 0, p * (before - after), torch.zeros_like(p)).sum(dim=1)
