"""`optimize_values`: many requests at once, each as if it were alone."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import attach, forward, host, tokens
from tl_edit.blocks import Blocks, CannotCallBlocksError, why_not
from tl_edit.forward import at_least_float32
from tl_edit.host import Model
from tl_edit.keys import read_lookups
from tl_edit.request import EditRequest, as_prefixes, as_request, as_requests
from tl_edit.values.plain import PlainEngine, site_name
from tl_edit.values.result import OptimizedValue
from tl_edit.values.rows import Row, rows_of
from tl_edit.values.search import Trail, search
from tl_edit.values.settings import Site, ValueSearch
from tl_edit.values.tail import blocks_for, tail_engine

EngineName = Literal["auto", "plain"]


def optimize_value(
    model: Model,
    request: EditRequest,
    layer: int,
    *,
    prefixes: Iterable[str] | None = None,
    search: ValueSearch | None = None,
    prepend_bos: bool | None = None,
    engine: EngineName = "auto",
) -> OptimizedValue:
    """Search for v* of one request at one layer; see `optimize_values`, whose only request it is.

    Raises:
        ValueError: What `optimize_values` raises, and for more than one request.
    """
    operation = "optimize_value"
    return _optimize(
        operation,
        model,
        (as_request(request, operation),),
        layer,
        sites=("value",),
        prefixes=prefixes,
        search=search,
        prepend_bos=prepend_bos,
        engine=engine,
    )[0]


def optimize_values(
    model: Model,
    requests: EditRequest | Sequence[EditRequest],
    layer: int,
    *,
    site: Site | Sequence[Site] = "value",
    prefixes: Iterable[str] | None = None,
    search: ValueSearch | None = None,
    prepend_bos: bool | None = None,
    engine: EngineName = "auto",
    max_rows: int = 2048,
    progress: bool = False,
) -> tuple[OptimizedValue, ...]:
    """Search for the values of many requests at one layer, each as if it were alone.

    Hooks of your own take part. For ``v0`` they see the bare prompt as it is; in the search they see the rows of one
    request at a time, each prompt with all but the last of the target's tokens, padded on the right. A hook that counts
    positions from the end acts on another token there.

    Args:
        model: A HookedTransformer or TransformerBridge; its weights, flags and gradients stay as they are.
        requests: The facts to write.
        layer: The layer whose MLP shall answer with v*, or whose block output shall be z*, counted from 0.
        site: "value" for v*, "resid_post" for z*, or several sites that are searched jointly, of which the first
            is the one that is returned (PMET: ``("value", "attn_out")``).
        prefixes: Templates such as ``"It was. {}"``; None for none. The bare prompt is always among the rows.
        search: Settings; ROME's published ones by default.
        prepend_bos: Whether prompts begin with a BOS; None for the model's own default.
        engine: "auto", or "plain" for whole passes only.
        max_rows: Bound of memory: positions of the residual stream whose activations are held for a gradient at a time
            (each takes some ``34 * d_model`` numbers per layer above ``layer``). The result does not depend on it.
        progress: Whether to show a progress bar.

    Returns:
        One value for each request, in their order.

    Raises:
        ValueError: For what `extract_keys_values` refuses, when a loss is not finite, and when a target's probability
            does not depend on the value: a hook cuts the gradient, or no later layer reads it. All other requests are
            searched to the end first; the message names those that failed.
        MemoryError: When memory runs out, with the ``max_rows`` to try.
    """
    operation = "optimize_values"
    return _optimize(
        operation,
        model,
        as_requests(requests, operation),
        layer,
        sites=_sites(site, operation),
        prefixes=prefixes,
        search=search,
        prepend_bos=prepend_bos,
        engine=engine,
        max_rows=max_rows,
        progress=progress,
    )


def _optimize(
    operation: str,
    model: Model,
    requests: Sequence[EditRequest],
    layer: int,
    *,
    sites: tuple[Site, ...],
    prefixes: Iterable[str] | None,
    search: ValueSearch | None,
    prepend_bos: bool | None,
    engine: EngineName,
    max_rows: int = 2048,
    progress: bool = False,
) -> tuple[OptimizedValue, ...]:
    host.check_ready(model, operation)
    host.check_layers(model, [layer], operation)
    settings = _checked(operation, search, engine, max_rows)
    templates = as_prefixes(prefixes, operation)
    bos = tokens.resolve_bos(model, prepend_bos)
    rows = rows_of(model, requests, templates, bos, operation)
    found: list[OptimizedValue | None] = [None] * len(requests)
    failures: list[str] = []
    # A user may have switched gradients off, as interpretability notebooks do.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        forward.no_graph_left(model),
        tqdm(total=len(requests), unit="request", desc="values", disable=not progress) as bar,
    ):
        # A hook of the user's sees one request at a time.
        alone = attach.foreign_hook(model) is not None
        v0 = _v0(model, requests, layer, sites, bos)
        task = _Task.of(model, layer, sites, settings, engine, max_rows, rows)
        for chunk in _chunks(rows, 0 if alone else max_rows):
            with forward.memory_advice(operation, "max_rows", max_rows):
                values, trails, computed = task.run([rows[i] for i in chunk], v0[chunk])
            for i, delta, trail in zip(chunk, values, trails, strict=True):
                if trail.failed:
                    why = _failure(model, layer, trail)
                    failures.append(why if len(requests) == 1 else f"request {i} ({requests[i]}): {why}")
                    continue
                found[i] = OptimizedValue(
                    v_star=(v0[i, 0] + delta[0]).cpu(),
                    v0=v0[i, 0].cpu(),
                    losses=tuple(trail.losses),
                    target_prob=math.exp(-trail.nll),
                    prepend_bos=bos,
                    site=sites[0],
                    engine=computed,
                )
            bar.update(len(chunk))
    if failures:
        more = f" And {len(failures) - 3} more." if len(failures) > 3 else ""
        raise ValueError(f"{operation}: {' '.join(failures[:3])}{more}")
    return tuple(cast(list[OptimizedValue], found))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """A search, whatever the requests."""

    model: Model
    layer: int
    sites: tuple[Site, ...]
    settings: ValueSearch
    max_rows: int
    blocks: Blocks | None
    reason: str
    """Why there are no blocks to call."""

    @classmethod
    def of(
        cls,
        model: Model,
        layer: int,
        sites: tuple[Site, ...],
        settings: ValueSearch,
        engine: EngineName,
        max_rows: int,
        rows: Sequence[Sequence[Row]],
    ) -> "_Task":
        """With the blocks of the model, if they can be called alone."""
        blocks, reason = None, "asked for"
        if engine == "auto":
            try:
                blocks, reason = blocks_for(model, [row for several in rows for row in several]), ""
            except CannotCallBlocksError as error:
                reason = str(error)
        return cls(
            model=model,
            layer=layer,
            sites=sites,
            settings=settings,
            max_rows=max_rows,
            blocks=blocks,
            reason=reason,
        )

    def run(
        self, rows: Sequence[Sequence[Row]], v0: Float[Tensor, "request site d_model"]
    ) -> tuple[Float[Tensor, "request site d_model"], list[Trail], str]:
        """Search some requests together; also says how it was computed."""
        together = [replace(row, request=i) for i, several in enumerate(rows) for row in several]
        given = (self.model, self.layer, self.sites, together, self.max_rows)
        reason = self.reason
        if self.blocks is not None:
            try:
                fast = tail_engine(*given, self.blocks)
                delta, trails = search(fast, v0, self.settings)
                fast.spot_check(delta)
                return delta, trails, fast.description
            except Exception as error:  # whatever a module of the user's does when it is called alone
                if forward.is_out_of_memory(error):
                    raise
                reason = why_not(error)
        plain = PlainEngine(*given)
        return *search(plain, v0, self.settings), f"{plain.description} ({reason})"


def _v0(
    model: Model, requests: Sequence[EditRequest], layer: int, sites: tuple[Site, ...], bos: bool
) -> Float[Tensor, "request site d_model"]:
    """What the bare prompts have at the sites."""
    prompts = [tokens.tokenize_request(model, request, prepend_bos=bos) for request in requests]
    names = [site_name(model, site, layer) for site in sites]
    read = read_lookups(model, prompts, names)
    device = host.w_out(model, layer).device
    return torch.stack([at_least_float32(read[name]) for name in names], dim=1).to(device)


def _chunks(rows: Sequence[Sequence[Row]], max_rows: int) -> Iterator[list[int]]:
    """Requests that are searched together: as many as have ``max_rows`` positions, or one."""
    chunk: list[int] = []
    size = 0
    for i, several in enumerate(rows):
        own = sum(len(row.tokens) for row in several)
        if chunk and size + own > max_rows:
            yield chunk
            chunk, size = [], 0
        chunk.append(i)
        size += own
    yield chunk


def _failure(model: Model, layer: int, trail: Trail) -> str:
    """Why there is no result, and what to do."""
    if trail.no_gradient is None:
        return (
            f"the loss is {trail.losses[-1]} at evaluation {len(trail.losses)}; expected a finite number; lower v_lr, "
            "or load the model in float32 or bfloat16."
        )
    hooked = attach.foreign_hook(model)
    where = "" if hooked is None else f" (there is one at {hooked})"
    cause = f"a hook on the model{where} cuts it by detaching or overwriting; remove it (model.reset_hooks())"
    if layer == host.n_layers(model) - 1:
        cause = f"after the last layer nothing carries it to the end of the prompt, or {cause}"
    return (
        f"the gradient of the target's probability to the value of layer {layer} is {trail.no_gradient}; expected the "
        f"target to depend on it; {cause}, or choose another layer."
    )


def _checked(operation: str, search: object, engine: object, max_rows: object) -> ValueSearch:
    if search is not None and not isinstance(search, ValueSearch):
        raise ValueError(
            f"{operation}: search is of type {type(search).__name__}; expected ValueSearch; write "
            "ValueSearch(v_lr=...)."
        )
    if engine not in get_args(EngineName):
        raise ValueError(f"{operation}: engine is {engine!r}; expected one of {', '.join(get_args(EngineName))}.")
    if type(max_rows) is not int or max_rows < 1:
        raise ValueError(
            f"{operation}: max_rows is {max_rows!r}; expected an integer of 1 or more positions; the default is 2048."
        )
    return search or ValueSearch()


def _sites(site: object, operation: str) -> tuple[Site, ...]:
    listed: tuple[object, ...] = (site,)
    if isinstance(site, Iterable) and not isinstance(site, str):
        listed = tuple(cast(Iterable[object], site))
    known = get_args(Site)
    if not listed or any(each not in known for each in listed) or len(set(listed)) < len(listed):
        raise ValueError(
            f"{operation}: site is {site!r}; expected one of {', '.join(known)}, or several different ones; ROME's v* "
            'is at "value", MEMIT\'s z* at "resid_post".'
        )
    return cast(tuple[Site, ...], listed)
