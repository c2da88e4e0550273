"""What is asked for at once: requests that contradict one another, and the texts before them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import tokens
from tl_edit.counted import counted
from tl_edit.host import Model
from tl_edit.keys import read_lookups
from tl_edit.request import EditRequest, as_prefixes

Conflicts = Literal["refuse", "first", "last"]


def distinct(
    requests: Sequence[EditRequest], conflicts: Conflicts, operation: str
) -> tuple[tuple[EditRequest, ...], tuple[EditRequest, ...]]:
    """The requests with each fact, a prompt and where its subject ends, once, in their order; and those left out.

    Two requests for one fact share their key, so that together they would write a mixture of their objects, or, where
    the object is the same, give the fact twice the weight.

    Raises:
        ValueError: If a fact is asked for twice and ``conflicts`` does not say which request counts.
    """
    if conflicts not in get_args(Conflicts):
        raise ValueError(f"{operation}: conflicts is {conflicts!r}; expected one of {', '.join(get_args(Conflicts))}.")
    # Whatever part of a prompt is called the subject: its end is where the fact is looked up.
    by_fact: dict[tuple[str, int], list[int]] = {}
    for i, request in enumerate(requests):
        end = request.relation.index("{}") + len(request.subject)
        by_fact.setdefault((request.prompt, end), []).append(i)
    clashes = [several for several in by_fact.values() if len(several) > 1]
    if clashes and conflicts == "refuse":
        named = "; ".join(" and ".join(f"request {i} ({requests[i]})" for i in several[:2]) for several in clashes[:3])
        more = f", and {counted(len(clashes) - 3, 'more fact')}" if len(clashes) > 3 else ""
        verb = "is" if len(clashes) == 1 else "are"
        raise ValueError(
            f"{operation}: {len(clashes)} of {counted(len(by_fact), 'fact')} {verb} asked for more than once: {named}"
            f"{more}; expected each subject and relation once; drop the others, or pass conflicts='first' or "
            "conflicts='last'."
        )
    taken = {several[-1 if conflicts == "last" else 0] for several in by_fact.values()}
    return (
        tuple(request for i, request in enumerate(requests) if i in taken),
        tuple(request for i, request in enumerate(requests) if i not in taken),
    )


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """The texts before a prompt, by type; the bare prompt is a type of its own and not among them."""

    types: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, prefixes: object, operation: str) -> "Contexts":
        """Templates are one type, lists of templates several.

        Raises:
            ValueError: If they are neither, or a template is malformed.
        """
        given = prefixes
        if isinstance(prefixes, Iterable) and not isinstance(prefixes, str | dict):
            listed = tuple(cast(Iterable[object], prefixes))
            if listed and all(isinstance(several, list | tuple) for several in listed):
                types = [as_prefixes(several, operation) for several in listed]
                return cls(types=tuple(several for several in types if several))
            given = listed
        flat = as_prefixes(cast(object, given), operation)
        return cls(types=(flat,) if flat else ())

    @property
    def templates(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(template for several in self.types for template in several)


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """The prompts of all requests, bare and in context."""

    bare: tuple[tokens.Prompt, ...]
    inside: tuple[tuple[tuple[tokens.Prompt, ...], ...], ...]
    """By request and type."""

    @classmethod
    def of(cls, model: Model, requests: Sequence[EditRequest], contexts: Contexts, bos: bool) -> "Asked":
        """Tokenise everything once.

        Raises:
            ValueError: If a subject cannot be located, or a prompt does not fit the context.
        """

        def tokenize(request: EditRequest, prefix: str) -> tokens.Prompt:
            return tokens.tokenize_request(model, request, prefix=prefix, prepend_bos=bos)

        return cls(
            bare=tuple(tokenize(request, "{}") for request in requests),
            inside=tuple(
                tuple(tuple(tokenize(request, prefix) for prefix in several) for several in contexts.types)
                for request in requests
            ),
        )

    def read(
        self, model: Model, key: str, value: str, *, at_once: int = 64
    ) -> tuple[Float[Tensor, "request d_mlp"], Float[Tensor, "request d_model"]]:
        """The mean keys at ``key``, in float64, and what the bare prompts have at ``value``.

        Keys are averaged within each type and then over types, so the bare prompt counts as much as all generated
        prefixes together (MEMIT's program). The bare prompts run on to ``value``, the others end at ``key``.
        """
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for start in range(0, len(self.bare), at_once):
            chunk = slice(start, start + at_once)
            bare = read_lookups(model, self.bare[chunk], list(dict.fromkeys((key, value))), at_once)
            mean, values = bare[key].double(), [*values, bare[value].double()]
            flat = [prompt for request in self.inside[chunk] for several in request for prompt in several]
            rows = iter(read_lookups(model, flat, [key], at_once)[key].double() if flat else [])
            for i, request in enumerate(self.inside[chunk]):
                types = [torch.stack([next(rows) for _ in several]).mean(0) for several in request]
                mean[i] = torch.stack([mean[i], *types]).mean(0)
            keys.append(mean)
        return torch.cat(keys), torch.cat(values)
