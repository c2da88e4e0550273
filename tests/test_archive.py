"""Files of results: what does not fit into the head of a safetensors file."""

import pytest
import torch

from tl_edit import archive

KIND = archive.Kind("Test", "tl_edit test 1", "make it again")


@pytest.mark.parametrize("size", [10, archive._HEAD + 10, 101_000_000])
def test_plain_values_of_any_size(tmp_path, size):
    """The head holds 100 MB at most."""
    plain, tensors = {"text": "é" + "a" * size, "n": 1}, {"x": torch.arange(3)}
    archive.write(tmp_path / "file", KIND, tensors, plain)
    found, said = archive.read(tmp_path / "file", KIND)
    assert said == plain
    assert list(found) == ["x"]
    assert torch.equal(found["x"], tensors["x"])
    assert archive.read_plain(tmp_path / "file", KIND) == plain
