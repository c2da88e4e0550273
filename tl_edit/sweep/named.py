"""The editors of this package as methods, by the names of the field: what the command line and reproductions run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from tl_edit import host
from tl_edit.host import Model
from tl_edit.memit import (
    AlphaEditConfig,
    EMMETConfig,
    MEMITConfig,
    PMETConfig,
    alpha_edit,
    emmet_edit,
    memit_edit,
    pmet_edit,
)
from tl_edit.memit.loop import effective
from tl_edit.memit.settings import SpreadSettings
from tl_edit.moment import SecondMoments
from tl_edit.prefixes import generate_prefixes
from tl_edit.rome import ROMEConfig, effective_config, rome_edit
from tl_edit.sweep.methods import Method, no_edit, random_direction

Measure = Callable[[Sequence[int]], SecondMoments]
"""Gives the second moments of some layers."""

_ROME: Mapping[str, str] = {"rome": "ROME", "rome-identity": "ROME", "r-rome": "r-ROME", "p-rome": "p-ROME"}
_SPREAD: Mapping[str, tuple[Callable[..., Any], type[SpreadSettings], SpreadSettings]] = {
    "memit": (memit_edit, MEMITConfig, MEMITConfig(share=0.5)),
    "emmet": (emmet_edit, EMMETConfig, EMMETConfig()),
    "alphaedit": (alpha_edit, AlphaEditConfig, AlphaEditConfig(relative_threshold=True)),
    "pmet": (pmet_edit, PMETConfig, PMETConfig()),
}
SINGLE = tuple(_ROME)
"""Methods that edit one record at a time."""
EDITORS = (*_ROME, *_SPREAD)
"""Methods that edit."""
NAMES = ("none", *EDITORS, "random")
"""All of them: "none" is the model as it is, "rome-identity" takes ``C = I``, and "random" writes random directions of
the norm of the first other method's change."""

Settings = ROMEConfig | SpreadSettings


@dataclass(frozen=True, kw_only=True)
class NamedMethods:
    """Methods, and the settings that they run with."""

    methods: Mapping[str, Method]
    settings: Mapping[str, Settings]
    """Of those that edit."""


def named_methods(
    model: Model,
    names: Sequence[str],
    measure: Measure,
    *,
    layer: int | None = None,
    layers: Sequence[int] | None = None,
    prepend_bos: bool | None = None,
    seed: int = 0,
    batch: int = 1,
    progress: bool = False,
    operation: str = "named_methods",
) -> NamedMethods:
    """Methods for `sweep` by their names, prefixes generated and second moments measured once for all of them.

    Args:
        model: A HookedTransformer or TransformerBridge.
        names: Some of `NAMES`.
        measure: Called once, with all layers whose second moments are needed, or not at all.
        layer: The layer of ROME and its variants; None for the published one.
        layers: The layers of the others; None for the published ones, or ``layer`` alone where that is given.
        prepend_bos: As for `rome_edit`.
        seed: Of prefixes and random directions.
        batch: Records that will be edited together.
        progress: Whether MEMIT and its relatives show bars.
        operation: What errors are about.

    Raises:
        ValueError: For unknown names, layers that do not exist, a model without published settings and no layers, and
            for several records at once with a method that takes one.
    """
    check_names(names, operation, batch=batch)
    if layers is not None and not set(names) & set(_SPREAD):
        raise ValueError(
            f"{operation}: layers {list(layers)} are given, and {', '.join(names)} edit one; expected them with some "
            f"of {', '.join(_SPREAD)}; give a single layer (--layer), or none."
        )
    if layers is None and layer is not None:
        layers = [layer]
    settings = {name: _settings(model, name, layer, layers, seed) for name in names if name in EDITORS}
    wanted = {at for name, config in settings.items() if name != "rome-identity" for at in layers_of(config)}
    moments = measure(sorted(wanted)) if wanted else SecondMoments([])
    texts: dict[object, tuple[str, ...]] = {}
    methods: dict[str, Method] = {}
    for name in names:
        if name in settings:
            config = settings[name]
            own = SecondMoments.identity(model, layers_of(config)) if name == "rome-identity" else moments
            given = {
                "moments": _only(own, layers_of(config)),
                "config": config,
                "prefixes": _prefixes(model, config, texts),
                "prepend_bos": prepend_bos,
                "apply": False,
            }
            editor = rome_edit if name in _ROME else _SPREAD[name][0]
            methods[name] = cast(
                Method, partial(editor, **given) if name in _ROME else partial(editor, **given, progress=progress)
            )
        elif name == "none":
            methods[name] = no_edit
    if "random" in names:
        first = next(name for name in names if name in EDITORS)
        methods["random"] = random_direction(methods[first], seed=seed)
    return NamedMethods(methods={name: methods[name] for name in names}, settings=settings)


def check_names(names: Sequence[str], operation: str, *, batch: int = 1) -> None:
    """Refuse names that are unknown, twice there, or do not work together.

    Raises:
        ValueError: naming what is wrong.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names or len(set(names)) < len(names):
        found = f"no method {unknown[0]!r}" if unknown else "a method twice" if names else "no methods"
        raise ValueError(f"{operation}: {found}; expected some of {', '.join(NAMES)}, each once; check the names.")
    if "random" in names and not set(names) & set(EDITORS):
        raise ValueError(
            f"{operation}: 'random' takes its norm from another method's edit, and there is none; expected one of "
            f"{', '.join(EDITORS)} beside it; add e.g. rome."
        )
    single = [name for name in names if name in _ROME]
    if batch > 1 and single:
        raise ValueError(
            f"{operation}: {single[0]} edits one record at a time, and the batch is {batch}; expected a batch of 1, or "
            f"some of {', '.join(_SPREAD)}; leave {single[0]} out, or the batch."
        )


def layers_of(config: Settings) -> tuple[int, ...]:
    """The layers that settings name."""
    if isinstance(config, ROMEConfig):
        return () if config.layer is None else (config.layer,)
    return tuple(config.layers)


def _settings(model: Model, name: str, layer: int | None, layers: Sequence[int] | None, seed: int) -> Settings:
    """What the method runs with: published, or common where none are and a layer is given."""
    depth = host.n_layers(model)
    config: Settings
    try:
        if name in _ROME:
            rome = effective_config(model, layer, None)
            config = replace(rome, variant=cast(Any, _ROME[name]))
        else:
            _, kind, default = _SPREAD[name]
            config = effective(kind, model, layers, None, name, default)
    except ValueError as error:
        if (layer if name in _ROME else layers) is not None:
            raise
        option = f"--layer {depth // 3}" if name in _ROME else f"--layers {depth // 3} {depth // 3 + 1}"
        raise ValueError(
            f"{name}: no layer is given, and no published settings are known for {host.model_name(model)}; expected 0 "
            f"to {depth - 1}; pass e.g. {option}."
        ) from error
    host.check_layers(model, layers_of(config), name)
    return replace(config, seed=seed)


def _only(moments: SecondMoments, layers: Sequence[int]) -> SecondMoments:
    """Of these layers, so that what else was measured does not tell two equal methods apart."""
    if set(moments) == set(layers):
        return moments
    return SecondMoments(moments[layer] for layer in layers)


def _prefixes(model: Model, config: Settings, known: dict[object, tuple[str, ...]]) -> tuple[str, ...]:
    """The texts before prompts by the published rule; equal ones are generated once."""
    if config.n_prefixes == 0:
        return ()
    one = isinstance(config, ROMEConfig)
    rule: dict[str, Any] = {
        "lengths": config.prefix_lengths if one else (config.prefix_length,),
        "n_per_length": config.n_prefixes,
        "seed": config.seed,
        "starts": None if one else tuple(config.prefix_starts),
    }
    key = tuple(rule.values())
    if key not in known:
        known[key] = generate_prefixes(model, **rule)
    return known[key]
