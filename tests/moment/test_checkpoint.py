"""A run that was stopped goes on with results equal to the last bit, and only the same run."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import tiny_tokenizers
import torch

from tl_edit import host, second_moment
from tl_edit.moment import collect
from tl_edit.processes import Processes, processes

TESTS = Path(__file__).parents[1]
TEXTS = [*tiny_tokenizers.CORPUS, "Rome.", "The café in Zürich is old"] * 8
OPTIONS = {"batch_tokens": 20, "split_halves": True, "seed": 3, "progress": False}
"""Windows of 320 tokens or a little more, of some 1,400."""


class Stopping:
    """Texts that stop the run, like the end of a job's time, when so many have been read."""

    def __init__(self, texts, after, stop):
        self.texts, self.left, self.stop = texts, after, stop

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        self.left -= 1
        if self.left < 0:
            self.stop()
        return self.texts[i]


def stop():
    raise KeyboardInterrupt


def assert_equal(one, other):
    assert list(one) == list(other)
    for layer in one:
        for name in ("matrix", "half_matrix", "sample_keys", "probe_keys"):
            assert torch.equal(getattr(one[layer], name), getattr(other[layer], name)), name
        assert (one[layer].count, one[layer].half_count) == (other[layer].count, other[layer].half_count)


@pytest.fixture(scope="module")
def model():
    return tiny_models.build("gpt2")


def stopped(model, folder, after=50, texts=TEXTS, **options):
    with pytest.raises(KeyboardInterrupt):
        second_moment(
            model,
            Stopping(texts, after, stop),
            [0, 2],
            checkpoint=folder,
            checkpoint_seconds=0.0,
            **(OPTIONS | options),
        )


@pytest.fixture(scope="module")
def left(model, tmp_path_factory):
    """What a stopped run left; to be copied by whoever changes it."""
    folder = tmp_path_factory.mktemp("left") / "run"
    stopped(model, folder)
    return folder


@pytest.fixture
def copied(left, tmp_path):
    return Path(shutil.copytree(left, tmp_path / "run"))


@pytest.mark.parametrize("max_tokens", [None, 1000])
@pytest.mark.parametrize("after", [5, 30, 50])
def test_a_stopped_run_goes_on_with_equal_results(model, tmp_path, after, max_tokens):
    whole = second_moment(model, TEXTS, [0, 2], max_tokens=max_tokens, **OPTIONS)
    stopped(model, tmp_path / "run", after, max_tokens=max_tokens)
    again = second_moment(model, TEXTS, [0, 2], max_tokens=max_tokens, checkpoint=tmp_path / "run", **OPTIONS)
    assert_equal(again, whole)


def test_a_stream_goes_on_too(model, tmp_path):
    whole = second_moment(model, iter(TEXTS), [0, 2], **OPTIONS)

    def breaking():
        yield from TEXTS[:50]
        raise KeyboardInterrupt

    options = OPTIONS | {"checkpoint": tmp_path / "run", "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        second_moment(model, breaking(), [0, 2], **options)
    assert_equal(second_moment(model, iter(TEXTS), [0, 2], **options), whole)


SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_checkpoint as t
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
texts = t.Stopping(t.TEXTS, 55, kill)
t.second_moment(t.tiny_models.build("gpt2"), texts, [0, 2], checkpoint=sys.argv[2], checkpoint_seconds=0.0, **t.OPTIONS)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")
def test_a_killed_process_goes_on_with_equal_results(model, tmp_path):
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert list((tmp_path / "run").rglob("*.safetensors"))
    texts = Stopping(TEXTS, 1000, stop)
    again = second_moment(model, texts, [0, 2], checkpoint=tmp_path / "run", **OPTIONS)
    assert_equal(again, second_moment(model, TEXTS, [0, 2], **OPTIONS))


def test_what_a_saving_leaves_when_it_is_cut_off_does_not_matter(model, copied):
    inner = copied / "process-1-of-1"
    (inner / "layer-0-step-99.safetensors").write_bytes(b"torn")
    (inner / "state.json.part").write_text("{")
    again = second_moment(model, TEXTS, [0, 2], checkpoint=copied, **OPTIONS)
    assert_equal(again, second_moment(model, TEXTS, [0, 2], **OPTIONS))
    found = sorted(path.name.split("-step")[0] for path in inner.iterdir())
    assert found == ["layer-0", "layer-2", "state.json"]


def test_a_finished_run_is_not_computed_again(model, tmp_path, monkeypatch):
    options = OPTIONS | {"checkpoint": tmp_path / "run", "max_tokens": 1000}
    whole = second_moment(model, TEXTS, [0, 2], **options)
    monkeypatch.setattr(collect.Sums, "add", None)
    assert_equal(second_moment(model, TEXTS, [0, 2], **options), whole)


def test_only_one_saving_is_kept(model, tmp_path):
    second_moment(model, TEXTS, [0, 2], checkpoint=tmp_path / "run", checkpoint_seconds=0.0, **OPTIONS)
    found = sorted(path.name.split("-step")[0] for path in (tmp_path / "run" / "process-1-of-1").iterdir())
    assert found == ["layer-0", "layer-2", "state.json"]


def test_nothing_is_saved_before_it_is_time(model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        second_moment(model, Stopping(TEXTS, 50, stop), [0], checkpoint=tmp_path / "run", **OPTIONS)
    assert not list((tmp_path / "run" / "process-1-of-1").iterdir())


def test_a_folder_that_cannot_be_written_is_found_before_the_first_window(model, tmp_path, monkeypatch):
    def refuse(self, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(collect.Sums, "add", None)
    with pytest.raises(ValueError, match=r"cannot be written \(.*Permission denied.*choose another folder"):
        second_moment(model, TEXTS, [0], checkpoint=tmp_path / "run", **OPTIONS)


@pytest.mark.parametrize(
    "changes", [{"layers": [9]}, {"max_tokens": 0}, {"texts": "one"}, {"checkpoint_seconds": -1.0}]
)
def test_refused_arguments_leave_no_folder(model, tmp_path, changes):
    given = {"model": model, "texts": TEXTS, "layers": [0], "checkpoint": tmp_path / "run"} | OPTIONS | changes
    with pytest.raises(ValueError, match="second_moment"):
        second_moment(**given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, r"is of another run: seed 3 \(now 4\); expected the same model, texts and settings"),
        ({"layers": [0, 1]}, r"layers \[0, 2\] \(now \[0, 1\]\)"),
        ({"max_tokens": 900}, r"max_tokens None \(now 900\)"),
        ({"max_length": 9}, r"max_length None \(now 9\)"),
        ({"batch_tokens": 21}, r"batch_tokens 20 \(now 21\)"),
        ({"prepend_bos": False}, r"prepend_bos True \(now False\)"),
        ({"count_bos": False}, r"count_bos True \(now False\)"),
        ({"split_halves": False}, r"split_halves True \(now False\)"),
        ({"texts": TEXTS[1:]}, r"texts 80 \(now 79\)"),
        ({"texts": [text.replace("Paris", "paris") for text in TEXTS]}, "made from other texts: the first 3"),
        ({"model": tiny_models.build("gpt2", seed=1)}, "weights .* \\(now"),
        ({"model": tiny_models.build("gpt2", dtype=torch.bfloat16)}, "weights"),
    ],
)
def test_another_run_is_refused(model, left, changes, message):
    given = {"model": model, "texts": TEXTS, "layers": [0, 2], "checkpoint": left} | OPTIONS | changes
    with pytest.raises(ValueError, match=message):
        second_moment(**given)


def test_an_edited_model_is_another_model(model, left):
    before = host.w_out(model, 0).clone()
    host.write_w_out(model, 0, before + 1e-3)
    with pytest.raises(ValueError, match="weights"):
        second_moment(model, TEXTS, [0, 2], checkpoint=left, **OPTIONS)
    host.write_w_out(model, 0, before)


def test_hooks_of_the_users_are_refused(model, tmp_path):
    with (
        model.hooks([("blocks.1.hook_resid_post", lambda act, hook: act)]),
        pytest.raises(ValueError, match="a hook is attached at .*expected none with checkpoint="),
    ):
        second_moment(model, TEXTS, [0], checkpoint=tmp_path / "run", **OPTIONS)


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:200])


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("damage", "name"),
    [(truncate, "layer-2-*"), (flip, "layer-2-*"), (Path.unlink, "layer-2-*"), (truncate, "state.json")],
)
def test_damaged_files_are_refused(model, copied, damage, name):
    damage(next(copied.rglob(name)))
    with pytest.raises(ValueError, match=r"is damaged \(.*expected what second_moment wrote there; remove .* anew"):
        second_moment(model, TEXTS, [0, 2], checkpoint=copied, **OPTIONS)


@pytest.mark.parametrize("content", ["[]", "{}", json.dumps({"run": {}, "schema": "another"})])
def test_foreign_manifests_are_refused(model, copied, content):
    next(copied.rglob("state.json")).write_text(content)
    with pytest.raises(ValueError, match=r"state.json is damaged"):
        second_moment(model, TEXTS, [0, 2], checkpoint=copied, **OPTIONS)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"counts": [count // 2 for count in state["counts"]]},
        lambda state: state | {"counts": state["counts"][:1]},
        lambda state: state | {"taken": 0},
        lambda state: state | {"run": None},
        lambda state: {name: value for name, value in state.items() if name != "digest"},
    ],
)
def test_manifests_with_other_numbers_are_refused(model, copied, change):
    path = next(copied.rglob("state.json"))
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=r"state.json is damaged \(.*expected what second_moment wrote there"):
        second_moment(model, TEXTS, [0, 2], checkpoint=copied, **OPTIONS)


def test_folders_of_other_things_are_refused(model, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="holds 'thesis.tex'; expected a new folder"):
        second_moment(model, TEXTS, [0], checkpoint=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="cannot be read"):
        second_moment(model, TEXTS, [0], checkpoint=tmp_path / "thesis.tex", **OPTIONS)


def test_a_run_of_more_processes_is_another_run(model, tmp_path):
    (tmp_path / "process-1-of-2").mkdir()
    with pytest.raises(ValueError, match=r"holds 'process-1-of-2'; .* as many processes \(1\)"):
        second_moment(model, TEXTS, [0], checkpoint=tmp_path, **OPTIONS)


# --- several processes ---------------------------------------------------------------------------------

LAUNCHED = """
import sys
import torch
torch.set_num_threads(1)
sys.path[:0] = sys.argv[1].split(";")
import tiny_models, test_checkpoint as t
from tl_edit import second_moment
folder = sys.argv[2]
model = tiny_models.build("gpt2", dtype=torch.float64)
moments = second_moment(model, t.TEXTS, [0, 2], checkpoint=f"{folder}/run", **t.OPTIONS)
cut = second_moment(model, iter(t.TEXTS), [1], max_tokens=500, **t.OPTIONS)
import torch.distributed as dist
moments.save(f"{folder}/all-{dist.get_rank()}")
cut.save(f"{folder}/cut-{dist.get_rank()}")
dist.destroy_process_group()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gloo's launcher needs a Unix")
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_processes_measure_what_one_does(tmp_path, launcher):
    if launcher == "accelerate":
        # With --cpu it starts a single process, whatever --num_processes says, unless there is an mpirun.
        pytest.importorskip("accelerate")
        command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    else:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = tmp_path / "script.py"
    script.write_text(LAUNCHED)
    paths = [str(Path(__file__).parent), str(TESTS), str(TESTS.parent)]
    ended = subprocess.run(
        [sys.executable, *command, str(script), ";".join(paths), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["process-1-of-2", "process-2-of-2"]
    model = tiny_models.build("gpt2", dtype=torch.float64)
    for name, one in {
        "all": second_moment(model, TEXTS, [0, 2], **OPTIONS),
        "cut": second_moment(model, iter(TEXTS), [1], max_tokens=500, **OPTIONS),
    }.items():
        first, second = (collect.SecondMoments.load(tmp_path / f"{name}-{rank}") for rank in range(2))
        assert_equal(first, second)
        for layer in one:
            found = first[layer]
            assert (found.count, found.half_count) == (one[layer].count, one[layer].half_count)
            for part in ("matrix", "half_matrix", "sample_keys"):
                expected = getattr(one[layer], part)
                assert float((getattr(found, part) - expected).norm() / expected.norm()) < 1e-12, part


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("testing") as own:
        assert (own.rank, own.world, own.total(3)) == (0, 1, 3)
    tensor = torch.ones(2)
    assert Processes().gather(tensor)[0] is tensor


def test_a_launcher_without_an_address_is_explained(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but the processes could not be joined.*or unset"):
        second_moment(tiny_models.build("gpt2"), TEXTS, [0], progress=False)
