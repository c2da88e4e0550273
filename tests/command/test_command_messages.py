"""What the command line says: of mistakes, in options' names, and below its tables."""

import argparse
import os
import sys
import warnings
from pathlib import Path

import pytest

import tl_edit
from tl_edit.command import command_parser, models, parsing
from tl_edit.command import evaluate as evaluate_command
from tl_edit.command.report import HALF_WIDTHS, legend
from tl_edit.command.words import as_options
from tl_edit.evaluate import MEASURES

EIFFEL = ("--subject", "Eiffel Tower")


@pytest.fixture
def no_model(monkeypatch):
    """Commands that get as far as loading a model fail."""

    def load(*_, **__):
        pytest.fail("a model was loaded before the options were checked")

    monkeypatch.setattr(models, "load_fact_model", load)
    monkeypatch.setattr(models, "_by_name", load)
    monkeypatch.setattr(models, "_from_folder", load)


@pytest.fixture
def places(tmp_path):
    """Files and folders that options cannot be."""
    (tmp_path / "file.txt").write_text("", "utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "untold").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "untold" / name).write_text("{}", "utf-8")
    return tmp_path


RECORDS = ("--limit", 1)
EARLY = [
    (("evaluate", *RECORDS, "--batch-size", 0), ("--batch-size 0", "1 or more")),
    (("evaluate", *RECORDS, "--generate", 1), ("--generate 1", "2 or more")),
    (("evaluate", *RECORDS, "--perplexity", "no.txt"), ("--perplexity no.txt", "no file or folder")),
    (
        ("evaluate", *RECORDS, "--tfidf", "empty", "--generate"),
        ("--tfidf empty", "idf.npy and tfidf_vocab.json are not"),
    ),
    (("evaluate", *RECORDS, "--device", "cuda:99"), ("--device cuda:99", "expected one of cpu")),
    (("evaluate", *RECORDS, "--device", "meta"), ("--device meta",)),
    (("evaluate", *RECORDS, "--model", ""), ("--model is empty", "leave it out for the bundled model")),
    (
        ("evaluate", *RECORDS, "--model", "./empty"),
        ("--model ./empty", "no config.json and no weights", "no tokenizer"),
    ),
    (
        ("evaluate", *RECORDS, "--model", "untold"),
        (
            "--model untold",
            "the folder has no tokenizer",
        ),
    ),
    (("evaluate", *RECORDS, "--model", "./nowhere"), ("--model ./nowhere", "no such folder")),
    (("evaluate", *RECORDS, "--out", "file.txt/scores"), ("--out file.txt/scores", "not there")),
    (("trace", *EIFFEL, "--samples", 0), ("--samples 0",)),
    (("trace", *EIFFEL, "--noise", "nan"), ("--noise nan", "0 or more")),
    (("trace", *EIFFEL, "--noise", -1), ("--noise -1",)),
    (("trace", *EIFFEL, "--window", 0), ("--window 0",)),
    (("trace", "--facts", "bundled", "--folder", "file.txt"), ("--folder file.txt", "is a file")),
    (("trace", *EIFFEL, "--prompt", "The Louvre is in"), ("'Eiffel Tower' does not occur in --prompt 'The Louvre",)),
    (("trace", *EIFFEL, "--model", "gpt2"), ("--prompt is missing", "--model gpt2 is not")),
    (("edit", *EIFFEL, "--layer", -1), ("--layer -1", "0 or more")),
    (("edit", *EIFFEL, "--layers", 0, -2), ("--layers -2",)),
    (("edit", *EIFFEL, "--layers", "1,1"), ("--layers 1 1", "twice")),
    (("edit", *EIFFEL, "--max-tokens", 0), ("--max-tokens 0",)),
    (("edit", *EIFFEL, "--texts", "no.txt"), ("--texts no.txt", "wikipedia, pile")),
    (("edit", *EIFFEL, "--moments", "no.npz"), ("--moments no.npz", "no such file")),
    (("edit", *EIFFEL, "--moments", "file.txt"), ("--moments file.txt", "of another kind")),
    (("edit", *EIFFEL, "--moments", "file.txt/new"), ("--moments file.txt/new", "is a file")),
    (("edit", *EIFFEL, "--relation", "place of birth"), ("'place of birth'", "expected one that it has: location;")),
    (("edit", *EIFFEL, "--model", "gpt2"), ("--target-new missing", "--model gpt2 has no bundled facts")),
    (
        ("edit", *EIFFEL, "--relation", "location", "--target-new", "Rome", "--model", "gpt2"),
        ("--relation 'location' has no {}", "bundled model alone"),
    ),
    (("sweep", *RECORDS, "--batch", 0), ("--batch 0",)),
    (("sweep", *RECORDS, "--folder", "file.txt/x"), ("--folder file.txt/x", "is a file")),
    (("sweep", *RECORDS, "--methods", "none,role"), ("no method 'role'",)),
    (("reproduce", "memit-scaling", "--n", "1,0"), ("--n 0",)),
    (("reproduce", "memit-scaling", "--averaged", 0), ("--averaged 0",)),
    (("--model", ""), ("--model is empty",)),
    (("--layer", "-1"), ("--layer -1",)),
]


@pytest.mark.usefixtures("no_model", "places")
@pytest.mark.parametrize(("arguments", "words"), EARLY)
def test_mistakes_are_told_before_a_model_is_loaded(run, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out) == (2, ""), err
    for word in words:
        assert word in err.replace("\n", " ")


@pytest.mark.usefixtures("no_model", "places")
def test_places_that_cannot_be_written(run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    for ask in (("--out", "scores.safetensors"), ("--out", "file.txt")):
        assert "cannot be written" in run("evaluate", *RECORDS, *ask)[2]
    assert "--folder empty: " in run("sweep", *RECORDS, "--folder", "empty")[2]


def test_a_folder_beside_a_model_of_that_name(monkeypatch, tmp_path):
    """Results may be in a folder ``gpt2``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    models.check_model("gpt2")
    monkeypatch.setattr(models, "_by_name", lambda *_: {}["gpt2"])
    with pytest.raises(ValueError, match="the folder of that name has no config.json"):
        models.load_model("gpt2")


# --- what the parser says ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "usage", "words"),
    [
        (("evaluate", "--limits", "3"), "evaluate", "did you mean --limit?"),
        (("edit", *EIFFEL, "--target=Rome"), "edit", "did you mean --target-"),
        (("sweep", "--xyzzy"), "sweep", "not known here: --xyzzy"),
        (("reproduce", "memit-scaling", "--sample", "3"), "reproduce memit-scaling", "not known here: --sample 3"),
        (("reproduce", "--controls", "rome-counterfact"), "reproduce", "--controls stands behind rome-counterfact"),
        (("edit", "--layers", "0,x"), "edit", "'0,x' is no whole number"),
        (("--target-now", "Rome"), "", "did you mean --target-new?"),
        (("--json", "trace"), "", "the command trace comes first"),
        (("trase",), "", "did you mean trace?"),
    ],
)
def test_the_command_that_was_called_complains(run, capsys, arguments, usage, words):
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    program = f"python -m tl_edit {usage}".strip()
    assert err.startswith(f"usage: {program} [")
    assert words in err
    assert err.endswith(f"all options: {program} --help\n")


def test_commas_do_as_well_as_spaces():
    for ask in (["none,rome"], ["none", "rome"], ["none,", "rome"]):
        assert command_parser().parse_args(["sweep", "--methods", *ask]).methods == ["none", "rome"]
    assert command_parser().parse_args(["sweep", "--layers", "0,1", "2"]).layers == [0, 1, 2]
    assert command_parser().parse_args(["reproduce", "memit-scaling", "--n", "1,10"]).n == [1, 10]


def everywhere(parser: argparse.ArgumentParser):
    yield parser
    for below in parsing.commands_of(parser).values():
        yield from everywhere(below)


def test_every_path_may_begin_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    found = 0
    for parser in everywhere(command_parser()):
        for action in parser._actions:
            named = set(action.option_strings) & {
                "--model", "--moments", "--texts", "--records", "--snippets", "--perplexity", "--tfidf", "--out",
                "--folder", "--facts", "--edit", "--html",
            }  # fmt: skip
            if named:
                found += 1
                assert str(action.type("~/x")) == str(Path("/home/me/x")), (parser.prog, named)
    assert found > 30


def test_every_help_ends_with_the_exit_codes(capsys):
    for arguments in (["--help"], ["sweep", "--help"], ["reproduce", "trace-averages", "--help"]):
        with pytest.raises(SystemExit):
            tl_edit.command.main(arguments)
        assert "130, stopped with Ctrl-C" in " ".join(capsys.readouterr().out.split())


# --- in options' names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("read_records: there is no file 'x'", "--records: there is no file 'x'"),
        ("--texts x.txt: read_texts: x.txt is empty", "--texts x.txt: x.txt is empty"),
        ("pass layer=, e.g. layer=4.", "pass --layer, e.g. --layer 4."),
        (
            "load it as it was, compute the edit on this one, or pass allow_mismatch=True if this is meant.",
            "load it as it was, or compute it here.",
        ),
        ("pass e.g. layers=[0, 1]; or layers=[3]", "pass e.g. --layers 0 1; or --layers 3"),
        ("use variant='r-ROME', or prepend_bos=True", "use the method r-rome, or --prepend-bos"),
        ("pass prepend_bos=False, or n_tokens=64", "pass --no-prepend-bos, or --generate 64"),
        ("out of memory; pass batch_size=64.", "out of memory; pass --batch-size 64."),
        ("a larger max_tokens, and no folder; pass folder=.", "a larger --max-tokens, and no folder; pass --folder."),
        ("it; read it with read_known_facts, for trace_facts.", "it; give it to --facts of the command trace."),
        ("solve with a ridge, e.g. moment.with_ridge(1e-3).", "solve with a ridge, e.g. --ridge 1e-3."),
        (
            "unknown; rename or leave out with columns={'a': 'b', 'c': None}.",
            "unknown; rename them in the file, or leave them out there.",
        ),
        ("SecondMoments.load: x holds no files", "--moments: x holds no files"),
        ("no edit can change layer 3, which has player=5", "no edit can change layer 3, which has player=5"),
    ],
)
def test_advice_in_options(message, expected):
    assert as_options(message) == expected


def test_errors_and_warnings_of_the_library_are_told_in_options(run, monkeypatch):
    def refuse(*_, **__):
        warnings.warn("evaluate: pass prepend_bos=True", stacklevel=1)
        raise ValueError("evaluate: pass batch_size=2, not [bold]")

    monkeypatch.setattr(evaluate_command, "evaluate_records", refuse)
    code, _, err = run("evaluate", *RECORDS)
    assert code == 2
    assert err.splitlines()[-2:] == [
        "tl_edit: warning: evaluate: pass --prepend-bos",
        "tl_edit: evaluate: pass --batch-size 2, not [bold]",
    ]


# --- below tables --------------------------------------------------------------------------------------


def test_one_record_is_one(run):
    for ask in (("evaluate",), ("sweep", "--methods", "none")):
        assert run(*ask, *RECORDS, "--quiet")[1].startswith("1 record (bundled)")


def test_tables_say_what_they_show(run):
    _, out, _ = run("sweep", "--methods", "none", "--limit", 2, "--quiet")
    lines = out.splitlines()
    heads = next(line.split() for line in lines if line.split()[:1] == ["none"])
    assert heads == ["none", "n"]
    assert next(line.split()[-1] for line in lines if line.startswith("ES ")) == "2"
    said = " ".join(out.split())
    assert "ES efficacy success; EM efficacy magnitude" in said
    assert "± is one standard error over the n records" in said


def test_the_papers_tables_say_what_they_show(run):
    ask = ("sweep", "--methods", "none", "--limit", 2, "--quiet")
    _, out, _ = run(*ask, "--markdown")
    table, _, below = out.partition("\n\n")
    assert len(table.splitlines()) == 3
    assert below.startswith(f"2 records. {HALF_WIDTHS}\nS score; ES efficacy success; EM")
    _, out, _ = run(*ask, "--latex")
    table, _, below = out.partition(r"\end{tabular}")
    assert [line[:2] for line in below.strip().splitlines()] == ["% ", "% "]
    assert "ES efficacy success" in below
    assert "%" not in below.replace("\n% ", "").replace("95% interval", "").replace("2 records", "")


def test_the_legend_names_every_metric():
    for key, measure in MEASURES.items():
        assert legend([key]).startswith(f"{key} {measure.name}. ")


def test_what_a_trace_was_made_with_is_in_its_json(plain):
    ask = ("--samples", 2, "--noise", 2.5, "--seed", 7)
    for which in (EIFFEL, ("--facts", "bundled", "--limit", 1)):
        found = plain("trace", *which, *ask)
        assert (found["samples"], found["noise"], found["seed"]) == (2, 2.5, 7)


def test_generate_without_a_number_takes_what_fits(run):
    code, out, err = run("evaluate", *RECORDS, "--generate", "--json")
    assert code == 0
    assert '"generate": 64' in out
    assert "has a context of 64; published texts have 100" in err


# --- nothing to write to ---------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_is_told_in_a_line(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code = tl_edit.command.main(["--list-facts", *EIFFEL])
    assert code == 2
    assert capsys.readouterr().err.splitlines() == ["tl_edit: [Errno 28] No space left on device"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other pipes")
def test_a_closed_pipe_is_told_in_a_line(capsys, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        code = tl_edit.command.main(["trace", *EIFFEL, "--samples", "1", "--quiet", "--json"])
    assert code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "tl_edit: standard output was closed early"
