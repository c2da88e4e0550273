"""Sweeps from the command line by several processes, and killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tl_edit

REPOSITORY = Path(tl_edit.__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def without_times(found: dict) -> dict:
    """What two runs must agree on."""
    for method in found["methods"].values():
        del method["seconds_per_record"]
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="gloo needs a Unix here")
def test_two_processes_find_what_one_does(plain, moments, tmp_path):
    ask = ["sweep", "--methods", "none", "rome", "--limit", "2", "--moments", str(moments), "--folder"]
    # Without a GPU this is torchrun by another name; --cpu would want MPI.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "tl_edit", *ask, "two", "--json", "--quiet"],
        env=ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = without_times(json.loads(done.stdout))
    written = [(tmp_path / "two" / f"results.{rank}.jsonl").read_text().count("\n") for rank in (0, 1)]
    assert written == [2, 2], "each process did one record with both methods"
    one = without_times(plain(*ask, "one"))
    assert (two.pop("folder"), one.pop("folder")) == ("two", "one")
    expected = one["methods"]["rome"].pop("metrics")
    for key, metric in two["methods"]["rome"].pop("metrics").items():
        assert metric == pytest.approx(expected[key], abs=1e-6)
    one.pop("tests"), two.pop("tests")
    assert two == one


def test_a_single_process_is_expected_elsewhere(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("reproduce", "trace-averages", "--limit", 1)[0] == 2
    code, _, err = run("evaluate", "--limit", 1)
    assert code == 2
    assert "evaluate: started as 2 processes" in err
    assert "share their work are sweep, reproduce rome-counterfact" in err


SLOW = """
import sys, time
from tl_edit import rome, sweep
from tl_edit.command import main
from tl_edit.factworld import MODEL_NAME
from tl_edit.sweep import folder

rome._PUBLISHED[MODEL_NAME] |= {"v_num_grad_steps": 12, "v_lr": 0.5, "n_prefixes": 1, "prefix_lengths": (5,)}
keep = folder.SweepFolder.keep


def slowly(*arguments):
    keep(*arguments)
    time.sleep(1)


folder.SweepFolder.keep = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.usefixtures("few_steps")
def test_a_sweep_that_was_killed_goes_on(plain, moments, tmp_path):
    ask = ["sweep", "--methods", "none", "rome", "--limit", "3", "--moments", str(moments), "--folder"]
    running = subprocess.Popen(
        [sys.executable, "-c", SLOW, *ask, "killed"], env=ENVIRONMENT, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    kept = tmp_path / "killed" / "results.0.jsonl"
    deadline = time.monotonic() + 200
    while not (kept.exists() and kept.read_text("utf-8").count("\n") >= 3):
        assert running.poll() is None, running.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    lines = kept.read_text("utf-8").splitlines()
    assert 3 <= len(lines) < 6
    # As if it had died while writing.
    kept.write_text("\n".join(lines[:2]) + "\n" + lines[2][: len(lines[2]) // 2], "utf-8")
    resumed, whole = without_times(plain(*ask, "killed")), without_times(plain(*ask, "whole"))
    assert (resumed.pop("folder"), whole.pop("folder")) == ("killed", "whole")
    assert resumed == whole
    found = [json.loads(line) for line in kept.read_text("utf-8").splitlines() if line.endswith("}")]
    assert len({(line["method"], line["key"]) for line in found}) == len(found) == 6, "nothing was done twice"


def test_stopped_by_the_user(run, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tl_edit.command.sweep.sweep_records", stop)
    code, out, err = run("sweep", "--methods", "none", "--limit", 1)
    assert (code, out) == (130, "")
    assert "stopped; what is in a --folder stays there" in err
