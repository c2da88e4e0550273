"""``python -m tl_edit`` as a person runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from rich.console import Console

import tl_edit
from tl_edit.__main__ import main
from tl_edit.story import Story


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str):
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_whole_story_by_default(run):
    code, out, err = run()
    assert code == 0, err
    for words in ("The Eiffel Tower", "Paris", "Rome", "causal tracing", "bit-identical", "efficacy"):
        assert words in out
    before, now = (line.split()[-1] for line in out.splitlines() if "sha256" in line)
    assert before == now


def test_the_story_as_a_page(run, tmp_path):
    path = tmp_path / "story.html"
    code, out, err = run("--html", str(path))
    assert code == 0, err
    assert str(path) in out
    page = path.read_text("utf-8")
    for words in (
        "Eiffel Tower: Rome instead of Paris",
        "restoring the block output",
        "paraphrase success",
        "Logit lens",
        "AttentionHeads",
        "TokenLogProbs",
        "logit difference",
        "What it answers to",
        "bit-identical",
    ):
        assert words in page, words
    assert not re.search(r"(src|href|url)\s*[=(]\s*.?https?:", page.split("</script>", 1)[1]), "nothing is fetched"


def test_the_page_of_an_edit_that_failed_says_so(run, tmp_path):
    path = tmp_path / "story.html"
    with pytest.warns(UserWarning, match="no value was found"):
        code, _, _ = run("--subject", "Miles Davis", "--target-new", "zzq xxv", "--html", str(path))
    assert code == 1
    assert "This edit failed: zzq xxv is still not the likelier answer" in path.read_text("utf-8")


def test_objects_that_begin_alike_leave_pictures_out_and_no_page(run, tmp_path):
    path = tmp_path / "story.html"
    code, out, err = run("--target-new", "Parisian", "--html", str(path))
    assert (code, err) == (1, "")
    assert "bit-identical" in out
    page = path.read_text("utf-8")
    assert page.count("begin with the same token") == 2
    for words in ("Left out. logit_lens: ", "Left out. edit_circuit: ", "AttentionHeads", "What it answers to"):
        assert words in page, words


def test_a_page_that_cannot_be_written_is_told_before_anything_runs(run, tmp_path):
    code, out, err = run("--html", str(tmp_path / "not there" / "story.html"))
    assert (code, out) == (2, "")
    assert "--html" in err


def test_another_subject_by_name(run):
    code, out, _ = run("--subject", "miles davis", "--target-new", "opera")
    assert code == 0
    assert "Miles Davis" in out
    assert "jazz" in out


def test_a_relation_by_name_and_a_layer(run):
    code, out, _ = run("--subject", "Steve Jobs", "--relation", "employer", "--target-new", "Microsoft", "--layer", "1")
    assert code in (0, 1), "an edit at another layer need not take, but nothing breaks"
    assert "W_out in layer 1" in out
    assert "bit-identical" in out


def test_a_template_of_ones_own(run):
    code, out, _ = run("--subject", "Steve Jobs", "--relation", "{} works for", "--target-new", "Microsoft")
    assert code in (0, 1)
    assert "bit-identical" in out


def test_an_answer_that_is_no_object_does_not_make_an_edit_succeed(run):
    """The model goes on with the rest of a word; with a space before, that is a token which nobody says."""
    code, out, _ = run("--subject", "Babcoc", "--relation", "The {}", "--target-new", "nitrogen", "--layer", "5")
    assert "nitrogen instead of ?" in out
    assert code == 1


def test_list_facts(run):
    code, out, _ = run("--list-facts")
    assert code == 0
    assert len(out.splitlines()) > 2000
    code, out, _ = run("--list-facts", "--subject", "Eiffel Tower")
    assert code == 0
    assert "The Eiffel Tower" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--subject", "Atlantis"), ("no bundled fact", "Atlantis", "--list-facts")),
        (("--subject", "Eiffel Tower", "--relation", "colour of hair"), ("colour of hair", "place of birth")),
        (("--subject", "Eiffel Tower", "--relation", "{} and {}", "--target-new", "Rome"), ("2 placeholders",)),
        (("--subject", "Eiffel Tower", "--target-new", "Paris"), ("both 'Paris'",)),
        (("--layer", "9"), ("layer 9", "layers 0 to 5")),
        (("--model", "no-such-model-anywhere"), ("--subject", "--relation", "missing")),
        (
            ("--model", "no-such-model-anywhere", "--subject", "A", "--relation", "{} is", "--target-new", "B"),
            ("no-such-model-anywhere", "could not load", "leave --model out"),
        ),
        (("--subject", "Eiffel Tower", "--relation", ""), ("--relation is empty", "{} is in the city of")),
        (("--list-facts", "--relation", " "), ("--relation is empty", "leave it out")),
        (("--texts", "no/such/file.txt"), ("no/such/file.txt", "UTF-8 text file")),
        (("--list-facts", "--subject", "Atlantis"), ("no bundled fact",)),
        (("--list-facts", "--subject", "Eiffel Tower", "--relation", "P19"), ("--relation 'P19'", "leave one")),
        (("--relation", "the {} is"), ("--subject is missing", "--subject 'Eiffel Tower'")),
    ],
)
def test_bad_input_is_code_2_with_advice(run, arguments, words):
    code, _, err = run(*arguments)
    assert code == 2
    for word in words:
        assert word in err.replace("\n", " ")


def test_too_few_texts_are_found_out_before_the_trace(run, tmp_path):
    (tmp_path / "few.txt").write_text("a b c", "utf-8")
    code, out, err = run("--texts", str(tmp_path / "few.txt"))
    assert code == 2
    assert "singular" in err
    assert "causal tracing" not in out


def test_a_model_without_published_settings_needs_a_layer():
    model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match=r"--layer is missing.*expected 0 to 2; pass e.g. --layer 1"):
        Story(model, Console(), texts=["Rome."])


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_is_not_utf_8_will_do(encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(tl_edit.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-m", "tl_edit"], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"bit-identical" in done.stdout


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "python -m tl_edit --subject" in capsys.readouterr().out.replace("\n", " ")
