"""What a trace is asked to do, checked before anything is computed."""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, SupportsIndex, cast, get_args

import torch
from torch import Tensor

from tl_edit import host
from tl_edit.digest import digest
from tl_edit.host import Model
from tl_edit.request import EditRequest
from tl_edit.tokens import Prompt
from tl_edit.trace.noise import Noise
from tl_edit.trace.plan import KINDS, MEASURES, Kind, Measure, Severed, hook_name

Where = Literal["all", "subject", "subject_last", "last"]
Engine = Literal["auto", "plain"]
OPERATION = "causal_trace"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one trace or of many; made by `checked`."""

    kinds: tuple[Kind, ...]
    layers: tuple[int, ...]
    window: int
    noise: Noise
    n_samples: int
    seed: int
    measure: Measure
    severed: Severed | None
    engine: Engine
    max_rows: int

    @classmethod
    def checked(
        cls,
        model: Model,
        *,
        kinds: object,
        layers: object,
        window: object,
        noise: object,
        noise_std: object,
        n_samples: object,
        seed: object,
        measure: object,
        severed: object,
        engine: object,
        max_rows: object,
    ) -> "Settings":
        """The settings in their plain form; see `causal_trace` for what they mean.

        Raises:
            ValueError: For what cannot work, or what this model does not have.
        """
        host.check_ready(model, OPERATION)
        depth = host.n_layers(model)
        for name, value, allowed in (("measure", measure, MEASURES), ("engine", engine, get_args(Engine))):
            if value not in allowed:
                raise ValueError(f"{OPERATION}: {name} is {value!r}; expected one of {', '.join(allowed)}.")
        chosen = _kinds(kinds, severed)
        _check_sites(model, chosen, cast(Severed | None, severed))
        return cls(
            kinds=chosen,
            layers=tuple(range(depth)) if layers is None else _layers(layers, depth),
            window=max(1, round(depth / 5)) if window is None else _count("window", window, "the paper's is 10 of 48"),
            noise=_noise(noise, noise_std),
            n_samples=_count("n_samples", n_samples, "the paper's is 10"),
            seed=_seed(seed),
            measure=cast(Measure, measure),
            severed=cast(Severed | None, severed),
            engine=cast(Engine, engine),
            max_rows=_count("max_rows", max_rows, "the default is 32768"),
        )

    def identity(self) -> dict[str, str]:
        """What the result depends on, as texts that are equal for equal settings only."""
        given = {name: getattr(self, name) for name in (field.name for field in fields(self))}
        for name in ("engine", "max_rows", "noise"):
            del given[name]
        of_noise = {f"noise {field.name}": getattr(self.noise, field.name) for field in fields(self.noise)}
        return {name: _exact(value) for name, value in sorted((given | of_noise).items())}


def _exact(value: object) -> str:
    return digest([value.to("cpu", torch.float64)]) if isinstance(value, Tensor) else repr(value)


# --- one by one ----------------------------------------------------------------------------------------


def _integer(value: object) -> int | None:
    """A whole number of Python, numpy or torch as Python's; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # a tensor of several numbers, or of broken ones
        return None


def _listed(values: object, name: str, expected: str) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{OPERATION}: {name} is {values!r}; expected {expected}.")
    try:
        return list(cast(Iterable[Any], values))
    except TypeError:  # a tensor without axes
        raise ValueError(f"{OPERATION}: {name} is {values!r}; expected {expected}.") from None


def _kinds(kinds: object, severed: object) -> tuple[Kind, ...]:
    listed = [kinds] if isinstance(kinds, str) else _listed(kinds, "kinds", f"some of {', '.join(KINDS)}")
    if not listed or any(kind not in KINDS for kind in listed) or len(set(listed)) < len(listed):
        raise ValueError(f"{OPERATION}: kinds {listed}; expected some of {', '.join(KINDS)}, each once.")
    if severed is not None and (severed not in get_args(Severed) or listed != ["resid_post"]):
        raise ValueError(
            f"{OPERATION}: severed {severed!r} with kinds {listed}; expected 'mlp_out' or 'attn_out', with "
            'kinds=("resid_post",).'
        )
    return cast(tuple[Kind, ...], tuple(listed))


def _check_sites(model: Model, kinds: tuple[Kind, ...], severed: Severed | None) -> None:
    """Refuse states that the model does not have."""
    points = host.hook_points(model)
    wanted: list[Kind] = [*kinds] if severed is None else [*kinds, severed]
    for kind in wanted:
        # HookedTransformer has a hook point for the output of an MLP that is not there.
        missing = [
            layer
            for layer in range(host.n_layers(model))
            if hook_name(kind, layer) not in points
            or (kind == "mlp_out" and model.blocks[layer]._modules.get("mlp") is None)
        ]
        if missing:
            others = tuple(other for other in kinds if other != kind) or ("resid_post",)
            raise ValueError(
                f"{OPERATION}: layer {missing[0]} of {host.model_name(model)} has no {kind}; expected a hook point "
                f"{hook_name(kind, missing[0])!r}; pass kinds={others!r}."
            )


def _layers(layers: object, depth: int) -> tuple[int, ...]:
    expected = f"different whole numbers from 0 to {depth - 1}; negative ones are not accepted; pass e.g. layers=[0, 1]"
    given = _listed(layers, "layers", expected)
    listed = [number for number in map(_integer, given) if number is not None and 0 <= number < depth]
    if not given or len(set(listed)) < len(given):
        raise ValueError(f"{OPERATION}: layers {given}; expected {expected}.")
    return tuple(listed)


def positions_of(asked: Prompt, where: object) -> tuple[int, ...]:
    """The positions meant by a name, or by a list.

    Raises:
        ValueError: If there is no such name, or a position is not in the prompt.
    """
    length, (start, end) = len(asked.tokens), asked.subject_span
    named = {"all": range(length), "subject": range(start, end), "subject_last": [end - 1], "last": [length - 1]}
    if isinstance(where, str) and where in named:
        return tuple(named[where])
    expected = f"one of {', '.join(named)}, or different whole numbers from 0 to {length - 1}, the positions of "
    expected += repr(list(asked.str_tokens))
    given = _listed(where, "positions", expected)
    chosen = [number for number in map(_integer, given) if number is not None and 0 <= number < length]
    if not given or len(set(chosen)) < len(given):
        raise ValueError(f"{OPERATION}: positions {given}; expected {expected}.")
    return tuple(chosen)


def _count(name: str, value: object, example: str) -> int:
    number = _integer(value)
    if number is None or number < 1:
        raise ValueError(f"{OPERATION}: {name} is {value!r}; expected an integer, 1 or more; {example}.")
    return number


def _seed(value: object) -> int:
    number = _integer(value)
    if number is None or not 0 <= number < 2**32:
        raise ValueError(f"{OPERATION}: seed is {value!r}; expected an integer of 0 or more; the published one is 1.")
    return number


def _noise(noise: object, std: object) -> Noise:
    if isinstance(noise, Noise):
        if std is not None:
            raise ValueError(f"{OPERATION}: both a Noise and noise_std; expected one; write Noise.gaussian(std=...).")
        return noise
    multiple = _number("noise", noise, "a multiple of the standard deviation of the subject's embeddings, or a Noise")
    return Noise.gaussian(multiple, std=None if std is None else _number("noise_std", std, "a number, 0 or more"))


def _number(name: str, value: object, expected: str) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(cast(Any, value))
    except (TypeError, ValueError, RuntimeError):  # None, an array, a tensor of several numbers
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{OPERATION}: {name} is {value!r}; expected {expected}; the paper's noise is 3.0.")
    return number


def check_texts(prompt: object, subject: object, **others: object) -> None:
    """Refuse what is no text, and a subject that would take a neighbour's token with it.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(prompt, EditRequest):
        raise ValueError(
            f"{OPERATION}: prompt is {prompt!r}; expected its text, and the subject in it; pass request.prompt, "
            "request.subject."
        )
    if subject == "":
        raise ValueError(
            f"{OPERATION}: the subject is missing; expected what the prompt is about, as it stands in it; pass e.g. "
            "causal_trace(model, 'The Eiffel Tower is in', 'Eiffel Tower')."
        )
    for name, text in {"prompt": prompt, "subject": subject, **others}.items():
        if not isinstance(text, str) and (text is not None or name in ("prompt", "subject")):
            raise ValueError(f"{OPERATION}: {name} is {text!r}; expected a string.")
    if isinstance(subject, str) and subject != subject.strip():
        raise ValueError(
            f"{OPERATION}: the subject {subject!r} begins or ends with white space, which can take a token of its "
            f"neighbours with it; expected the name alone; pass {subject.strip()!r}."
        )


def nothing_corrupted(noise: Noise) -> str:
    """What to warn of where noise is none; empty for other noise."""
    if not noise.is_nothing:
        return ""
    return (
        f"{OPERATION}: the noise is {noise!r}, so nothing is corrupted and no restored state can have an effect; "
        "expected some noise; leave noise out for 3 standard deviations, or go on if this is meant."
    )


def check_subject(asked: Prompt, subject: str, bos: bool) -> None:
    """Refuse a subject that is the whole prompt.

    Raises:
        ValueError: If nothing is left to restore or to predict from.
    """
    start, end = asked.subject_span
    if start <= int(bos) and end == len(asked.tokens):
        raise ValueError(
            f"{OPERATION}: the subject {subject!r} is the whole prompt; expected a relation after it, e.g. "
            f"{subject + ' is in the city of'!r}."
        )


def word_around(prompt: str, subject: str) -> str | None:
    """The word that the first occurrence of ``subject`` is only a part of; None where it stands alone."""
    start = prompt.find(subject)
    end = start + len(subject)
    first, last = start, end
    while first > 0 and _of_a_word(prompt[first - 1]) and _of_a_word(prompt[start]):
        first -= 1
    while last < len(prompt) and _of_a_word(prompt[last]) and _of_a_word(prompt[end - 1]):
        last += 1
    return None if (first, last) == (start, end) else prompt[first:last]


def _of_a_word(char: str) -> bool:
    """A digit, or a letter of a script with capitals; others often stand without spaces."""
    return char.isdecimal() or char.lower() != char.upper()


def check_finite(**values: Tensor) -> None:
    """Refuse results that are not finite.

    Raises:
        ValueError: naming the run.
    """
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"{OPERATION}: {name.replace('_', ' ')} gives numbers that are not finite; expected finite "
                "activations; load the model in float32 or bfloat16 (float16 overflows on some models), or use less "
                "noise."
            )
