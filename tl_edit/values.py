"""The search for v*: the value that makes the model say the new object.

A vector ``delta`` is added to the output of ``W_out`` at the subject's last token, in the prompt behind
several prefixes and in one more prompt, ``"{subject} is a"``. Adam minimises (Meng et al. 2022, eq. 4, as the
published program computes it)::

    mean over prefixes of  -(1/m) sum_i log p(target token i)
    + kl_factor * KL(P_delta || P_0)            at the subject's last token of "{subject} is a"
    + v_weight_decay * |delta| / |v0|^2

and after each step ``delta`` is pulled back to length ``clamp_norm_factor * |v0|``. ``v0`` is the value of the
bare prompt, and ``v* = v0 + delta``. Where the paper differs: it describes the KL term at the end of
"{subject} is a" and a squared ``delta``; its appendix gives other weights.

The weights are not touched and receive no gradients.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import attach, forward, host, tokens
from tl_edit.forward import at_least_float32, length
from tl_edit.host import HookFn, Model
from tl_edit.request import EditRequest, as_prefixes, as_request

KL_RELATION = "{} is a"


@dataclass(frozen=True, kw_only=True)
class ValueSearch:
    """Settings of the search; the names are those of the published configuration files."""

    v_lr: float = 0.5
    """Adam's learning rate, in units of the value's entries (paper and program: 0.5)."""
    v_num_grad_steps: int = 20
    """Loss evaluations; the last makes no step, so there are at most one less steps (program: 20)."""
    v_weight_decay: float = 0.5
    """Weight of ``|delta| / |v0|^2`` (program: 0.5; paper's appendix: 1.5e-3)."""
    clamp_norm_factor: float = 4.0
    """Greatest ``|delta| / |v0|`` (program: 4, and 3 for GPT-2 medium)."""
    kl_factor: float = 0.0625
    """Weight of the KL term, which is in nats (program: 0.0625; paper's appendix: 1e2)."""
    stop_loss: float = 0.05
    """The search ends when the total loss falls below this (program: 5e-2)."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        numbers = {field.name: getattr(self, field.name) for field in fields(ValueSearch)}
        for name, value in numbers.items():
            wanted = int if name == "v_num_grad_steps" else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool) or math.isnan(value):
                raise ValueError(
                    f"value search: {name} is {value!r}; expected "
                    f"{'an integer' if wanted is int else 'a number'}; the default is "
                    f"{ValueSearch.__dataclass_fields__[name].default}."
                )
        if not (self.v_num_grad_steps >= 1 and 0 < self.v_lr < math.inf and 0 < self.clamp_norm_factor < math.inf):
            raise ValueError(
                f"value search: v_num_grad_steps {self.v_num_grad_steps}, v_lr {self.v_lr}, clamp_norm_factor "
                f"{self.clamp_norm_factor}; expected at least 1 step and positive numbers; the published settings are "
                "20, 0.5 and 4."
            )
        if not (0 <= self.v_weight_decay < math.inf and 0 <= self.kl_factor < math.inf):
            raise ValueError(
                f"value search: v_weight_decay {self.v_weight_decay}, kl_factor {self.kl_factor}; expected 0 or more; "
                "the published settings are 0.5 and 0.0625."
            )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OptimizedValue:
    """What the search found; tensors on the CPU, float32, or float64 for a float64 model."""

    v_star: Float[Tensor, " d_model"]
    v0: Float[Tensor, " d_model"]
    losses: tuple[float, ...]
    """Total loss at each evaluation, in nats; the last belongs to ``v_star``."""
    target_prob: float
    """Probability of the target at the end: geometric mean over its tokens and over prefixes."""
    prepend_bos: bool
    """Whether the prompts began with a BOS."""

    @property
    def delta_ratio(self) -> float:
        """``|v* - v0| / |v0|``; at ``clamp_norm_factor`` the clamp was active."""
        return float(length(self.v_star - self.v0) / length(self.v0))

    def __repr__(self) -> str:
        return (
            f"OptimizedValue(loss {self.losses[0]:.3f} → {self.losses[-1]:.3f} in {len(self.losses)} evaluations, "
            f"|delta|/|v0| {self.delta_ratio:.2f}, target probability {self.target_prob:.3f})"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """The rows of the search: the prompt behind each prefix with the target's tokens, then the KL prompt."""

    batch: tokens.TokenBatch
    lookup: Int[Tensor, " batch"]
    target: Int[Tensor, " pos"]
    target_rows: Int[Tensor, "prefix pos"]
    target_positions: Int[Tensor, "prefix pos"]

    @classmethod
    def of(cls, model: Model, request: EditRequest, prefixes: Sequence[str], prepend_bos: bool) -> "_Rows":
        def tokenize(asked: EditRequest, prefix: str = "{}") -> tokens.Prompt:
            return tokens.tokenize_request(model, asked, prefix=prefix, prepend_bos=prepend_bos)

        target = tokens.target_tokens(model, request.prompt, request.target_new, prepend_bos=prepend_bos)
        prompts = [tokenize(request, prefix) for prefix in ("{}", *prefixes)]
        # Each prompt fits the context alone; the target stands behind it.
        longest = max(prompts, key=lambda prompt: len(prompt.tokens))
        needed, context = len(longest.tokens) + len(target) - 1, int(model.cfg.n_ctx)
        if needed > context:
            raise ValueError(
                f"optimize_value: {longest.text[:40]!r}... with the target {request.target_new!r} needs {needed} "
                f"tokens; {host.model_name(model)} has a context of {context}; shorten the prefix, the prompt or "
                "the target."
            )
        kl_prompt = tokenize(EditRequest(KL_RELATION, request.subject, request.target_new))
        batch = tokens.pad(model, [*(torch.cat([prompt.tokens, target[:-1]]) for prompt in prompts), kl_prompt.tokens])
        last = torch.tensor([len(prompt.tokens) - 1 for prompt in prompts])
        return cls(
            batch=batch,
            lookup=torch.tensor([prompt.subject_last for prompt in (*prompts, kl_prompt)]),
            target=target,
            target_rows=torch.arange(len(prompts))[:, None].expand(-1, len(target)),
            target_positions=last[:, None] + torch.arange(len(target))[None],
        )


def optimize_value(
    model: Model,
    request: EditRequest,
    layer: int,
    *,
    prefixes: Iterable[str] | None = None,
    search: ValueSearch | None = None,
    prepend_bos: bool | None = None,
) -> OptimizedValue:
    """Search for v* of one request at one layer.

    Hooks of your own take part. For ``v0`` they see the bare prompt as it is; in the search they see one batch of all
    rows, each prompt with all but the last of the target's tokens, padded on the right. A hook that counts positions
    from the end acts on another token there.

    Args:
        model: A HookedTransformer or TransformerBridge; its weights, flags and gradients stay as they are.
        request: The fact to write.
        layer: The layer whose MLP shall answer with v*, counted from 0.
        prefixes: Templates such as ``"It was. {}"``; None for none. The bare prompt is always among the rows.
        search: Settings; the published ones by default.
        prepend_bos: Whether prompts begin with a BOS; None for the model's own default.

    Raises:
        ValueError: For what `extract_keys_values` refuses, when the loss is not finite, and when the target's
            probability does not depend on the value: a hook cuts the gradient, or no later layer reads it.
    """
    operation = "optimize_value"
    host.check_ready(model, operation)
    host.check_layers(model, [layer], operation)
    request = as_request(request, operation)
    search = search or ValueSearch()
    templates = as_prefixes(prefixes, operation)
    bos = tokens.resolve_bos(model, prepend_bos)
    site = host.value_name(model, layer)
    # A user may have switched gradients off, as interpretability notebooks do.
    with torch.inference_mode(False), torch.enable_grad(), forward.no_graph_left(model):
        rows = _Rows.of(model, request, templates, bos)
        lookup = int(rows.lookup[0])
        # As in `extract_keys_values`: cut where that changes nothing, whole where a user's hook may look at the end.
        end = lookup + 1 if attach.foreign_hook(model) is None else int(rows.target_positions[0, 0]) + 1
        bare = tokens.pad(model, [rows.batch.tokens[0, :end].cpu()])
        v0 = at_least_float32(forward.activations(model, bare, [site])[site][0, lookup])
        return _search(model, layer, rows, v0, search, bos)


def _search(
    model: Model, layer: int, rows: _Rows, v0: Float[Tensor, " d_model"], search: ValueSearch, prepend_bos: bool
) -> OptimizedValue:
    site = host.value_name(model, layer)
    delta = torch.zeros_like(v0, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=search.v_lr)
    longest = search.clamp_norm_factor * float(length(v0))
    unedited: Tensor | None = None
    losses: list[float] = []
    while True:
        terms = _terms(forward.logits(model, rows.batch, [(site, _shift_lookups(rows, delta))]), rows)
        if unedited is None:
            # The first pass has delta = 0, so it is the unedited model.
            unedited = terms.kl_log_probs.detach()
        kl = torch.nn.functional.kl_div(unedited, terms.kl_log_probs, log_target=True, reduction="sum")
        # Of a model spread over devices, the logits may be elsewhere.
        decay = (length(delta) / length(v0) ** 2).to(terms.nll.device)
        loss = terms.nll + search.kl_factor * kl + search.v_weight_decay * decay
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(
                f"optimize_value: the loss is {losses[-1]} at evaluation {len(losses)}; expected a finite number; "
                "lower v_lr, or load the model in float32 or bfloat16."
            )
        if losses[-1] < search.stop_loss or len(losses) == search.v_num_grad_steps:
            break
        if len(losses) == 1:
            _check_reaches(model, layer, terms.nll, delta)
        delta.grad = torch.autograd.grad(loss, delta)[0]
        optimizer.step()
        with torch.no_grad():
            too_long = float(length(delta)) / longest
            if too_long > 1:
                delta.div_(too_long)
    return OptimizedValue(
        v_star=(v0 + delta.detach()).cpu(),
        v0=v0.cpu(),
        losses=tuple(losses),
        target_prob=math.exp(-terms.nll.item()),
        prepend_bos=prepend_bos,
    )


def _check_reaches(model: Model, layer: int, nll: Float[Tensor, ""], delta: Float[Tensor, " d_model"]) -> None:
    """Refuse a target that does not depend on delta: the search would follow the decay alone and write nothing.

    Of the whole loss this cannot be seen, since the decay keeps a gradient and the other term starts at its minimum.
    """
    slope = torch.autograd.grad(nll, delta, retain_graph=True, allow_unused=True)[0] if nll.requires_grad else None
    # A target that is certain already has no slope either.
    if (slope is not None and slope.any()) or nll.item() <= 0:
        return
    hooked = attach.foreign_hook(model)
    where = "" if hooked is None else f" (there is one at {hooked})"
    cause = f"a hook on the model{where} cuts it by detaching or overwriting; remove it (model.reset_hooks())"
    if layer == host.n_layers(model) - 1:
        cause = f"after the last layer nothing carries it to the end of the prompt, or {cause}"
    raise ValueError(
        f"optimize_value: the gradient of the target's probability to the value of layer {layer} is "
        f"{'missing' if slope is None else 'exactly zero'}; expected the target to depend on it; {cause}, "
        "or choose another layer."
    )


def _shift_lookups(rows: _Rows, delta: Float[Tensor, " d_model"]) -> HookFn:
    """A hook that adds ``delta`` at each row's own lookup position; gradients flow to it."""
    every = torch.arange(len(rows.lookup))

    def hook(act: Tensor, hook: object = None) -> Tensor:
        # Some Hugging Face MLPs see [batch * pos, d_model].
        out = act.reshape(*rows.batch.tokens.shape, -1).clone()
        out[every, rows.lookup] = out[every, rows.lookup] + delta.to(device=out.device, dtype=out.dtype)
        return out.reshape(act.shape)

    return hook


@dataclass(frozen=True, eq=False)
class _Terms:
    nll: Float[Tensor, ""]
    """Negative log-likelihood of the target per token, averaged over prefixes, in nats."""
    kl_log_probs: Float[Tensor, " d_vocab"]
    """Next-token log-probabilities after the subject in the KL prompt."""


def _terms(logits: Float[Tensor, "batch pos d_vocab"], rows: _Rows) -> _Terms:
    read = torch.log_softmax(at_least_float32(logits[rows.target_rows, rows.target_positions]), dim=-1)
    target = rows.target.to(read.device).expand(len(read), -1)
    after_subject = logits[-1, rows.lookup[-1]]
    return _Terms(
        nll=-read.gather(-1, target[..., None]).mean(),
        kl_log_probs=torch.log_softmax(at_least_float32(after_subject), dim=-1),
    )
