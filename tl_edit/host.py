"""The host: what tl_edit knows about TransformerLens, once for both interfaces.

Two interfaces are spoken: ``HookedTransformer`` (TransformerLens 2.18 to 3.9) and ``TransformerBridge``
(from 3.8), raw or with processed weights. They agree on hook names and differ in where ``W_out`` lives,
which copies of it are alive, and where the raw output of ``W_out`` can be seen. A model is recognised by
what it is, so TransformerLens need not be imported here. Hooks are in `tl_edit.attach`, the parts of the residual
stream in `tl_edit.stream`, blocks called one at a time in `tl_edit.blocks`; nothing else tells the interfaces apart.

Three sites matter for editing layer ``l``:

- the **key**, input of ``W_out``: ``blocks.{l}.mlp.hook_post``, ``[batch pos d_mlp]``;
- the **value**, output of ``W_out`` with its bias: `value_name`, ``[batch pos d_model]``. It is
  ``blocks.{l}.hook_mlp_out`` unless the model normalises or scales the MLP output afterwards (Gemma 2
  and 3, OLMo 2, Granite); there ``hook_mlp_out`` is the contribution to the residual stream, not the value;
- the **block output**: ``blocks.{l}.hook_resid_post``, ``[batch pos d_model]``.

Everywhere ``value = key @ W_out + b_out`` in TransformerLens' orientation ``W_out [d_mlp d_model]``.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

HookFn = Callable[..., Any]
"""A TransformerLens hook: ``hook(activation, hook)`` returns the new activation, or None to leave it."""

NamedHook = tuple[str, HookFn]
"""What `run_with_hooks`, `model.hooks` and tl_edit share: a hook point's name and the function for it."""

Interface = Literal["HookedTransformer", "TransformerBridge"]

EMBED = "hook_embed"
"""Token embeddings, before positions are added."""

OLDEST_BRIDGE = (3, 8)


@runtime_checkable
class Model(Protocol):
    """What tl_edit uses of a TransformerLens model, of either interface."""

    if TYPE_CHECKING:
        # Who checks at run time whether something is a model can ask its class for methods, but would have to ask
        # each instance for these.
        cfg: Any
        blocks: Any
        tokenizer: Any

    def to_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Tokens of a string, ``[batch pos]``."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Logits ``[batch pos d_vocab]`` of tokens."""
        ...


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a result comes from: enough to repeat it, and to refuse it elsewhere."""

    model_name: str
    interface: Interface
    processed: bool
    """Whether weights were folded and centred; keys are the same, values differ by their mean."""
    dtype: str
    prepend_bos: bool
    seed: int | None
    versions: dict[str, str]


def installed_version(package: str) -> str:
    """The installed version of ``package``, or "unknown"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def interface(model: Model) -> Interface:
    """Which of the two interfaces ``model`` has.

    Raises:
        ValueError: If it is neither, or a bridge of TransformerLens before 3.8, whose hooks fire twice or
            never on some architectures.
    """
    names = {base.__name__ for base in type(model).__mro__}
    if "HookedTransformer" in names:
        return "HookedTransformer"
    if "TransformerBridge" not in names:
        raise ValueError(
            f"tl_edit works on a TransformerLens model; found {type(model).__module__}.{type(model).__name__}, "
            "expected HookedTransformer or TransformerBridge; load it with "
            "HookedTransformer.from_pretrained(...) or TransformerBridge.boot_transformers(...)."
        )
    # Bridges have this method since 3.8; to ask for the version each time would take longer than all the rest.
    if hasattr(type(model), "hook_points"):
        return "TransformerBridge"
    version = installed_version("transformer-lens")
    digits = re.match(r"(\d+)\.(\d+)", version)
    if digits and (int(digits[1]), int(digits[2])) < OLDEST_BRIDGE:
        raise ValueError(
            f"tl_edit cannot use the TransformerBridge of transformer-lens {version}: before 3.8 its MLP hooks "
            "fire twice or never on some models and W_out has another orientation; expected 3.8 or newer; "
            "upgrade transformer-lens, or use HookedTransformer."
        )
    return "TransformerBridge"


def is_processed(model: Model) -> bool:
    """Whether layer norms were folded and weights centred when the model was loaded."""
    if interface(model) == "HookedTransformer":
        return str(model.cfg.normalization_type).endswith("Pre")
    return bool(getattr(model, "_weights_processed", False) or getattr(model, "compatibility_mode", False))


def hook_points(model: Model) -> Mapping[str, Any]:
    """Every hook point by name; a bridge makes it anew each time, so ask once.

    Not in the protocol `Model`, as whoever checks at run time whether something is one would make it each time.
    """
    return cast(Mapping[str, Any], cast(Any, model).hook_dict)


def model_name(model: Model) -> str:
    """The name the model was loaded under, or "unnamed"."""
    return str(getattr(model.cfg, "model_name", None) or "unnamed")


def n_layers(model: Model) -> int:
    """Number of blocks."""
    return len(model.blocks)


def device_of(model: Model) -> torch.device:
    """The device where tokens go: that of the first parameter (the embedding)."""
    return next(cast(nn.Module, model).parameters()).device


def provenance(model: Model, *, prepend_bos: bool, seed: int | None = None) -> Provenance:
    """A record of the model as it is now; see `Provenance`."""
    packages = ("transformer-lens", "torch", "tl-edit")
    return Provenance(
        model_name=model_name(model),
        interface=interface(model),
        processed=is_processed(model),
        dtype=str(next(cast(nn.Module, model).parameters()).dtype).removeprefix("torch."),
        prepend_bos=prepend_bos,
        seed=seed,
        versions={package: installed_version(package) for package in packages},
    )


# --- sites ---------------------------------------------------------------------------------------------


def key_name(layer: int) -> str:
    """Hook point of the key, the input of ``W_out``: ``[batch pos d_mlp]``."""
    return f"blocks.{layer}.mlp.hook_post"


def resid_pre_name(layer: int) -> str:
    """Hook point of the block's input: ``[batch pos d_model]``."""
    return f"blocks.{layer}.hook_resid_pre"


def resid_post_name(layer: int) -> str:
    """Hook point of the block output: ``[batch pos d_model]``."""
    return f"blocks.{layer}.hook_resid_post"


def value_name(model: Model, layer: int) -> str:
    """Where the raw output of ``W_out`` (plus ``b_out``) is seen: ``[batch pos d_model]``.

    A hook point's name, except on a HookedTransformer that normalises the MLP output (Gemma 2 and 3, OLMo 2): no
    hook point sees the raw output there, so the name is that of the MLP module, which `attach.attached` knows
    how to hook.
    """
    if interface(model) == "HookedTransformer":
        if "W_out" not in mlp_of(model, layer)._parameters:
            raise ValueError(_no_dense_w_out(layer))
        return f"blocks.{layer}.mlp" if norm_after(model, layer) else f"blocks.{layer}.hook_mlp_out"
    for part in ("out", "dense_out"):
        if part in mlp_of(model, layer)._modules:
            return f"blocks.{layer}.mlp.{part}.hook_out"
    raise ValueError(_no_dense_w_out(layer))


def norm_after(model: Model, layer: int) -> str | None:
    """The module of a block that normalises the MLP's output; None where there is none."""
    # OLMo 2 and 3 have no norm before the MLP; TransformerLens puts the one behind it where others have that.
    behind = str(getattr(model.cfg, "original_architecture", None)) in ("Olmo2ForCausalLM", "Olmo3ForCausalLM")
    name = "ln2" if behind else "ln2_post"
    return name if hasattr(getattr(model.blocks[layer], name, None), "hook_normalized") else None


@dataclass(frozen=True)
class ValueSite:
    """Hook points where something can be added to the raw output of ``W_out``, in any run of the user's."""

    value: str
    """Where the raw output is seen, or what it is after division by the norm that follows it."""
    divisor: str | None = None
    """Where that norm's divisor is seen; None where the raw output is."""
    eps: float = 0.0
    """What that norm adds to the mean square."""


def value_site(model: Model, layer: int) -> ValueSite:
    """The hook points of a layer's value; like `value_name`, but always hook points.

    A HookedTransformer that normalises the MLP output (Gemma 2 and 3, OLMo 2) has none for the raw output. Its norm,
    always an RMSNorm, shows the divisor and the quotient, whose product it is.
    """
    name = value_name(model, layer)
    if name != f"blocks.{layer}.mlp":
        return ValueSite(name)
    norm = str(norm_after(model, layer))
    prefix = f"blocks.{layer}.{norm}"
    eps = float(getattr(model.blocks[layer], norm).eps)
    return ValueSite(f"{prefix}.hook_normalized", f"{prefix}.hook_scale", eps)


# --- guards --------------------------------------------------------------------------------------------


def check_layers(model: Model, layers: Sequence[int], operation: str) -> None:
    """Refuse layers that do not exist or whose MLP has no dense, readable ``W_out``.

    Raises:
        ValueError: naming ``operation``, what was found, what is expected and a remedy.
    """
    depth = n_layers(model)
    numbers = cast(object, layers)
    if not isinstance(numbers, Sequence) or any(type(layer) is not int for layer in cast(Sequence[object], numbers)):
        raise ValueError(
            f"{operation} got layers {layers!r}; expected integers from 0 to {depth - 1}; pass e.g. "
            f"layers=[{depth // 3}]."
        )
    if not layers:
        raise ValueError(f"{operation} needs at least one layer; found none; pass e.g. layers=[{depth // 3}].")
    for layer in layers:
        if not 0 <= layer < depth:
            raise ValueError(
                f"{operation} got layer {layer}; {model_name(model)} has layers 0 to {depth - 1}; "
                "layers count from 0 and negative numbers are not accepted."
            )
        try:
            w_out_views(model, layer)
        except ValueError as error:
            raise ValueError(f"{operation}: {error}") from None


def check_ready(model: Model, operation: str) -> None:
    """Refuse a model whose forward pass is random: active dropout makes every measurement noise.

    Training mode alone is harmless (HookedTransformer reports it after loading) and is accepted.
    """
    for root in roots_of(model):
        check_deterministic(root, operation, "model.eval()")


def check_deterministic(root: nn.Module, operation: str, remedy: str) -> None:
    """Refuse a module with active dropout anywhere inside; ``remedy`` is the call that ends it."""
    for name, module in cast(Iterable[tuple[str, nn.Module]], root.named_modules()):
        rate = _dropout_rate(module)
        if module.training and rate > 0.0:
            raise ValueError(
                f"{operation} needs a deterministic model; found active dropout (p = {rate}) at {name}; "
                f"expected evaluation mode; call {remedy} first."
            )


def roots_of(model: Model) -> list[nn.Module]:
    """What to walk for all modules that run: a bridge runs some that are not its own, as GPT-2's embedding dropout."""
    roots = [cast(nn.Module, model)]
    return [*roots, cast(Any, model).original_model] if interface(model) == "TransformerBridge" else roots


def _dropout_rate(module: nn.Module) -> float:
    """Of a dropout module, or of one that drops by itself: Hugging Face has ``attention_dropout``, OPT ``dropout``."""
    if isinstance(module, nn.Dropout):
        return module.p
    return max((rate for name, rate in vars(module).items() if "drop" in name and isinstance(rate, float)), default=0.0)


def mlp_of(model: Model, layer: int) -> Any:
    """The MLP module of ``layer``; ValueError where there is none."""
    mlp = model.blocks[layer]._modules.get("mlp")
    if mlp is None:
        raise ValueError(
            f"layer {layer} of {model_name(model)} has no MLP (an attention-only model); tl_edit reads and "
            "writes W_out of an MLP; use a model with MLP layers."
        )
    return mlp


def _no_dense_w_out(layer: int) -> str:
    return (
        f"layer {layer} has no dense W_out: its MLP is a mixture of experts (MoE); tl_edit edits one matrix per "
        "layer and expects a dense or gated MLP; choose a dense layer or another model."
    )


# --- W_out ---------------------------------------------------------------------------------------------


def w_out_views(model: Model, layer: int) -> list[Tensor]:
    """Every live tensor that acts as ``W_out`` of ``layer``, as writable ``[d_mlp d_model]`` views.

    More than one on a TransformerBridge of TransformerLens 3.8 to 4.2 in compatibility mode after
    ``copy.deepcopy``: its gated MLPs then compute with a separate copy. Resolve at every use:
    `enable_compatibility_mode` replaces the parameters.

    Raises:
        ValueError: attention-only block, mixture of experts, quantised or meta weights.
    """
    kind = interface(model)
    mlp = mlp_of(model, layer)
    if kind == "HookedTransformer":
        weight = mlp._parameters.get("W_out")
        if weight is None:
            raise ValueError(_no_dense_w_out(layer))
        views = [weight]
    else:
        out = mlp._modules.get("out") or mlp._modules.get("dense_out")
        if out is None:
            raise ValueError(_no_dense_w_out(layer))
        linear = out.original_component
        # Of a second bridge over the same Hugging Face model, this is the first one's wrapper.
        while getattr(linear, "original_component", None) is not None:
            linear = linear.original_component
        weight = getattr(linear, "weight", None)
        if not isinstance(weight, Tensor):
            raise ValueError(_unreadable(layer, f"hidden in a {type(linear).__name__}"))
        _check_readable(layer, weight)
        # Hugging Face's Conv1D keeps [in, out], nn.Linear [out, in].
        views = [weight if type(linear).__name__ == "Conv1D" else weight.T]
        alias = mlp.__dict__.get("_processed_W_out")
        if alias is not None and alias.data_ptr() != weight.data_ptr():
            views.append(alias.T)
    for view in views:
        _check_readable(layer, view)
    return views


def _check_readable(layer: int, weight: Tensor) -> None:
    if weight.is_meta:
        raise ValueError(_unreadable(layer, "on the meta device"))
    if weight.is_inference():
        raise ValueError(
            f"W_out of layer {layer} was made under torch.inference_mode(), where torch forbids writing it and "
            "gradients through it; expected ordinary weights; load the model outside of it (no_grad is fine)."
        )
    if weight.ndim != 2 or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        raise ValueError(_unreadable(layer, f"{weight.dtype} of shape {tuple(weight.shape)}"))


def _unreadable(layer: int, found: str) -> str:
    return (
        f"W_out of layer {layer} is {found} (quantised or not loaded); tl_edit writes float16, bfloat16, "
        "float32 or float64 matrices; load the model unquantised, with its weights in memory."
    )


def w_out(model: Model, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """``W_out`` of ``layer``: a detached view, so clone it before writing to the model."""
    return w_out_views(model, layer)[0].detach()


@torch.no_grad()
def write_w_out(model: Model, layer: int, new: Float[Tensor, "d_mlp d_model"]) -> None:
    """Write ``new`` into every live copy of ``W_out``, in place, rounding once to the weights' dtype.

    Raises:
        ValueError: If ``new`` has another shape, which torch might broadcast.
    """
    views = w_out_views(model, layer)
    if new.shape != views[0].shape:
        raise ValueError(
            f"writing W_out of layer {layer}: found a matrix of shape {list(new.shape)}; expected "
            f"{list(views[0].shape)}, [d_mlp d_model]; transpose it if it is in Hugging Face's orientation."
        )
    for view in views:
        view.copy_(new)


def put_back_w_out(model: Model, befores: Mapping[int, Float[Tensor, "d_mlp d_model"]]) -> None:
    """Write the weights of some layers back; one that interrupts (Ctrl-C) waits until it is done."""
    try:
        for layer, before in befores.items():
            write_w_out(model, layer, before)
    except KeyboardInterrupt:
        # From the start: writing twice does no harm.
        put_back_w_out(model, befores)
        raise
