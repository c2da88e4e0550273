"""An edit as hooks: the same change, added where the MLP answers, without touching a weight."""

import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_edit import host
from tl_edit.attach import functions_on
from tl_edit.edit.low_rank import Change, LowRank
from tl_edit.forward import at_least_float32
from tl_edit.hooks import Positions, inside
from tl_edit.host import Model, NamedHook, ValueSite

Where = Positions | Bool[Tensor, " pos"] | Bool[Tensor, "batch pos"] | None
"""Positions, or a mask of them: one for all rows, or one for each."""

Rows = Positions | Bool[Tensor, " batch"] | None
"""Rows of the batch, or a mask of them."""

_DIVISOR = "tl_edit_divisor"


def named_hooks(
    deltas: Mapping[int, LowRank],
    sites: Mapping[int, ValueSite],
    *,
    scale: float,
    positions: Where,
    rows: Rows,
    change: Change | None = None,
) -> list[NamedHook]:
    """The hooks of all layers; see `Edit.hooks`."""
    gate = None if positions is None and rows is None else _Gate(positions, rows)
    return [
        hook
        for layer, delta in deltas.items()
        for hook in _OneLayer(layer, delta * scale, sites[layer], gate, _Source(change, scale)).named
    ]


def scales_of(change: Change, hooks: Sequence[NamedHook]) -> list[float]:
    """The scales of those hooks that are of this edit, or a copy of it."""
    sources = [cast(_OneLayer, cast(Any, function).__self__).source for _, function in hooks if _is_ours(function)]
    return [source.scale for source in sources if source.change == change]


def is_hooked(model: Model) -> bool:
    """Whether hooks of an edit are on the model."""
    return any(map(_is_ours, functions_on(model)))


def _is_ours(function: object) -> bool:
    return isinstance(getattr(function, "__self__", None), _OneLayer)


class _Source(NamedTuple):
    """Whose hooks they are."""

    change: Change | None
    scale: float


class _Gate:
    """Which positions of which rows are edited."""

    def __init__(self, positions: Where, rows: Rows) -> None:
        self.positions, self.rows = _masks_as_tensors(positions), _masks_as_tensors(rows)
        # What can never be right is said at once, not in the middle of a run.
        for name, given in (("positions", self.positions), ("rows", self.rows)):
            if not (given is None or isinstance(given, slice) or _is_mask(given)):
                listed = inside(sys.maxsize, given, f"Edit.hooks ({name})")
                if len(set(listed)) < len(listed):
                    raise ValueError(
                        f"Edit.hooks: {name} are {reprlib.repr(given)}, some of them twice; expected each once, or a "
                        "mask of True and False; of a mask of numbers write mask.bool()."
                    )

    def of(self, shape: tuple[int, int]) -> Bool[Tensor, "batch pos"]:
        """As a mask over a batch of this shape.

        Raises:
            ValueError: If a position or a row is outside of it, or a mask is of another shape.
        """
        batch, length = shape
        mask = torch.zeros(shape, dtype=torch.bool)
        chosen = _indices(self.rows, batch, "rows", "a batch of {} rows")
        if _is_mask(self.positions):
            given = cast(Tensor, self.positions).to("cpu")
            if tuple(given.shape) not in ((length,), (1, length), shape):
                raise ValueError(
                    f"Edit.hooks: the mask of positions is of shape {list(given.shape)} in a run of {batch} rows and "
                    f"{length} tokens; expected [{length}] or [{batch}, {length}]; make it for these tokens, padding "
                    "and BOS counted."
                )
            mask[chosen] = given.expand(shape)[chosen]
        else:
            columns = torch.zeros(length, dtype=torch.bool)
            columns[_indices(self.positions, length, "positions", "a sequence of {} tokens")] = True
            mask[chosen] = columns
        return mask


def _masks_as_tensors(given: Any) -> Any:
    """Masks of numpy and lists of True and False as tensors; copies, as the caller may go on to change his."""
    if isinstance(given, Tensor):
        return given.clone()
    if isinstance(given, list):
        listed = list(cast(list[object], given))
        return torch.tensor(listed) if listed and all(type(each) is bool for each in listed) else listed
    return torch.tensor(given) if str(getattr(given, "dtype", "")) == "bool" else given


def _is_mask(given: object) -> bool:
    return isinstance(given, Tensor) and given.dtype == torch.bool


def _indices(given: Any, size: int, name: str, axis: str) -> list[int]:
    """Positions or rows as indices counted from 0."""
    if given is None:
        return list(range(size))
    if _is_mask(given):
        if tuple(given.shape) != (size,):
            raise ValueError(
                f"Edit.hooks: the mask of {name} is of shape {list(given.shape)} in {axis.format(size)}; expected "
                f"[{size}]; make it for this batch."
            )
        return list(map(int, given.nonzero().flatten()))
    hint = "count the rows of this run."
    if name == "positions":
        hint = (
            "count the tokens of this run, padding and BOS too; with a key/value cache a run has the new tokens only "
            "(generate takes use_past_kv_cache=False)."
        )
    return inside(size, given, f"Edit.hooks ({name})", axis, hint)


class _OneLayer:
    """The hooks of one layer, and what one of them keeps for the next within a pass."""

    def __init__(self, layer: int, delta: LowRank, site: ValueSite, gate: _Gate | None, source: _Source) -> None:
        self.layer, self.delta, self.site, self.gate, self.source = layer, delta, site, gate, source
        self.kept: dict[str, Any] = {}
        self.factors: dict[tuple[torch.device, torch.dtype], LowRank] = {}

    @property
    def named(self) -> list[NamedHook]:
        """Hook points and functions, in the order in which a pass comes by."""
        pairs: list[tuple[str, Callable[..., Any]]] = [
            (host.resid_pre_name(self.layer), self.begin),
            (host.key_name(self.layer), self.keep_key),
        ]
        if self.site.divisor is not None:
            pairs += [(self.site.divisor, self.keep_divisor), (self.site.value, self.add_before_norm)]
        else:
            pairs.append((self.site.value, self.add))
        return [*pairs, (host.resid_post_name(self.layer), self.end)]

    def begin(self, act: Float[Tensor, "batch pos d_model"], hook: Any = None) -> None:
        """Look at the batch before the layer."""
        self._forget()
        if self.gate is not None:
            self.kept["mask"] = self.gate.of((act.shape[0], act.shape[1]))

    def keep_key(self, act: Float[Tensor, "*rows d_mlp"], hook: Any = None) -> None:
        """The key as ``W_out`` will see it."""
        if act.shape[-1] != self.delta.left.shape[0]:
            raise ValueError(
                f"Edit.hooks: keys of layer {self.layer} are {act.shape[-1]} wide in this model, the edit's "
                f"{self.delta.left.shape[0]}; expected the model that the edit was computed on, or one like it; "
                "compute the edit on this one."
            )
        self.kept["key"] = act

    def keep_divisor(self, act: Tensor, hook: Any = None) -> None:
        """What the norm after the MLP divides by."""
        self.kept["divisor"] = act

    def add(self, act: Float[Tensor, "*rows d_model"], hook: Any = None) -> Float[Tensor, "*rows d_model"]:
        """The value with the change."""
        shift, where = self._shift(act)
        if where is None:
            return (at_least_float32(act) + shift).to(act.dtype)
        out = act.clone()
        out[where] = (at_least_float32(act[where]) + shift).to(act.dtype)
        return out

    def add_before_norm(self, act: Float[Tensor, "batch pos d_model"], hook: Any = None) -> Tensor:
        """The value with the change, normalised anew."""
        shift, where = self._shift(act)
        divisor = self._divisor(act, hook).expand(*act.shape[:-1], 1)
        before, old = (act, divisor) if where is None else (act[where], divisor[where])
        raw = at_least_float32(before) * old + shift
        new = (raw.pow(2).mean(-1, keepdim=True) + self.site.eps).sqrt()
        normed = (raw / new).to(act.dtype)
        if where is not None:
            divisor, out = divisor.clone(), act.clone()
            divisor[where], out[where] = new.to(divisor.dtype), normed
            new, normed = divisor, out
        if hook is not None:
            # Another edit of this layer comes after this one, perhaps, and has seen the old divisor only.
            hook.ctx[_DIVISOR] = (self.kept["divisor"], new)
            self.kept["ctx"] = hook.ctx
        return normed

    def end(self, act: Tensor, hook: Any = None) -> None:
        """See after the layer that the change was added."""
        missed = "key" in self.kept
        self._forget()
        if missed:
            raise ValueError(
                f"Edit.hooks: {self.site.value} did not fire in layer {self.layer}, so nothing was added; expected the "
                "interface that the edit was computed on (HookedTransformer or TransformerBridge); pass the model: "
                "edit.hooks(model)."
            )

    def _forget(self) -> None:
        """Nothing of one pass is to be held after it, or seen in the next."""
        self.kept.get("ctx", {}).pop(_DIVISOR, None)
        self.kept = {}

    def _divisor(self, act: Tensor, hook: Any) -> Tensor:
        """What ``act`` was divided by: by the norm, or by an edit before this one."""
        seen: Tensor | None = self.kept.get("divisor")
        latest = (None, seen) if hook is None else hook.ctx.get(_DIVISOR, (None, seen))
        divisor = latest[1] if latest[0] is seen else seen
        if divisor is not None:
            square = divisor.detach().pow(2)
            mean = at_least_float32(act.detach()).pow(2).mean(-1, keepdim=True)
            # Padding may hold what is not a number, which is no larger than anything.
            if not ((mean * square + self.site.eps - square).abs() > 1e-3 * square).any():
                return divisor
        raise ValueError(
            f"Edit.hooks: {self.site.value} is not the MLP's output of layer {self.layer} over what "
            f"{self.site.divisor} showed; expected the norm as TransformerLens computes it; put hooks of yours that "
            "change it behind those of the edit, or write with edit.on(model)."
        )

    def _shift(self, act: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is to be added, in at least float32, at the positions of the mask; None is everywhere."""
        if "key" not in self.kept or (self.gate is not None and "mask" not in self.kept):
            raise ValueError(
                f"Edit.hooks: {self.site.value} fired and no key was seen in layer {self.layer} before; expected all "
                "hooks of the edit in one run, each once; pass the whole list that edit.hooks() gave."
            )
        key, mask = at_least_float32(self.kept.pop("key")), self.kept.get("mask")
        where = None
        if mask is not None:
            where = mask.to(act.device)
            # Some Hugging Face MLPs see [batch * pos, width].
            where = where.flatten() if act.ndim == 2 else where
            key = key[where.to(key.device)]
        place = (key.device, key.dtype)
        if place not in self.factors:
            # Kept for runs with gradients, too, which tensors made in inference mode refuse.
            with torch.inference_mode(False):
                there = self.delta.at(*place)
                self.factors[place] = LowRank(there.left.clone(), there.right.clone())
        return self.factors[place].shift(key).to(act.device), where
