"""`optimize_values`: many requests at once, each as if it were alone."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import attach, forward, host, tokens
from tl_edit.blocks import Blocks, CannotCallBlocksError, why_not
from tl_edit.forward import at_least_float32
from tl_edit.host import Model
from tl_edit.keys import read_lookups
from tl_edit.request import EditRequest, as_request, as_requests
from tl_edit.values.asked import Asked, EngineName
from tl_edit.values.folder import ValueFolder
from tl_edit.values.plain import PlainEngine, site_name
from tl_edit.values.result import OptimizedValue
from tl_edit.values.rows import Row, rows_of
from tl_edit.values.search import Trail, search
from tl_edit.values.settings import Site, ValueSearch
from tl_edit.values.tail import blocks_for, tail_engine


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
    asked = Asked.checked(
        operation,
        model,
        (as_request(request, operation),),
        layer,
        site="value",
        prefixes=prefixes,
        search=search,
        prepend_bos=prepend_bos,
        engine=engine,
    )
    return _optimize(asked)[0]


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
    max_rows: int | None = None,
    folder: str | Path | None = None,
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
            (each takes some ``34 * d_model`` numbers per layer above ``layer``); None for what takes about 2 GiB, at
            most 2048. The result does not depend on it.
        folder: Where to keep each value as soon as it is found, and to look for those of earlier runs; one folder
            serves any number of runs. Not with hooks of your own on the model.
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
    asked = Asked.checked(
        operation,
        model,
        as_requests(requests, operation),
        layer,
        site=site,
        prefixes=prefixes,
        search=search,
        prepend_bos=prepend_bos,
        engine=engine,
        max_rows=max_rows,
        folder=folder,
    )
    return _optimize(asked, progress=progress)


def _optimize(asked: Asked, *, progress: bool = False) -> tuple[OptimizedValue, ...]:
    """Search for all values; those that are kept in the folder are not searched again.

    Raises:
        ValueError: What `optimize_values` raises, after all requests were searched.
    """
    requests = asked.requests
    failures: list[str] = []
    # A user may have switched gradients off, as interpretability notebooks do.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        forward.no_graph_left(asked.model),
        tqdm(total=len(requests), unit="request", desc="values", disable=not progress) as bar,
    ):
        rows = rows_of(asked)
        v0 = _v0(asked)
        kept = None if asked.folder is None else ValueFolder(asked.folder, asked)
        found = [None if kept is None else kept.find(*each) for each in zip(requests, v0[:, 0], strict=True)]
        missing = [i for i, value in enumerate(found) if value is None]
        bar.update(len(requests) - len(missing))
        blocks, reason = _blocks(asked, [row for i in missing for row in rows[i]])
        # A hook of the user's sees one request at a time.
        at_once = 0 if attach.foreign_hook(asked.model) else asked.max_rows
        for chunk in _chunks({i: rows[i] for i in missing}, at_once):
            with forward.memory_advice(asked.operation, "max_rows", asked.max_rows):
                deltas, trails, computed = _search(asked, [rows[i] for i in chunk], v0[chunk], blocks, reason)
            for i, delta, trail in zip(chunk, deltas, trails, strict=True):
                if trail.failed:
                    why = _failure(asked, trail)
                    failures.append(why if len(requests) == 1 else f"request {i} ({requests[i]}): {why}")
                    continue
                found[i] = value = _value(asked, v0[i, 0], delta[0], trail, computed)
                if kept is not None:
                    kept.keep(requests[i], value)
            bar.update(len(chunk))
    if failures:
        more = f" And {len(failures) - 3} more." if len(failures) > 3 else ""
        raise ValueError(f"{asked.operation}: {' '.join(failures[:3])}{more}")
    return tuple(cast(list[OptimizedValue], found))


def _value(asked: Asked, v0: Tensor, delta: Tensor, trail: Trail, computed: str) -> OptimizedValue:
    return OptimizedValue(
        v_star=(v0 + delta).cpu(),
        v0=v0.cpu(),
        losses=tuple(trail.losses),
        target_prob=math.exp(-trail.nll),
        prepend_bos=asked.prepend_bos,
        site=asked.sites[0],
        engine=computed,
        loss_terms=tuple(trail.terms),
    )


def _blocks(asked: Asked, rows: Sequence[Row]) -> tuple[Blocks | None, str]:
    """The blocks of the model; or None, and why."""
    if asked.engine == "plain" or not rows:
        return None, "asked for"
    try:
        return blocks_for(asked.model, rows), ""
    except CannotCallBlocksError as error:
        return None, str(error)


def _search(
    asked: Asked,
    rows: Sequence[Sequence[Row]],
    v0: Float[Tensor, "request site d_model"],
    blocks: Blocks | None,
    reason: str,
) -> tuple[Float[Tensor, "request site d_model"], list[Trail], str]:
    """Search some requests together; also says how it was computed."""
    together = [replace(row, request=i) for i, several in enumerate(rows) for row in several]
    given = (asked.model, asked.layer, asked.sites, together, asked.max_rows)
    if blocks is not None:
        try:
            fast = tail_engine(*given, blocks)
            delta, trails = search(fast, v0, asked.settings)
            fast.spot_check(delta)
            return delta, trails, fast.description
        except Exception as error:  # whatever a module of the user's does when it is called alone
            if forward.is_out_of_memory(error):
                raise
            reason = why_not(error)
    plain = PlainEngine(*given)
    return *search(plain, v0, asked.settings), f"{plain.description} ({reason})"


def _v0(asked: Asked) -> Float[Tensor, "request site d_model"]:
    """What the bare prompts have at the sites."""
    model, bos = asked.model, asked.prepend_bos
    prompts = [tokens.tokenize_request(model, request, prepend_bos=bos) for request in asked.requests]
    names = [site_name(model, site, asked.layer) for site in asked.sites]
    read = read_lookups(model, prompts, names)
    device = host.w_out(model, asked.layer).device
    return torch.stack([at_least_float32(read[name]) for name in names], dim=1).to(device)


def _chunks(rows: Mapping[int, Sequence[Row]], max_rows: int) -> Iterator[list[int]]:
    """Requests that are searched together: as many as have ``max_rows`` positions after their subjects, or one."""
    chunk: list[int] = []
    size = 0
    for i, several in rows.items():
        own = sum(row.tail for row in several)
        if chunk and size + own > max_rows:
            yield chunk
            chunk, size = [], 0
        chunk.append(i)
        size += own
    if chunk:
        yield chunk


def _failure(asked: Asked, trail: Trail) -> str:
    """Why there is no result, and what to do."""
    model, layer = asked.model, asked.layer
    if trail.no_gradient is None:
        found = f"the loss is {trail.losses[-1]} at evaluation {len(trail.losses)}; expected a finite number; "
        if len(trail.losses) == 1:  # of the model as it is
            return f"{found}look for weights and hooks that are not finite, or load the model in float32 or bfloat16."
        return f"{found}lower v_lr, or load the model in float32 or bfloat16."
    hooked = attach.foreign_hook(model)
    where = "" if hooked is None else f" (there is one at {hooked})"
    cause = f"a hook on the model{where} cuts it by detaching or overwriting; remove it (model.reset_hooks())"
    if layer == host.n_layers(model) - 1:
        cause = f"after the last layer nothing carries it to the end of the prompt, or {cause}"
    return (
        f"the gradient of the target's probability to the value of layer {layer} is {trail.no_gradient}; expected the "
        f"target to depend on it; {cause}, or choose another layer."
    )
