"""Thousands of operations in random order leave every weight as it must be, to the last bit."""

import json
import subprocess
import sys
from pathlib import Path

import tiny_models
from many_operations import EXAMPLES, LENGTH

SCRIPT = Path(__file__).parent.parent / "many_operations.py"


def test_five_thousand_operations_for_each_interface():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]
    counted = json.loads(done.stdout.splitlines()[-1])
    assert sum(counted.values()) >= EXAMPLES * LENGTH == 5_000 * len(tiny_models.interfaces())
    assert min(counted.values()) > 100, counted
