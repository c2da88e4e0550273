"""`memit_edit`: many facts at once, spread over several layers."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from tl_edit.arguments import regular_matrix
from tl_edit.edit import Edit, LowRank
from tl_edit.host import Model
from tl_edit.memit.algebra import memit_update, rarity
from tl_edit.memit.loop import Call, Keys, Method, Residuals, effective, prepared, spread
from tl_edit.memit.requests import Conflicts
from tl_edit.memit.settings import MEMITConfig
from tl_edit.moment import SecondMoment, SecondMoments
from tl_edit.request import EditRequest


def memit_edit(
    model: Model,
    requests: EditRequest | Sequence[EditRequest],
    moments: SecondMoments | SecondMoment,
    *,
    config: MEMITConfig | None = None,
    layers: Sequence[int] | None = None,
    prefixes: Iterable[str] | Iterable[Sequence[str]] | None = None,
    prepend_bos: bool | None = None,
    conflicts: Conflicts = "refuse",
    folder: str | Path | None = None,
    max_rows: int | None = None,
    progress: bool = True,
    apply: bool = True,
) -> Edit:
    """Make the model believe all of ``requests``, one or ten thousand: edits ``W_out`` of several layers in place.

    For each request the block output z* is sought that makes the model say the new object (`optimize_values` at the
    last of the layers). Then, from the first layer on, with the changes of the earlier ones in the model: the keys at
    the subject's last token are read, and the layer's answers to them are moved by the distance that is left to z*,
    divided by the number of layers left (Meng et al. 2023, algorithm 1; `memit_update` has the algebra).

    The model's weights, ``requires_grad`` flags, mode and hooks are as before until the last step, the write; an
    exception at any point leaves the model untouched. In between ``W_out`` holds the changes so far, in place: no other
    thread should use the model. Hooks of your own take part in every step, as in `rome_edit`. In models that normalise
    what an MLP answers before it is added (Gemma 2 and 3, OLMo 2) a distance between block outputs is no distance
    between answers, so the target is only approached.

    Memory on the CPU, in bytes: ``8 * d_mlp^2`` each for a layer's second moment, for its factor, and while a layer is
    solved for one or two more; ``8 * d_mlp`` for each request's key and twice that for the solve; a copy of ``W_out``
    for each layer, which is on the model's device; and of the update ``8 * (d_mlp + d_model)`` for each request, at
    most ``d_model`` of them, for each layer. Moments are taken one layer at a time, so those that load when they are
    asked for are not in memory together. The search takes what ``max_rows`` allows (`optimize_values`).

    Args:
        model: A HookedTransformer or TransformerBridge.
        requests: The facts to write.
        moments: Second moments of the keys of all layers, from `second_moment`; `SecondMoments.identity` for the
            control.
        config: Settings; None for the published ones of this model (`MEMITConfig.for_model`), and for a model without
            any, the common ones with ``share=0.5`` and your ``layers``.
        layers: The layers to edit, counted from 0, ascending; overrides ``config.layers``.
        prefixes: Templates such as ``"It was. {}"`` beside the bare prompt; lists of templates for several types, which
            count as much as one another and as the bare prompt in the mean of the keys; None to let the model generate
            them by the published rule, under your hooks, if it has any.
        prepend_bos: Whether prompts begin with a BOS; None for the model's own default. The published numbers are
            without.
        conflicts: What happens if a fact, subject and relation, is asked for more than once, with the same object or
            another: "refuse", or which request counts, the "first" or the "last".
        folder: Where to keep the values, so that a search that was stopped goes on; see `optimize_values`.
        max_rows: Bound of memory in the search; see `optimize_values`.
        progress: Whether to show progress bars.
        apply: Whether to write the edit; otherwise it is only computed.

    Returns:
        The edit, which can take itself back. Its ``diagnostics``, by layer: ``residual`` (mean distance to the values
        before the layer's change, in units of the block output), ``relative_residual`` (over the length of the value),
        ``key_rarity`` (mean of k^T C^-1 k / d_mlp; 1 for typical keys, and the greater, the more an edit moves),
        ``weight``, ``relative_norm`` (|D| / |W_out|; large where neurons hardly ever fire, see `SecondMoment.ridge`)
        and ``disturbance`` (root mean square of what typical values move by, over the length of what ``W_out`` answers
        to the requests' keys; well below 1 where little else moves). By request: ``target_prob`` (geometric mean over
        its tokens and over prefixes), ``delta_ratio``, ``losses`` (nats) and ``converged`` (``target_prob`` of at least
        one half at the end of the search). And ``prefixes``, and ``dropped`` (requests left out by ``conflicts``).

    Raises:
        ValueError: For what the model, requests, moments or settings lack; each message says what to do.
        MemoryError: See `optimize_values`.

    Warns:
        UserWarning: Naming requests for which the search did not make the target likelier than not, and layers whose
            change dwarfs their weights.
    """
    operation = "memit_edit"
    settings = effective(
        MEMITConfig, prepared(model, operation), layers, config, operation, default=MEMITConfig(share=0.5)
    )

    def solve(moment: SecondMoment, keys: Keys, residuals: Residuals) -> tuple[LowRank, dict[str, float]]:
        weight = settings.weight_for(moment.d_mlp)
        update = memit_update(regular_matrix(moment), keys, residuals, weight=weight, factor=moment.cholesky)
        return update, {"weight": weight, "key_rarity": float(rarity(moment.cholesky, keys).mean())}

    call = Call(prefixes, prepend_bos, conflicts, folder, max_rows, progress)
    edit = spread(Method("MEMIT", operation, solve), model, requests, moments, settings, call, apply=apply).edit
    return edit.apply(model) if apply else edit
