"""EMMET, AlphaEdit and PMET: MEMIT with another cost, other directions, or values sought elsewhere."""

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from tl_edit.arguments import as_moments, regular_matrix
from tl_edit.edit import Edit, LowRank
from tl_edit.host import Model
from tl_edit.memit.algebra import alpha_update, emmet_update, memit_update, rarity
from tl_edit.memit.cache import KeyCache
from tl_edit.memit.loop import Call, Keys, Method, Residuals, effective, prepared, spread
from tl_edit.memit.requests import Conflicts
from tl_edit.memit.settings import AlphaEditConfig, EMMETConfig, PMETConfig
from tl_edit.moment import SecondMoment, SecondMoments
from tl_edit.request import EditRequest

ENOUGH = 10
"""Tokens for each dimension below which AlphaEdit's null space is doubted."""


def emmet_edit(
    model: Model,
    requests: EditRequest | Sequence[EditRequest],
    moments: SecondMoments | SecondMoment,
    *,
    config: EMMETConfig | None = None,
    layers: Sequence[int] | None = None,
    prefixes: Iterable[str] | Iterable[Sequence[str]] | None = None,
    prepend_bos: bool | None = None,
    conflicts: Conflicts = "refuse",
    folder: str | Path | None = None,
    max_rows: int | None = None,
    progress: bool = True,
    apply: bool = True,
) -> Edit:
    """Make the model believe all of ``requests``, with every value met exactly: `memit_edit` with `emmet_update`.

    Published for one layer (arXiv 2403.14236); with several, each takes its part of the distance that is left, exactly.
    In models that normalise what an MLP answers (Gemma 2 and 3, OLMo 2) the block output is only approached.

    Args:
        model: As for `memit_edit`, and so are the others that are not named here.
        requests: The facts to write.
        moments: Second moments of the keys of all layers.
        config: Settings; None for the published ones of this model, and for a model without any, the common ones with
            your ``layers``.
        layers: See `memit_edit`.
        prefixes: See `memit_edit`.
        prepend_bos: See `memit_edit`.
        conflicts: See `memit_edit`.
        folder: See `memit_edit`.
        max_rows: See `memit_edit`.
        progress: See `memit_edit`.
        apply: See `memit_edit`.

    Returns:
        The edit; its ``diagnostics`` are those of `memit_edit`, with ``damping`` for ``weight``.

    Raises:
        ValueError: What `memit_edit` raises, and for requests whose keys depend on one another, such as two about one
            subject with nothing before it, unless there is damping.
    """
    operation = "emmet_edit"
    settings = effective(EMMETConfig, prepared(model, operation), layers, config, operation, default=EMMETConfig())

    def solve(moment: SecondMoment, keys: Keys, residuals: Residuals) -> tuple[LowRank, dict[str, float]]:
        damping = float(settings.damping) if len(keys) > 1 else 0.0
        update = emmet_update(moment.cholesky, keys, residuals, damping=damping)
        return update, {"damping": damping, "key_rarity": float(rarity(moment.cholesky, keys).mean())}

    call = Call(prefixes, prepend_bos, conflicts, folder, max_rows, progress)
    method = Method("EMMET", operation, solve, independent=not settings.damping)
    edit = spread(method, model, requests, moments, settings, call, apply=apply).edit
    return edit.apply(model) if apply else edit


def alpha_edit(
    model: Model,
    requests: EditRequest | Sequence[EditRequest],
    moments: SecondMoments | SecondMoment,
    *,
    cache: KeyCache | None = None,
    config: AlphaEditConfig | None = None,
    layers: Sequence[int] | None = None,
    prefixes: Iterable[str] | Iterable[Sequence[str]] | None = None,
    prepend_bos: bool | None = None,
    conflicts: Conflicts = "refuse",
    folder: str | Path | None = None,
    max_rows: int | None = None,
    progress: bool = True,
    apply: bool = True,
) -> Edit:
    """Make the model believe all of ``requests`` by changes in directions that keys hardly take (arXiv 2410.02355).

    For edits in batches, one call for each: pass the same ``cache``, and the keys of earlier batches are kept where
    they are. A key is moved only by its part in the null space (`tl_edit.memit.null_space`), so with a threshold that
    does not suit the model's activations it writes nothing or protects nothing; ``diagnostics["null_share"]`` tells.

    Args:
        model: As for `memit_edit`, and so are the others that are not named here.
        requests: The facts to write.
        moments: Second moments of the keys of all layers. They may be singular here, but directions that no text took
            count as free, so that few tokens protect little: it warns below 10 tokens for each dimension.
        cache: Keys of earlier edits; those of these requests, as the edited model has them, are added once the edit is
            applied. With ``apply=False`` nothing is added.
        config: Settings; None for the published ones of this model, and for a model without any, the common ones with
            a threshold relative to the mean eigenvalue and your ``layers``.
        layers: See `memit_edit`.
        prefixes: See `memit_edit`.
        prepend_bos: See `memit_edit`.
        conflicts: See `memit_edit`.
        folder: See `memit_edit`.
        max_rows: See `memit_edit`.
        progress: See `memit_edit`.
        apply: See `memit_edit`.

    Returns:
        The edit; its ``diagnostics`` are those of `memit_edit` without ``key_rarity`` and ``weight``, and by layer
        ``null_dimensions`` and ``null_share`` (mean part of the keys' squared length that lies in the null space).

    Raises:
        ValueError: What `memit_edit` raises, if no direction is below the threshold, or for another model's cache.
    """
    operation = "alpha_edit"
    default = AlphaEditConfig(relative_threshold=True)
    settings = effective(AlphaEditConfig, prepared(model, operation), layers, config, operation, default=default)
    if cache is not None and not isinstance(cast(object, cache), KeyCache):
        raise ValueError(
            f"{operation}: cache is of type {type(cache).__name__}; expected a KeyCache or None; make one with "
            "KeyCache() and pass it to every call."
        )
    known = KeyCache() if cache is None else cache

    def solve(moment: SecondMoment, keys: Keys, residuals: Residuals) -> tuple[LowRank, dict[str, float]]:
        basis = known.basis(moment, settings.nullspace_threshold, settings.relative_threshold)
        earlier = known.gram(moment, operation)
        update = alpha_update(basis, keys, residuals, weight=settings.weight, cache=earlier)
        inside = (keys @ basis).square().sum(1) / keys.square().sum(1)
        return update, {"null_dimensions": float(basis.shape[1]), "null_share": float(inside.mean())}

    def check(moment: SecondMoment) -> None:
        known.gram(moment, operation)
        known.basis(moment, settings.nullspace_threshold, settings.relative_threshold)
        if 0 < moment.count < ENOUGH * moment.d_mlp:
            warnings.warn(
                f"{operation}: the moment of layer {moment.layer} is of {moment.count:,} tokens for {moment.d_mlp:,} "
                f"dimensions; expected {ENOUGH * moment.d_mlp:,} or more, since directions that no text happened to "
                "take count as free; call second_moment(...) with more texts.",
                stacklevel=5,
            )

    method = Method("AlphaEdit", operation, solve, needs_factor=False, check=check)
    call = Call(prefixes, prepend_bos, conflicts, folder, max_rows, progress)
    remember = apply and cache is not None
    found = spread(method, model, requests, moments, settings, call, apply=apply, keys_after=remember)
    if not apply:
        return found.edit
    found.edit.apply(model)
    if cache is not None:
        cache.add(found.keys_after, as_moments(moments, settings.layers, operation))
    return found.edit


def pmet_edit(
    model: Model,
    requests: EditRequest | Sequence[EditRequest],
    moments: SecondMoments | SecondMoment,
    *,
    config: PMETConfig | None = None,
    layers: Sequence[int] | None = None,
    prefixes: Iterable[str] | Iterable[Sequence[str]] | None = None,
    prepend_bos: bool | None = None,
    conflicts: Conflicts = "refuse",
    folder: str | Path | None = None,
    max_rows: int | None = None,
    progress: bool = True,
    apply: bool = True,
) -> Edit:
    """Make the model believe all of ``requests``: the MLP's value is sought beside attention's (arXiv 2308.08742).

    Only the MLP's part is written. It differs from `memit_edit` in that residuals are taken at the output of the last
    layer's MLP and divided by the square root of the number of layers left, so that the layers together move it by
    more than the whole distance. The update is `memit_update`.

    Args:
        model: As for `memit_edit`, and so are the others that are not named here.
        requests: The facts to write.
        moments: Second moments of the keys of all layers.
        config: Settings; None for the published ones of this model, and for a model without any, GPT-J's with your
            ``layers``.
        layers: See `memit_edit`.
        prefixes: See `memit_edit`.
        prepend_bos: See `memit_edit`.
        conflicts: See `memit_edit`.
        folder: See `memit_edit`.
        max_rows: See `memit_edit`.
        progress: See `memit_edit`.
        apply: See `memit_edit`.

    Returns:
        The edit; its ``diagnostics`` are those of `memit_edit`, but ``residual`` is in units of the MLP output.
        ``target_prob`` is with both parts of the value, and attention's is not written.

    Raises:
        ValueError: What `memit_edit` raises.
    """
    operation = "pmet_edit"
    settings = effective(PMETConfig, prepared(model, operation), layers, config, operation, default=PMETConfig())

    def solve(moment: SecondMoment, keys: Keys, residuals: Residuals) -> tuple[LowRank, dict[str, float]]:
        weight = float(settings.mom2_update_weight)
        update = memit_update(regular_matrix(moment), keys, residuals, weight=weight, factor=moment.cholesky)
        return update, {"weight": weight, "key_rarity": float(rarity(moment.cholesky, keys).mean())}

    method = Method("PMET", operation, solve, sites=("value", "attn_out"), part=math.sqrt)
    call = Call(prefixes, prepend_bos, conflicts, folder, max_rows, progress)
    edit = spread(method, model, requests, moments, settings, call, apply=apply).edit
    return edit.apply(model) if apply else edit
