"""What can be told of options before a model is loaded, so that a mistake costs a second."""

import argparse
import math
import os
from pathlib import Path
from typing import Any, cast

from tl_edit.command.models import check_device, check_model
from tl_edit.command.parsing import given

LEAST = {
    "--limit": 1,
    "--batch-size": 1,
    "--samples": 1,
    "--window": 1,
    "--max-tokens": 1,
    "--batch": 1,
    "--averaged": 1,
    "--n": 1,
    "--layer": 0,
    "--layers": 0,
    "--generate": 2,
}
"""The least that each option can be."""
NAMED_TEXTS = ("wikipedia", "pile")
RELEASED = ("idf.npy", "tfidf_vocab.json")


def check(options: argparse.Namespace) -> None:
    """Refuse what no model could be used with.

    Raises:
        ValueError: naming the option.
    """
    for option, least in LEAST.items():
        _check_least(option, given(options, option), least)
    for option, advice in (("--noise", "the papers' is 3"), ("--ridge", "try 1e-3")):
        number = given(options, option)
        if number is not None and not 0 <= number < math.inf:
            raise ValueError(f"{option} {number}: expected a number, 0 or more; {advice}.")
    layers: list[int] = given(options, "--layers") or []
    if len(set(layers)) < len(layers):
        raise ValueError(f"--layers {' '.join(map(str, layers))}: a layer is there twice; expected each once.")
    _check_texts(options)
    _check_tfidf(options)
    _check_moments(options)
    for option in ("--out", "--html"):
        _check_file(option, given(options, option))
    _check_folder(given(options, "--folder"))
    check_device(given(options, "--device"))
    check_model(given(options, "--model"))


def _check_least(option: str, value: Any, least: int) -> None:
    # True is an option without its number.
    values: list[int] = (
        [] if value is None or value is True else cast(list[int], value) if isinstance(value, list) else [value]
    )
    wrong = [each for each in values if each < least]
    if wrong:
        raise ValueError(f"{option} {wrong[0]}: expected {least} or more; leave it out for the default.")


def _check_texts(options: argparse.Namespace) -> None:
    for option in ("--texts", "--perplexity"):
        texts = given(options, option)
        if texts is not None and str(texts) not in NAMED_TEXTS and not Path(texts).exists():
            raise ValueError(
                f"{option} {texts}: there is no file or folder of that name; expected texts, one on each line, or one "
                f"of {', '.join(NAMED_TEXTS)}; check the path."
            )


def _check_tfidf(options: argparse.Namespace) -> None:
    tfidf = given(options, "--tfidf")
    if tfidf is None:
        return
    if options.generate is None:
        raise ValueError(
            f"--tfidf {tfidf}: it scores generated texts, and none are asked for; expected --generate with it; add "
            "that, or leave it out."
        )
    missing = [name for name in RELEASED if not (Path(tfidf) / name).is_file()]
    if missing:
        raise ValueError(
            f"--tfidf {tfidf}: {' and '.join(missing)} are not there; expected a folder with the released "
            f"{' and '.join(RELEASED)}; check the path, or leave it out."
        )


def _check_moments(options: argparse.Namespace) -> None:
    paths: list[Path] = given(options, "--moments") or []
    for path in paths:
        new = len(paths) == 1 and not path.suffix
        if not path.exists() and not new:
            raise ValueError(
                f"--moments {path}: there is no such file or folder; expected a folder of SecondMoments.save, .npz "
                "files of the published programs, or a single new folder to keep what is measured in; check the path."
            )
        if not path.exists():
            _check_folder(path, "--moments")
        if path.is_file() and path.suffix not in (".npz", ".safetensors"):
            raise ValueError(
                f"--moments {path}: it is a file of another kind; expected .safetensors of SecondMoment.save, .npz of "
                "the published programs, or a folder of one of them; check the path."
            )


def _check_file(option: str, path: str | None) -> None:
    if path is None:
        return
    file = Path(path)
    if file.is_dir() or not file.absolute().parent.is_dir():
        found = "is a folder" if file.is_dir() else f"would be in {file.parent}, which is not there"
        raise ValueError(
            f"{option} {file}: it {found}; expected a file in a folder that is there; choose another path."
        )
    place = file if file.exists() else file.absolute().parent
    if not os.access(place, os.W_OK):
        raise ValueError(f"{option} {file}: {place} cannot be written; expected a place where you may; choose another.")


def _check_folder(path: str | Path | None, option: str = "--folder") -> None:
    """A folder, or where one can be made."""
    if path is None:
        return
    folder = Path(path).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"{option} {path}: {there} is a file; expected a folder, or a path of a new one; choose one.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path}: {there} cannot be written; expected a place where you may; choose another.")
