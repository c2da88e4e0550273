"""Where data comes from: text files, and the Hugging Face hub."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
"""Variables by which a user says that nothing is to be fetched."""


def given_path(source: str | Path) -> Path:
    """The path that a user wrote; "~" is their home."""
    return Path(os.path.expanduser(source))


def content(path: Path, operation: str) -> str:
    """The text of a file in UTF-8; lines end in a line feed, whatever they ended in.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        return path.read_text("utf-8-sig")  # some programs begin files with a mark, which is no text
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{operation}: {path} cannot be read ({error}); expected a file in UTF-8; convert it."
        ) from error


def offline() -> str | None:
    """The variable that forbids to fetch anything; None where it is allowed."""
    return next((name for name in OFFLINE if os.environ.get(name, "").lower() in ("1", "on", "yes", "true")), None)


def reason(error: Exception) -> str:
    """What went wrong, in one line of moderate length: libraries below tell long stories."""
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def datasets_package(operation: str, needed: str) -> Any:
    """The package `datasets`, which is imported when it is ``needed`` and not before.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{operation}: the package datasets is not installed; expected it for {needed}; run pip install datasets."
        ) from error
    return datasets


def from_hub(operation: str, name: str, load: Callable[[], T], *, remedy: str) -> T:
    """What ``load`` finds on the Hugging Face hub under ``name``.

    Raises:
        ValueError: If it finds nothing, for whatever reason; with the ``remedy``.
    """
    try:
        return load()
    except Exception as error:  # being offline has many names
        raise ValueError(
            f"{operation}: {name} could not be had from the Hugging Face hub ({reason(error)}); expected a network, or "
            f"the data set in the local cache; unset HF_HUB_OFFLINE if it is set, or {remedy}."
        ) from error
