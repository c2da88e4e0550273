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
from tl_edit.sweep.named import Measure

BUNDLED = "bundled"
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


def check_limit(options: argparse.Namespace) -> None:
    """Refuse a limit that selects nothing.

    Raises:
        ValueError: If it does.
    """
    if options.limit is not None and options.limit < 1:
        raise ValueError(
            f"--limit {options.limit}: expected 1 or more, since nothing is selected; leave it out for all."
        )


def records_of(options: argparse.Namespace, default: str = BUNDLED) -> tuple[EditRecord, ...]:
    """The records, and where they are from is left in ``options.records``.

    Raises:
        ValueError: If there are none, or they cannot be read.
    """
    check_limit(options)
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
        if options.tfidf is not None:
            raise ValueError(
                f"--tfidf {options.tfidf}: it scores generated texts, and none are asked for; expected --generate with "
                "it; add that, or leave it out."
            )
        return None
    context = int(model.cfg.n_ctx)
    if not 2 <= options.generate <= context:
        raise ValueError(
            f"--generate {options.generate}: {host.model_name(model)} has a context of {context} tokens; expected "
            f"texts of 2 to {context}, the prompt counted; pass e.g. --generate {min(100, context)} (entropies of "
            "texts of different lengths do not compare)."
        )
    tfidf = None if options.tfidf is None else TfIdf.load(options.tfidf)
    return Generation(n_tokens=options.generate, seed=options.seed, tfidf=tfidf)


def check_out(options: argparse.Namespace) -> None:
    """Refuse a file that cannot be written, before anything that takes long.

    Raises:
        ValueError: If its folder is not there, or it is a folder.
    """
    path = None if options.out is None else Path(options.out)
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        found = "is a folder" if path.is_dir() else f"would be in {path.parent}, which is not there"
        raise ValueError(f"--out {path}: it {found}; expected a file in a folder that is there; choose another path.")


def measure_of(options: argparse.Namespace, model: Model) -> Measure:
    """How to come by second moments: from the user's files, or measured, once."""

    def measure(layers: Sequence[int]) -> SecondMoments:
        given: list[Path] = [] if options.moments is None else [path.expanduser() for path in options.moments]
        keep_in = given[0] if len(given) == 1 and not given[0].exists() and not given[0].suffix else None
        if given and keep_in is None:
            unused = {"--texts": options.texts, "--max-tokens": options.max_tokens}
            named = [name for name, value in unused.items() if value is not None]
            if named:
                warnings.warn(
                    f"--moments {given[0]} is there and is read; {' and '.join(named)} would only count where it had "
                    "to be measured.",
                    stacklevel=2,
                )
            return _read_moments(given, layers, model)
        # With the published statistics' texts this takes hours.
        half_done = None if keep_in is None else keep_in.with_name(f"{keep_in.name}.unfinished")
        texts = texts_of(options.texts, "--texts", n_texts=WIKIPEDIA_TEXTS if options.texts == "wikipedia" else None)
        found = second_moment(
            model,
            fact_texts(seed=options.seed) if texts is None else texts,
            layers,
            max_tokens=options.max_tokens,
            seed=options.seed,
            prepend_bos=options.prepend_bos,
            checkpoint=half_done,
            progress=progress_of(options),
        )
        for layer in layers:
            _ = found[layer].cholesky  # too small a sample shows here
        if keep_in is not None and half_done is not None and first_process():
            found.save(keep_in)
            shutil.rmtree(half_done, ignore_errors=True)
        return found

    return measure


def _read_moments(paths: Sequence[Path], layers: Sequence[int], model: Model) -> SecondMoments:
    """Second moments of files and folders.

    Raises:
        ValueError: If a layer is in none of them.
    """
    found: dict[int, SecondMoment] = {}
    seen: set[int] = set()
    for path in paths:
        if not path.exists():
            raise ValueError(
                f"--moments {path}: there is no such file or folder; expected a folder of SecondMoments.save, .npz "
                "files of the published programs, or a single new folder to keep what is measured in; check the path."
            )
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
    if missing:
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
