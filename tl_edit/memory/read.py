"""Reading memories: one pass over texts for the keys, one look at the unembedding for the values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import forward, host, tokens
from tl_edit.host import Model
from tl_edit.memory.result import KeyValueMemory, elsewhere
from tl_edit.memory.top import Rows, TopPlaces, first_largest
from tl_edit.moment.engine import Engine
from tl_edit.moment.texts import Numbered, Reader, Row, Texts, batches
from tl_edit.processes import Processes
from tl_edit.readout import Readout

WINDOW = 16
"""Batches' worth of tokens that are sorted by length together."""

AnyTexts = Iterable[str | Int[Tensor, " _"] | Mapping[str, Any]] | Numbered


@dataclass(frozen=True, kw_only=True, eq=False)
class Memories:
    """The memories of one layer."""

    layer: int
    numbers: tuple[int, ...]
    names: tuple[str, ...]
    keys: Float[Tensor, "d_mlp memory"] | None
    """What keys are multiplied with; None where the memories are neurons."""
    values: Float[Tensor, "memory d_model"]
    sign: int
    """-1 where negative coefficients are looked for, and values turned round."""

    def coefficients(self, keys: Float[Tensor, "batch pos d_mlp"]) -> Float[Tensor, "batch pos memory"]:
        """At every token, in at least float32."""
        if self.keys is not None:
            wide = forward.at_least_float32(keys)
            return self.sign * (wide @ self.keys.to(wide.dtype).to(wide.device))
        chosen = keys
        if self.numbers != tuple(range(keys.shape[-1])):
            chosen = keys[..., torch.tensor(self.numbers, device=keys.device)]
        return self.sign * forward.at_least_float32(chosen)


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """How memories are read; `key_value_memory` explains each."""

    n_triggers: int
    n_tokens: int
    window: int
    one_per_text: bool
    final_norm: bool
    negative: bool
    max_tokens: int | None
    max_length: int | None
    seed: int
    prepend_bos: bool
    batch_tokens: int
    progress: bool


def read_memories(
    model: Model,
    memories: Sequence[Memories],
    texts: AnyTexts,
    given: Settings,
    operation: str,
    title: str,
    *,
    of_edit: bool = False,
) -> KeyValueMemory:
    """Triggers and tokens of memories, by layers."""
    tops = [TopPlaces(len(each.numbers), given.n_triggers, given.window, given.one_per_text) for each in memories]
    n_texts, n_tokens = _collect(model, memories, tops, texts, given, operation)
    places = [torch.cat(parts) for parts in zip(*(top.results() for top in tops), strict=True)]
    coefficient, text_index, position, following, context_ids, around = places
    if not coefficient[text_index >= 0].isfinite().all():
        raise ValueError(
            f"{operation}: {host.model_name(model)} has activations that are no finite numbers; expected numbers; load "
            "it in float32 or bfloat16 (float16 overflows on some models), and look for weights and hooks that are not "
            "finite."
        )
    generator = torch.Generator().manual_seed(given.seed)
    first = cast(Sequence[Tensor], torch.split(following[:, 0], [len(each.numbers) for each in memories]))
    values = [
        torch.cat(parts)
        for parts in zip(
            *(_read_values(model, each, asked, given, generator) for each, asked in zip(memories, first, strict=True)),
            strict=True,
        )
    ]
    top_ids, top_scores, bottom_ids, bottom_scores, next_rank, control_rank = values
    ids = torch.cat([each.flatten().long() for each in (following, context_ids, top_ids, bottom_ids)])
    seen = cast(Tensor, torch.unique(ids))
    seen = seen[seen >= 0]
    return KeyValueMemory(
        title=title,
        of_edit=of_edit,
        layers=tuple(each.layer for each in memories for _ in each.numbers),
        neurons=tuple(number for each in memories for number in each.numbers),
        names=tuple(name for each in memories for name in each.names),
        coefficient=coefficient,
        text_index=text_index,
        position=position,
        next_id=following,
        context_ids=context_ids,
        context_coefficient=around,
        top_ids=top_ids,
        top_scores=top_scores,
        bottom_ids=bottom_ids,
        bottom_scores=bottom_scores,
        next_rank=next_rank,
        control_rank=control_rank,
        value_norm=torch.cat([forward.lengths(forward.at_least_float32(each.values)).cpu() for each in memories]),
        vocabulary=dict(zip(map(int, seen), tokens.str_tokens(model, seen), strict=True)),
        n_vocab=int(model.cfg.d_vocab),
        n_texts=n_texts,
        n_tokens=n_tokens,
        one_per_text=given.one_per_text,
        final_norm=given.final_norm,
        negative=given.negative,
        seed=given.seed,
        provenance=host.provenance(model, prepend_bos=given.prepend_bos, seed=given.seed),
    )


def _collect(
    model: Model,
    memories: Sequence[Memories],
    tops: Sequence[TopPlaces],
    texts: AnyTexts,
    given: Settings,
    operation: str,
) -> tuple[int, int]:
    """Read all texts; returns how many, and how many tokens counted."""
    source = Texts(texts, given.seed, operation)
    reader = Reader(
        model,
        source,
        Processes(),
        prepend_bos=given.prepend_bos,
        count_bos=False,
        max_tokens=given.max_tokens,
        max_length=given.max_length,
    )
    engine = Engine(model, [each.layer for each in memories])
    n_texts = n_tokens = 0
    with tqdm(total=given.max_tokens, unit="tok", unit_scale=True, desc=operation, disable=not given.progress) as bar:
        for window in reader.windows(WINDOW * given.batch_tokens):
            share = reader.share()
            counted = sum(row.counted for row in window)
            if given.max_tokens is None and share is not None:
                bar.total = round((n_tokens + counted) / share)
            for rows, batch in batches(model, window, given.batch_tokens):
                with forward.memory_advice(operation, "batch_tokens", given.batch_tokens):
                    _add(engine, memories, tops, *_earlier_first(rows, batch, source))
                bar.update(sum(row.counted for row in rows))
            n_texts, n_tokens = n_texts + len(window), n_tokens + counted
    if not n_tokens:
        raise ValueError(
            f"{operation}: texts hold no tokens to look at (a BOS is none); expected some ordinary texts; pass a list "
            "of strings, e.g. read_texts(path)."
        )
    return n_texts, n_tokens


def _earlier_first(
    rows: Sequence[Row], batch: tokens.TokenBatch, source: Texts
) -> tuple[tokens.TokenBatch, Sequence[Row], list[int]]:
    """A batch in the order in which its texts stand among the user's, and where they stand."""
    where = [source.place(row.number) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: where[i])
    return batch.take(order), [rows[i] for i in order], [where[i] for i in order]


def _add(
    engine: Engine,
    memories: Sequence[Memories],
    tops: Sequence[TopPlaces],
    batch: tokens.TokenBatch,
    rows: Sequence[Row],
    where: Sequence[int],
) -> None:
    counted = batch.attention_mask.bool()
    counted[:, 0] &= torch.tensor([row.skipped == 0 for row in rows], device=counted.device)

    def take(keys: Tensor, of: Memories, top: TopPlaces) -> None:
        device = keys.device
        found = Rows(
            tokens=batch.tokens.to(device),
            counted=counted.to(device),
            texts=torch.tensor(where, device=device),
            lengths=torch.tensor(batch.lengths, device=device),
        )
        top.add(of.coefficients(keys), found)

    readers = {each.layer: partial(take, of=each, top=top) for each, top in zip(memories, tops, strict=True)}
    engine.show(batch, readers)


@torch.no_grad()
def _read_values(
    model: Model, of: Memories, following: Int[Tensor, " memory"], given: Settings, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Top and bottom tokens with their scores, and ranks of tokens in the own and in another value; on the CPU."""
    readout = Readout(model, of.layer, final_norm=given.final_norm)
    n = len(of.numbers)
    other = elsewhere(n, generator)
    # Of each value, the memory that is asked about it beside its own.
    asker = other.argsort()
    found: list[list[Tensor]] = [[], [], [], [], [], []]
    for part in cast(Sequence[Tensor], torch.split(torch.arange(n), forward.most_logits(model))):
        scores = of.sign * readout.scores(of.values[part.to(of.values.device)])
        n_tokens = min(given.n_tokens, scores.shape[1])
        top, bottom = first_largest(scores, n_tokens), first_largest(-scores, n_tokens)
        ranks = [_ranks(scores, following[each]) for each in (part, asker[part])]
        each = (top, scores.gather(1, top), bottom, scores.gather(1, bottom), *ranks)
        for kept, new in zip(found, each, strict=True):
            kept.append(new.cpu())
    *tables, own, asked = (torch.cat(kept) for kept in found)
    control = asked[other] if n > 1 else torch.full_like(asked, -1)
    return tables[0], tables[1], tables[2], tables[3], own, control


def _ranks(scores: Float[Tensor, "some d_vocab"], asked: Int[Tensor, " some"]) -> Int[Tensor, " some"]:
    """How many tokens score more than the one that is asked for; -1 where none is."""
    ids = asked.to(scores.device)
    own = scores.gather(1, ids.clamp(min=0)[:, None])
    return (scores > own).sum(1).masked_fill(ids < 0, -1)
