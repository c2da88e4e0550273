"""The demos run from top to bottom."""

import json
from pathlib import Path

import pytest

DEMOS = Path(__file__).parent.parent / "demos"


@pytest.mark.filterwarnings("ignore:.*does not predict")
@pytest.mark.parametrize("path", sorted(DEMOS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_cell_runs(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    namespace: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}:{cell['id']}", "exec"), namespace)


def test_there_are_demos():
    assert list(DEMOS.glob("*.ipynb"))
