"""ROME: write one fact as a rank-one change of an MLP output matrix.

In TransformerLens' row convention an MLP answers a key with ``v = k @ W_out + b_out``. Among all changes ``D``
with ``k @ (W_out + D) + b_out == v_star``, ROME picks the one that moves the values of typical keys least,
i.e. minimises ``E|k' @ D|^2 = tr(D.T @ C @ D)`` with ``C = E[k' k'.T]`` (Meng et al. 2022, eq. 2, transposed)::

    D = left @ right,   left = C^-1 k / |C^-1 k|,   right = (v_star - v) / (k . left)

The published program takes ``left`` from the key averaged over prefixes and ``v`` and ``k . left`` from the bare
prompt's; so does `rome_edit`. Where the two keys differ much the divisor can come close to zero, and the update
explodes and ruins the model (a "disabling edit"; arXiv 2403.07175); it happens to subjects that begin a prompt without
a BOS (arXiv 2406.11263). `rome_edit` warns of it. Two variants use one key throughout, so that it cannot happen:

========  =================  ===========================  ==========================
variant   direction          divisor and present value    what reads v* afterwards
========  =================  ===========================  ==========================
ROME      mean key           bare prompt's key            the bare prompt's key
r-ROME    mean key           mean key                     the mean key
p-ROME    bare prompt's key  bare prompt's key            the bare prompt's key
========  =================  ===========================  ==========================

Controls: with ``C = I`` the fact is still written but neighbouring keys move more; a random direction of the
same norm writes nothing.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import host, tokens
from tl_edit.arguments import as_moments, moment_of, warn_of_bos, warn_of_norm
from tl_edit.edit import Edit, LowRank
from tl_edit.forward import length
from tl_edit.host import Model
from tl_edit.keys import KeysValues, extract_keys_values
from tl_edit.moment import SecondMoment, SecondMoments
from tl_edit.prefixes import generate_prefixes
from tl_edit.request import EditRequest, as_prefixes, as_request
from tl_edit.values import OptimizedValue, ValueSearch, optimize_value

Variant = Literal["ROME", "r-ROME", "p-ROME"]
OnDisabling = Literal["warn", "refuse", "allow"]

LEAST_RATIO, MOST_DISTURBANCE = 0.2, 0.5
"""Beyond either an edit is taken to disable the model: below this ``divisor_ratio`` it is five times as large as with
one key throughout; above this ``disturbance`` it moves typical values by half the length of the edited one. Measured in
tests/benchmarks/disabling.py. The norm alone does not tell: what is harmless at one layer ruins another."""


@dataclass(frozen=True, kw_only=True)
class ROMEConfig(ValueSearch):
    """Settings of ROME; `for_model` knows the published ones."""

    layer: int | None = None
    """The layer to edit, counted from 0 (what the paper calls layer 18 of GPT-2 XL is 17)."""
    prefix_lengths: tuple[int, ...] = (5, 10)
    """Lengths of generated prefixes in tokens, the BOS counted (program: 5 and 10)."""
    n_prefixes: int = 10
    """Generated prefixes per length (program: 10; paper's section 3.1: 50 in all); 0 for the bare prompt alone."""
    seed: int = 0
    """Seed of the generated prefixes (the program has none)."""
    variant: Variant = "ROME"
    """Which key sets the direction and which reads v*; see this file's head (program: "ROME")."""
    disabling_edit: OnDisabling = "warn"
    """What happens where the edit is likely to ruin the model (program: "allow")."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        super().__post_init__()
        for name, value in {"n_prefixes": self.n_prefixes, "seed": self.seed}.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"ROMEConfig: {name} is {value!r}; expected an integer of 0 or more.")
        for name, value, known in (
            ("variant", self.variant, get_args(Variant)),
            ("disabling_edit", self.disabling_edit, get_args(OnDisabling)),
        ):
            if value not in known:
                raise ValueError(f"ROMEConfig: {name} is {value!r}; expected one of {', '.join(known)}.")
        lengths = cast(object, self.prefix_lengths)
        if not isinstance(lengths, Sequence) or any(type(n) is not int for n in cast(Sequence[object], lengths)):
            raise ValueError(
                f"ROMEConfig: prefix_lengths is {lengths!r}; expected lengths in tokens, one group of prefixes each; "
                "the published ones are (5, 10)."
            )

    @classmethod
    def for_model(cls, model: Model) -> "ROMEConfig":
        """The published settings for this model.

        GPT-2 and GPT-J: the ROME program; GPT-NeoX: the MEMIT program; Llama, Qwen and Mistral: EasyEdit's,
        which were made for ``C = I``.

        Raises:
            ValueError: If none are published for it.
        """
        name = host.model_name(model).split("/")[-1].lower()
        if name not in _PUBLISHED:
            raise ValueError(
                f"ROMEConfig.for_model: no published settings for {host.model_name(model)!r}; known are "
                f"{', '.join(_PUBLISHED)}; choose a layer, e.g. ROMEConfig(layer={host.n_layers(model) // 3}), "
                "and check it with a sweep over layers."
            )
        return cls(**_PUBLISHED[name])


_EASYEDIT: dict[str, Any] = {"layer": 5, "v_num_grad_steps": 25, "v_weight_decay": 1e-3}
_PUBLISHED: dict[str, dict[str, Any]] = {
    # Chosen on development facts: smaller steps than published keep more of the subject's other facts.
    "tl-edit-fact-model": {"layer": 0, "v_lr": 0.2, "v_num_grad_steps": 40},
    "gpt2-medium": {"layer": 8, "clamp_norm_factor": 3.0},
    "gpt2-large": {"layer": 12},
    "gpt2-xl": {"layer": 17},
    "gpt-j-6b": {"layer": 5},
    "gpt-neox-20b": {"layer": 15},
    "llama-2-7b-hf": _EASYEDIT,
    "llama-7b-hf": _EASYEDIT,
    "meta-llama-3-8b": _EASYEDIT,
    "mistral-7b-v0.1": _EASYEDIT,
    "llama-3.2-3b": _EASYEDIT,
    "qwen2-7b": _EASYEDIT,
    "qwen2.5-7b": _EASYEDIT,
}


def rome_update(
    factor: Float[Tensor, "d_mlp d_mlp"],
    key: Float[Tensor, " d_mlp"],
    value: Float[Tensor, " d_model"],
    v_star: Float[Tensor, " d_model"],
    *,
    direction_key: Float[Tensor, " d_mlp"] | None = None,
) -> LowRank:
    """The least-disturbing rank-one change of ``W_out`` that makes ``key`` answer ``v_star``.

    Args:
        factor: Lower Cholesky factor of the second moment ``C``.
        key: The key that shall answer ``v_star``.
        value: What it answers now, ``key @ W_out + b_out``.
        v_star: What it shall answer.
        direction_key: The key that sets the direction ``C^-1 k``; ``key`` itself by default. The published
            program takes the mean over prefixes; only with ``key`` itself is the change the least disturbing.

    Returns:
        ``left`` of unit length and ``right`` so that ``key @ (left @ right) == v_star - value``, in float64.

    Raises:
        ValueError: If ``key`` is orthogonal to the direction, so that no change along it can be seen by the key, or if
            shapes do not fit.
    """
    wide = torch.float64
    spread = key if direction_key is None else direction_key
    given = {"factor": factor, "key": key, "value": value, "v_star": v_star, "direction_key": spread}
    shapes = {name: list(tensor.shape) for name, tensor in given.items()}
    d_mlp, d_model = key.numel(), value.numel()
    if list(shapes.values()) != [[d_mlp, d_mlp], [d_mlp], [d_model], [d_model], [d_mlp]]:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"rome_update: shapes are {found}; expected factor [d_mlp d_mlp], key and direction_key [d_mlp], value and "
            "v_star [d_model]; pass one request's key and value, e.g. found.keys[layer][0]."
        )
    direction = torch.cholesky_solve(spread.to(wide)[:, None], factor.to(wide))
    left = direction / length(direction)
    divisor = key.to(wide) @ left[:, 0]
    if not torch.isfinite(divisor) or divisor == 0:
        raise ValueError(
            f"rome_update: key and direction have the inner product {float(divisor)}; expected a finite number other "
            "than 0; the key at this layer is zero or at odds with its prefixes; choose another layer or prefixes."
        )
    right = (v_star.to(wide) - value.to(wide)) / divisor
    return LowRank(left=left, right=right[None])


def rome_edit(
    model: Model,
    request: EditRequest | Sequence[EditRequest],
    moments: SecondMoments | SecondMoment,
    *,
    layer: int | None = None,
    config: ROMEConfig | None = None,
    prefixes: Iterable[str] | None = None,
    prepend_bos: bool | None = None,
    apply: bool = True,
) -> Edit:
    """Make the model believe ``request``: edits ``W_out`` of one layer in place.

    The model's weights, ``requires_grad`` flags, mode and hooks stay as they are until the last step, the write;
    an exception at any point leaves the model untouched.

    Hooks of your own take part in every step. They see the prompt, bare and behind each prefix, whole and unpadded
    (`extract_keys_values`), the rows of the search with the target's tokens and padding (`optimize_value`), and, unless
    you pass ``prefixes``, texts that grow from a lone BOS while the model writes prefixes (`generate_prefixes`).

    Args:
        model: A HookedTransformer or TransformerBridge.
        request: The fact to write; a list must hold one.
        moments: Second moments of the keys, from `second_moment`; `SecondMoments.identity` for the control.
        layer: The layer to edit, counted from 0; overrides ``config.layer``.
        config: Settings; None for the published ones of this model (`ROMEConfig.for_model`), and for a model
            without any, the common ones with your ``layer``.
        prefixes: Templates such as ``"It was. {}"``; None to let the model generate them by the published rule,
            under your hooks, if it has any.
        prepend_bos: Whether prompts begin with a BOS; None for the model's own default. The published
            numbers are without.
        apply: Whether to write the edit; otherwise it is only computed.

    Returns:
        The edit, which can take itself back. Its ``diagnostics``: ``losses`` (the curve of the search, nats),
        ``loss_terms`` (what each is the sum of, see `OptimizedValue`), ``target_prob``, ``delta_ratio``
        (|v* - v0| / |v0|), ``divisor`` (k . left; near 0 the update explodes),
        ``divisor_ratio`` (bare key . left over mean key . left), ``key_cosine`` (between the bare and the mean key),
        ``disturbance`` (root mean square of what typical values move by, over |v|), ``relative_norm`` (|D| / |W_out|),
        ``prefixes``.

    Raises:
        ValueError: For what the model, request, moments or settings lack, and with ``disabling_edit="refuse"`` for an
            edit that is likely to ruin the model; each message says what to do.

    Warns:
        UserWarning: Of such an edit, by default; of a change that dwarfs the weights of its layer; and where the search
            found no value that makes the target likelier than not. It is written all the same.
    """
    operation = "rome_edit"
    host.check_ready(model, operation)
    request = as_request(request, operation)
    config = effective_config(model, layer, config)
    at = config.layer
    if at is None:
        raise ValueError(
            f"{operation}: no layer is set; {host.model_name(model)} has layers 0 to {host.n_layers(model) - 1}; "
            f"pass layer=, e.g. layer={host.n_layers(model) // 3}."
        )
    host.check_layers(model, [at], operation)
    moment = moment_of(model, as_moments(moments, [at], operation), at, operation)
    bos = tokens.resolve_bos(model, prepend_bos)
    warn_of_bos(moment, bos, operation, stacklevel=2)
    templates = _generated(model, config) if prefixes is None else as_prefixes(prefixes, operation)
    read = extract_keys_values(model, request, [at], prefixes=templates, prepend_bos=bos)
    bare_key, mean_key = read.keys[at][0], read.mean_keys[at][0]
    key, value = (mean_key, read.mean_values[at][0]) if config.variant == "r-ROME" else (bare_key, read.values[at][0])
    direction_key = bare_key if config.variant == "p-ROME" else mean_key
    found = optimize_value(model, request, at, prefixes=templates, search=config, prepend_bos=bos)
    update = rome_update(moment.cholesky, key, value, found.v_star, direction_key=direction_key)
    diagnostics = _diagnostics(model, moment, update, key, read, found)
    _guard(operation, request, config, diagnostics)
    warn_of_norm(moment, float(diagnostics["relative_norm"]), operation, inverse=True, stacklevel=2)
    if found.target_prob < 0.5:
        warnings.warn(
            f"{operation}: for {request} no value was found that makes the target likelier than not (probability "
            f"{found.target_prob:.2g}); expected one half or more at the end of the search; raise clamp_norm_factor or "
            "v_num_grad_steps, or choose another layer.",
            stacklevel=2,
        )
    edit = Edit.of(
        model,
        {at: update},
        method=config.variant,
        requests=(request,),
        config=config,
        prepend_bos=bos,
        seed=config.seed,
        diagnostics=diagnostics | {"prefixes": templates},
        statistics={at: repr(moment)},
    )
    return edit.apply(model) if apply else edit


def effective_config(model: Model, layer: int | None, config: ROMEConfig | None) -> ROMEConfig:
    """The settings that count: ``layer`` over ``config`` over the published ones."""
    if config is not None and not isinstance(cast(object, config), ROMEConfig):
        raise ValueError(
            f"rome_edit: found settings of type {type(config).__name__}; expected ROMEConfig; write "
            "ROMEConfig(layer=...)."
        )
    if config is None:
        try:
            config = ROMEConfig.for_model(model)
        except ValueError:
            if layer is None:
                raise
            config = ROMEConfig()
    return config if layer is None else replace(config, layer=layer)


def _generated(model: Model, config: ROMEConfig) -> tuple[str, ...]:
    if config.n_prefixes == 0:
        return ()
    return generate_prefixes(model, lengths=config.prefix_lengths, n_per_length=config.n_prefixes, seed=config.seed)


def _diagnostics(
    model: Model, moment: SecondMoment, update: LowRank, key: Tensor, read: KeysValues, found: OptimizedValue
) -> dict[str, Any]:
    layer, left = moment.layer, update.left[:, 0]
    bare, mean = read.keys[layer][0].double(), read.mean_keys[layer][0].double()
    typical = (left @ (moment.matrix.double() @ left)).sqrt() * length(update.right)
    return {
        "losses": found.losses,
        "loss_terms": found.loss_terms,
        "target_prob": found.target_prob,
        "delta_ratio": found.delta_ratio,
        "divisor": float(key.double() @ left),
        "divisor_ratio": float((bare @ left) / (mean @ left)),
        "key_cosine": float(torch.cosine_similarity(bare, mean, dim=0)),
        "disturbance": float(typical / length(read.values[layer][0].double())),
        "relative_norm": update.norm() / float(length(host.w_out(model, layer).to("cpu", torch.float64))),
    }


def _guard(operation: str, request: EditRequest, config: ROMEConfig, diagnostics: dict[str, Any]) -> None:
    """Warn of an edit that is likely to ruin the model, or refuse it.

    Raises:
        ValueError: If it is to be refused.
    """
    ratio, moved = float(diagnostics["divisor_ratio"]), float(diagnostics["disturbance"])
    # The variants divide by the product of a key with its own direction, which is never small.
    small = config.variant == "ROME" and ratio < LEAST_RATIO
    if config.disabling_edit == "allow" or not (small or moved > MOST_DISTURBANCE):
        return
    remedy = "use variant='r-ROME', or prepend_bos=True where the subject begins the prompt"
    if config.variant != "ROME":
        remedy = "lower clamp_norm_factor, or choose another layer"
    text = (
        f"{operation}: the edit {request} is likely to disable the model: divisor_ratio is {ratio:.3g} and disturbance "
        f"{moved:.3g} (relative_norm {float(diagnostics['relative_norm']):.3g}); expected at least {LEAST_RATIO} and "
        f"at most {MOST_DISTURBANCE}; {remedy}; disabling_edit='allow' silences this."
    )
    if config.disabling_edit == "refuse":
        raise ValueError(text)
    warnings.warn(text, stacklevel=3)
