"""Packages that only some calls need: imported where they are used, with advice where they are not installed."""

from importlib import import_module
from typing import Any

EXTRAS = {
    "matplotlib": 'pip install "tl-edit[plot]"',
    "pandas": "pip install pandas",
    "nltk": 'pip install "tl-edit[text]"',
    "sklearn": 'pip install "tl-edit[text]"',
}


def extra(package: str, operation: str) -> Any:
    """An optional package, imported where it is used.

    Raises:
        ImportError: naming ``operation`` and how to install it.
    """
    try:
        return import_module(package)
    except ImportError as error:
        name = package.split(".")[0]
        raise ImportError(f"{operation} needs {name}, which is not installed; run {EXTRAS[name]}.") from error
