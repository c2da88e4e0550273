"""Several processes that were given different things are told so, each of them, before sums are added up."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
import tiny_models, tiny_tokenizers
from tl_edit import second_moment

rank = int(sys.argv[1])
TEXTS = [*tiny_tokenizers.CORPUS, "Rome.", "Paris."] * 2
model, other = tiny_models.build("gpt2"), tiny_models.build("gpt2", seed=rank)
bare = tiny_models.build("gpt2")
if rank:
    bare.tokenizer = None
changed = TEXTS[:-1] + (["Tokyo."] if rank else ["Paris."])


class Items:
    def __len__(self):
        return 200

    def __getitem__(self, i):
        return changed[-1] + str(i)


cases = {
    "max_tokens": dict(texts=TEXTS, max_tokens=50 + rank),
    "layers": dict(texts=TEXTS, layers=[0, 2] if rank else [2, 0]),
    "split_halves": dict(texts=TEXTS, split_halves=bool(rank)),
    "seed": dict(texts=TEXTS, seed=rank),
    "weights": dict(texts=TEXTS, model=other),
    "tokenizer": dict(texts=TEXTS, model=bare, prepend_bos=False),
    "number": dict(texts=TEXTS[: len(TEXTS) - rank]),
    "list": dict(texts=changed),
    "kind": dict(texts=iter(TEXTS) if rank else TEXTS),
    "items": dict(texts=Items()),
    "stream": dict(texts=iter(changed)),
    "short stream": dict(texts=iter(TEXTS[: len(TEXTS) - rank])),
    "cut stream": dict(texts=iter([changed[-1], *TEXTS]), max_tokens=40),
    "set": dict(texts=set(TEXTS)),
    "equal": dict(texts=iter([{"body": text, "id": [object()]} for text in TEXTS])),
    "equal rows": dict(texts=[{"body": text, "id": [object()]} for text in TEXTS]),
}
said = {}
for name, case in cases.items():
    try:
        second_moment(**({"model": model, "layers": [0], "progress": False} | case))
        said[name] = ""
    except ValueError as error:
        said[name] = str(error)
with open(sys.argv[2], "w") as file:
    json.dump(said, file)
"""

EXPECTED = {
    "max_tokens": "differ: max_tokens 50 and 51; expected the same model, data and arguments",
    "layers": "layers [2, 0] and [0, 2]",
    "split_halves": "split_halves False and True",
    "seed": "seed 0 and 1",
    "weights": "differ: weights ",
    "tokenizer": "tokenizer ",
    "number": "differ: texts ",
    "list": "differ: texts ",
    "kind": "and a stream",
    "items": "differ: texts 200 with hash",
    "stream": "differ: hash of the texts",
    "short stream": "texts read ",
    "cut stream": "hash of the texts",
    "set": "texts is a set",
}


def ended(running: list[subprocess.Popen], timeout: float) -> list[int | None]:
    """The exit codes of processes, which are killed when one has not ended in time; None for such."""
    deadline = time.monotonic() + timeout
    codes: list[int | None] = []
    try:
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            codes.append(process.poll())
    finally:
        for process in running:
            process.kill()
            process.wait()
    return codes


def test_processes_that_do_not_end_are_killed():
    begun = [subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({n})"]) for n in (0, 300)]
    assert ended(begun, 5) == [0, None]
    assert begun[1].returncode != 0


@pytest.mark.skipif(sys.platform == "win32", reason="gloo needs a Unix here")
def test_processes_that_were_given_different_things_are_told_so(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    env = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    errors = [tmp_path / f"{rank}.err" for rank in range(2)]
    with contextlib.ExitStack() as stack:
        running = [
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(rank), str(tmp_path / f"{rank}.json")],
                env=os.environ | env | {"WORLD_SIZE": "2", "RANK": str(rank)},
                # A file, since a pipe that nobody empties would hold a process up.
                stderr=stack.enter_context(errors[rank].open("w")),
            )
            for rank in range(2)
        ]
        codes = ended(running, 200)
    # Where one failed, the other may only say that it lost it.
    assert codes == [0, 0], "\n".join(f"{file.name}: {file.read_text()[-3000:]}" for file in errors)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for name, message in EXPECTED.items():
        assert message in first[name], name
    assert first["equal"] == first["equal rows"] == ""
