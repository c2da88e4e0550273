"""One pass over the texts that measures all layers at once.

The pass ends at the last of the layers, so nothing above it and no logits are computed; texts of similar length go
together, so little is padding.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_edit import attach, host, tokens
from tl_edit.edit import edits_on
from tl_edit.forward import memory_advice
from tl_edit.host import Model
from tl_edit.identity import tokenizer_digest, weights_digest
from tl_edit.moment.checkpoint import Checkpoint
from tl_edit.moment.checks import check_ridge
from tl_edit.moment.fingerprint import probe_keys
from tl_edit.moment.mapping import SecondMoments
from tl_edit.moment.result import SecondMoment
from tl_edit.moment.sums import Sums
from tl_edit.moment.texts import OPERATION, Numbered, Reader, Texts, batches
from tl_edit.processes import Processes, processes

WINDOW = 16
"""Batches' worth of tokens that are sorted by length together."""


def second_moment(
    model: Model,
    texts: Iterable[str | Int[Tensor, " _"] | Mapping[str, Any]] | Numbered,
    layers: Sequence[int],
    *,
    max_tokens: int | None = None,
    max_length: int | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    count_bos: bool = True,
    batch_tokens: int = 4096,
    split_halves: bool = False,
    ridge: float = 0.0,
    corpus: str = "",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 300.0,
    progress: bool = True,
) -> SecondMoments:
    """``C = E[k k^T]`` at ``layers``, from one pass over ``texts`` that ends at the last of the layers.

    Sums are float64, of products in float32 (in float64 for float64 models). Each layer takes 12 ``d_mlp``^2 bytes
    while it is measured and 8 ``d_mlp``^2 afterwards: 3.2 and 2.1 GB at a width of 16384; with ``split_halves`` 24
    ``d_mlp``^2 and 16 ``d_mlp``^2: 6.4 and 4.3 GB.

    On a HookedTransformer of a common kind without hooks of yours, in float32 or float64, keys are computed with packed
    weights, after a comparison with the model's own pass; otherwise by that pass, hooks of yours included.

    Under ``accelerate launch`` or ``torchrun`` every process must call this with the same arguments; the texts are
    shared out among them, and all get the same result. Models, settings and texts are compared before sums are added:
    all texts of lists and streams, and with ``max_tokens``; of other things with numbered items, 64 of them.

    Args:
        model: A HookedTransformer or TransformerBridge.
        texts: Strings, token ids of one text each (taken as they are, without a BOS being added), or rows of a
            `datasets` dataset or dicts (the column "text", or the only one of strings, by the first row). Lists,
            datasets and whatever else has a length and numbered items are taken in an order that ``seed`` decides;
            iterators (generators, streamed datasets) are taken as they come, and with several processes each must get
            the same. Texts longer than the context are cut off there. `read_texts` gives corpora by name.
        layers: Layers to measure, counted from 0.
        max_tokens: Stop after so many counted tokens (the last text is cut); None for all. Ten times d_mlp is a fair
            start; the published statistics use about 44 million (100,000 documents). See `SecondMoment.convergence`.
        max_length: Cut texts after so many tokens; None for the model's context, which may be more than memory holds
            in one row.
        seed: Seed of the order of the texts (1 is the published programs') and of the sample of keys that is kept.
        prepend_bos: Whether strings begin with a BOS; None for the model's own default. The published files
            were made without. (Token ids need no tokenizer.)
        count_bos: Whether the key at a BOS that begins a text counts.
        batch_tokens: Tokens per forward pass, padding included; a longer text is one pass.
        split_halves: Also keep the second moment of every other text, for `SecondMoment.convergence`.
        ridge: What `SecondMoment.ridge` will be. It changes nothing that is measured.
        corpus: A note of what the texts are.
        checkpoint: A folder in which the sums are saved, so that a run that was stopped goes on there, with results
            equal to the last bit. The model, texts and settings must be the same: texts are read again up to where the
            run was, without being tokenised or run. In the folder of a finished run, only that is done.
        checkpoint_seconds: Time between two savings; one takes as many bytes as the sums, 8 ``d_mlp``^2 a layer.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: For no or empty texts, texts of the wrong kind, processes that were given different things, layers
            that do not exist or have no dense ``W_out``, active dropout, a checkpoint of another run or one that cannot
            be written.
        MemoryError: If memory runs out, naming the ``batch_tokens`` to try.
    """
    bos = _checked(model, layers, prepend_bos, count_bos, split_halves, ridge, corpus, checkpoint)
    _check_numbers(max_tokens, max_length, seed, batch_tokens, checkpoint_seconds)
    source = Texts(texts, seed)
    with processes(OPERATION) as own:
        given: dict[str, Any] = {"prepend_bos": bos, "count_bos": count_bos, "max_tokens": max_tokens}
        source.check_shared(own)
        found_on: dict[str, Any] = {**given, "max_length": max_length, "seed": seed, "batch_tokens": batch_tokens}
        found_on |= {"split_halves": split_halves, "hooks": attach.foreign_hook(model) or ""}
        found_on |= {"edits": [repr(edit) for edit in edits_on(model, OPERATION)]}
        _agree(own, model, source, found_on | {"layers": list(layers), "ridge": ridge, "corpus": corpus})
        reader = Reader(model, source, own, max_length=max_length, **given)
        sums = Sums(model, layers, seed, split_halves)
        kept = None
        if checkpoint is not None:
            given |= {"max_length": max_length, "seed": seed, "batch_tokens": batch_tokens, "texts": source.n}
            given |= {"layers": list(sums.grams), "split_halves": split_halves, "engine": sums.engine.description}
            kept = Checkpoint(Path(checkpoint), checkpoint_seconds, model, own, given)
            kept.resume(reader, sums)
            kept.prepare()
        _collect(reader, sums, own, kept, batch_tokens, max_tokens, progress)
        own.agree(reader.walked(), OPERATION)
        probes = probe_keys(model, list(sums.grams))
        made_on = host.provenance(model, prepend_bos=bos, seed=seed)
        about: dict[str, Any] = {
            "provenance": made_on,
            "corpus": corpus,
            "ridge": float(ridge),
            "counts_bos": count_bos,
            "settings": found_on,
        }
        return SecondMoments(
            SecondMoment(layer=layer, probe_keys=probes[layer], **found, **about)
            for layer, found in sums.results(own, reader.emptied).items()
        )


def _agree(own: Processes, model: Model, source: Texts, settings: Mapping[str, object]) -> None:
    """Refuse processes that were not given the same model, texts and settings."""
    if own.world == 1:
        return
    found = {"texts": source.said(), "weights": weights_digest(model), "tokenizer": tokenizer_digest(model)}
    own.agree({**settings, **found, "model": host.model_name(model)}, OPERATION)


def _collect(
    reader: Reader,
    sums: Sums,
    own: Processes,
    kept: Checkpoint | None,
    batch_tokens: int,
    max_tokens: int | None,
    progress: bool,
) -> None:
    """Read on to the end."""
    title = "second moment" if own.world == 1 else f"second moment (process 1 of {own.world})"
    shared = None if max_tokens is None else max_tokens // own.world
    hidden = not progress or own.rank > 0
    with tqdm(total=shared, initial=sums.count, unit="tok", unit_scale=True, desc=title, disable=hidden) as bar:
        for window in reader.windows(WINDOW * batch_tokens):
            share = reader.share()
            if shared is None and share is not None:
                bar.total = round((sums.count + sum(row.counted for row in window)) / share)
            for rows, batch in batches(sums.model, window, batch_tokens):
                with memory_advice(OPERATION, "batch_tokens", batch_tokens):
                    sums.add(rows, batch)
                bar.update(sum(row.counted for row in rows))
            sums.flush()
            if kept is not None:
                kept.keep_in_time(reader, sums)
        if kept is not None:
            kept.keep(reader, sums)


def _checked(
    model: Model,
    layers: Sequence[int],
    prepend_bos: bool | None,
    count_bos: object,
    split_halves: object,
    ridge: object,
    corpus: object,
    checkpoint: object,
) -> bool:
    """Whether a BOS begins each text."""
    host.check_ready(model, OPERATION)
    host.check_layers(model, layers, OPERATION)
    for name, value in {"count_bos": count_bos, "split_halves": split_halves}.items():
        if type(value) is not bool:
            raise ValueError(f"{OPERATION}: {name} is {value!r}; expected True or False.")
    if not isinstance(corpus, str):
        raise ValueError(f"{OPERATION}: corpus is {corpus!r}; expected a note in words, e.g. 'wikipedia 20231101.en'.")
    if checkpoint is not None and not isinstance(checkpoint, str | Path):
        raise ValueError(f"{OPERATION}: checkpoint is {checkpoint!r}; expected a path of a folder, or None.")
    check_ridge(ridge, OPERATION)
    if model.tokenizer is None and prepend_bos in (None, False):
        # Token ids need none; strings are refused when the first one comes.
        return False
    return tokens.resolve_bos(model, prepend_bos)


def _check_numbers(
    max_tokens: object, max_length: object, seed: object, batch_tokens: object, checkpoint_seconds: object
) -> None:
    if type(batch_tokens) is not int or batch_tokens < 1:
        raise ValueError(
            f"{OPERATION}: batch_tokens is {batch_tokens!r}; expected an integer of 1 or more; the default is 4096."
        )
    for name, value in {"max_tokens": max_tokens, "max_length": max_length}.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{OPERATION}: {name} is {value!r}; expected an integer of at least 1, or None for all.")
    if type(seed) is not int:
        raise ValueError(f"{OPERATION}: seed is {seed!r}; expected an integer; the published programs' is 1.")
    if type(checkpoint_seconds) not in (int, float) or not cast(float, checkpoint_seconds) >= 0:
        raise ValueError(
            f"{OPERATION}: checkpoint_seconds is {checkpoint_seconds!r}; expected a number of 0 or more; the default "
            "is 300."
        )
