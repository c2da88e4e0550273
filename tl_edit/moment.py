"""The second moment of the keys, ``C = E[k k^T]``: which directions the MLP's keys usually take.

``C`` is uncentred (never a covariance) and is taken over every real token of a text sample, a BOS included:
what an edit must not move is whatever the model computes there. ROME and MEMIT solve with it and never
invert it (Meng et al. 2022, eq. 2; the published program inverts in float32).

Sums are kept in float64, over products in the model's own precision (float32 for half-precision models).
The published program truncates documents at the model's context, and so does this.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import host, tokens
from tl_edit.forward import activations, at_least_float32
from tl_edit.host import Model, Provenance


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SecondMoment:
    """``C = E[k k^T]`` of one layer's keys, on the CPU in float64."""

    layer: int
    matrix: Float[Tensor, "d_mlp d_mlp"]
    count: int
    """Number of tokens the mean runs over; 0 for the identity."""
    provenance: Provenance | None = None

    def __repr__(self) -> str:
        what = f"{self.count:,} tokens" if self.count else "identity"
        return f"SecondMoment(layer {self.layer}, d_mlp {self.d_mlp}, {what})"

    @property
    def d_mlp(self) -> int:
        """Width of the keys."""
        return self.matrix.shape[0]

    @cached_property
    def cholesky(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """Lower Cholesky factor of `matrix` in float64, computed once.

        Raises:
            ValueError: If the matrix is singular: too few tokens for ``d_mlp`` dimensions, or neurons that never fired.
        """
        factor, info = cast(tuple[Tensor, Tensor], torch.linalg.cholesky_ex(self.matrix.double()))
        if info.item() or not torch.isfinite(factor).all():
            raise ValueError(
                f"solving with the second moment of layer {self.layer}: it is singular after {self.count:,} tokens; "
                f"expected a positive definite {self.d_mlp} x {self.d_mlp} matrix{self._remedy()}"
            )
        return factor

    def _remedy(self) -> str:
        """What a singular matrix lacks: tokens, or neurons that fire, which no number of tokens may give."""
        missing = self.d_mlp - self.count
        if missing > 0:
            return (
                f", for which at least {missing:,} more tokens are needed and about {10 * self.d_mlp:,} in all are "
                "advisable; call second_moment(...) with more texts or a larger max_tokens."
            )
        dead = int((self.matrix.diagonal() == 0).sum())
        if dead:
            return (
                f"; {dead:,} of the neurons never fired, as happens in models with ReLU; choose a layer without such "
                f"neurons, try more varied texts, or use the control SecondMoments.identity(model, [{self.layer}])."
            )
        return f"; about {10 * self.d_mlp:,} tokens are advisable; call second_moment(...) with more varied texts."

    def check_fits(self, model: Model, operation: str) -> None:
        """Refuse a model whose keys at this layer have another width.

        Raises:
            ValueError: naming both widths and the call that computes the right one.
        """
        d_mlp = host.w_out(model, self.layer).shape[0]
        if d_mlp != self.d_mlp:
            raise ValueError(
                f"{operation}: the moment is for layer {self.layer} with d_mlp {self.d_mlp}; "
                f"{host.model_name(model)}'s layer {self.layer} has d_mlp {d_mlp}; compute it with "
                f"second_moment(model, texts, layers=[{self.layer}])."
            )
        made_on = self.provenance
        if made_on is not None and _bare_name(made_on.model_name) != _bare_name(host.model_name(model)):
            raise ValueError(
                f"{operation}: the moment of layer {self.layer} was computed on {made_on.model_name}; this model is "
                f"{host.model_name(model)}; compute it with second_moment(model, texts, layers=[{self.layer}])."
            )


def _bare_name(name: str) -> str:
    """A model's name without its organisation, which only one of the two interfaces keeps."""
    return name.split("/")[-1].lower()


class SecondMoments(Mapping[int, SecondMoment]):
    """Second moments by layer: ``moments[17].matrix``."""

    def __init__(self, by_layer: Iterable[SecondMoment]) -> None:
        self._by_layer = {moment.layer: moment for moment in by_layer}

    def __getitem__(self, layer: int) -> SecondMoment:
        try:
            return self._by_layer[layer]
        except KeyError:
            raise KeyError(
                f"no second moment for layer {layer}; these are for layers {list(self._by_layer)}; compute it with "
                f"second_moment(model, texts, layers=[{layer}])"
            ) from None

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_layer)

    def __len__(self) -> int:
        return len(self._by_layer)

    def __repr__(self) -> str:
        return f"SecondMoments({', '.join(map(repr, self._by_layer.values()))})"

    @classmethod
    def identity(cls, model: Model, layers: Sequence[int]) -> "SecondMoments":
        """``C = I``: the control that pretends all key directions are equally common.

        (Some re-implementations of ROME use it as their default; ``mom2_adjustment: false``.)
        """
        host.check_layers(model, layers, "SecondMoments.identity")
        widths = {layer: host.w_out(model, layer).shape[0] for layer in layers}
        return cls(
            SecondMoment(layer=layer, matrix=torch.eye(d_mlp, dtype=torch.float64), count=0)
            for layer, d_mlp in widths.items()
        )


def second_moment(
    model: Model,
    texts: Iterable[str | Int[Tensor, " _"]],
    layers: Sequence[int],
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    batch_tokens: int = 4096,
    progress: bool = True,
) -> SecondMoments:
    """``C = E[k k^T]`` at ``layers``, from one pass over ``texts`` that ends at the last of the layers.

    Args:
        model: A HookedTransformer or TransformerBridge.
        texts: Strings, or token ids of one text each (taken as they are, without a BOS being added). Texts
            longer than the context are cut off there.
        layers: Layers to measure, counted from 0.
        max_tokens: Stop after so many tokens (the last text is cut); None for all. Ten times d_mlp is a fair
            start; the published statistics use about 44 million (100,000 documents).
        seed: Seed of the order in which texts are taken, which matters when ``max_tokens`` cuts.
        prepend_bos: Whether strings begin with a BOS; None for the model's own default. The published files
            were made without.
        batch_tokens: Tokens per forward pass.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: For no or empty texts, layers that do not exist or have no dense ``W_out``, active dropout.
    """
    operation = "second_moment"
    host.check_ready(model, operation)
    host.check_layers(model, layers, operation)
    if type(batch_tokens) is not int or batch_tokens < 1:
        raise ValueError(
            f"{operation}: batch_tokens is {batch_tokens!r}; expected an integer of 1 or more; the default is 4096."
        )
    bos = tokens.resolve_bos(model, prepend_bos)
    rows = _rows(model, texts, bos, max_tokens, seed)
    total = sum(map(len, rows))
    sums: dict[int, Tensor] = {}
    names = {layer: host.key_name(layer) for layer in layers}
    with tqdm(total=total, unit="tok", desc="second moment", disable=not progress) as bar:
        for batch in _batches(model, rows, batch_tokens):
            real = batch.attention_mask.bool()
            read = activations(model, batch, list(names.values()))
            for layer, name in names.items():
                keys = at_least_float32(read[name][real.to(read[name].device)])
                _add_gram(sums, layer, keys)
            bar.update(int(real.sum()))
    made_on = host.provenance(model, prepend_bos=bos, seed=seed)
    return SecondMoments(
        SecondMoment(layer=layer, matrix=gram / total, count=total, provenance=made_on) for layer, gram in sums.items()
    )


def _add_gram(sums: dict[int, Tensor], layer: int, keys: Float[Tensor, "pos d_mlp"]) -> None:
    """Add ``keys.T @ keys`` to the layer's float64 sum."""
    gram = (keys.T @ keys).to("cpu", torch.float64)
    if not torch.isfinite(gram).all():
        raise ValueError(
            f"second_moment: keys of layer {layer} are not finite; expected finite activations; load the model in "
            "float32 or bfloat16 (float16 overflows on some models)."
        )
    if layer in sums:
        sums[layer] += gram
    else:
        sums[layer] = gram


def _rows(
    model: Model, texts: Iterable[Any], prepend_bos: bool, max_tokens: int | None, seed: int
) -> list[Int[Tensor, " _"]]:
    """The texts as token rows in a seeded order, cut at the context and at ``max_tokens``."""
    if isinstance(texts, str):
        raise ValueError("second_moment: texts is one string; expected several texts; pass [text, ...].")
    given = cast(object, texts)
    if isinstance(given, Tensor):
        raise ValueError(
            f"second_moment: texts is one tensor of shape {list(given.shape)}; expected several texts, since padding "
            "in a token matrix would count as text; pass a list of its rows without their padding, or strings."
        )
    if isinstance(given, dict) or not isinstance(given, Iterable):
        raise ValueError(
            f"second_moment: texts is of type {type(texts).__name__}; expected several texts; pass a list of strings, "
            "or of one-dimensional tensors of token ids."
        )
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise ValueError(
            f"second_moment: max_tokens is {max_tokens!r}; expected an integer of at least 1, or None for all."
        )
    shuffled = list(texts)
    random.Random(seed).shuffle(shuffled)
    context = int(model.cfg.n_ctx)
    rows: list[Tensor] = []
    left = math.inf if max_tokens is None else max_tokens
    for text in shuffled:
        if left <= 0:
            break
        if isinstance(text, str):
            row = model.to_tokens(text, prepend_bos=prepend_bos, truncate=False)[0].to("cpu", torch.long)
        else:
            row = _checked_ids(model, text)
        row = row[: int(min(context, left))]
        if len(row) > int(prepend_bos and isinstance(text, str)):
            rows.append(row)
            left -= len(row)
    if not rows:
        raise ValueError("second_moment: texts hold no tokens; expected a sample of ordinary text; pass more of it.")
    return rows


def _checked_ids(model: Model, ids: object) -> Int[Tensor, " _"]:
    """Token ids of one text, on the CPU."""
    whole = isinstance(ids, Tensor) and not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not isinstance(ids, Tensor) or not whole or ids.ndim != 1:
        found = f"a tensor of {ids.dtype}, shape {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(
            f"second_moment: texts hold {found}; expected strings, or one-dimensional tensors of token ids; pass the "
            "rows of a token matrix one by one, without their padding."
        )
    row = ids.to("cpu", torch.long)
    size = int(model.cfg.d_vocab)
    if len(row) and not 0 <= int(row.min()) <= int(row.max()) < size:
        raise ValueError(
            f"second_moment: texts hold token ids from {int(row.min())} to {int(row.max())}; {host.model_name(model)} "
            f"has ids 0 to {size - 1}; tokenise with the model's own tokenizer (model.to_tokens)."
        )
    return row


def _batches(model: Model, rows: list[Int[Tensor, " _"]], batch_tokens: int) -> Iterator[tokens.TokenBatch]:
    """Rows of similar length together, up to ``batch_tokens`` tokens a batch, padding counted."""
    chunk: list[Tensor] = []
    for row in sorted(rows, key=len, reverse=True):
        if chunk and (len(chunk) + 1) * len(chunk[0]) > batch_tokens:
            yield tokens.pad(model, chunk)
            chunk = []
        chunk.append(row)
    yield tokens.pad(model, chunk)
