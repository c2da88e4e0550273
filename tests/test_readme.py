"""The README's Python blocks run, in order, and their asserts hold."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings("error:.*_edit:UserWarning")
@pytest.mark.filterwarnings("ignore:.*does not predict")
def test_the_python_blocks_run(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)


def test_the_two_commands_are_there_for_ci():
    text = README.read_text("utf-8")
    for name in ("main-command", "test-command"):
        assert re.search(rf"<!-- {name} -->\n```bash\n.+\n```", text)
