"""What the options name: models, records, facts, texts, second moments."""

import argparse
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tl_edit import (
    EditRecord,
    KnownFact,
    SecondMoment,
    SecondMoments,
    host,
    read_known_facts,
    read_records,
    read_texts,
    second_moment,
    tokens,
)
from tl_edit.command.bundled import bundled_facts, bundled_records
from tl_edit.command.models import is_bundled, load_model
from tl_edit.evaluate import Generation, TfIdf
from tl_edit.factworld import fact_texts
from tl_edit.host import Model
from tl_edit.moment.mapping import PATTERN
from tl_edit.sweep.named import Measure

BUNDLED = "bundled"
PUBLISHED_LENGTH = 100
"""Tokens of a generated text."""
WIKIPEDIA_TEXTS = 100_000
"""So many the published statistics are of."""


def model_of(options: argparse.Namespace) -> Any:
    """The model, unprocessed, as the published programs have it.

    Raises:
        ValueError: If it cannot be loaded.
    """
    return load_model(options.model, device=options.device, dtype=options.dtype)


def bos_of(options: argparse.Namespace, model: Model) -> bool:
    """Whether prompts begin with a BOS."""
    return tokens.resolve_bos(model, options.prepend_bos)


def first_process() -> bool:
    """Whether this is the one of several processes that speaks."""
    return os.environ.get("RANK", "0") in ("", "0")


def progress_of(options: argparse.Namespace) -> bool:
    """Whether to show bars; of several processes only the first does."""
    return not options.quiet and first_process()


def records_of(options: argparse.Namespace, default: str = BUNDLED) -> tuple[EditRecord, ...]:
    """The records, and where they are from is left in ``options.records``.

    Raises:
        ValueError: If there are none, or they cannot be read.
    """
    if options.records is None and default == BUNDLED and not is_bundled(options.model):
        warnings.warn(
            f"--records is not given, and {options.model} is asked about bundled facts, which it may not know; pass "
            "--records counterfact, or a file of yours.",
            stacklevel=2,
        )
    if options.records is None:
        options.records = BUNDLED if is_bundled(options.model) else default
    if options.records == BUNDLED:
        if options.snippets is not None:
            raise ValueError(
                f"--snippets {options.snippets}: they go by the ids of CounterFact, which bundled records do not have; "
                "expected --records counterfact; leave it out."
            )
        return bundled_records(options.limit, options.seed)
    return read_records(options.records, limit=options.limit, snippets=options.snippets)


def facts_of(options: argparse.Namespace, limit: int | None) -> tuple[KnownFact, ...]:
    """The facts to trace.

    Raises:
        ValueError: If there are none, or they cannot be read.
    """
    if options.facts == BUNDLED:
        return bundled_facts(limit, options.seed)
    return read_known_facts(options.facts, limit=limit)


def texts_of(path: str | None, option: str, *, n_texts: int | None = None) -> Sequence[str] | None:
    """The user's texts; ``n_texts`` of them, drawn as published, or all.

    Raises:
        ValueError: If they cannot be read.
    """
    if path is None:
        return None
    try:
        return read_texts(path, n_texts=n_texts, seed=1)
    except ValueError as error:
        raise ValueError(f"{option} {path}: {error}") from error


def generation_of(options: argparse.Namespace, model: Model) -> Generation | None:
    """How texts are generated; None for not at all.

    Raises:
        ValueError: If they cannot be.
    """
    if options.generate is None:
        return None
    context = int(model.cfg.n_ctx)
    if options.generate is True:
        options.generate = min(PUBLISHED_LENGTH, context)
        if context < PUBLISHED_LENGTH:
            warnings.warn(
                f"--generate: texts of {context} tokens, the prompt counted, as {host.model_name(model)} has a context "
                f"of {context}; published texts have {PUBLISHED_LENGTH}, and entropies of texts of different lengths "
                f"do not compare; write --generate {context} if this is meant.",
                stacklevel=2,
            )
    if options.generate > context:
        raise ValueError(
            f"--generate {options.generate}: {host.model_name(model)} has a context of {context} tokens; expected "
            f"texts of 2 to {context}, the prompt counted; pass --generate {context}, or --generate without a number."
        )
    tfidf = None if options.tfidf is None else TfIdf.load(options.tfidf)
    return Generation(n_tokens=options.generate, seed=options.seed, tfidf=tfidf)


def measure_of(options: argparse.Namespace, model: Model) -> Measure:
    """How to come by second moments: from the user's files, or measured, once; a folder of ours gets what it lacks."""

    def measure(layers: Sequence[int]) -> SecondMoments:
        found = read_or_measured(layers)
        return found if options.ridge is None else found.with_ridge(options.ridge)

    def read_or_measured(layers: Sequence[int]) -> SecondMoments:
        paths: list[Path] = options.moments or []
        folder = paths[0] if len(paths) == 1 and _is_ours(paths[0]) else None
        known = _read_moments(paths, layers, model, may_lack=folder is not None) if paths else SecondMoments([])
        missing = [layer for layer in layers if layer not in known]
        if not missing:
            _warn_of_unused(options)
            return known
        measured = _measured(options, model, missing, folder)
        if folder is not None and first_process():
            folder.mkdir(parents=True, exist_ok=True)
            for layer in missing:
                measured[layer].save(folder / f"layer-{layer}.safetensors")
            shutil.rmtree(_half_done(folder), ignore_errors=True)
        _warn_of_other_texts(known, measured)
        return SecondMoments([*known.values(), *measured.values()])

    return measure


def _is_ours(path: Path) -> bool:
    """Whether what is measured may be kept there: a folder of `SecondMoments`, a new or an empty one.

    Raises:
        ValueError: If it is a folder with something else.
    """
    if not path.exists():
        return not path.suffix
    if not path.is_dir() or any(path.glob("*.npz")):
        return False
    others = [file for file in path.iterdir() if not file.name.startswith(".")]
    if others and not any(path.glob(PATTERN)):
        raise ValueError(
            f"--moments {path}: the folder holds {others[0].name}, but no second moments; expected {PATTERN}, .npz "
            "files of the published programs, or an empty or a new folder to keep what is measured in; choose another."
        )
    return True


def _half_done(folder: Path) -> Path:
    """Where sums are kept while they grow: with the published statistics' texts they take hours."""
    whole = Path(os.path.abspath(folder))
    return whole.with_name(f"{whole.name}.unfinished")


def _measured(options: argparse.Namespace, model: Model, layers: Sequence[int], folder: Path | None) -> SecondMoments:
    """Of the texts that the options name."""
    texts = texts_of(options.texts, "--texts", n_texts=WIKIPEDIA_TEXTS if options.texts == "wikipedia" else None)
    found = second_moment(
        model,
        fact_texts(seed=options.seed) if texts is None else texts,
        layers,
        max_tokens=options.max_tokens,
        seed=options.seed,
        prepend_bos=options.prepend_bos,
        checkpoint=None if folder is None else _half_done(folder),
        progress=progress_of(options),
    )
    for layer in layers:
        _ = found[layer].cholesky  # too small a sample shows here
    return found


def _warn_of_unused(options: argparse.Namespace) -> None:
    unused = {"--texts": options.texts, "--max-tokens": options.max_tokens}
    named = [name for name, value in unused.items() if value is not None]
    if named and options.moments:
        warnings.warn(
            f"--moments {options.moments[0]} is there and is read; {' and '.join(named)} would only count where it had "
            "to be measured.",
            stacklevel=3,
        )


def _warn_of_other_texts(known: SecondMoments, measured: SecondMoments) -> None:
    """Layers of one edit should be of the same texts."""
    sizes = {f"{moment.count:,} tokens": layer for found in (known, measured) for layer, moment in found.items()}
    if len(sizes) > 1:
        said = " and ".join(f"layer {layer} is of {size}" for size, layer in sizes.items())
        warnings.warn(
            f"--moments: {said}; expected the same --texts, --max-tokens and --seed for all; measure into a new folder "
            "unless this is meant.",
            stacklevel=3,
        )


def _read_moments(
    paths: Sequence[Path], layers: Sequence[int], model: Model, *, may_lack: bool = False
) -> SecondMoments:
    """Second moments of files and folders; those of ``layers`` that are there if some ``may_lack``.

    Raises:
        ValueError: If a layer is in none of them.
    """
    found: dict[int, SecondMoment] = {}
    seen: set[int] = set()
    for path in paths:
        if may_lack and not any(path.glob(PATTERN)):
            continue
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path] if path.suffix == ".npz" else []
        for file in files:
            layer = _named_layer(file)
            seen.add(layer)
            if layer in layers:
                found[layer] = SecondMoment.from_npz(file, layer)
        if not files:
            folder = SecondMoments.load(path) if path.is_dir() else SecondMoments([SecondMoment.load(path)])
            seen |= set(folder)
            if len(paths) == 1 and set(folder) == set(layers):
                # Read one at a time when they are asked for: together they may not fit into memory.
                return folder
            found |= {layer: folder[layer] for layer in layers if layer in folder}
    missing = [layer for layer in layers if layer not in found]
    if missing and not may_lack:
        raise ValueError(
            f"--moments: {', '.join(map(str, paths))} has layers {sorted(seen)}; expected {list(layers)}, which the "
            f"methods edit; add those of {missing}, or choose --layer or --layers."
        )
    for moment in found.values():
        moment.check_fits(model, "--moments")
    return SecondMoments(found.values())


def _named_layer(path: Path) -> int:
    """The layer in a published file's name, ``transformer.h.17.mlp.c_proj_float32_mom2_100000.npz``.

    Raises:
        ValueError: If there is none.
    """
    named = re.search(r"(?:^|\.)(?:h|layers|blocks?)\.(\d+)\.", path.name)
    if named is None:
        raise ValueError(
            f"--moments {path}: its name does not say which layer it is for; expected a name such as "
            "transformer.h.17.mlp.c_proj_float32_mom2_100000.npz; rename the file."
        )
    return int(named[1])


def named_model(model: Model) -> str:
    """The model in words, for a heading."""
    return f"{host.model_name(model)}, a {host.interface(model)} with {host.n_layers(model)} layers"
