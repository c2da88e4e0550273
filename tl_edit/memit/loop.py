"""What MEMIT and its relatives have in common: values once, then layer by layer keys, residuals and an update."""

import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import host, tokens
from tl_edit.arguments import as_moments, moment_of, warn_of_bos, warn_of_norm
from tl_edit.counted import counted
from tl_edit.edit import Edit, LowRank, check_untouched, plus
from tl_edit.forward import length, lengths
from tl_edit.host import Model
from tl_edit.memit.requests import Asked, Conflicts, Contexts, distinct
from tl_edit.memit.settings import SpreadSettings, as_layers
from tl_edit.moment import SecondMoment, SecondMoments
from tl_edit.prefixes import generate_prefixes
from tl_edit.request import EditRequest, as_requests
from tl_edit.values import OptimizedValue, Site, optimize_values
from tl_edit.values.plain import site_name

Keys = Float[Tensor, "request d_mlp"]
Residuals = Float[Tensor, "request d_model"]
Settings = TypeVar("Settings", bound=SpreadSettings)


@dataclass(frozen=True)
class Method:
    """What tells one relative from another."""

    name: str
    operation: str
    solve: Callable[[SecondMoment, Keys, Residuals], tuple[LowRank, dict[str, float]]]
    """The update of one layer, and numbers of its own for the diagnostics."""
    sites: tuple[Site, ...] = ("resid_post",)
    """Where the values are sought; residuals are taken at the first."""
    part: Callable[[int], float] = float
    """What a residual is divided by, of the number of layers left."""
    needs_factor: bool = True
    """Whether the second moment must be positive definite."""
    check: Callable[[SecondMoment], None] | None = None
    """Refuses a second moment that it cannot use."""
    independent: bool = False
    """Whether the keys must be independent, which is tried at the first layer before values are sought."""


@dataclass(frozen=True)
class Call:
    """How an editor was called; see `memit_edit`."""

    prefixes: Iterable[str] | Iterable[Sequence[str]] | None
    prepend_bos: bool | None
    conflicts: Conflicts
    folder: str | Path | None
    max_rows: int | None
    progress: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """A computed edit that is not applied, and the keys of its requests in the model that has it."""

    edit: Edit
    keys_after: dict[int, Keys]


def prepared(model: Model, operation: str) -> Model:
    """The model itself, if it can be edited at all.

    Raises:
        ValueError: If it is none, or has active dropout.
    """
    host.check_ready(model, operation)
    return model


def effective(
    kind: type[Settings],
    model: Model,
    layers: Sequence[int] | None,
    config: Settings | None,
    operation: str,
    default: Settings,
) -> Settings:
    """The settings that count: ``layers`` over ``config`` over the published ones, over ``default`` where none are.

    Raises:
        ValueError: For settings of another kind, and where no layers are known.
    """
    if config is not None and not isinstance(cast(object, config), kind):
        raise ValueError(
            f"{operation}: found settings of type {type(config).__name__}; expected {kind.__name__}; write "
            f"{kind.__name__}(layers=[...], ...)."
        )
    if config is None:
        try:
            config = cast(Settings, cast(Any, kind).for_model(model))
        except ValueError:
            if layers is None:
                raise
            config = default
    if layers is not None:
        config = replace(config, layers=as_layers(operation, layers))
    if not config.layers:
        depth = host.n_layers(model)
        raise ValueError(
            f"{operation}: no layers are set; {host.model_name(model)} has layers 0 to {depth - 1}; pass layers=, e.g. "
            f"layers={list(range(depth // 4, depth // 4 + 2))}."
        )
    host.check_layers(model, config.layers, operation)
    return config


def spread(
    method: Method,
    model: Model,
    requests: EditRequest | Sequence[EditRequest],
    moments: SecondMoments | SecondMoment,
    config: SpreadSettings,
    call: Call,
    *,
    apply: bool,
    keys_after: bool = False,
) -> Spread:
    """Compute the edit; the model is as it was afterwards, whatever happens."""
    operation, layers = method.operation, config.layers
    asked, dropped = distinct(as_requests(requests, operation), call.conflicts, operation)
    by_layer = as_moments(moments, layers, operation)
    bos = tokens.resolve_bos(model, call.prepend_bos)
    for layer in layers:
        _check_moment(method, model, by_layer, layer, bos if layer == layers[0] else False)
    if apply:
        check_untouched(model, layers, operation)
    contexts = _contexts(model, config, call.prefixes, operation)
    prompts = Asked.of(model, asked, contexts, bos)
    if method.independent:
        first = host.key_name(layers[0])
        keys = prompts.read(model, first, first)[0]
        method.solve(by_layer[layers[0]], keys, keys.new_zeros(len(keys), 1))
    found = _values(method, model, asked, config, contexts, bos, call)
    _warn_of_failures(operation, asked, found)
    goals = torch.stack([value.v_star.to("cpu", torch.float64) for value in found])
    site = site_name(model, method.sites[0], layers[-1])
    deltas: dict[int, LowRank] = {}
    notes: dict[str, dict[int, float]] = {}
    after: dict[int, Keys] = {}
    statistics: dict[int, str] = {}
    with _provisional(model) as write, tqdm(layers, desc="layers", disable=not call.progress) as bar:
        for left, layer in zip(range(len(layers), 0, -1), bar, strict=False):
            keys, now = prompts.read(model, host.key_name(layer), site)
            residuals = (goals - now) / method.part(left)
            moment = by_layer[layer]
            deltas[layer], own = method.solve(moment, keys, residuals)
            own |= _distances(goals, now) | _sizes(model, moment, keys, deltas[layer])
            warn_of_norm(moment, own["relative_norm"], operation, inverse=method.needs_factor, stacklevel=3)
            for name, number in own.items():
                notes.setdefault(name, {})[layer] = number
            statistics[layer] = repr(moment)
            write(layer, deltas[layer])
            del moment  # so that one that was read for this layer goes before the next is read
        if keys_after:
            after = {layer: prompts.read(model, host.key_name(layer), host.key_name(layer))[0] for layer in layers}
    diagnostics: dict[str, Any] = {**notes, **_of_values(found), "prefixes": contexts.templates, "dropped": dropped}
    edit = Edit.of(
        model,
        deltas,
        method=method.name,
        requests=asked,
        config=config,
        prepend_bos=bos,
        seed=config.seed,
        diagnostics=diagnostics,
        statistics=statistics,
    )
    return Spread(edit=edit, keys_after=after)


def _check_moment(method: Method, model: Model, moments: SecondMoments, layer: int, prepend_bos: bool) -> None:
    """Nobody wants to hear after hours of search that a moment is another model's, or of too few tokens.

    Later the model has changes of ours in it, which a moment may take for another model.
    """
    moment = moment_of(model, moments, layer, method.operation)
    warn_of_bos(moment, prepend_bos, method.operation, stacklevel=4)
    if method.needs_factor and moment.count:
        _ = moment.cholesky
    if method.check is not None:
        method.check(moment)


@contextmanager
def _provisional(model: Model) -> Generator[Callable[[int, LowRank], None], None, None]:
    """Gives what writes changes as `Edit.apply` would; whatever happens, the weights are put back bit for bit."""
    befores: dict[int, Tensor] = {}

    def write(layer: int, delta: LowRank) -> None:
        before = host.w_out(model, layer).clone()
        new = plus(before, delta)
        if not torch.isfinite(new).all():
            raise ValueError(
                f"computing an edit: W_out of layer {layer} would not be finite in {before.dtype}; expected finite "
                "weights; raise the weight of what is to be kept, or load the model in bfloat16 or float32."
            )
        befores[layer] = before
        host.write_w_out(model, layer, new)

    try:
        yield write
        host.put_back_w_out(model, befores)
    except BaseException:
        # Also of an interrupt that came at the line above.
        host.put_back_w_out(model, befores)
        raise


def _contexts(model: Model, config: SpreadSettings, prefixes: object, operation: str) -> Contexts:
    if prefixes is not None:
        return Contexts.of(prefixes, operation)
    if not config.n_prefixes:
        return Contexts(types=())
    return Contexts(
        types=(
            generate_prefixes(
                model,
                lengths=(config.prefix_length,),
                n_per_length=config.n_prefixes,
                seed=config.seed,
                starts=config.prefix_starts,
            ),
        )
    )


def _values(
    method: Method,
    model: Model,
    requests: Sequence[EditRequest],
    config: SpreadSettings,
    contexts: Contexts,
    bos: bool,
    call: Call,
) -> tuple[OptimizedValue, ...]:
    return optimize_values(
        model,
        requests,
        config.layers[-1],
        site=method.sites,
        prefixes=contexts.templates,
        search=config,
        prepend_bos=bos,
        folder=call.folder,
        max_rows=call.max_rows,
        progress=call.progress,
    )


def _warn_of_failures(operation: str, requests: Sequence[EditRequest], found: Sequence[OptimizedValue]) -> None:
    missed = [request for request, value in zip(requests, found, strict=True) if value.target_prob < 0.5]
    if missed:
        named = "; ".join(map(str, missed[:3])) + (f"; and {len(missed) - 3} more" if len(missed) > 3 else "")
        warnings.warn(
            f"{operation}: for {len(missed)} of {counted(len(requests), 'request')} no value was found that makes "
            f"the target likelier than not: {named}; expected a probability of one half or more at the end of the "
            "search; raise clamp_norm_factor or v_num_grad_steps, choose an earlier last layer, or drop them "
            "(edit.diagnostics['converged'] says which).",
            stacklevel=4,
        )


def _distances(goals: Residuals, now: Residuals) -> dict[str, float]:
    residual = lengths(goals - now)
    return {"residual": float(residual.mean()), "relative_residual": float((residual / lengths(goals)).mean())}


def _sizes(model: Model, moment: SecondMoment, keys: Keys, delta: LowRank) -> dict[str, float]:
    """How large the change is: as a matrix, and in what typical values move by."""
    weight = host.w_out(model, moment.layer).to("cpu", torch.float64)
    left, right = delta.left.cpu(), delta.right.cpu()
    gram = left.T @ (moment.matrix.to("cpu", torch.float64) @ left)
    moved = ((gram @ right) * right).sum().clamp(min=0).sqrt()
    return {
        "relative_norm": delta.norm() / float(length(weight)),
        "disturbance": float(moved / lengths(keys.cpu() @ weight).mean()),
    }


def _of_values(found: Sequence[OptimizedValue]) -> dict[str, Any]:
    return {
        "target_prob": tuple(value.target_prob for value in found),
        "delta_ratio": tuple(value.delta_ratio for value in found),
        "losses": tuple(value.losses for value in found),
        "converged": tuple(value.target_prob >= 0.5 for value in found),
    }
