"""Evaluations as tables, frames and files, and several side by side."""

import math
import re

import pytest
import tiny_models
from some_edits import make_edit
from test_what_moves import BY_HAND, RECORD, TEXTS

from tl_edit import Comparison, Evaluation, compare, evaluate
from tl_edit.evaluate import MEASURES
from tl_edit.evaluate.measures import plot_metrics


@pytest.fixture(scope="module")
def model():
    return tiny_models.build("gpt2")


@pytest.fixture(scope="module")
def both(model) -> Comparison:
    records = [RECORD, RECORD]
    edited = evaluate(model, records, edit=make_edit(model, scale=2.0), kl=True, distracted=True, texts=TEXTS)
    return compare({"none": evaluate(model, records), "a|b_c": edited})


def test_frames_by_metric_record_and_prompt(both):
    pytest.importorskip("pandas")
    evaluation = both.evaluations["a|b_c"]
    by_metric = evaluation.to_dataframe()
    assert set(by_metric["metric"]) == set(evaluation.metrics())
    row = by_metric.set_index("metric").loc["NM"]
    metric = evaluation.magnitude("neighborhood")
    assert (row["mean"], row["n"], row["standard_error"]) == (metric.mean, 2, metric.standard_error)
    assert (row["low"], row["high"]) == metric.interval()
    by_record = evaluation.to_dataframe("record")
    assert len(by_record) == 2
    assert by_record["NM"].mean() == pytest.approx(metric.mean)
    by_prompt = evaluation.to_dataframe("prompt")
    assert list(by_prompt["group"].unique()) == [
        *("efficacy", "paraphrase", "neighborhood", "attribute", "distracted", "unrelated_facts")
    ]
    assert len(by_prompt) == 2 * (1 + 1 + 2 + 1 + 2 + 2)
    assert {"prompt", "prob_new", "prob_true", "kl", "answer", "prob"} <= set(by_prompt.columns)
    with pytest.raises((ValueError, TypeError), match="by is 'fact'|Type-check"):
        evaluation.to_dataframe("fact")
    assert set(both.to_dataframe()["method"]) == {"none", "a|b_c"}


def test_markdown_has_the_papers_columns_and_half_the_interval(both):
    head, line, *rows = both.to_markdown().split("\n")
    assert re.findall(r"[A-Z]+\+?", head) == ["S", "ES", "EM", "PS", "PM", "NS", "NM"]
    assert line.count("---") == 8
    assert rows[0].startswith("| none | ")
    assert rows[1].startswith(r"| a\|b_c | ")
    metric = both.evaluations["none"].magnitude("neighborhood")
    assert f"{100 * metric.mean:.1f} ({196 * metric.standard_error:.1f})" in rows[0]


def test_chosen_columns_and_what_a_method_lacks(both):
    rows = both.to_markdown(["KL", "PPL"]).split("\n")[2:]
    assert rows[0] == "| none | – | – |"
    assert re.fullmatch(r"\| a\\\|b_c \| \d+\.\d{3} \(\d+\.\d{3}\) \| \d+\.\d{3} \(\d+\.\d{3}\) \|", rows[1])


def test_latex_is_in_the_papers_layout_and_escaped(both):
    text = both.to_latex()
    assert r"\begin{tabular}{lrrrrrrr}" in text
    assert (
        r"\multicolumn{2}{c}{Efficacy} & \multicolumn{2}{c}{Generalization} & \multicolumn{2}{c}{Specificity}" in text
    )
    assert r"ES $\uparrow$ & EM $\uparrow$" in text
    assert r"a|b\_c & $" in text
    assert text.count(r"\\") == 4
    body = text.split(r"\midrule")[1]
    assert all(line.count("&") == 7 for line in body.split("\n") if "&" in line)


def test_records_with_token_accuracies_alone_get_zsre_columns():
    from tl_edit import EditRecord, EditRequest
    from tl_edit.evaluate import RecordScores

    record = EditRecord(EditRequest("{} is in", "The Eiffel Tower", "Rome"))
    scores = BY_HAND.scores[0]
    alone = Evaluation(
        scores=(
            RecordScores(
                record=record,
                efficacy=scores.efficacy,
                paraphrase=scores.paraphrase,
                unrelated_facts=scores.unrelated_facts,
            ),
        )
    )
    assert alone.to_markdown(name="ROME").split("\n")[0] == "| method | TS ↑ | ET ↑ | PT ↑ | UT ↑ |"
    assert alone.to_markdown().split("\n")[2].startswith("| edited | ")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["XS"], "expected a list of some of S, ES"),
        ("ES", "expected a list of some of S, ES"),
        (["ES", "GE"], "none of these records has GE; expected some of"),
    ],
)
def test_columns_that_are_none_are_refused(both, keys, words):
    for table in (both.to_markdown, both.to_latex):
        with pytest.raises(ValueError, match=words):
            table(keys)


def test_html_shows_every_metric_and_escapes(model):
    evaluation = evaluate(model, RECORD)
    html = compare({"<b>": evaluation})._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    for key in evaluation.metrics():
        assert MEASURES[key].name in html
    assert "1 records" not in evaluation._repr_html_()


def test_a_file_holds_everything(model, tmp_path):
    found = evaluate(model, [RECORD, RECORD], edit=make_edit(model), kl=True, distracted=True, texts=TEXTS)
    found.save(tmp_path / "found")
    again = Evaluation.load(tmp_path / "found")
    assert (again.scores, again.drifts, again.provenance) == (found.scores, found.drifts, found.provenance)
    assert again.metrics() == found.metrics()
    BY_HAND.save(tmp_path / "hand")
    assert Evaluation.load(tmp_path / "hand").scores == BY_HAND.scores
    (tmp_path / "other").write_text("{}")
    with pytest.raises(ValueError, match=r"Evaluation.load: .*evaluate the records again"):
        Evaluation.load(tmp_path / "other")


def test_methods_are_tested_record_by_record(both):
    test = both.test("NM", "a|b_c", "none")
    first, second = (both.evaluations[name].magnitude("neighborhood") for name in ("a|b_c", "none"))
    assert test.difference == pytest.approx(first.mean - second.mean)
    assert both.tests("NM", "none")["a|b_c"].p_value == test.p_value
    assert re.fullmatch(r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\], p = [\d.]+, n = 2", str(test))
    assert "none S " in repr(both)


def test_several_methods_have_their_p_values_adjusted(model):
    records = [RECORD] * 3
    base = evaluate(model, records)
    three = compare({"none": base, **{f"{i}": evaluate(model, records, edit=make_edit(model, seed=i)) for i in (1, 2)}})
    raw = three.test("NM", "1", "none").p_value
    assert three.tests("NM", "none")["1"].p_value == min(1.0, 2 * raw)


def test_wrong_names_are_refused(both):
    with pytest.raises(ValueError, match=r"no method 'ROME'; expected one of none, a\|b_c"):
        both.test("ES", "ROME", "none")
    with pytest.raises(ValueError, match="none has no 'KL'; expected one of"):
        both.test("KL", "none", "a|b_c")


def test_evaluations_of_other_records_are_not_compared(model, both):
    one = evaluate(model, RECORD)
    with pytest.raises(ValueError, match=r"not of the same records \(2 and 1 records\)"):
        compare({"a": both.evaluations["none"], "b": one})
    with pytest.raises(ValueError, match=r"not of the same records \(record 0 differs\)"):
        compare({"a": BY_HAND, "b": both.evaluations["none"]})
    with pytest.raises(ValueError, match="an empty mapping; expected evaluations by name"):
        compare({})


def test_intervals_of_one_record_are_not_numbers():
    metric = BY_HAND.metrics()["RS"]
    assert math.isnan(metric.interval()[0])
    assert "(" not in BY_HAND.to_markdown(["RS"])


def test_large_evaluations_are_saved(tmp_path):
    """Above a megabyte the scores do not stand in the file's head, which has no room for all of CounterFact's."""
    few = Evaluation(scores=BY_HAND.scores * 2000)
    few.save(tmp_path / "few")
    assert Evaluation.load(tmp_path / "few").scores == few.scores
    with (tmp_path / "few").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"x")
    with pytest.raises(ValueError, match="its content is not what was written"):
        Evaluation.load(tmp_path / "few")


def test_one_metric_is_what_it_is_among_all(both):
    evaluation = both.evaluations["a|b_c"]
    found = evaluation.metrics()
    assert {key: evaluation.metric(key) for key in MEASURES if evaluation.metric(key) is not None} == found
    with pytest.raises(ValueError, match="no metric 'XS'; expected one of S, ES"):
        evaluation.metric("XS")


def test_what_is_no_rate_is_drawn_in_its_unit(model):
    pytest.importorskip("matplotlib")
    found = evaluate(model, RECORD, edit=make_edit(model), kl=True, distracted=True, texts=TEXTS)
    for keys, label in ({"KL": "nats", "PPL": "edited over unedited (95 % intervals)", "EM": "%"}).items():
        axis = found.plot(keys=[keys])
        assert axis.get_ylabel() == label
        assert axis.patches[0].get_height() == pytest.approx({"EM": 100}.get(keys, 1) * found.metric(keys).mean)
    names = dict(zip(*(found.to_dataframe()[column] for column in ("metric", "name")), strict=True))
    assert names["PPL"] == "perplexity"
    assert "perplexity, edited over unedited" in found._repr_html_()


def test_without_true_objects_the_representation_says_whether_the_new_one_is_said():
    alone = Evaluation(scores=BY_HAND.scores[:1])
    assert "EA 0.0" in repr(alone)
    assert "ES" not in repr(alone)


def test_rates_are_drawn_with_their_intervals(both):
    pytest.importorskip("matplotlib")
    axis = both.plot()
    names = [label.get_text().split("\n")[0] for label in axis.get_xticklabels()]
    assert names == ["ES", "PS", "NS", "S"]
    metrics = both.metrics()
    expected = [100 * found[key].mean for found in metrics.values() for key in names]
    assert [patch.get_height() for patch in axis.patches] == pytest.approx(expected)
    whiskers = [each for each in axis.collections if hasattr(each, "get_segments")]
    for found, drawn in zip(metrics.values(), whiskers, strict=True):
        ends = [sorted(segment[:, 1]) for segment in drawn.get_segments()]
        intervals = [[100 * end for end in found[key].interval()] for key in names]
        means = [100 * found[key].mean for key in names]
        wanted = [[min(low, mean), max(high, mean)] for (low, high), mean in zip(intervals, means, strict=True)]
        assert [end for pair in ends for end in pair] == pytest.approx([end for pair in wanted for end in pair])
    one = next(iter(both.evaluations.values()))
    assert len(one.plot(keys=["ES", "EM"]).patches) == 2
    with_kl = {"a": {**one.metrics(), "KL": one.metrics()["ES"]}}
    with pytest.raises(ValueError, match=r"found KL \(nats\), ES \(%\); expected metrics of one unit, .* e\.g\. keys="):
        plot_metrics(with_kl, ["ES", "KL"], None)
    with pytest.raises(ValueError, match="expected a list of some of S, ES"):
        one.plot(keys=["XS"])
