"""The data sets that came with the papers, by their short names: a file here, a file fetched before, or the network."""

import json
import tempfile
from pathlib import Path

import torch

from tl_edit import sources

ROOTS = {"rome": "https://rome.baulab.info/data/dsets/", "memit": "https://memit.baulab.info/data/dsets/"}
"""Where the authors of ROME and of MEMIT keep their files."""

FILES = {
    "counterfact": ("rome", "counterfact.json"),
    "multi_counterfact": ("memit", "multi_counterfact.json"),
    "zsre": ("rome", "zsre_mend_eval.json"),
    "known_1000": ("rome", "known_1000.json"),
    "attribute_snippets": ("rome", "attribute_snippets.json"),
}
"""Of which authors the published data sets are, and what they are called there."""


def published_file(name: str, operation: str, *, argument: str = "") -> Path:
    """The file of a published data set: in the current folder, or in torch's hub folder, where it is fetched to once.

    Args:
        name: One of `FILES`.
        operation: For messages.
        argument: By which argument of the operation a path can be given; empty for the first.

    Raises:
        ValueError: If it is in neither and cannot be fetched.
    """
    authors, file = FILES[name]
    url = ROOTS[authors] + file
    here, kept = Path(file), Path(torch.hub.get_dir()) / "tl_edit" / file
    for path in (here, kept):
        if path.is_file():
            return path
    by_hand = f"get {url} by hand and pass its path, {operation}({argument}'path/to/{file}')"
    forbidden = sources.offline()
    if forbidden is not None:
        raise ValueError(
            f"{operation}: {name!r} is neither here as {file} nor fetched before, and {forbidden} is set; expected a "
            f"file or a network; unset {forbidden}, or {by_hand}."
        )
    try:
        _fetch(url, kept)
    except Exception as error:  # a network fails in many ways
        raise ValueError(
            f"{operation}: {url} could not be fetched ({sources.reason(error)}); expected a network that "
            f"reaches it, and space in {kept.parent}; try again, or {by_hand}."
        ) from error
    return kept


def _fetch(url: str, target: Path) -> None:
    """Fetch a JSON file; it is there whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, since several processes may fetch at once.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as folder:
        half = Path(folder) / target.name
        torch.hub.download_url_to_file(url, str(half))
        # A connection that ends early leaves a part of the file, and some networks answer with a page of their own.
        try:
            json.loads(half.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"what came is not the whole file: {error}") from error
        half.replace(target)
