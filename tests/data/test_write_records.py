"""Records written and read again are equal."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tl_edit import EditRecord, EditRequest, read_records, write_records

WORDS = st.text(min_size=1, max_size=12).filter(str.strip)
PROMPT = WORDS.filter(lambda text: not text.endswith(" ") and "{}" not in text)
PAIR = st.tuples(PROMPT, WORDS)


def several(of):
    return st.lists(of, max_size=3).map(tuple)


@st.composite
def requests(draw):
    before, after = (text.replace("{", "(") for text in (draw(st.text(max_size=5)), draw(PROMPT)))
    subject = draw(WORDS.map(str.strip))
    new, true = draw(WORDS), draw(st.none() | WORDS)
    if true is not None and true.strip() == new.strip():
        true = new + "x"
    return EditRequest(f"{before}{{}}{after}", subject, new, true)


RECORDS = st.builds(
    EditRecord,
    request=requests(),
    paraphrase_prompts=several(PROMPT),
    neighborhood_prompts=several(PROMPT),
    other_facts=several(PAIR),
    unrelated_facts=several(PAIR),
    attribute_prompts=several(PROMPT),
    generation_prompts=several(PROMPT),
    reference_texts=several(WORDS),
    essence_texts=several(WORDS),
    name=st.text(max_size=5),
    relation_id=st.text(max_size=5),
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, min_size=1, max_size=3))
def test_what_is_written_is_read(tmp_path, records):
    path = write_records(tmp_path / "records.jsonl", records)
    again = read_records(path)
    assert tuple(again) == tuple(records)
    assert (again.schema, again.malformed) == ("own", ())
    assert [each.name for each in tmp_path.iterdir()] == ["records.jsonl"]


def test_the_file_is_for_people_to_read(tmp_path):
    record = EditRecord(EditRequest("{} is", "Zürich", "Rome"), other_facts=(("Zürich has", "lakes"),))
    path = write_records(tmp_path / "x.jsonl", record)
    assert path.read_text("utf-8") == (
        '{"relation": "{} is", "subject": "Zürich", "target_new": "Rome", "other_facts": [["Zürich has", "lakes"]]}\n'
    )


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    record = EditRecord(EditRequest("{} is in", "Rome", "Spain"))
    assert write_records("~/x.jsonl", [record]) == tmp_path / "x.jsonl"
    assert tuple(read_records("~/x.jsonl")) == (record,)


def test_what_cannot_be_written_is_refused_and_leaves_what_was_there(tmp_path):
    record = EditRecord(EditRequest("{} is in", "Rome", "Spain"))
    path = write_records(tmp_path / "x.jsonl", [record])
    with pytest.raises(ValueError, match="write_records needs at least one EditRecord; found none"):
        write_records(path, [])
    with pytest.raises(ValueError, match="ends in '.csv'; expected .jsonl; write e.g. x.jsonl"):
        write_records(tmp_path / "x.csv", [record])
    with pytest.raises(ValueError, match="cannot be written .*in a folder that exists"):
        write_records(tmp_path / "missing" / "x.jsonl", [record])
    with pytest.raises(ValueError, match="cannot be written .*texts of whole characters"):
        write_records(path, [EditRecord(EditRequest("{} is in", "Rome", "\ud83d"))])
    assert tuple(read_records(path)) == (record,)
    assert [each.name for each in tmp_path.iterdir()] == ["x.jsonl"]
