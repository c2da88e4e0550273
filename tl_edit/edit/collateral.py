"""Collateral: how far an edit moves what the MLP answers elsewhere, before it is applied.

An edit adds ``key @ left @ right`` to the answer of ``W_out`` at every key, its own and all others; how much is known
from the keys alone. Of a rank-one edit the length is ``|left . key| |right|``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import attach, forward, host, show, tokens
from tl_edit.counted import counted
from tl_edit.edit.low_rank import LowRank
from tl_edit.host import Model, NamedHook
from tl_edit.request import EditRequest, as_requests

By = Literal["token", "text"]


@dataclass(frozen=True)
class Moved:
    """One token, or one text by the token that is moved most."""

    shift: float
    """How far the answers are moved, summed over layers, in the units of the MLP's output."""
    relative: float
    """The same over the length of the answers there."""
    text: str
    position: int
    """Of the token, BOS counted."""
    token: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Collateral:
    """How far an edit moves the answers at some tokens; tensors on the CPU, in float64."""

    edit: str
    layers: tuple[int, ...]
    texts: tuple[str, ...]
    """What was looked at: texts, or the prompts of requests."""
    of_subjects: bool
    """Whether requests were given, and only each subject's last token was looked at."""
    shift: Float[Tensor, "layer token"]
    """Length of what the edit adds to the MLP's output."""
    value_norm: Float[Tensor, "layer token"]
    """Length of the MLP's output there, without this layer's change."""
    text_index: Int[Tensor, " token"]
    """Which text a token is in."""
    positions: Int[Tensor, " token"]
    """Where in it, BOS counted."""
    str_tokens: tuple[str, ...]

    @property
    def total(self) -> Float[Tensor, " token"]:
        """``shift`` summed over layers."""
        return self.shift.sum(0)

    def top(self, n: int = 10, *, by: By = "token") -> list[Moved]:
        """What is moved most, first the most: tokens, or texts by their most moved token.

        Raises:
            ValueError: If ``n`` is no integer of 1 or more, or ``by`` something else.
        """
        if type(n) is not int or n < 1:
            raise ValueError(f"Collateral.top: n is {n!r}; expected an integer of 1 or more; the default is 10.")
        if by not in get_args(By):
            raise ValueError(
                f"Collateral.top: by is {by!r}; expected one of {', '.join(get_args(By))}; the default is 'token'."
            )
        order = self._order()
        if by == "text":
            first: dict[int, int] = {}
            for i in order:
                first.setdefault(int(self.text_index[i]), i)
            order = list(first.values())
        return [self._moved(i) for i in order[:n]]

    def _order(self) -> list[int]:
        """Tokens, first the most moved."""
        return list(map(int, self.total.argsort(descending=True, stable=True)))

    def _moved(self, i: int) -> Moved:
        return Moved(
            shift=float(self.total[i]),
            relative=float(self.total[i] / self.value_norm[:, i].sum()),
            text=self.texts[int(self.text_index[i])],
            position=int(self.positions[i]),
            token=self.str_tokens[i],
        )

    def to_dataframe(self) -> Any:
        """A pandas frame: one row for each token and layer.

        Raises:
            ImportError: If pandas is not installed.
        """
        frame = show.frame(
            "Collateral.to_dataframe",
            {"layer": self.layers, "token_index": range(len(self.str_tokens))},
            {"shift": self.shift, "value_norm": self.value_norm},
        )
        for name, column in (("text_index", self.text_index), ("position", self.positions)):
            frame[name] = column.repeat(len(self.layers)).tolist()
        frame["text"] = [self.texts[i] for i in frame["text_index"]]
        frame["token"] = list(self.str_tokens) * len(self.layers)
        return frame

    def plot(self, ax: Any = None, *, n: int = 20) -> Any:
        """Bars of the ``n`` tokens that are moved most, at most 60.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If ``n`` is no integer of 1 or more.
        """
        moved = self.top(n)
        return show.plot_bars(
            {"": torch.tensor([each.shift for each in moved], dtype=torch.float64)},
            ax,
            groups=[self._in_context(i) for i in self._order()[:n]],
            ylabel="shift of the MLP's output (its own units)",
            title=f"{self.edit}: what it moves most",
            flat=True,
        )

    def _in_context(self, i: int) -> str:
        """A token in brackets behind what stands before it; of subjects, behind the whole prompt."""
        token = show.visible(self.str_tokens[i])
        if self.of_subjects:
            return f"{show.visible(_short(self.texts[int(self.text_index[i])], 50))} [{token}]"
        return f"{show.ending(self.str_tokens[i - int(self.positions[i]) : i], 40)}[{token}]"

    def __repr__(self) -> str:
        most = self.top(1)[0]
        what = "subject" if self.of_subjects else "token"
        return (
            f"Collateral({self.edit}: {counted(len(self.str_tokens), what)}, shift mean "
            f"{float(self.total.mean()):.3g}, most {most.shift:.3g} at {most.token!r} of {_short(most.text)!r})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (
                f"{moved.shift:.3g}",
                f"{moved.relative:.1%}",
                show.visible(moved.token),
                str(moved.position),
                show.visible(_short(moved.text)),
            )
            for moved in self.top(10)
        ]
        columns = ["shift", "of the answer", "token", "position", "text"]
        return show.table(rows, columns=columns, heading=f"{self.edit}: what it moves most")


def collateral(
    model: Model,
    edit: str,
    deltas: Mapping[int, LowRank],
    what: object,
    hooks: Sequence[NamedHook],
    *,
    prepend_bos: bool,
    batch_size: int,
) -> Collateral:
    """Run the model over texts or requests with the edit's hooks on; see `Edit.collateral`."""
    operation = "Edit.collateral"
    tokens.check_rows(batch_size, operation, default=64)
    # Hooks of the user's may count positions, also from the end: they see texts whole and unpadded.
    whole = attach.foreign_hook(model) is not None
    listed = _listed(what)
    of_subjects = bool(listed) and isinstance(listed[0], EditRequest)
    if of_subjects:
        texts, rows, chosen = _subjects(model, as_requests(listed, operation), prepend_bos, whole)
    else:
        texts, rows, chosen = _texts(model, listed, prepend_bos, operation)
    shifts: dict[int, list[Tensor]] = {layer: [] for layer in deltas}
    values: dict[int, list[Tensor]] = {layer: [] for layer in deltas}
    order: list[int] = []
    for part in tokens.chunks([len(row) for row in rows], batch_size, one_length=whole):
        batch = tokens.pad(model, [rows[i] for i in part])
        where = (
            torch.tensor([i for i, row in enumerate(part) for _ in chosen[row]]),
            torch.tensor([position for row in part for position in chosen[row]]),
        )
        _read(model, batch, where, deltas, hooks, shifts, values)
        order += [row for row in part for _ in chosen[row]]
    back = torch.tensor(order).argsort(stable=True)
    return Collateral(
        edit=edit,
        layers=tuple(deltas),
        texts=texts,
        of_subjects=of_subjects,
        shift=torch.stack([torch.cat(shifts[layer])[back] for layer in deltas]),
        value_norm=torch.stack([torch.cat(values[layer])[back] for layer in deltas]),
        text_index=torch.tensor([i for i in range(len(rows)) for _ in chosen[i]]),
        positions=torch.tensor([position for places in chosen for position in places]),
        str_tokens=tuple(
            shown[position]
            for row, places in zip(rows, chosen, strict=True)
            for shown in [tokens.str_tokens(model, row)]
            for position in places
        ),
    )


def _read(
    model: Model,
    batch: tokens.TokenBatch,
    where: tuple[Tensor, Tensor],
    deltas: Mapping[int, LowRank],
    hooks: Sequence[NamedHook],
    shifts: dict[int, list[Tensor]],
    values: dict[int, list[Tensor]],
) -> None:
    found: dict[int, Tensor] = {}

    def read_key(layer: int) -> Callable[[Tensor], None]:
        def read(act: Float[Tensor, "batch pos d_mlp"]) -> None:
            found[layer] = deltas[layer].shift(act[where].to("cpu", torch.float64))
            shifts[layer].append(forward.lengths(found[layer]))

        return read

    def read_value(layer: int) -> Callable[[Tensor], None]:
        # Where hooks add the change behind a norm, the raw value does not have it.
        has_shift = not hooks or host.value_site(model, layer).divisor is None

        def read(act: Float[Tensor, "batch pos d_model"]) -> None:
            answer = act[where].to("cpu", torch.float64)
            values[layer].append(forward.lengths(answer - found[layer] if has_shift else answer))

        return read

    keys = {host.key_name(layer): read_key(layer) for layer in deltas}
    answers = {host.value_name(model, layer): read_value(layer) for layer in deltas}
    forward.visit(model, batch, keys | answers, hooks)


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _listed(what: object) -> list[object]:
    """One or several as a list, also from an iterator."""
    several = isinstance(what, Sequence | Set | Iterator) and not isinstance(what, str)
    return list(cast(Iterable[object], what)) if several else [what]


_Asked = tuple[tuple[str, ...], list[Int[Tensor, " pos"]], list[range]]
"""Texts, their tokens, and which positions of each are looked at."""


def _subjects(model: Model, requests: Sequence[EditRequest], prepend_bos: bool, whole: bool) -> _Asked:
    prompts = [tokens.tokenize_request(model, request, prepend_bos=prepend_bos) for request in requests]
    # Causal attention: what follows the subject cannot change what is read there, unless by a hook.
    rows = [prompt.tokens if whole else prompt.tokens[: prompt.subject_last + 1] for prompt in prompts]
    chosen = [range(prompt.subject_last, prompt.subject_last + 1) for prompt in prompts]
    return tuple(prompt.text for prompt in prompts), rows, chosen


def _texts(model: Model, listed: Sequence[object], prepend_bos: bool, operation: str) -> _Asked:
    if not listed or not all(isinstance(text, str) for text in listed):
        kinds = sorted({type(text).__name__ for text in listed}) or ["nothing"]
        raise ValueError(
            f"{operation}: found {', '.join(kinds)}; expected texts, or requests, not both; pass e.g. ['The Louvre is "
            "in', 'Rome is in']."
        )
    texts = cast(Sequence[str], listed)
    rows = [tokens.encode(model, text, prepend_bos=prepend_bos) for text in texts]
    return tuple(texts), rows, [range(len(row)) for row in rows]
