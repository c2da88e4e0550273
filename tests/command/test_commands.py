"""Each command on the bundled model, and the examples that their help shows."""

import argparse
import json
import math
import shlex
import warnings
from pathlib import Path

import pytest
import torch

from tl_edit import CausalTrace, Edit, Evaluation, causal_trace, evaluate, rome
from tl_edit.command import COMMANDS, command_parser, inputs
from tl_edit.command import evaluate as evaluate_command
from tl_edit.command.bundled import bundled_records
from tl_edit.command.report import as_plain, decimals
from tl_edit.evaluate import Generation
from tl_edit.factworld import MODEL_NAME

pytestmark = pytest.mark.usefixtures("few_steps")

ROME = ("edit", "--subject", "Eiffel Tower", "--target-new", "Rome")


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """All commands by name, and a command's tables."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, each in action.choices.items():
                found |= {name: each, **parsers(each)}
    return found


ALL = parsers(command_parser())


def shown(parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Command lines below a help: those that work as they are, and those for a user's own data."""
    here, _, elsewhere = (parser.epilog or "").partition("with weights")
    return tuple([line.strip() for line in part.splitlines() if "-m tl_edit " in line] for part in (here, elsewhere))


EXAMPLES = [line for parser in ALL.values() for line in shown(parser)[0]]


def test_every_command_has_examples():
    assert set(ALL) == {*COMMANDS, "rome-counterfact", "trace-averages", "memit-scaling"}
    for name, parser in ALL.items():
        here, elsewhere = shown(parser)
        assert here, name
        assert elsewhere, name
        assert all(line.split()[3 : 4 + (name not in COMMANDS)][-1] == name for line in here)


@pytest.mark.parametrize("line", dict.fromkeys(EXAMPLES))
def test_examples_run(line, run, quick):
    command = shlex.split(line)
    assert command[:3] == ["python", "-m", "tl_edit"]
    code, out, err = run(*command[3:], "--quiet")
    assert code == 0, err
    assert len(out) > 200


@pytest.mark.parametrize("line", [line for parser in ALL.values() for line in shown(parser)[1]])
def test_examples_elsewhere_are_spelled_right(line):
    command_parser().parse_args(shlex.split(line.partition("-m tl_edit ")[2]))


@pytest.mark.parametrize("name", [("trace",), ("sweep",), ("reproduce",), ("reproduce", "rome-counterfact")])
def test_help_shows_its_example(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_parser().parse_args([*name, "--help"])
    assert stopped.value.code == 0
    assert f"  python -m tl_edit {' '.join(name)} " in capsys.readouterr().out


def test_no_command_of_that_name(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("trase", "--subject", "Eiffel Tower")
    assert stopped.value.code == 2
    assert "no command 'trase'; expected one of trace, edit" in capsys.readouterr().err


# --- trace ---------------------------------------------------------------------------------------------


def test_a_trace_is_that_of_the_library(plain, fact_model):
    found = plain("trace", "--subject", "eiffel tower", "--samples", 2, "--out", "eiffel.safetensors")
    assert found["command"] == "trace"
    assert (found["subject"], found["answer"]) == ("Eiffel Tower", " Paris")
    trace = causal_trace(fact_model, found["prompt"], "Eiffel Tower", n_samples=2, seed=1)
    assert found["total_effect"] == trace.total_effect
    for kind in trace.kinds:
        effect = trace.of(kind)
        told = found["effects"][kind]
        assert told["at_subject_last"] == effect[:, trace.subject_last].tolist()
        assert told["peak"]["effect"] == float(effect.max())
        peak = told["peak"]
        assert effect[peak["layer"], peak["position"]] == effect.max()
        assert trace.str_tokens[peak["position"]] == peak["token"]
    torch.testing.assert_close(CausalTrace.load("eiffel.safetensors").restored, trace.restored)


def test_a_trace_is_a_page(run, plain):
    found = plain("trace", "--subject", "Eiffel Tower", "--samples", 1, "--html", "eiffel.html")
    assert found["html"] == "eiffel.html"
    page = Path("eiffel.html").read_text("utf-8")
    for words in ("The Eiffel Tower", "→ Paris</title>", "restoring the MLP output", "TextNeuronActivations"):
        assert words in page
    code, out, err = run("trace", "--facts", "bundled", "--limit", 2, "--samples", 1, "--html", "many.html", "--quiet")
    assert code == 0, err
    assert "As a page: many.html" in out
    page = Path("many.html").read_text("utf-8")
    assert "<title>Causal traces of 2 facts</title>" in page
    assert "last subject token (n = 2)" in page


def test_an_edit_is_a_page_before_and_after(run, plain, moments):
    found = plain(*ROME, "--moments", moments, "--html", "rome.html")
    assert found["html"] == "rome.html"
    page = Path("rome.html").read_text("utf-8")
    for words in ("→ Rome (was Paris)</title>", "target_prob", "paraphrase success", "should say", "TokenLogProbs"):
        assert words in page, words
    for label in ("the prompt", "paraphrase", "neighbor"):
        assert f">{label}</th>" in page
    many = ("edit", "--records", "bundled", "--limit", 2, "--method", "memit", "--moments", moments, "--quiet")
    code, out, err = run(*many, "--html", "two.html")
    assert code == 0, err
    assert "As a page: two.html" in out
    page = Path("two.html").read_text("utf-8")
    assert "<title>MEMIT: 2 edits</title>" in page
    assert "paraphrase success" in page
    assert "should say" not in page


@pytest.mark.parametrize("command", [("trace", "--subject", "Eiffel Tower"), ROME], ids=lambda command: command[0])
def test_a_page_that_cannot_be_written_is_told_before_anything_runs(command, run, monkeypatch):
    monkeypatch.setattr(inputs, "model_of", lambda *_: pytest.fail("a model was loaded"))
    code, out, err = run(*command, "--html", "not there/x.html")
    assert (code, out) == (2, "")
    assert "--html not there/x.html: it would be in not there, which is not there" in err


def test_average_traces_go_on_in_their_folder(plain):
    ask = ("trace", "--facts", "bundled", "--limit", 2, "--samples", 2, "--folder", "traces")
    first = plain(*ask)
    assert first["n_facts"] == 2
    assert first["count"]["last subject token"] == 2
    assert first["effects"]["mlp_out"]["last subject token"]["effect"][0] > 0.2
    assert plain(*ask) == first


# --- edit and evaluate ---------------------------------------------------------------------------------


def test_an_edit_goes_to_a_file_and_is_evaluated_from_there(plain, moments, fact_model):
    found = plain(*ROME, "--moments", moments, "--out", "rome.safetensors")
    assert found["before"]["answers"][0]["token"] == " Paris"
    assert found["after"]["answers"][0]["token"] == " Rome"
    assert found["took"] == 1
    assert found["norms"].keys() == {"0"}
    assert 0.5 < found["diagnostics"]["target_prob"] <= 1
    # Nothing to resample: an interval of one record is null.
    assert found["after"]["metrics"]["S"] == {"mean": 1.0, "standard_error": None, "low": None, "high": None, "n": 1}

    edited = plain("evaluate", "--limit", 2, "--edit", "rome.safetensors", "--kl", "--distracted")
    edit = Edit.load("rome.safetensors")
    expected = evaluate(fact_model, bundled_records(2, 0), edit=edit, kl=True, distracted=True).metrics()
    assert edited["metrics"].keys() == expected.keys() >= {"NS+", "KL", "KL+"}
    for key, metric in expected.items():
        assert edited["metrics"][key]["mean"] == pytest.approx(metric.mean, abs=1e-9)
        assert edited["metrics"][key]["n"] == metric.n


def test_an_edit_that_does_not_take_is_code_1(run, moments, monkeypatch):
    monkeypatch.setitem(rome._PUBLISHED, MODEL_NAME, {"layer": 0, "v_num_grad_steps": 1, "n_prefixes": 0})
    code, out, err = run(*ROME, "--moments", moments, "--quiet")
    assert code == 1, out + err
    assert "The edit did not take: expected the new object to be likelier" in out
    assert "says now" in out


def test_many_edits_at_once(plain, moments):
    found = plain("edit", "--records", "bundled", "--limit", 2, "--method", "memit", "--moments", moments)
    assert (found["n"], found["took"]) == (2, 1)
    assert found["settings"]["layers"] == [0, 1]
    assert found["norms"].keys() == {"0", "1"}


def test_an_object_of_ones_own(plain, moments):
    found = plain(
        "edit", "--subject", "Steve Jobs", "--relation", "{} works for", "--target-new", "Microsoft", "--target-true",
        "Apple", "--moments", moments,
    )  # fmt: skip
    assert found["after"]["metrics"]["ES"]["mean"] == 1


def test_perplexity_and_files_of_records(plain, tmp_path, moments, run):
    (tmp_path / "texts.txt").write_text("The Louvre is located in Paris.\nRome is in Italy.\n", "utf-8")
    plain(*ROME, "--moments", moments, "--out", "rome.safetensors")
    record = {
        "prompt": "The British Museum is located in",
        "subject": "British Museum",
        "target_new": "Rome",
        "target_true": "London",
    }
    (tmp_path / "mine.jsonl").write_text(json.dumps(record), "utf-8")
    ask = ("evaluate", "--records", "mine.jsonl", "--edit", "rome.safetensors", "--perplexity", "texts.txt")
    found = plain(*ask, "--out", "scores.safetensors")
    assert found["records"] == {"source": "mine.jsonl", "n": 1}
    assert 0.9 < found["metrics"]["PPL"]["mean"] < 1.2
    assert found["metrics"]["ES"]["mean"] == 0
    assert Evaluation.load("scores.safetensors").metrics()["ES"].mean == 0
    code, out, _ = run(*ask)
    assert code == 0
    assert "perplexity, edited over unedited" in out


def test_generated_texts(plain, fact_model):
    found = plain("evaluate", "--limit", 1, "--generate", 20, "--seed", 3)["metrics"]["GE"]
    expected = evaluate(fact_model, bundled_records(1, 3), generate=Generation(n_tokens=20, seed=3)).metrics()["GE"]
    assert found["mean"] == pytest.approx(expected.mean)
    swept = plain("sweep", "--methods", "none", "--limit", 1, "--generate", 20, "--seed", 3)
    assert swept["methods"]["none"]["metrics"]["GE"]["mean"] == found["mean"]


# --- sweep ---------------------------------------------------------------------------------------------


def test_a_sweep_compares_methods(plain, moments, run):
    ask = ("sweep", "--methods", "none", "rome", "random", "--limit", 2, "--folder", "sweep", "--moments", moments)
    found = plain(*ask)
    methods = found["methods"]
    assert methods["none"]["metrics"]["ES"]["mean"] == methods["random"]["metrics"]["ES"]["mean"] == 0
    assert methods["rome"]["metrics"]["ES"]["mean"] == 1
    assert methods["rome"]["settings"]["layer"] == 0
    assert methods["none"]["settings"] is None
    test = found["tests"]["ES"]
    # Of two records, four ways to swap: the observed one and its opposite are as extreme. Two tests: twice that.
    assert test["rome"] == {
        "difference": 1.0, "standard_error": 0.0, "low": 1.0, "high": 1.0, "p_value": 1.0, "n": 2,
    }  # fmt: skip
    assert test["against"] == "none"
    code, out, _ = run(*ask, "--markdown", "--quiet")
    assert code == 0
    assert out.startswith("| method | S ↑ |")
    assert [line.split(" |")[0] for line in out.splitlines()[2:5]] == ["| none", "| rome", "| random"]
    code, out, _ = run(*ask, "--latex", "--quiet")
    assert out.startswith(r"\begin{tabular}")


def test_a_record_that_fails_is_named(plain, run, tmp_path, moments):
    good = {"relation": "The {} is located in", "subject": "Louvre", "target_new": "Rome", "target_true": "Paris"}
    clash = good | {"target_new": "London"}
    (tmp_path / "mine.json").write_text(json.dumps([good, clash, good | {"subject": "Eiffel Tower"}]), "utf-8")
    ask = ("sweep", "--records", "mine.json", "--methods", "none", "memit", "--batch", 2, "--moments", moments)
    found = plain(*ask)
    assert found["methods"]["memit"]["failed"] == 2
    assert [each["method"] for each in found["failures"]] == ["memit", "memit"]
    assert "more than once" in found["failures"][0]["why"]
    assert found["methods"]["none"]["metrics"]["ES"]["n"] == 1, "methods are compared where all of them worked"
    code, out, _ = run(*ask)
    assert code == 0
    assert "2 records failed and are left out" in out


# --- what is printed -----------------------------------------------------------------------------------


def test_plain_values():
    given = {
        1: float("nan"),
        "b": (math.inf, 2.5),
        "c": torch.tensor([1.0, math.nan]),
        "d": {"e": {3}},
        "f": None,
        "g": True,
    }
    expected = {"1": None, "b": [None, 2.5], "c": [1.0, None], "d": {"e": [3]}, "f": None, "g": True}
    assert as_plain(given) == expected


def test_no_sign_before_a_zero():
    assert [decimals(value, 1) for value in (-0.04, 0.04, -0.06, 3.14)] == ["0.0", "0.0", "-0.1", "3.1"]


def chatty(*arguments, **keywords):
    print("loaded")  # noqa: T201
    for number in range(5):
        warnings.warn(f"mind this one, {number}", stacklevel=2)
    return evaluate(*arguments, **keywords)


def test_json_is_all_there_is_on_standard_output(run, monkeypatch):
    """Bars and what libraries print go elsewhere."""
    monkeypatch.setattr(evaluate_command, "evaluate_records", chatty)
    code, out, err = run("evaluate", "--limit", 1, "--json")
    assert code == 0
    assert json.loads(out)["command"] == "evaluate"
    assert "loaded" in err
    assert err.count("tl_edit: warning: mind this one, ") == 3
    assert "tl_edit: 2 more warnings like 'mind this one,' ..." in err


def test_tables_fit_a_narrow_terminal(run, moments, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for ask in (ROME, ("sweep", "--limit", 2, "--methods", "none", "rome")):
        code, out, _ = run(*ask, "--moments", moments, "--quiet")
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80
        assert "…" not in out.replace(" …", ""), "nothing is cut off"


def test_bundled_records_grow_by_their_limit():
    few, more = bundled_records(3, 0), bundled_records(5, 0)
    assert more[:3] == few
    assert len({record.request.subject for record in more}) == 5
    assert bundled_records(3, 1) != few
