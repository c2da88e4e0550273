"""One prompt through a model, without and with what is switched on: what is checked before, and what is kept of it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import forward, host, show, tokens
from tl_edit.attach import as_hooks
from tl_edit.counted import counted
from tl_edit.edit import AS_HOOKS, Edit, warn_of_twice
from tl_edit.edit.as_hooks import is_hooked
from tl_edit.host import HookFn, Model, NamedHook, Provenance

BEFORE_AND_AFTER = ("before", "after")
ALONE = ("model",)
"""The runs of a result: the model without and with what is switched on, or the model alone."""

LONGEST = 120
"""Characters of a prompt that headings show."""

ROUNDING = 1e-6
"""Differences of this size, of probabilities and nats, say nothing; the difference of an edit and itself makes them."""

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Followed:
    """What every result of this room says."""

    prompt: str
    tokens: tuple[str, ...]
    """Each token decoded alone."""
    runs: tuple[str, ...]
    """The runs, in the order of the axis ``run``: "before" and "after", or the "model" alone."""
    switched: str
    """What was switched on in the second run; empty for the model alone."""
    provenance: Provenance

    @property
    def compares(self) -> bool:
        """Whether there is a second run."""
        return len(self.runs) == 2

    def difference(self, values: Float[Tensor, "run ..."], operation: str) -> Float[Tensor, "..."]:
        """Of values by run, after less before.

        Raises:
            ValueError: If there is only one run.
        """
        if not self.compares:
            raise ValueError(
                f"{operation}: nothing was switched on, so there is no difference; expected a second run; pass "
                "edit= or hooks= when you measure."
            )
        return values[1] - values[0]

    @property
    def asked(self) -> str:
        """The prompt in one line; of a long one the end."""
        return show.visible(self.prompt if len(self.prompt) <= LONGEST else "…" + self.prompt[-LONGEST:])

    @property
    def unchanged(self) -> bool:
        """Whether there are two runs, and all that was measured is the same in both, up to `ROUNDING`."""
        return self.compares and all(
            torch.allclose(values[0], values[1], rtol=ROUNDING, atol=ROUNDING) for values in self._by_run()
        )

    def _by_run(self) -> tuple[Float[Tensor, "run ..."], ...]:
        """What was measured."""
        raise NotImplementedError

    def title(self, what: str) -> str:
        """A short line above a figure."""
        return f"{what}: {self.asked}" + ("; nothing changes" if self.unchanged else "")

    def heading(self, what: str) -> str:
        """A line above a table, with what was switched on."""
        same = "; it changes nothing here: both runs are equal up to rounding" if self.unchanged else ""
        return f"{what}: {self.asked}" + (f" ({self.switched})" if self.switched else "") + same

    def line(self, said: str) -> str:
        """What the result's one line is."""
        return f"{type(self).__name__}({self.asked}: {said}{', nothing changes' if self.unchanged else ''})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """A model, and what is switched on in the second run; checked. Makes both runs, and leaves the model as it was."""

    model: Model
    operation: str
    edit: Edit | None
    hooks: tuple[NamedHook, ...]
    prepend_bos: bool

    @classmethod
    def of(
        cls,
        model: Model,
        prompt: object,
        edit: object,
        hooks: object,
        prepend_bos: bool | None,
        operation: str,
    ) -> "Runs":
        """Check what an operation is given.

        Raises:
            ValueError: For something else than a model, a prompt, an edit of this model that is off, or hooks.
        """
        host.check_ready(model, operation)
        if not isinstance(prompt, str):
            raise ValueError(
                f"{operation}: prompt is {prompt!r} of type {type(prompt).__name__}; expected a string; of a request "
                "pass request.prompt."
            )
        if edit is not None and not isinstance(edit, Edit):
            raise ValueError(
                f"{operation}: edit is of type {type(edit).__name__}; expected an Edit, or None for the model alone; "
                "pass what rome_edit(model, request, moments, apply=False) returns."
            )
        ready = as_hooks(hooks, operation)
        if edit is not None and edit.check_fits(model, operation, hooks=ready, otherwise=AS_HOOKS):
            raise ValueError(
                f"{operation}: {edit!r} is applied to this model, so there is no run without it; expected it off; "
                "call edit.undo(model) first, it is switched on for the second run; or pass edit=None for the model as "
                "it is."
            )
        if edit is not None and is_hooked(model):
            warnings.warn(
                f"{operation}: hooks of an edit are on the model while {edit!r} is switched on and off, and are in "
                "both runs; expected a model without them; take them off, or go on if this is meant.",
                stacklevel=3,
            )
        warn_of_twice(model, ready, operation, stacklevel=3)
        if edit is not None:
            prepend_bos = edit.provenance.prepend_bos if prepend_bos is None else prepend_bos
        bos = tokens.resolve_bos(model, prepend_bos)
        return cls(model=model, operation=operation, edit=edit, hooks=ready, prepend_bos=bos)

    @property
    def names(self) -> tuple[str, ...]:
        """The runs."""
        return ALONE if self.edit is None and not self.hooks else BEFORE_AND_AFTER

    @property
    def switched(self) -> str:
        """What is switched on, in words."""
        given = [repr(self.edit)] * (self.edit is not None)
        given += [counted(len(self.hooks), "hook")] * bool(self.hooks)
        return " and ".join(given)

    def each(self, measure: Callable[[Sequence[NamedHook]], Found]) -> list[Found]:
        """What ``measure`` finds in each run; it is given the hooks of the run, and attaches them itself."""
        with torch.no_grad():
            found = [measure(())]
            if self.names == BEFORE_AND_AFTER:
                on: AbstractContextManager[object] = nullcontext() if self.edit is None else self.edit.on(self.model)
                with on:
                    found.append(measure(self.hooks))
        return found

    def watch(
        self,
        ids: Int[Tensor, " pos"],
        readers: Mapping[str, Callable[[Tensor], None]],
        hooks: Sequence[NamedHook],
    ) -> Float[Tensor, "pos d_vocab"]:
        """Logits of one pass over ``ids``, which shows each reader the activation at its hook point; see `keep`.

        Raises:
            ValueError: If a name is no hook point, or is not computed.
        """
        seen: set[str] = set()

        def watching(name: str) -> HookFn:
            def read(act: Tensor, hook: object = None) -> None:
                seen.add(name)
                readers[name](act.detach())

            return read

        ours = [(name, watching(name)) for name in readers]
        logits = forward.logits(self.model, tokens.pad(self.model, [ids]), [*hooks, *ours])[0]
        if missing := sorted(readers.keys() - seen):
            raise ValueError(
                f"{self.operation}: {missing[0]} did not fire in the forward pass; expected a hook point that this "
                "model computes; load a Hugging Face model with attn_implementation='eager' to see attention patterns, "
                "and use a compiled model as it was before."
            )
        return logits

    def ids(self, prompt: str) -> Int[Tensor, " pos"]:
        """The prompt's tokens."""
        return tokens.encode(self.model, prompt, prepend_bos=self.prepend_bos)

    def answer(self, prompt: str, answer: object) -> Int[Tensor, " pos"]:
        """All tokens of an answer behind the prompt.

        Raises:
            ValueError: If it is no word, or cannot be told from the prompt.
        """
        if not isinstance(answer, str):
            raise ValueError(
                f"{self.operation}: an answer is {answer!r} of type {type(answer).__name__}; expected a string; pass "
                "e.g. 'Rome'."
            )
        return tokens.target_tokens(self.model, prompt, answer, prepend_bos=self.prepend_bos)

    def first_tokens(self, prompt: str, answers: object) -> Int[Tensor, " answer"]:
        """The first token of each answer behind the prompt, by which answers are told apart.

        Raises:
            ValueError: If there is none, one is no word, or two begin with the same token.
        """
        if isinstance(answers, str) or not isinstance(answers, Sequence) or not answers:
            raise ValueError(
                f"{self.operation}: answers is {answers!r}; expected a list of one or more, told apart by their first "
                "tokens; pass e.g. ['Rome', 'Paris']."
            )
        listed = list(cast(Sequence[object], answers))
        firsts = [int(self.answer(prompt, answer)[0]) for answer in listed]
        for i, first in enumerate(firsts):
            if first in firsts[:i]:
                (token,) = tokens.str_tokens(self.model, torch.tensor([first]))
                raise ValueError(
                    f"{self.operation}: {listed[firsts.index(first)]!r} and {listed[i]!r} begin with the same token, "
                    f"{token!r}, and only first tokens are read; expected answers that differ in it; choose others, "
                    "or append what they share to the prompt."
                )
        return torch.tensor(firsts)

    def subject_last(self, prompt: str, subject: str | None) -> int | None:
        """Where a subject ends, in tokens; None for none."""
        if subject is None:
            return None
        return tokens.tokenize_prompt(self.model, prompt, subject, prepend_bos=self.prepend_bos).subject_last

    def own_subject(self, prompt: str, subject: str | None) -> str | None:
        """``subject``, or else the one that the edit's requests name and that is in the prompt; None for none."""
        if subject is not None or self.edit is None:
            return subject
        named = [request.subject for request in self.edit.requests if request.subject in prompt]
        return max(named, key=len, default=None)

    def labels(self, prompt: str, ids: Int[Tensor, " pos"]) -> dict[str, Any]:
        """What `Followed` says."""
        return {
            "prompt": prompt,
            "tokens": tokens.str_tokens(self.model, ids),
            "runs": self.names,
            "switched": self.switched,
            "provenance": host.provenance(self.model, prepend_bos=self.prepend_bos),
        }


def keep(store: dict[str, Tensor], name: str, *where: int | slice | list[int]) -> Callable[[Tensor], None]:
    """A reader that keeps a copy of a part of the only row's activation, whatever axes it has."""

    def read(act: Tensor) -> None:
        store[name] = act[(0, *where)].clone()

    return read
