"""Records from files: what becomes of each layout, what is malformed, what is refused."""

import copy
import csv
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tl_edit import (
    EditRecord,
    EditRequest,
    KnownFact,
    KnownFacts,
    Malformed,
    Records,
    read_known_facts,
    read_records,
    write_records,
)

SAMPLES = Path(__file__).parent
OWN = '{"relation": "{} is in", "subject": "Rome", "target_new": "Spain"}'


def written(path: Path, content: str) -> Path:
    path.write_text(content, "utf-8")
    return path


def rows(path: Path, *fields: dict) -> Path:
    return written(path, json.dumps(fields))


def test_counterfact_as_published():
    records = read_records(SAMPLES / "counterfact.json")
    assert isinstance(records, Records)
    assert (records.schema, records.malformed) == ("CounterFact", ())
    assert repr(records) == f"Records(3 from {SAMPLES / 'counterfact.json'}, CounterFact)"
    first, second, third = records
    assert first == EditRecord(
        EditRequest("The twin city of {} is", "Tirana", "Shanghai", "Beijing"),
        paraphrase_prompts=(
            "A bell rang twice. Tirana is twinned with the city of",
            "The partner city of Tirana is",  # a space is at its end in the file
        ),
        neighborhood_prompts=("The twin city of Astana is", "The twin city of Addis Ababa is"),
        attribute_prompts=("The twin city of Liverpool is",),
        generation_prompts=("Tirana's twin city is known for", "Visitors from Tirana's twin city bring"),
        name="1004",
        relation_id="P190",
    )
    assert second.request.target_true == "hockey"  # a space is before it in the file
    assert third.paraphrase_prompts == third.attribute_prompts == ()
    assert records.requests == (first.request, second.request, third.request)


def test_snippets_become_texts_by_the_ids_of_the_objects():
    records = read_records(SAMPLES / "counterfact.json", snippets=SAMPLES / "attribute_snippets.json")
    assert records[0].reference_texts == (
        "Liverpool is a port in the north west of England.",
        "Osaka is a port in Japan.",
    )  # the third is empty in the file
    assert records[0].essence_texts == ("Tirana is the capital of Albania.",)  # not that about Astana
    assert records[1].reference_texts == records[1].essence_texts == ()


def test_counterfact_in_the_flat_layout():
    records = read_records(SAMPLES / "counterfact_flat.json")
    assert records.schema == "CounterFact, flat"
    assert records[0] == EditRecord(
        EditRequest("{}, by", "BBC One", "Sega", "BBC"),
        paraphrase_prompts=("BBC One is my favorite product out of everything owned by",),
        neighborhood_prompts=("BBC Radio, by",),
        name="10",
    )
    assert records[3].request.relation == "What does {} play? They play"


def test_another_answer_makes_a_neighbor_an_unrelated_fact(tmp_path):
    flat = json.loads((SAMPLES / "counterfact_flat.json").read_text("utf-8"))[0]
    flat["locality_ground_truth"] = "CBS"
    record = read_records(rows(tmp_path / "flat.json", flat))[0]
    assert record.neighborhood_prompts == ()
    assert record.unrelated_facts == (("BBC Radio, by", "CBS"),)
    del flat["locality_prompt"]
    with pytest.raises(ValueError, match="locality_prompt and locality_ground_truth are not both there"):
        read_records(rows(tmp_path / "flat.json", flat))


def test_zsre_as_the_published_program_reads_it():
    records = read_records(SAMPLES / "zsre_mend_eval.json")
    assert records.schema == "zsRE"
    assert records[0] == EditRecord(
        EditRequest("Which city is {} in?", "Eiffel Tower", "Paris"),
        paraphrase_prompts=("In what city does one find Eiffel Tower?",),
        unrelated_facts=(("nq question: who wrote the first novel about a whale?", "Herman Melville"),),
    )
    assert records[1].request.target_new == "trumpet"


def test_records_of_ones_own():
    expected = EditRecord(
        EditRequest("{} is in the city of", "The Eiffel Tower", "Rome", "Paris"),
        paraphrase_prompts=("The Eiffel Tower can be seen in",),
        other_facts=(("The Eiffel Tower was built by", "Gustave Eiffel"),),
        name="eiffel",
    )
    from_lines, from_table = read_records(SAMPLES / "own.jsonl"), read_records(SAMPLES / "own.csv")
    assert from_lines.schema == from_table.schema == "own"
    assert from_lines[0] == expected
    assert from_lines[1] == EditRecord(
        EditRequest("The mother tongue of {} is", "Danielle Darrieux", "English"),
        neighborhood_prompts=("The mother tongue of Léon Blum is",),
    )
    neighbors = ("The Louvre is in the city of", "Notre-Dame, which is in")
    assert from_table[0] == EditRecord(
        expected.request, expected.paraphrase_prompts, neighbors, expected.other_facts, name="eiffel"
    )
    assert from_table[1] == EditRecord(EditRequest("{}, the player, plays", "Miles Davis", "opera"))


def test_a_prompt_becomes_a_relation_where_the_subject_first_is(tmp_path):
    path = rows(tmp_path / "x.json", {"prompt": "Rome, yes, Rome is in", "subject": "Rome", "target_new": "Spain"})
    request = read_records(path)[0].request
    assert request.relation == "{}, yes, Rome is in"
    assert request.prompt == "Rome, yes, Rome is in"


def test_a_prompt_may_stand_beside_its_relation(tmp_path):
    path = rows(tmp_path / "x.json", {**json.loads(OWN), "prompt": "Rome is in "})
    assert read_records(path)[0].request == EditRequest("{} is in", "Rome", "Spain")


def test_a_column_without_cells_is_a_column(tmp_path):
    path = written(tmp_path / "x.csv", "relation,subject,target_new,old\n{} is in,Rome,Spain,\n")
    assert read_records(path, columns={"old": "target_true"})[0].request.target_true is None
    with pytest.raises(ValueError, match=r"'old' \(line 2\) are unknown"):
        read_records(path)


def test_spaces_after_commas_are_no_part_of_a_cell(tmp_path):
    path = written(tmp_path / "x.csv", 'relation, subject, target_new\n{} is in, "Rome, old", Spain\n')
    assert read_records(path)[0].request == EditRequest("{} is in", "Rome, old", "Spain")


def test_malformed_rows_are_named_by_their_lines():
    path = SAMPLES / "counterfact_malformed.json"
    with pytest.warns(UserWarning, match=r"7 of 8 rows of .* are malformed .*\n  line 3: it is of type str") as caught:
        records = read_records(path)
    assert len(caught) == 1
    assert "and 2 more" in str(caught[0].message)
    assert [record.name for record in records] == ["1"]
    assert repr(records).endswith("CounterFact; 7 malformed)")
    assert [each.where for each in records.malformed] == [f"line {n}" for n in (3, 4, 5, 6, 7, 8, 9)]
    found = [each.why for each in records.malformed]
    for why, words in zip(
        found,
        (
            "of type str; expected an object",
            "relation 'Rome is in' has 0 placeholders",
            "both 'Italy'; expected two different",
            "requested_rewrite.subject is missing",
            "requested_rewrite.target_new.str is missing",
            "paraphrase_prompts holds None",
            "requested_rewrite is None; expected an object",
        ),
        strict=True,
    ):
        assert words in why
    assert str(records.malformed[0]).startswith("line 3: it is of type str")


def test_warnings_point_at_the_call():
    """In the test run the shape checker stands between, so this is asked in a process without it."""
    code = f"from tl_edit import read_records\n\nread_records({str(SAMPLES / 'counterfact_malformed.json')!r})"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stderr
    assert said.startswith("<string>:3: UserWarning: read_records: 7 of 8 rows")


def test_all_malformed_is_an_error(tmp_path):
    path = rows(tmp_path / "x.json", {"relation": "{} is in", "subject": "Rome", "target_new": "  "}, 5)
    with pytest.raises(
        ValueError, match=r"2 of 2 rows .*\n  line 1: target_new is '  '.*\n  line 1, record 2: .*\nNothing"
    ):
        read_records(path)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"relation": "{} is in", "prompt": "Rome is"}, "prompt 'Rome is' is not relation '{} is in' with the subject"),
        ({}, "relation and prompt are missing; expected a template"),
        ({"prompt": "{} is in"}, "prompt is a template; expected it under the name relation; rename it"),
        ({"prompt": "Paris is in"}, "the subject 'Rome' is not in prompt 'Paris is in'"),
        ({"prompt": "Rome {} is in"}, "has 2 placeholders"),
        ({"relation": 5}, "relation is 5; expected words"),
        ({"relation": "{} is", "target_true": ["Italy"]}, r"target_true is \['Italy'\]; expected words"),
        ({"relation": "{} is", "target_true": ["Italy"]}, "expected words, not a list of them"),
        ({"relation": "{} is", "subject": ""}, "subject is ''; expected words"),
        ({"relation": "{} is", "target_new": float("nan")}, "target_new is nan; expected words"),
        ({"relation": "{} is", "paraphrase_prompts": {"a": 1}}, "paraphrase_prompts is {'a': 1}; expected a list"),
        ({"relation": "{} is", "paraphrase_prompts": [" "]}, "paraphrase_prompts holds ' '"),
        ({"relation": "{} is", "other_facts": ["ab"]}, r"other_facts holds 'ab'; expected \[prompt, answer\]"),
        ({"relation": "{} is", "other_facts": [["a", ""]]}, "other_facts holds"),
        ({"relation": "{} is", "unrelated_facts": "a"}, "unrelated_facts is 'a'; expected a list"),
        ({"relation": "{} is", "reference_texts": [3]}, "reference_texts holds 3"),
        ({"relation": "{} is", "name": ["x"]}, r"name is \['x'\]; expected a string or a number"),
        (
            {"relation": "{} is", "paraphrase_prompts": ["{} lies in"]},
            "paraphrase_prompts holds '{} lies in'; expected whole prompts; write the subject in place of '{}'",
        ),
        ({"relation": "{} is", "neighborhood_prompts": "{} lies in"}, "neighborhood_prompts holds '{} lies in'"),
        ({"relation": "{} is", "generation_prompts": ["a", "{}"]}, "generation_prompts holds '{}'"),
        ({"relation": "{} is", "other_facts": [["{} has", "hills"]]}, "other_facts holds '{} has'; expected whole"),
        ({"relation": "{} is", "subject": " Rome"}, "begins or ends with a space"),
    ],
)
def test_what_is_wrong_with_a_row_of_ones_own(tmp_path, fields, why):
    good = {"relation": "{} is in", "subject": "Rome", "target_new": "Spain"}
    path = rows(tmp_path / "x.json", good, {"subject": "Rome", "target_new": "Spain", **fields})
    with pytest.warns(UserWarning, match=why):
        assert len(read_records(path)) == 1


def test_long_values_are_shown_in_part(tmp_path):
    path = written(tmp_path / "x.jsonl", f'{OWN}\n{OWN[:-1]}, "target_true": {{"a": "{"y" * 5000}"}}}}')
    with pytest.warns(UserWarning, match="1 of 2") as caught:
        read_records(path)
    assert len(str(caught[0].message)) < 500


def test_where_no_row_is_one_each_is_told(tmp_path):
    for name, content, why in (
        ("x.json", '["a", "b"]', "line 1: it is of type str; expected an object"),
        ("x.json", "[{}]", "line 1: subject is missing"),
        ("x.jsonl", json.dumps([json.loads(OWN)], indent=1), "line 2: it is no JSON"),
    ):
        with pytest.raises(ValueError, match=rf"{why}.*\n(.*\n)*Nothing is left"):
            read_records(written(tmp_path / name, content))


def test_keys_that_are_there_twice_are_malformed(tmp_path):
    """Python's JSON keeps the last one and says nothing."""
    twice = OWN.replace('"Spain"', '"Spain", "target_new": "Italy"')
    inside = '{"relation": "{} is in", "subject": "Rome", "target_new": "Spain", "name": {"a": 1, "a": 2}}'
    for name, content in (
        ("x.json", f"[{OWN},\n{twice},\n{inside},\n{OWN}]"),
        ("x.jsonl", "\n".join((OWN, twice, inside, OWN))),
    ):
        with pytest.warns(UserWarning, match="2 of 4 rows"):
            records = read_records(written(tmp_path / name, content))
        assert [str(each) for each in records.malformed] == [
            "line 2: it has the key 'target_new' twice; expected each once",
            "line 3: it has the key 'a' twice; expected each once",
        ]


def test_what_pandas_writes_for_nothing_is_nothing(tmp_path):
    optional = ("prompt", "target_true", "paraphrase_prompts", "other_facts", "reference_texts", "name", "relation_id")
    for nothing in (float("nan"), "", None):
        path = rows(tmp_path / "x.json", {**json.loads(OWN), **dict.fromkeys(optional, nothing)})
        assert tuple(read_records(path)) == (EditRecord(EditRequest("{} is in", "Rome", "Spain")),)


def test_numbers_of_records_are_whole(tmp_path):
    """In a column that lacks some, pandas makes 1.0 of 1."""
    flat = {"prompt": "Rome is in", "subject": "Rome", "target_new": "Spain", "ground_truth": "Italy"}
    path = rows(tmp_path / "x.json", {"case_id": 1.0, **flat}, {"case_id": float("nan"), **flat})
    assert [record.name for record in read_records(path)] == ["1", ""]
    table = "\n".join(["case_id,prompt,subject,target_new,ground_truth", "1.0,Rome is in,Rome,Spain,Italy",
                       ",Rome is in,Rome,Spain,Italy", "1.5,Rome is in,Rome,Spain,1.0"])  # fmt: skip
    records = read_records(written(tmp_path / "x.csv", table))
    assert [record.name for record in records] == ["1", "", "1.5"]
    assert records[2].request.target_true == "1.0"
    own = written(tmp_path / "x.csv", "relation,subject,target_new,id\n{} is in,Rome,Spain,7.0\n")
    assert read_records(own, columns={"id": "name"})[0].name == "7"
    named = [EditRecord(EditRequest("{} is in", "Rome", "Spain"), name="1.0")]
    assert list(read_records(write_records(tmp_path / "x.jsonl", named))) == named


@pytest.mark.parametrize("index", ["", "Unnamed: 0"])
def test_row_numbers_of_pandas_are_left_out(tmp_path, index):
    expected = (EditRecord(EditRequest("{} is in", "Rome", "Spain")),) * 2
    head = f"{index},relation,subject,target_new"
    path = written(tmp_path / "x.csv", f"{head}\n0,{{}} is in,Rome,Spain\n1,{{}} is in,Rome,Spain\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuple(read_records(path)) == tuple(read_records(path, columns={index: None})) == expected
    assert read_records(path, columns={index: "name"})[1].name == "1"
    words = written(tmp_path / "x.csv", f"{head}\n0,{{}} is in,Rome,Spain\nwords,{{}} is in,Rome,Spain\n")
    with pytest.raises(ValueError, match=rf"'{index}' \(line 2\) are unknown.*leave out with columns="):
        read_records(words)
    assert tuple(read_records(words, columns={index: None})) == expected


def test_a_list_where_a_text_is_expected(tmp_path):
    """A table's cells are strings all of them, so a list would be taken for words."""
    lines = [
        "relation,subject,target_new",
        '{} is in,Rome,"[""Spain""]"',
        "{} is in,Rome,['Spain']",
        "{} is in,Rome,[sic]",
    ]
    with pytest.warns(UserWarning, match=r"line 2: target_new is '\[\"Spain\"\]'; expected words, not a list of them"):
        records = read_records(written(tmp_path / "x.csv", "\n".join(lines)))
    assert [each.where for each in records.malformed] == ["line 2", "line 3"]
    assert records[0].request.target_new == "[sic]"


def test_long_cells_of_tables(tmp_path):
    """Python's own limit would make rows of what is left of such a cell."""
    limit, long = csv.field_size_limit(), "so it is\n" * 30_000
    path = written(tmp_path / "x.csv", f'relation,subject,target_new,reference_texts\n{{}} is in,Rome,Spain,"{long}"\n')
    for many in (limit, 100):
        csv.field_size_limit(many)
        try:
            records = read_records(path)
            assert csv.field_size_limit() == many
        finally:
            csv.field_size_limit(limit)
        assert (len(records), records.malformed, records[0].reference_texts) == (1, (), (long,))
    open_quote = written(tmp_path / "x.csv", f'relation,subject,target_new\n{{}} is in,Rome,"{long}')
    with pytest.raises(ValueError, match="no valid CSV from line 2 on"):
        read_records(open_quote)
    assert csv.field_size_limit() == limit


def test_absent_and_null_are_the_same(tmp_path):
    path = rows(
        tmp_path / "x.json",
        {"relation": "{} is in", "prompt": None, "subject": "Rome", "target_new": "Spain", "paraphrase_prompts": None},
    )
    assert read_records(path)[0] == EditRecord(EditRequest("{} is in", "Rome", "Spain"))


def test_the_lines_of_a_list_are_where_its_elements_begin(tmp_path):
    path = written(tmp_path / "x.json", f"\n\n[ {OWN},\r\n5, 6,\n\n{{\n\n}} , {OWN}\n]\n")
    with pytest.warns(UserWarning, match="3 of 5"):
        records = read_records(path)
    assert [each.where for each in records.malformed] == ["line 4", "line 4, record 3", "line 6"]


def test_lines_are_read_alone(tmp_path):
    path = written(tmp_path / "x.jsonl", f"\ufeff{OWN}\r\n\n{{broken\n[1]\n{OWN}")
    with pytest.warns(UserWarning, match=r"line 3: it is no JSON \(Expecting.*\n  line 4: it is of type list"):
        assert len(read_records(path)) == 2


def test_rare_line_separators_within_texts_end_no_line(tmp_path):
    text = OWN.replace("Spain", "Spain\u2028and\x85more")
    assert read_records(written(tmp_path / "x.jsonl", text))[0].request.target_new == "Spain\u2028and\x85more"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"line 1: it begins with ''.*expected \[record"),
        (OWN + "\n" + OWN, "it begins with .*; choose the list within it, or call a file with one record on each line"),
        ("\n5", "line 2: it begins with '5'"),
        (f"[{OWN},\n{OWN}\n", "line 3: ',' or ']' is missing after a record"),
        (f"[{OWN}\n{OWN}]", "line 2: ',' or ']' is missing"),
        (f"[{OWN},\n]", "line 2: Expecting value"),
        (f"[{OWN},\n{{'a': 1}}]", "line 2: Expecting property name"),
        (f"[{OWN}]\nx", "line 2: 'x' comes after the end"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_list_is_refused_with_its_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_records(written(tmp_path / "x.json", content))


def test_what_comes_after_the_limit_is_not_read(tmp_path):
    path = written(tmp_path / "x.json", f"[{OWN}, broken")
    assert len(read_records(path, limit=1)) == 1


def test_rows_of_a_table_that_do_not_fit(tmp_path):
    head, good = "relation,subject,target_new,other_facts", "{} is in,Rome,Spain,"
    lines = [
        head,
        good,
        "{} is in,Rome",
        '"{} is',
        'in",Rome,Spain,',
        f"{good},",
        "{} is,Rome,Spain,[1",
        '"a"b,c,d,e',
        good,
    ]
    path = written(tmp_path / "x.csv", "\n".join(lines))
    with pytest.warns(UserWarning, match="4 of 7"):
        records = read_records(path)
    assert [(each.where, each.why[:18]) for each in records.malformed] == [
        ("line 3", "it has 2 cells; ex"),
        ("line 6", "it has 5 cells; ex"),
        ("line 7", "other_facts begins"),
        ("line 8", "it is no CSV (',' "),
    ]
    assert records[1].request.relation == "{} is\nin"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows; expected some to read; choose another file"),
        ("relation,subject,target_new\n", "holds no rows"),
        ("relation;subject;target_new\n{} is;Rome;Spain\n", "separated by ';'; expected commas"),
        ("relation,,\n{} is,Rome,Spain\n", "expected a name for each, and each once"),
        ("relation,,target_new\n{} is,Rome,Spain\n", r"of which '' \(line 2\) are unknown and without subject"),
        ("subject,subject,target_new\n{} is,Rome,Spain\n", "expected a name for each, and each once"),
        (
            'relation,subject,target_new\n{} is,Rome,Spain\n{} is,"Rome,Spain\n{} is,a,b\n',
            "no valid CSV from line 3 on",
        ),
        ('"relation,subject', "no valid CSV from line 1 on"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_records(written(tmp_path / "x.csv", content))


def test_unknown_columns_are_refused_with_all_names(tmp_path):
    path = written(tmp_path / "x.jsonl", f'{OWN}\n{OWN[:-1]}, "paraphrase_promts": []}}')
    with pytest.raises(
        ValueError,
        match=r"of which 'paraphrase_promts' \(line 2\) are unknown; expected some of relation, prompt, subject, .*"
        r"paraphrase_prompts.*requested_rewrite \(CounterFact\).*columns=\{'their name'",
    ):
        read_records(path)
    with pytest.raises(ValueError, match="without target_new; expected"):
        read_records(rows(tmp_path / "x.json", {"relation": "{} is", "subject": "Rome"}))


def test_columns_can_be_renamed_and_left_out(tmp_path):
    path = rows(
        tmp_path / "x.json", {"sentence": "Rome is in", "entity": "Rome", "target_new": "Spain", "id": 3, "x": 1}
    )
    names = {"sentence": "prompt", "entity": "subject", "id": "name", "x": None}
    assert read_records(path, columns=names)[0] == EditRecord(EditRequest("{} is in", "Rome", "Spain"), name="3")
    with pytest.raises(ValueError, match=r"renames \['nmae'\], which .* does not have; expected some of \['sentence'"):
        read_records(path, columns={**names, "nmae": "name"})
    with pytest.raises(ValueError, match=r"two columns called \['subject'\]"):
        read_records(path, columns={**names, "x": "subject"})
    table = written(tmp_path / "x.csv", 'rel,subject,target_new,more\n{} is,Rome,Spain,"[""Rome lies in""]"\n')
    renamed = read_records(table, columns={"rel": "relation", "more": "paraphrase_prompts"})
    assert renamed[0].paraphrase_prompts == ("Rome lies in",)


def test_columns_that_a_published_layout_does_not_have_are_told(tmp_path):
    record = json.loads((SAMPLES / "counterfact.json").read_text("utf-8"))[0]
    record["paraphrase_prompt"] = record.pop("paraphrase_prompts")
    path = rows(tmp_path / "x.json", record)
    with pytest.warns(UserWarning, match=r"columns that are not read, \['paraphrase_prompt'\]"):
        assert read_records(path)[0].paraphrase_prompts == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_records(path, columns={"paraphrase_prompt": "paraphrase_prompts"})[0].paraphrase_prompts) == 2
        assert read_records(path, columns={"paraphrase_prompt": None})[0].paraphrase_prompts == ()


def test_a_part_can_be_selected():
    path = SAMPLES / "counterfact.json"
    whole = tuple(read_records(path))
    assert tuple(read_records(path, limit=2)) == whole[:2]
    assert tuple(read_records(path, start=1)) == whole[1:]
    assert tuple(read_records(path, start=1, limit=1)) == whole[1:2]
    assert tuple(read_records(path, limit=50)) == whole
    with pytest.raises(ValueError, match="limit is 0; expected a number of at least 1"):
        read_records(path, limit=0)
    with pytest.raises(ValueError, match="start is -1"):
        read_records(path, start=-1)
    with pytest.raises(ValueError, match="holds 3 rows, and start is 3; .* choose a smaller start"):
        read_records(path, start=3)


def test_malformed_rows_count_in_a_selection():
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        assert len(read_records(SAMPLES / "counterfact_malformed.json", limit=2)) == 1


def test_empty_files_are_refused(tmp_path):
    for name, content in (("x.json", "[]"), ("x.json", " [ \n] "), ("x.jsonl", "\n\n")):
        with pytest.raises(ValueError, match=r"x.jsonl? holds no rows; expected some"):
            read_records(written(tmp_path / name, content))


def test_sources_that_are_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("missing.json", "data/missing.jsonl", "wikipedia", Path("owner/name")):
        with pytest.raises(ValueError, match=r"there is no file .*\['counterfact', 'multi_counterfact', 'zsre'\], "):
            read_records(name)
    with pytest.raises(ValueError, match="ends in '.txt'; expected a file of one of the kinds .json, .jsonl, .csv"):
        read_records(written(tmp_path / "x.txt", OWN))
    with pytest.raises(ValueError, match="is a folder; expected"):
        read_records(tmp_path)
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected a file in UTF-8"):
        read_records("x.json")
    with pytest.raises(ValueError, match="split is 'train', but .* is a file"):
        read_records(SAMPLES / "own.csv", split="train")
    with pytest.raises(ValueError, match="no file 'known_1000'.*; read it with read_known_facts"):
        read_records("known_1000")
    with pytest.raises(ValueError, match=r"no file 'zsre'.*\['known_1000', .*; read it with read_records"):
        read_known_facts("zsre")
    with pytest.raises(ValueError, match="source is ''"):
        read_records("")


def test_paths_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    written(tmp_path / "x.jsonl", OWN)
    assert len(read_records("~/x.jsonl")) == 1


def test_snippets_that_do_not_fit(tmp_path):
    path, published = SAMPLES / "counterfact.json", SAMPLES / "attribute_snippets.json"
    with pytest.raises(ValueError, match="goes by the ids of objects, which .* does not have"):
        read_records(SAMPLES / "own.jsonl", snippets=published)
    for content in ("[]", "{", '{"P1": {"Q1": ["x"]}}', '{"P1": {"Q1": [{"name": "x", "text": 5}]}}', '{"P1": 3}'):
        with pytest.raises(ValueError, match="is not of the published kind"):
            read_records(path, snippets=written(tmp_path / "x.json", content))
    with pytest.raises(ValueError, match=r"missing.json is no file; expected the published .*; check the path, or"):
        read_records(path, snippets=tmp_path / "missing.json")
    with pytest.warns(UserWarning, match="has no texts for any of these records"):
        read_records(path, snippets=written(tmp_path / "x.json", '{"P1": {}}'))


def test_known_facts():
    facts = read_known_facts(SAMPLES / "known_1000.json", limit=4)
    assert facts[0] == KnownFact("Vinson Massif is located in the continent of", "Vinson Massif", "Antarctica")
    assert repr(facts) == f"KnownFacts(4 from {SAMPLES / 'known_1000.json'}, KnownFacts)"
    with pytest.raises(ValueError, match="holds KnownFacts, which have no object to write.*read_known_facts"):
        read_records(SAMPLES / "known_1000.json")


def test_known_facts_of_records_and_of_ones_own(tmp_path):
    tirana = KnownFact("The twin city of Tirana is", "Tirana", "Beijing")
    assert read_known_facts(SAMPLES / "counterfact.json")[0] == tirana
    assert read_known_facts(SAMPLES / "counterfact_flat.json")[0] == KnownFact("BBC One, by", "BBC One", "BBC")
    assert read_known_facts(SAMPLES / "own.jsonl")[1].answer is None
    table = written(tmp_path / "x.csv", "prompt,subject,answer\nRome is in ,Rome,Italy\nParis is in,Paris,\n")
    assert tuple(read_known_facts(table)) == (
        KnownFact("Rome is in", "Rome", "Italy"),
        KnownFact("Paris is in", "Paris", None),
    )
    true = "prompt,subject,target_true\nRome is in,Rome,Italy\n"
    assert tuple(read_known_facts(written(tmp_path / "x.csv", true))) == (KnownFact("Rome is in", "Rome", "Italy"),)
    both = {"prompt": "Rome is in", "subject": "Rome", "answer": "Italy", "target_true": "Spain"}
    with pytest.raises(ValueError, match="answer is 'Italy' and target_true 'Spain'; expected one of them"):
        read_known_facts(rows(tmp_path / "x.json", both))
    with pytest.raises(ValueError, match="holds zsRE"):
        read_known_facts(SAMPLES / "zsre_mend_eval.json")
    with pytest.raises(ValueError, match=r"'anwser' \(line 2\) are unknown"):
        read_known_facts(written(tmp_path / "x.csv", "prompt,subject,anwser\nRome is in,Rome,Italy\n"))


def test_malformed_known_facts(tmp_path):
    good = {"prompt": "Rome is in", "subject": "Rome", "attribute": "Italy"}
    path = rows(tmp_path / "x.json", good, {**good, "subject": "Paris"}, {**good, "attribute": None}, {"prompt": "x"})
    with pytest.warns(UserWarning, match="3 of 4 rows"):
        facts = read_known_facts(path)
    assert [each.why for each in facts.malformed] == [
        "the subject 'Paris' is not in prompt 'Rome is in'; expected it there, spelled so",
        "attribute is missing; expected words",
        "subject is missing; expected words",
    ]
    relations = [{"relation": "{} is in", "subject": "Rome"}, {"relation": "Rome is in", "subject": "Rome"}]
    with pytest.warns(UserWarning, match="has 0 placeholders"):
        assert tuple(read_known_facts(rows(tmp_path / "x.json", *relations))) == (KnownFact("Rome is in", "Rome"),)


def test_records_are_a_tuple_that_survives_copies():
    records = Records(
        read_records(SAMPLES / "own.jsonl"), source="x", schema="own", malformed=[Malformed("line 1", "y")]
    )
    for again in (copy.copy(records), copy.deepcopy(records), pickle.loads(pickle.dumps(records))):
        assert isinstance(again, Records)
        assert again == records
        assert (again.source, again.schema, again.malformed) == ("x", "own", (Malformed("line 1", "y"),))


def test_slices_are_records_of_the_same_source():
    malformed = [Malformed("line 1", "y")]
    records = Records(read_records(SAMPLES / "own.jsonl"), source="x", schema="own", malformed=malformed)
    some = records[:1]
    assert type(some) is Records
    assert (list(some), some.source, some.schema, some.malformed) == ([records[0]], "x", "own", ())
    assert some.requests == (records[0].request,)
    assert repr(some) == "Records(1 from x, own)"
    assert records[-1] == tuple(records)[-1]
    assert records[::-1].requests == records.requests[::-1]
    assert type(KnownFacts([KnownFact("a b", "a")], source="x")[1:]) is KnownFacts


def test_records_and_facts_show_their_first_rows():
    asked = EditRecord(EditRequest("{} is in", "<b>", "Rome"), paraphrase_prompts=("a", "b"))
    page = Records([asked] * 12, source="</script>", schema="own")._repr_html_()
    assert page.count("</tr>") == 1 + 10
    assert "the first 10 are shown" in page
    assert "&lt;b&gt; is in" in page
    assert "<b>" not in page
    assert "</script" not in page
    assert "are shown" not in Records([asked], source="x")._repr_html_()
    facts = KnownFacts([KnownFact("Rome is in", "Rome"), KnownFact("Rome is in", "Rome", "Italy")], source="x")
    assert [cell in facts._repr_html_() for cell in ("Rome is in", "Italy", "–")] == [True] * 3


def test_a_record_shows_its_first_prompts():
    prompts = tuple(f"paraphrase {i} of <b>" for i in range(7))
    page = EditRecord(
        EditRequest("{} is in", "Rome", "Italy"),
        paraphrase_prompts=prompts,
        other_facts=(("Rome was built by", "Romulus"),),
    )._repr_html_()
    assert "paraphrase 4 of &lt;b&gt; and 2 more" in page
    assert "Rome was built by → Romulus" in page
    assert "<b>" not in page
    assert "neighborhood" not in page


def test_records_go_where_records_are_taken(fact_model):
    from tl_edit import evaluate

    assert evaluate(fact_model, read_records(SAMPLES / "own.csv", limit=1)).efficacy.n == 1
