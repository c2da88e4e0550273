"""Take edits out of TransformerLens: write them into a Hugging Face model of the same checkpoint.

The same change of ``W_out`` gives the same log-probabilities whether weights were processed or not, so what is written
is always the *raw* Hugging Face weight plus the edits. No table of architectures says where ``W_out`` lives there: it
is the linear layer of the block that becomes the edited ``W_out`` when the edits are added to it.

    hf_model = AutoModelForCausalLM.from_pretrained("gpt2-xl")
    to_hugging_face(model, hf_model)
    hf_model.save_pretrained("gpt2-xl-edited")
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_edit import forward, host, tokens
from tl_edit.attach import foreign_hook
from tl_edit.edit import Edit, LowRank, edits_on, plus
from tl_edit.edit.ledger import ledger_of
from tl_edit.host import Model

OPERATION = "to_hugging_face"

# Seen on ten families of random models behind both interfaces, raw and processed: 9e-6, 2e-5, 0.06 and 0.9; the
# largest differences are those of tokens that nearly never come. With float64, too, some steps are in float32.
TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.25, torch.bfloat16: 2.0}
"""Nats by which log-probabilities may differ, by the coarser dtype of both models. In half precision this shows gross
mistakes only; the weights are compared entry by entry all the same."""

MOST_PROMPTS = 32
"""So many of the edits' prompts are compared, spread evenly: thousands of facts are one change of a layer, too."""

SENTENCE = "Around 1900 the old lighthouse on the northern coast was painted white, and ships still look for it."
"""Compared beside the edits' prompts: an ordinary text, which no edit is about."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HuggingFaceExport:
    """What was written into a Hugging Face model, and how well both models agree since."""

    parameters: dict[int, str]
    """By layer: the name of the parameter that was written."""
    edits: tuple[Edit, ...]
    """The edits that are in it, in their order."""
    max_difference: float
    """The largest difference of a next-token log-probability between both models, in nats."""
    n_tokens: int
    """Positions that were compared."""

    def __repr__(self) -> str:
        return (
            f"HuggingFaceExport({len(self.edits)} edits in {', '.join(self.parameters.values())}; log-probabilities "
            f"differ by at most {self.max_difference:.2g} nats at {self.n_tokens} tokens)"
        )


@torch.no_grad()
def to_hugging_face(
    model: Model, hf_model: nn.Module, *, tolerance: float | None = None, prepend_bos: bool | None = None
) -> HuggingFaceExport:
    """Write the edits that are applied to ``model`` into ``hf_model``, in place, and check that both then agree.

    They agree if the log-probabilities of the next token do, at every token of the edits' prompts and of one ordinary
    sentence (of random tokens where the model has no tokenizer). ``model`` is only read. Hooks on either model take
    part. The flags, mode and hooks of ``hf_model`` stay as they are; after an exception its weights do, too.

    Args:
        model: A HookedTransformer or TransformerBridge with edits applied; see `applied_edits`.
        hf_model: A fresh Hugging Face model of the same checkpoint, with a language model's head; of any device and
            floating dtype.
        tolerance: By how many nats a log-probability may differ; None for one that suits the coarser dtype, see
            `TOLERANCES`.
        prepend_bos: Whether the compared texts begin with a BOS; None for what each edit was computed with.

    Returns:
        Which parameters were written, and the largest difference found.

    Raises:
        ValueError: If nothing is applied; if the weights of ``model`` were changed from outside since; if ``hf_model``
            is the model inside a bridge, has other layers, widths or weights, holds the edits already, is quantised,
            shares a weight to be written with another place, or has active dropout; if both models disagree
            afterwards. Each message says what to do.
    """
    _check_arguments(hf_model, tolerance)
    host.check_ready(model, OPERATION)
    edits = edits_on(model, OPERATION)
    if not edits:
        raise ValueError(
            f"{OPERATION}: no edits are applied to {host.model_name(model)}; expected at least one; apply one first, "
            "e.g. edit.apply(model)."
        )
    layers = sorted({layer for edit in edits for layer in edit.deltas})
    _check_fresh(model, hf_model, layers)
    host.check_deterministic(hf_model, OPERATION, "hf_model.eval()")
    # What was cast with edits in it is their sum up to rounding only.
    exact = not (host.is_processed(model) or ledger_of(model).settle(model).recast)
    places = [_place(model, hf_model, layer, edits, exact=exact) for layer in layers]
    rows = _rows(model, edits, prepend_bos)
    allowed = _default_tolerance(model, hf_model) if tolerance is None else float(tolerance)
    try:
        try:
            for place in places:
                place.weight.copy_(place.new)
            difference = _largest_difference(model, hf_model, rows)
            # Written this way round, a difference that is not a number is too large.
            if not difference <= allowed:
                raise ValueError(_disagreement(model, difference, allowed))
            return HuggingFaceExport(
                parameters={place.layer: place.name for place in places},
                edits=tuple(edits),
                max_difference=difference,
                n_tokens=sum(map(len, rows)),
            )
        except BaseException:
            _put_back(places)
            raise
    except KeyboardInterrupt:
        # It may have come in the middle of that; writing twice does no harm.
        _put_back(places)
        raise


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """A parameter to write, all in TransformerLens' orientation."""

    layer: int
    name: str
    weight: Float[Tensor, "d_mlp d_model"]
    """A view, to write through."""
    before: Float[Tensor, "d_mlp d_model"]
    new: Float[Tensor, "d_mlp d_model"]


def _put_back(places: Sequence[_Place]) -> None:
    for place in places:
        place.weight.copy_(place.before)


def _check_arguments(hf_model: object, tolerance: object) -> None:
    if not isinstance(hf_model, nn.Module):
        raise ValueError(
            f"{OPERATION}: hf_model is of type {type(hf_model).__name__}; expected a Hugging Face model; load one with "
            "AutoModelForCausalLM.from_pretrained(...)."
        )
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and cast(float, tolerance) > 0):
        raise ValueError(
            f"{OPERATION}: tolerance is {tolerance!r}; expected a positive number of nats, or None for one that suits "
            "the dtype; pass e.g. tolerance=1e-3."
        )


def _check_fresh(model: Model, hf_model: nn.Module, layers: Sequence[int]) -> None:
    """Refuse what no Hugging Face model in memory is, and one that this model, or another bridge, is made of."""
    modules = list(cast(Iterable[nn.Module], hf_model.modules()))
    if any(type(module).__module__.split(".")[0] == "transformer_lens" for module in modules):
        raise ValueError(
            f"{OPERATION}: hf_model is or was taken over by TransformerLens (a TransformerBridge replaces the modules "
            "of the Hugging Face model it is made from, and edits of the bridge are in it already); expected a fresh "
            "Hugging Face model; load another one, e.g. AutoModelForCausalLM.from_pretrained(...)."
        )
    if getattr(hf_model, "config", None) is None:
        raise ValueError(
            f"{OPERATION}: hf_model is a {type(hf_model).__name__} without a config; expected a Hugging Face model; "
            "load one with AutoModelForCausalLM.from_pretrained(...)."
        )
    ours = [view for layer in layers for view in host.w_out_views(model, layer)]
    for name, weight in hf_model.named_parameters():
        found = _unwritable(weight)
        if found:
            raise ValueError(
                f"{OPERATION}: {name} of hf_model is {found}; expected float16, bfloat16, float32 or float64 weights "
                "in memory; load it unquantised, without device_map offloading and outside of torch.inference_mode()."
            )
        if any(_overlap(weight, view) for view in ours):
            raise ValueError(
                f"{OPERATION}: {name} of hf_model is the very memory of the model's W_out, so the edits are in it "
                "already; expected a model with weights of its own; load a fresh one, e.g. "
                "AutoModelForCausalLM.from_pretrained(...)."
            )


def _unwritable(weight: Tensor) -> str:
    """What keeps a parameter from being read and written; nothing for ordinary ones."""
    if weight.is_meta:
        return "on the meta device (not loaded)"
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return f"{weight.dtype} (quantised)"
    return "made under torch.inference_mode()" if weight.is_inference() else ""


def _check_alone(hf_model: nn.Module, name: str, chosen: Tensor) -> None:
    """Refuse a weight that other parts of the model use as well: they would change with it."""
    named = [*hf_model.named_parameters(remove_duplicate=False), *hf_model.named_buffers(remove_duplicate=False)]
    others = [other for other, weight in named if other != name and _overlap(weight, chosen)]
    if others:
        raise ValueError(
            f"{OPERATION}: {name} of hf_model is shared with {', '.join(others)}, which the edits are not meant for; "
            "expected a weight of its own for each edited layer; use a model whose layers do not share weights."
        )


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors share memory; storages alone do not tell, one may hold many weights side by side."""
    (start, end), (other_start, other_end) = _span(first), _span(second)
    return first.device == second.device and start < other_end and other_start < end


def _span(tensor: Tensor) -> tuple[int, int]:
    """Address of the first byte, and of one past the last; the same twice for an empty tensor."""
    start = tensor.data_ptr()
    if tensor.numel() == 0:
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _place(model: Model, hf_model: nn.Module, layer: int, edits: Sequence[Edit], *, exact: bool) -> _Place:
    """Where the edits of ``layer`` go, and the weights to write: each edit rounded once, as applying it does.

    Raises:
        ValueError: If there is no such place, or the weights would not be finite in its dtype.
    """
    changes = [edit.deltas[layer] for edit in edits if layer in edit.deltas]
    name, weight = _find(model, hf_model, layer, changes, exact=exact)
    _check_alone(hf_model, name, weight)
    new = weight.cpu()
    for change in changes:
        new = plus(new, change)
    if not torch.isfinite(new).all():
        raise ValueError(
            f"{OPERATION}: {name} of hf_model would not be finite in {weight.dtype}; expected finite weights; the "
            "edits are too large for this dtype; load hf_model in bfloat16 or float32."
        )
    return _Place(layer=layer, name=name, weight=weight, before=weight.clone(), new=new)


def _find(
    model: Model, hf_model: nn.Module, layer: int, changes: Sequence[LowRank], *, exact: bool
) -> tuple[str, Tensor]:
    """Name and writable ``[d_mlp d_model]`` view of the parameter that is ``W_out`` of ``layer`` without the changes.

    Raises:
        ValueError: If there is none, or more than one.
    """
    candidates = _candidates(model, hf_model, layer)
    found = {name: weight for name, weight in candidates.items() if _is_base(model, layer, weight, changes, exact)}
    if not found:
        raise ValueError(_no_match(model, layer, candidates, changes))
    name, weight = next(iter(found.items()))
    if not all(_overlap(weight, other) for other in found.values()):
        raise ValueError(
            f"{OPERATION}: {', '.join(found)} of hf_model all hold what W_out of layer {layer} was before the edits; "
            "expected one such weight, so that it is clear where to write; use a trained model."
        )
    return name, weight


def _candidates(model: Model, hf_model: nn.Module, layer: int) -> dict[str, Tensor]:
    """The weights of linear layers in block ``layer`` that have the shape of ``W_out``, in its orientation."""
    depth, shape = host.n_layers(model), host.w_out(model, layer).shape
    named = list(cast(Iterable[tuple[str, nn.Module]], hf_model.named_modules()))
    lists = {name: module for name, module in named if isinstance(module, nn.ModuleList)}
    stacks = {name: module for name, module in lists.items() if len(module) == depth}
    if not stacks:
        lengths = ", ".join(f"{len(module)} ({name})" for name, module in lists.items())
        raise ValueError(
            f"{OPERATION}: hf_model has no list of {depth} blocks, which {host.model_name(model)} has (found lists of "
            f"{lengths or 'none'}); expected the checkpoint that the model was loaded from; load that one."
        )
    weights: dict[str, Tensor] = {}
    for stack, blocks in stacks.items():
        for inner, module in cast(Iterable[tuple[str, nn.Module]], blocks[layer].named_modules()):
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            # Hugging Face's Conv1D keeps [in, out], nn.Linear [out, in].
            as_is = type(module).__name__ == "Conv1D"
            if weight is not None and weight.ndim == 2 and (as_is or isinstance(module, nn.Linear)):
                path = ".".join(part for part in (stack, str(layer), inner, "weight") if part)
                weights[path] = (weight if as_is else weight.T).detach()
    fitting = {name: weight for name, weight in weights.items() if weight.shape == shape}
    if not fitting:
        sizes = ", ".join(f"{name} {list(weight.shape)}" for name, weight in weights.items())
        raise ValueError(
            f"{OPERATION}: layer {layer} of hf_model has no linear layer of the width of W_out, {list(shape)} as "
            f"[in, out] (found {sizes or 'no linear layers'}); expected the checkpoint that the model was loaded from, "
            "unquantised; load that one."
        )
    return fitting


def _is_base(model: Model, layer: int, weight: Tensor, changes: Sequence[LowRank], exact: bool) -> bool:
    """Whether ``weight`` plus the changes is ``W_out`` as it is now: if ``exact``, in the same dtype bit for bit."""
    current = host.w_out(model, layer)
    exact = exact and weight.dtype == current.dtype
    eps = _coarseness(model, weight, current)
    base = weight.cpu()
    return _is_sum(current, base, base, changes, 0.0 if exact else eps) or _is_sum(
        current, _centred(base), base, changes, max(eps, torch.finfo(torch.float32).eps)
    )


def _holds_edits(model: Model, layer: int, weight: Tensor, changes: Sequence[LowRank]) -> bool:
    """Whether ``weight`` has the changes in it already."""
    current = host.w_out(model, layer)
    eps = _coarseness(model, weight, current)
    base = weight.to("cpu", torch.float64) - sum(change.matrix for change in changes)
    return any(_is_sum(current, start, weight.cpu(), changes, eps) for start in (base, _centred(base)))


def _coarseness(model: Model, weight: Tensor, current: Tensor) -> float:
    """The relative step between numbers of the coarser dtype; TransformerLens processes weights in float32."""
    dtypes = [weight.dtype, current.dtype, *([torch.float32] if host.is_processed(model) else [])]
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _is_sum(current: Tensor, start: Tensor, raw: Tensor, changes: Sequence[LowRank], eps: float) -> bool:
    """Whether ``start`` plus the changes is ``current``, each entry up to the rounding of every step on the way.

    Entry by entry, because an edit may be small beside the rounding of all weights together, yet not beside that of
    the small ones among them.
    """
    size = raw.double().abs()
    size = size + size.mean(dim=-1, keepdim=True)
    for change in changes:
        start = plus(start, change)
        size += start.double().abs()
    # Below the least normal number, steps are absolute.
    least = max(torch.finfo(tensor.dtype).tiny for tensor in (raw, current))
    return bool(((current.to("cpu", torch.float64) - start.double()).abs() <= eps * (size + least)).all())


def _centred(weight: Tensor) -> Tensor:
    """What ``center_writing_weights`` makes of it: LayerNorm does not see the mean over d_model."""
    wide = weight.double()
    return wide - wide.mean(dim=-1, keepdim=True)


def _no_match(model: Model, layer: int, candidates: Mapping[str, Tensor], changes: Sequence[LowRank]) -> str:
    for name, weight in candidates.items():
        if _holds_edits(model, layer, weight, changes):
            return (
                f"{OPERATION}: {name} of hf_model holds the edits of layer {layer} already; expected the weights from "
                "before them; load a fresh Hugging Face model, or keep this one as it is."
            )
    rest = host.w_out(model, layer).to("cpu", torch.float64) - sum(change.matrix for change in changes)
    far: dict[str, float] = {}
    for name, weight in candidates.items():
        wide = weight.to("cpu", torch.float64)
        far[name] = min(float(forward.length(rest - base) / forward.length(rest)) for base in (wide, _centred(wide)))
    closest = min(far, key=far.__getitem__)
    return (
        f"{OPERATION}: no weight of hf_model is W_out of layer {layer} as it was before the edits (the closest, "
        f"{closest}, differs by {far[closest]:.2g} of its norm); expected the checkpoint that the model was loaded "
        "from; load that one, same revision, and without edits in it."
    )


def _rows(model: Model, edits: Sequence[Edit], prepend_bos: bool | None) -> list[Int[Tensor, " _"]]:
    """Token ids of the texts to compare."""
    if model.tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        shape = (4, min(24, int(model.cfg.n_ctx)))
        return list(torch.randint(int(model.cfg.d_vocab), shape, generator=generator))
    asked = list(dict.fromkeys((each.prompt, edit.provenance.prepend_bos) for edit in edits for each in edit.requests))
    texts = [*asked[:: max(1, -(-len(asked) // MOST_PROMPTS))], (SENTENCE, edits[-1].provenance.prepend_bos)]
    # An edit may come from a model whose tokenizer has a BOS.
    has_bos = model.tokenizer.bos_token_id is not None
    return [
        tokens.encode(model, text, prepend_bos=(bos and has_bos) if prepend_bos is None else prepend_bos)
        for text, bos in texts
    ]


def _largest_difference(model: Model, hf_model: nn.Module, rows: Sequence[Int[Tensor, " _"]]) -> float:
    """The largest difference of a log-probability at any token of any row, in nats; nan if one is not a number."""
    largest: list[Tensor] = []
    for row in rows:
        logits = forward.logits(model, tokens.pad(model, [row]))[0]
        ours = forward.log_probs(model, logits).to("cpu", torch.float64)
        theirs = _hf_log_probs(hf_model, row)
        if theirs.shape != ours.shape:
            raise ValueError(
                f"{OPERATION}: hf_model gives logits of shape {list(theirs.shape)} for {len(row)} tokens, "
                f"{host.model_name(model)} {list(ours.shape)}; expected the same vocabulary; load the checkpoint that "
                "the model was loaded from."
            )
        # A token that both exclude has minus infinity twice, and no difference.
        largest.append(torch.where(ours == theirs, 0.0, (ours - theirs).abs()).max())
    return float(torch.stack(largest).max())


def _hf_log_probs(hf_model: nn.Module, row: Int[Tensor, " pos"]) -> Float[Tensor, "pos d_vocab"]:
    ids = row[None].to(next(hf_model.parameters()).device)
    logits: Any = getattr(hf_model(input_ids=ids, attention_mask=torch.ones_like(ids)), "logits", None)
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        raise ValueError(
            f"{OPERATION}: hf_model, a {type(hf_model).__name__}, gives no logits; expected a model with a language "
            "model's head; load it with AutoModelForCausalLM.from_pretrained(...)."
        )
    return torch.log_softmax(forward.at_least_float32(logits[0]), dim=-1).to("cpu", torch.float64)


def _default_tolerance(model: Model, hf_model: nn.Module) -> float:
    parameters = [*cast(nn.Module, model).parameters(), *hf_model.parameters()]
    return max(TOLERANCES.get(parameter.dtype, 0.0) for parameter in parameters)


def _disagreement(model: Model, difference: float, allowed: float) -> str:
    hooked = foreign_hook(model)
    cause = f"a hook at {hooked} takes part in the model; remove it" if hooked else "load the checkpoint of the model"
    return (
        f"{OPERATION}: with the edits written, log-probabilities of both models differ by {difference:.3g} nats; "
        f"expected at most {allowed:.3g}; hf_model is as it was before; {cause}, or pass a larger tolerance= if the "
        "models differed by as much before the edits (half precision, other attention kernels)."
    )
