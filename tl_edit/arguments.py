"""What every editing method is given, checked."""

import warnings
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from tl_edit.host import Model
from tl_edit.moment import SecondMoment, SecondMoments


def as_moments(moments: object, layers: Sequence[int], operation: str) -> SecondMoments:
    """Second moments by layer that hold all ``layers``.

    Raises:
        ValueError: If they are something else, or a layer is missing.
    """
    by_layer = SecondMoments([moments]) if isinstance(moments, SecondMoment) else moments
    if not isinstance(by_layer, SecondMoments):
        raise ValueError(
            f"{operation}: found moments of type {type(moments).__name__}; expected the result of second_moment(model, "
            f"texts, layers={list(layers)}), SecondMoments.load(folder), SecondMoments([...]) of several moments, or "
            f"SecondMoments.identity(model, {list(layers)}) for the control without."
        )
    known = set(by_layer)  # a look-up may load the moment
    missing = [layer for layer in layers if layer not in known]
    if missing:
        where = f"layer {missing[0]}" if len(layers) == 1 else f"layers {list(layers)}"
        raise ValueError(
            f"{operation}: the second moments given are for layers {list(by_layer)}; the edit is at {where}; "
            f"compute {'it' if len(missing) == 1 else 'them'} with second_moment(model, texts, layers={missing})."
        )
    return by_layer


def moment_of(model: Model, moments: SecondMoments, layer: int, operation: str) -> SecondMoment:
    """The moment of ``layer``, of this model.

    Raises:
        ValueError: If it is another model's.
    """
    moment = moments[layer]
    moment.check_fits(model, operation)
    return moment


def regular_matrix(moment: SecondMoment) -> Float[Tensor, "d_mlp d_mlp"]:
    """``C`` with the moment's ridge on its diagonal, as its factor has it."""
    if not moment.added:
        return moment.matrix
    regular = moment.matrix.double().clone()
    regular.diagonal().add_(moment.added)
    return regular


MOST_NORM = 10.0
"""The change of a layer over its weights, in Frobenius norms: more than this is warned of."""


def warn_of_norm(moment: SecondMoment, relative_norm: float, operation: str, *, inverse: bool, stacklevel: int) -> None:
    """Warn of a change that dwarfs the weights that it is added to.

    ``C^-1`` makes it so where directions of keys are hardly ever met in the texts: they cost nothing, and typical
    values feel nothing of it; a text that does meet them will. Methods that do not solve with it have no ``inverse``.
    """
    if not relative_norm > MOST_NORM:
        return
    remedy = "choose another layer, lower clamp_norm_factor, or make fewer edits at once"
    if inverse and moment.count and moment.condition_number > 1e7:
        remedy = "solve with a ridge, e.g. moments.with_ridge(1e-3), measure on more texts, or choose another layer"
    warnings.warn(
        f"{operation}: the change of layer {moment.layer} is more than {MOST_NORM:.0f} times as large as its W_out "
        f"(diagnostics['relative_norm']); typical values feel far less of it (diagnostics['disturbance']), but a text "
        f"with other keys than those in the second moment will; {remedy}.",
        stacklevel=stacklevel + 1,
    )


def warn_of_bos(moment: SecondMoment, prepend_bos: bool, operation: str, *, stacklevel: int) -> None:
    """Warn where prompts begin with a BOS and the texts of the second moment did not.

    Then nothing holds back what the edit does to the key at a BOS, which is in every prompt, and is often the longest.
    """
    made_on = moment.provenance
    without = not moment.counts_bos if made_on is None else not made_on.prepend_bos
    if prepend_bos and moment.count and without:
        warnings.warn(
            f"{operation}: the prompts begin with a BOS, and the texts of the second moment of layer {moment.layer} "
            "did not; expected the same for both, since nothing holds back what the edit does to the key at a BOS; "
            "pass prepend_bos=False, or compute the moment with second_moment(..., prepend_bos=True).",
            stacklevel=stacklevel + 1,
        )
