"""Texts from files and by name."""

import json
import random
import sys
from types import SimpleNamespace

import pytest
import tiny_models

from tl_edit import read_texts, second_moment
from tl_edit.moment import corpora

TEXTS = ["Rome is old.", "Paris is large.", "The café in Zürich\u2028is open.", "Tokyo is far."]


def test_text_files_have_one_text_per_line(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\r\n\r\n".join(TEXTS).encode())
    assert list(read_texts(path)) == TEXTS
    assert list(read_texts(str(path))) == TEXTS


@pytest.mark.parametrize("items", [TEXTS, [{"id": 1, "text": text} for text in TEXTS], [{"body": t} for t in TEXTS]])
def test_json_files_hold_strings_or_objects(tmp_path, items):
    (tmp_path / "texts.json").write_text(json.dumps(items))
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n")
    assert list(read_texts(tmp_path / "texts.json")) == TEXTS
    assert list(read_texts(tmp_path / "texts.jsonl")) == TEXTS


def test_a_column_can_be_chosen(tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps([{"a": "x", "b": text} for text in TEXTS]))
    assert list(read_texts(tmp_path / "texts.json", column="b")) == TEXTS
    with pytest.raises(ValueError, match=r"a string under 'text' or with a single string; pass column="):
        read_texts(tmp_path / "texts.json")
    with pytest.raises(ValueError, match="under 'c'"):
        read_texts(tmp_path / "texts.json", column="c")


def test_tables_and_saved_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = datasets.Dataset.from_dict({"id": [1, 2, 3, 4], "text": TEXTS, "title": TEXTS[::-1]})
    dataset.to_csv(tmp_path / "texts.csv")
    dataset.to_parquet(tmp_path / "texts.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    for name in ("texts.csv", "texts.parquet", "saved"):
        assert list(read_texts(tmp_path / name)) == TEXTS
        assert list(read_texts(tmp_path / name, column="title")) == TEXTS[::-1]
        with pytest.raises(ValueError, match="has columns .*not 'body'"):
            read_texts(tmp_path / name, column="body")
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match=r"holds the splits \['train'\]; .*splits/train"):
        read_texts(tmp_path / "splits")
    assert list(read_texts(tmp_path / "splits" / "train")) == TEXTS
    model = tiny_models.build("gpt2")
    assert second_moment(model, read_texts(tmp_path / "saved"), [0], progress=False)[0].count > 20


@pytest.mark.parametrize("name", ["texts.json", "texts.jsonl"])
@pytest.mark.parametrize(
    ("last", "message"),
    [
        (
            {"title": "Paris"},
            "item 4 of .* is {'title': 'Paris'}; expected a string, or an object with a string under 'b'",
        ),
        ({"b": None}, "item 4 of .* is {'b': None}"),
        ({"b": 5}, "item 4 of .* is {'b': 5}"),
        (None, "item 4 of .* is None"),
    ],
)
def test_the_first_item_decides_the_key(tmp_path, name, last, message):
    items = [{"n": 1, "b": text} for text in TEXTS] + [last]
    content = json.dumps(items) if name.endswith("json") else "\n".join(map(json.dumps, items))
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / name)
    (tmp_path / name).write_text(content.replace(json.dumps(last), json.dumps({"b": "Rome.", "text": "Paris."})))
    assert list(read_texts(tmp_path / name)) == [*TEXTS, "Rome."]


def test_a_mark_at_the_beginning_of_a_file_is_no_text(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), "utf-8-sig")
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, TEXTS)), "utf-8-sig")
    assert list(read_texts(tmp_path / "texts.txt")) == TEXTS
    assert list(read_texts(tmp_path / "texts.jsonl")) == TEXTS


def test_columns_must_hold_strings(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.Dataset.from_dict({"text": [1, 2], "body": ["a", "b"]}).to_parquet(tmp_path / "texts.parquet")
    with pytest.raises(ValueError, match=r"of which \['body'\] hold strings"):
        read_texts(tmp_path / "texts.parquet")
    with pytest.raises(ValueError, match="the column 'text' of .* does not hold strings; expected texts"):
        read_texts(tmp_path / "texts.parquet", column="text")
    assert list(read_texts(tmp_path / "texts.parquet", column="body")) == ["a", "b"]
    (tmp_path / "texts.txt").write_text("a")
    with pytest.raises(ValueError, match="is a plain text file without columns; expected None; leave column out"):
        read_texts(tmp_path / "texts.txt", column="text")


def test_paths_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "texts.txt").write_text("Rome.")
    assert list(read_texts("~/texts.txt")) == ["Rome."]
    with pytest.raises(ValueError, match="source is ''; expected a path"):
        read_texts("")
    with pytest.raises(ValueError, match="seed is True; expected an integer"):
        read_texts("~/texts.txt", seed=True)


def test_n_texts_draws_as_the_published_programs_do(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(map(str, range(50))))
    order = list(range(50))
    random.Random(1).shuffle(order)
    chosen = read_texts(tmp_path / "texts.txt", n_texts=20, seed=1)
    assert list(chosen) == [str(i) for i in order[:20]]
    assert len(chosen) == 20
    assert chosen[2:4] == [str(i) for i in order[2:4]]
    assert len(read_texts(tmp_path / "texts.txt", n_texts=99)) == 50


class Hub:
    """What stands in for the package `datasets`."""

    def __init__(self, error=None):
        self.error, self.asked = error, []

    def load_dataset(self, path, **options):
        self.asked.append((path, options))
        if self.error is not None:
            raise self.error
        rows = [{"id": i, "text": text} for i, text in enumerate(TEXTS)]
        select = SimpleNamespace(__len__=len(rows), rows=rows)
        return _Dataset(select.rows)


class _Dataset:
    column_names = ("id", "text")

    def __init__(self, rows):
        self.rows = rows
        self.column_names = ["id", "text"]

    def select_columns(self, names):
        return _Dataset([{name: row[name] for name in names} for row in self.rows])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def test_corpora_by_name(monkeypatch, tmp_path):
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.chdir(tmp_path)
    for name in corpora.NAMED:
        assert list(read_texts(name)) == TEXTS
    assert hub.asked[0] == ("wikimedia/wikipedia", {"name": "20231101.en", "split": "train"})
    assert len(read_texts("wikipedia", n_texts=2)) == 2


def test_a_file_comes_before_a_name(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", Hub(ValueError()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikipedia").mkdir()
    with pytest.raises(ValueError, match="wikipedia cannot be read"):
        read_texts("wikipedia")


@pytest.mark.parametrize("error", [ConnectionError("no route"), OSError("offline"), ValueError("no cache")])
def test_without_a_network_there_is_advice(monkeypatch, tmp_path, error):
    monkeypatch.setitem(sys.modules, "datasets", Hub(error))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"could not be had from the Hugging Face hub.*HF_HUB_OFFLINE.*read_texts\("):
        read_texts("wikipedia")


def test_the_real_hub_offline(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="could not be had from the Hugging Face hub"):
        read_texts("wikipedia")


def test_without_the_package_there_is_advice(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="datasets is not installed.*pip install datasets"):
        read_texts("pile")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("texts.pdf", b"x", r"ends in '.pdf'; expected one of .txt, .json"),
        ("texts.txt", b"\n\n", "holds no texts"),
        ("texts.txt", b"\xff\xfe\x00", "expected a file in UTF-8"),
        ("texts.json", b"{", "not valid JSON"),
        ("texts.json", b"5", "holds a int"),
        ("texts.jsonl", b"[1]\n", "expected a string, or an object"),
        ("texts.parquet", b"x", "cannot be read"),
    ],
)
def test_bad_files_are_refused(tmp_path, monkeypatch, name, content, message):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(tmp_path / name)


def test_unknown_names_and_numbers_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no file or folder 'wikitext'; expected .*\['wikipedia', 'pile'\]"):
        read_texts("wikitext")
    with pytest.raises(ValueError, match="n_texts is 0"):
        read_texts("wikipedia", n_texts=0)
