"""The search itself: Adam on one vector for each request and site, each request as if it were alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_edit.forward import length
from tl_edit.values.settings import ValueSearch


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """The losses of each request, on the CPU; those of requests that were not asked for mean nothing."""

    nll: Float[Tensor, " request"]
    kl: Float[Tensor, " request"]
    said: Bool[Tensor, " request"]
    gradient: Float[Tensor, "request site d_model"] | None
    """Of ``nll_weight * nll + kl_weight * kl``, to delta; None where nothing depends on delta."""


@runtime_checkable
class Evaluate(Protocol):
    """An engine: what the model says with ``delta`` added at the lookup positions."""

    def __call__(
        self,
        delta: Float[Tensor, "request site d_model"],
        requests: Sequence[int],
        *,
        nll_weight: Float[Tensor, " request"],
        kl_weight: float,
        gradient: bool,
    ) -> Evaluated:
        """Evaluate ``requests``. The first call is made with zeros, so it is the unedited model."""
        ...


@dataclass(kw_only=True)
class Trail:
    """How the search of one request went."""

    losses: list[float]
    terms: list[tuple[float, float, float]]
    """What each loss is the sum of: the target's, the KL term, the weight decay."""
    nll: float = math.nan
    """Of the last evaluation, in nats per token."""
    no_gradient: str | None = None
    """Set if the target does not depend on delta: how its gradient is."""

    @property
    def failed(self) -> bool:
        """Whether there is no result."""
        return self.no_gradient is not None or not math.isfinite(self.losses[-1])


def search(
    evaluate: Evaluate, v0: Float[Tensor, "request site d_model"], settings: ValueSearch
) -> tuple[Float[Tensor, "request site d_model"], list[Trail]]:
    """Minimise the loss of each request; returns the deltas, and how it went.

    Adam works on each entry alone, so that one optimiser serves all requests; one that has ended stays where it is.
    """
    delta = torch.zeros_like(v0, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.v_lr)
    v0_length = torch.stack([torch.stack([length(site) for site in each]) for each in v0])
    trails = [Trail(losses=[], terms=[]) for _ in v0]
    alive = list(range(len(v0)))
    nll_weight = torch.ones(len(v0), dtype=v0.dtype)
    for step in range(settings.v_num_grad_steps):
        last = step == settings.v_num_grad_steps - 1
        # At zero the KL term is at its minimum; without it a gradient of exactly zero says that nothing carries delta.
        kl_weight = settings.kl_factor if step else 0.0
        found = evaluate(delta, alive, nll_weight=nll_weight, kl_weight=kl_weight, gradient=not last)
        decay = (_lengths(delta) / v0_length**2).sum(-1).detach().cpu()
        terms = (nll_weight * found.nll, settings.kl_factor * found.kl, settings.v_weight_decay * decay)
        nll_weight = _next_weight(found, settings)
        alive = _go_on(alive, trails, terms, found, settings)
        if step == 0 and not last:
            _check_reaches(alive, trails, found)
            alive = [i for i in alive if not trails[i].failed]
        if last or not alive:
            break
        _step(optimizer, delta, found, alive, v0_length, settings)
    return delta.detach(), trails


def _next_weight(found: Evaluated, settings: ValueSearch) -> Float[Tensor, " request"]:
    """Of the target's loss, at the next evaluation; see `ValueSearch.stop_kl`."""
    ones = torch.ones_like(found.nll)
    return ones if settings.stop_kl is None else torch.where(found.said, 0.1 * ones, ones)


def _lengths(delta: Float[Tensor, "request site d_model"]) -> Float[Tensor, "request site"]:
    return cast(Tensor, torch.linalg.vector_norm(delta, dim=-1))


def _go_on(
    alive: list[int],
    trails: list[Trail],
    terms: tuple[Float[Tensor, " request"], Float[Tensor, " request"], Float[Tensor, " request"]],
    found: Evaluated,
    settings: ValueSearch,
) -> list[int]:
    """Note the losses; returns the requests that go on."""
    going: list[int] = []
    nll, kl, decay = terms
    losses = nll + kl + decay
    for i in alive:
        trail, loss = trails[i], float(losses[i])
        trail.losses.append(loss)
        trail.terms.append((float(nll[i]), float(kl[i]), float(decay[i])))
        trail.nll = float(found.nll[i])
        kept = settings.stop_kl is not None and bool(found.said[i]) and float(found.kl[i]) < settings.stop_kl
        if not trail.failed and loss >= settings.stop_loss and not kept:
            going.append(i)
    return going


def _check_reaches(alive: Sequence[int], trails: Sequence[Trail], found: Evaluated) -> None:
    """Fail requests whose target does not depend on delta: they would follow the decay alone and write nothing.

    Of the whole loss this cannot be seen, since the decay keeps a gradient.
    """
    for i in alive:
        # A target that is certain already has no slope either.
        if trails[i].nll > 0 and (found.gradient is None or not found.gradient[i].any()):
            trails[i].no_gradient = "missing" if found.gradient is None else "exactly zero"


def _step(
    optimizer: torch.optim.Optimizer,
    delta: Float[Tensor, "request site d_model"],
    found: Evaluated,
    alive: Sequence[int],
    v0_length: Float[Tensor, "request site"],
    settings: ValueSearch,
) -> None:
    """One step of Adam for the requests that go on, each pulled back to its longest delta."""
    if found.gradient is None:
        raise RuntimeError("a search goes on without a gradient")  # _check_reaches has ended it
    going = torch.zeros(len(delta), dtype=torch.bool, device=delta.device)
    going[list(alive)] = True
    sizes = _lengths(delta.detach())
    # The gradient of |delta| at zero is taken to be zero, as torch takes it.
    direction = delta.detach() / sizes.clamp(min=torch.finfo(delta.dtype).tiny)[..., None]
    decay = settings.v_weight_decay * direction / v0_length[..., None] ** 2
    before = delta.detach().clone()
    delta.grad = torch.where(going[:, None, None], found.gradient + decay, torch.zeros_like(before))
    optimizer.step()
    with torch.no_grad():
        too_long = (_lengths(delta) / (settings.clamp_norm_factor * v0_length)).clamp(min=1)
        delta.copy_(torch.where(going[:, None, None], delta / too_long[..., None], before))
