"""The README's Python blocks run, in order, and their asserts hold."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 2
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)


def test_the_two_commands_are_there_for_ci():
    text = README.read_text("utf-8")
    for name in ("main-command", "test-command"):
        assert re.search(rf"<!-- {name} -->\n```bash\n.+\n```", text)
