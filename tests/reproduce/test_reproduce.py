"""Ours beside the published numbers: the arithmetic by hand, and the tables on the bundled model."""

import json
import math

import pytest
import torch

from tl_edit import KnownFact, SecondMoments, embedding_std, evaluate, rome, second_moment, trace_facts
from tl_edit.command.bundled import bundled_facts, bundled_records
from tl_edit.data import KnownFacts, Records
from tl_edit.evaluate import Metric
from tl_edit.factworld import MODEL_NAME, fact_texts
from tl_edit.memit import settings
from tl_edit.reproduce import PUBLISHED, Cell, Row, memit_scaling, published_row, rome_counterfact, trace_averages
from tl_edit.reproduce.compared import cell_of, cells_of, missing_note
from tl_edit.reproduce.published import TRACED_MEANS, TRACED_PEAKS
from tl_edit.sweep.runner import Runner


@pytest.fixture(scope="module")
def moments(fact_model):
    return second_moment(fact_model, fact_texts()[:3000], [0, 1], progress=False)


@pytest.fixture
def measure(moments):
    return lambda layers: SecondMoments(moments[layer] for layer in layers)


@pytest.fixture
def few_steps(monkeypatch):
    """Short searches; the numbers do not matter here."""
    for table, steps in ((rome._PUBLISHED, 8), (settings._MEMIT, 20)):
        short = {"v_num_grad_steps": steps, "v_lr": 0.5, "n_prefixes": 0}
        monkeypatch.setitem(table, MODEL_NAME, table[MODEL_NAME] | short)


# --- the published numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.model} {row.editor} {row.data} {row.n_edits}")
def test_published_scores_are_the_harmonic_means_of_their_parts(row):
    """A slip in copying would show here."""
    parts = [row.values[key] for key in (("ES", "PS", "NS") if row.data == "CounterFact" else ("ET", "PT", "UT"))]
    score = row.values.get("S", row.values.get("TS"))
    assert all(0 < part <= 100 for part in parts)
    if score is not None:
        assert 3 / sum(1 / part for part in parts) == pytest.approx(score, abs=0.11)
    assert row.source.count("arXiv") == 1


def test_rows_are_found_by_model_editor_data_and_number():
    xl = published_row("openai-community/gpt2-xl", "rome", data="CounterFact", n_edits=1)
    assert (xl.values["S"], xl.n_records) == (89.2, 7500)
    assert published_row("EleutherAI/gpt-j-6B", "rome", data="CounterFact", n_edits=1).n_records == 2000
    assert published_row("gpt-j-6B", "memit", data="CounterFact", n_edits=10_000).values["S"] == 85.8
    assert published_row("gpt-j-6B", "memit", data="CounterFact", n_edits=1000) is None
    assert published_row("gpt2", "rome", data="CounterFact", n_edits=1) is None
    assert TRACED_MEANS["clean probability"].value - TRACED_MEANS["corrupted probability"].value == pytest.approx(
        TRACED_MEANS["total effect"].value, abs=0.1
    )


# --- the comparison ------------------------------------------------------------------------------------


def test_tolerance_by_hand():
    given = {"ours": 70.0, "standard_error": 2.0, "interval": (66.0, 74.0), "n": 100, "n_published": 400}
    # The paper's standard error is 2 * sqrt(100 / 400) = 1.
    tolerance = 1.96 * math.sqrt(2**2 + 1**2) + 0.05
    assert Cell(**given, published=74.4).tolerance == pytest.approx(tolerance)
    assert Cell(**given, published=70 + tolerance - 1e-6).within is True
    assert Cell(**given, published=70 - tolerance - 1e-6).within is False
    assert Cell(**given).within is None
    assert Cell(**{**given, "standard_error": math.nan}, published=70.0).within is None


def test_a_sample_in_which_all_are_alike_is_not_sure():
    ones = Metric.over([1.0] * 20)
    cell = cell_of("ES", ones, 99.9, 7500)
    error = 100 * math.sqrt(0.999 * 0.001 / 20)
    assert cell.standard_error == pytest.approx(error)
    assert (cell.ours, cell.within) == (100.0, True)
    assert cell_of("ES", ones, 60.0, 7500).within is False
    assert cell_of("ES", ones, 100.0, 7500).within is True
    assert cell_of("GE", ones, 625.0, 7500).standard_error == 0, "no rate"
    assert cell_of("ES", ones, None, None).within is None


def test_cells_are_in_the_units_of_the_tables():
    half = Metric.over([0.0, 1.0, 1.0, 0.0])
    metrics = {"ES": half, "GE": Metric.over([6.2, 6.4]), "KL": half}
    published = published_row("gpt2-xl", "rome", data="CounterFact", n_edits=1)
    cells = cells_of(metrics, published)
    assert list(cells) == ["ES", "GE"], "the papers' columns only"
    assert (cells["ES"].ours, cells["ES"].n, cells["ES"].published) == (50.0, 4, 100.0)
    assert cells["ES"].standard_error == pytest.approx(100 * math.sqrt(1 / 12))
    assert (cells["GE"].ours, cells["GE"].published) == (pytest.approx(630.0), 621.9)
    assert list(cells_of({"ET": half, "TS": half}, None)) == ["TS", "ET"]


# --- tables on the bundled model -----------------------------------------------------------------------


@pytest.mark.usefixtures("few_steps")
def test_single_edits(fact_model, measure, tmp_path, monkeypatch):
    records = bundled_records(2, 0)
    found = rome_counterfact(fact_model, records, measure, controls=True, folder=tmp_path / "rome", progress=False)
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["no edit", "ROME", "ROME, C = I", "random direction"]
    before = evaluate(fact_model, records).metrics()
    assert rows["no edit"].cells["NM"].ours == pytest.approx(100 * before["NM"].mean)
    assert rows["ROME"].cells["ES"].ours == 100
    assert all(cell.published is None and cell.within is None for row in found.rows for cell in row.cells.values())
    assert any("Nothing is published for tl-edit-fact-model" in note for note in found.notes)
    # What is there is not done again, but for one record with each method.
    done = []
    batch = Runner._batch
    monkeypatch.setattr(Runner, "_batch", lambda self, *given: done.append(given) or batch(self, *given))
    again = rome_counterfact(fact_model, records, measure, controls=True, folder=tmp_path / "rome", progress=False)
    assert again.rows == found.rows
    assert [names for _, names in done] == [["none"], ["rome"], ["rome-identity"], ["random"]]


@pytest.mark.usefixtures("few_steps")
def test_a_model_of_the_papers_is_compared(fact_model, monkeypatch):
    monkeypatch.setattr(fact_model.cfg, "model_name", "gpt2-medium")
    short = {"v_num_grad_steps": 8, "v_lr": 0.5, "n_prefixes": 0}
    monkeypatch.setitem(rome._PUBLISHED, "gpt2-medium", short)

    records = Records(bundled_records(3, 0), schema="CounterFact")

    def identity(layers):
        return SecondMoments.identity(fact_model, layers)

    found = rome_counterfact(fact_model, records, identity, layer=0, progress=False)
    alone = rome_counterfact(fact_model, tuple(records), identity, layer=0, progress=False)
    assert not any(row.source for row in alone.rows), "other facts"
    before, edited = found.rows
    assert before.cells["ES"].published == 25.0
    assert before.cells["NS"].within is True, "of three records all is possible"
    assert before.cells["PM"].within is False, "-99.9 and all alike"
    assert edited.cells["S"].published == 87.4
    assert "2202.05262" in edited.source
    assert any("GE and RS are published, too" in note for note in found.notes)


@pytest.mark.usefixtures("few_steps")
def test_many_edits(fact_model, measure, tmp_path):
    records = bundled_records(5, 0)
    found = memit_scaling(
        fact_model, records, measure, sizes=[1, 2], averaged=4, folder=tmp_path / "memit", progress=False
    )
    assert [(row.name, row.n_edits, row.cells["ES"].n) for row in found.rows] == [
        ("no edit", None, 4),
        ("MEMIT", 1, 4),
        ("MEMIT", 2, 4),
    ]
    assert found.rows[1].cells["ES"].ours == 100
    assert any("Means over several batches: 1, 2 at once" in note for note in found.notes)
    assert sorted(path.name for path in (tmp_path / "memit").iterdir()) == ["memit", "memit-2", "none"]
    lines = (tmp_path / "memit" / "memit-2" / "results.0.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["scores"]) for line in lines] == [2, 2]


@pytest.mark.parametrize(("sizes", "averaged"), [([0, 1], 5), ([3], 5), ([], 5), ([1], 0)])
def test_sizes_that_cannot_be(fact_model, measure, sizes, averaged):
    with pytest.raises(ValueError, match=r"memit-scaling: .* and 2 records; expected numbers from 1 to 2"):
        memit_scaling(fact_model, bundled_records(2, 0), measure, sizes=sizes, averaged=averaged)


def test_averages_are_those_of_the_library(fact_model, monkeypatch):
    facts = (*bundled_facts(3, 1), KnownFact("The Eiffel Tower is located in", "Eiffel Tower", "Rome"))
    monkeypatch.setattr(fact_model.cfg, "model_name", "gpt2-xl")
    facts = KnownFacts(facts, schema="KnownFacts")
    found = trace_averages(fact_model, facts, n_facts=None, n_samples=2, progress=False)
    std = 3 * embedding_std(fact_model, [fact.subject for fact in facts])
    expected = trace_facts(fact_model, facts, noise_std=std, n_samples=2, progress=False)
    means, peaks = found.rows[:3], found.rows[3:]
    assert [row.cells["mean"].ours for row in means] == pytest.approx(
        [100 * expected.clean, 100 * expected.corrupted, 100 * expected.total_effect]
    )
    assert means[2].cells["mean"].tolerance is not None
    assert means[0].cells["mean"].within is None, "no standard error is known for it"
    for row, ((kind, role), published) in zip(peaks, TRACED_PEAKS.items(), strict=True):
        cell, effect = row.cells["effect"], expected.of(kind, role)
        assert cell.ours == pytest.approx(100 * float(effect.max()))
        assert cell.layer == int(torch.argmax(effect))
        assert (cell.published, cell.published_layer) == (published.value, published.layer)
    assert any("3 facts (1 left out" in note for note in found.notes)


def test_published_settings_are_without_a_bos(fact_model, measure, monkeypatch):
    """The command decides; see tl_edit/command/reproduce.py."""
    import argparse

    from tl_edit.command import reproduce

    monkeypatch.setattr(reproduce.inputs, "model_of", lambda given: fact_model)
    given = argparse.Namespace(prepend_bos=None)
    reproduce._model(given)
    assert given.prepend_bos is True, "the model's own habit"
    given.prepend_bos = None
    monkeypatch.setattr(fact_model.cfg, "model_name", "EleutherAI/gpt-j-6B")
    reproduce._model(given)
    assert given.prepend_bos is False
    given.prepend_bos = True
    reproduce._model(given)
    assert given.prepend_bos is True


def test_what_is_missing_is_said():
    assert "Nothing is published for gpt2" in missing_note("gpt2", [])
    cells = dict.fromkeys(("ES", "GE"), Cell(ours=1.0, standard_error=0.1, interval=(0.0, 2.0), n=3))
    rows = [Row(name="ROME", cells=cells, source="a paper")]
    assert missing_note("gpt2", rows) == "RS is published, too; it takes --tfidf and --snippets."
    assert missing_note("gpt2", [Row(name="ROME", cells=cells | {"RS": cells["GE"]}, source="a paper")]) is None
