"""Data sets by name: a file here, one fetched before, the network (a server of the test's own), the hub."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tl_edit import read_known_facts, read_records
from tl_edit.data import published

SAMPLES = Path(__file__).parent


class Server:
    """Serves one answer whatever is asked for, and counts."""

    def __init__(self):
        self.asked, self.content, self.promised, self.status = [], b"", None, 200
        mine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mine.asked.append(self.path)
                self.send_response(mine.status)
                self.send_header("Content-Length", str(mine.promised or len(mine.content)))
                self.end_headers()
                self.wfile.write(mine.content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """An empty current folder, and torch's hub folder beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "tl_edit"


@pytest.fixture
def server(hub_folder, monkeypatch):
    started = Server()
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    root = f"http://127.0.0.1:{started.server.server_port}/dsets/"
    monkeypatch.setattr(published, "ROOTS", {"rome": root, "memit": root})
    yield started
    started.server.shutdown()
    started.server.server_close()


@pytest.mark.parametrize(
    ("name", "read", "file"),
    [
        ("counterfact", read_records, "counterfact.json"),
        ("zsre", read_records, "zsre_mend_eval.json"),
        ("known_1000", read_known_facts, "known_1000.json"),
    ],
)
def test_a_file_here_comes_first_then_what_was_fetched(server, hub_folder, name, read, file):
    server.content = (SAMPLES / file).read_bytes()
    fetched = read(name)
    assert server.asked == [f"/dsets/{file}"]
    assert tuple(fetched) == tuple(read(SAMPLES / file))
    assert fetched.source == str(hub_folder / file)
    assert read(name) == fetched
    assert len(server.asked) == 1  # fetched once
    assert [path.name for path in hub_folder.iterdir()] == [file]
    Path(file).write_bytes(server.content)
    assert read(name, limit=1).source == file


def test_a_folder_of_the_name_is_no_data_set(hub_folder):
    Path("counterfact").mkdir()
    Path("counterfact.json").write_bytes((SAMPLES / "counterfact.json").read_bytes())
    assert len(read_records("counterfact")) == 3


def test_snippets_by_name(server):
    server.content = (SAMPLES / "attribute_snippets.json").read_bytes()
    records = read_records(SAMPLES / "counterfact.json", snippets="attribute_snippets")
    assert len(records[0].reference_texts) == 2
    assert server.asked == ["/dsets/attribute_snippets.json"]


@pytest.mark.parametrize("fault", ["cut short", "cut short unseen", "another page", "not found"])
def test_a_download_that_fails_leaves_nothing(server, hub_folder, fault):
    whole = (SAMPLES / "counterfact.json").read_bytes()
    server.content = b"<html></html>" if fault == "another page" else whole if fault == "not found" else whole[:900]
    server.promised = len(whole) if fault == "cut short" else None
    server.status = 404 if fault == "not found" else 200
    with pytest.raises(
        ValueError,
        match=r"counterfact.json could not be fetched \(.*expected a network.*"
        r"by hand and pass its path, read_records\('path/to/counterfact.json'\)",
    ):
        read_records("counterfact")
    assert list(hub_folder.iterdir()) == []
    server.content, server.promised, server.status = whole, None, 200
    assert len(read_records("counterfact")) == 3


def test_an_interrupt_leaves_nothing(server, hub_folder, monkeypatch):
    def interrupted(url, target):
        Path(target).write_text("[")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.hub, "download_url_to_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_records("counterfact")
    assert list(hub_folder.iterdir()) == []


def test_no_server_at_all(server):
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(ValueError, match="could not be fetched .*refused"):
        read_records("zsre")


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_nothing_is_fetched(server, hub_folder, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ValueError, match=rf"{variable} is set; .*get http.*known_1000.json by hand.*read_known_f"):
        read_known_facts("known_1000")
    with pytest.raises(ValueError, match=r"read_records\(..., snippets='path/to/attribute_snippets.json'\)"):
        read_records(SAMPLES / "counterfact.json", snippets="attribute_snippets")
    assert server.asked == []
    hub_folder.mkdir(parents=True)
    (hub_folder / "known_1000.json").write_bytes((SAMPLES / "known_1000.json").read_bytes())
    assert len(read_known_facts("known_1000")) == 5


class Hub:
    """What stands in for the package `datasets`."""

    def __init__(self, found):
        self.found, self.asked = found, []

    def load_dataset(self, path, split=None):
        self.asked.append((path, split))
        if isinstance(self.found, Exception):
            raise self.found
        return self.found if split is None else self.found[split]


def test_data_sets_of_the_hub(hub_folder, monkeypatch):
    rows = json.loads((SAMPLES / "counterfact.json").read_text("utf-8"))
    hub = Hub({"train": rows, "test": [*rows[:1], {"requested_rewrite": {}}]})
    monkeypatch.setitem(sys.modules, "datasets", hub)
    records = read_records("someone/counterfact", split="train")
    assert tuple(records) == tuple(read_records(SAMPLES / "counterfact.json"))
    assert repr(records) == "Records(3 from someone/counterfact, CounterFact)"
    with pytest.warns(UserWarning, match="row 1: requested_rewrite.prompt is missing"):
        read_records("someone/counterfact", split="test")
    with pytest.raises(ValueError, match=r"has the splits \['train', 'test'\]; expected one; pass split='train'"):
        read_records("someone/counterfact")
    del hub.found["test"]
    assert len(read_records("someone/counterfact", start=1, limit=1)) == 1
    assert hub.asked[-1] == ("someone/counterfact", None)


def test_real_data_sets_have_rows_like_files(hub_folder, monkeypatch):
    """Rows of `datasets` hold None for what they lack, and nested columns as dictionaries."""
    datasets = pytest.importorskip("datasets")
    rows = json.loads((SAMPLES / "counterfact.json").read_text("utf-8"))
    table = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split=None: datasets.DatasetDict(train=table))
    assert tuple(read_records("someone/counterfact")) == tuple(read_records(SAMPLES / "counterfact.json"))


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("Unknown split"), FileNotFoundError()])
def test_what_the_hub_does_not_give(hub_folder, monkeypatch, error):
    monkeypatch.setitem(sys.modules, "datasets", Hub(error))
    with pytest.raises(ValueError, match=r"someone/x could not be had .*unset HF_HUB_OFFLINE.*read_records\('path/to"):
        read_records("someone/x", split="train")


def test_without_the_package_there_is_advice(hub_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="read_records: the package datasets is not installed.*data sets of the hub"):
        read_records("someone/x")
