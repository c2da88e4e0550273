"""Dose and response against the obvious way: the scaled edit in the weights, whole passes, one text at a time."""

import io
import math
import re
from dataclasses import replace

import pytest
import tiny_models
import torch
from jaxtyping import TypeCheckError
from real_edits import rome_edits
from some_edits import make_edit, same, weights

from tl_edit import EditRecord, EditRequest, applied_edits, dose_response, evaluate, forward
from tl_edit.attach import attached

CASES = tiny_models.available_cases(("gpt2", "gemma2"))
RECORDS = (
    EditRecord(
        EditRequest("{} is in", "The Eiffel Tower", "Rome", "Paris"),
        ("Where is the Eiffel Tower? It is in", "One sees it in"),
        ("The Louvre is in", "Notre Dame stands in the middle of"),
        (("The capital of France is", "Paris"),),
    ),
    EditRecord(EditRequest("The mother tongue of {} is", "Angela Merkel", "Constantinople")),
    EditRecord(EditRequest("{} lies in", "The Louvre", "Rome", "Paris"), (), ("The Louvre is in",)),
)
TEXTS = ("Rome is old.", "One sees the tower from the river, and at night.", "I")
SCALES = (1, -0.5, 0)


def tolerance(case) -> float:
    """Bridges have steps in float32, and so has the processing of weights."""
    return 1e-10 if case.interface == tiny_models.HOOKED_TRANSFORMER and not case.processed else 2e-5


def no_hooks(model) -> bool:
    return not any(point.fwd_hooks for point in model.hook_dict.values())


def read_by_hand(model, bos: bool):
    """Log-probabilities of every position of every text, and of what follows, by whole passes."""
    with torch.no_grad():
        for text in TEXTS:
            tokens = model.to_tokens(text, prepend_bos=bos)
            log_probs = model(tokens)[0].double().log_softmax(-1)
            yield log_probs, [log_probs[i, tokens[0, i + 1]] for i in range(tokens.shape[1] - 1)]


def obvious(model, edit, scale: float, bos: bool):
    """The evaluation, divergence and perplexity with the scaled edit in the weights."""
    before = [log_probs for log_probs, _ in read_by_hand(model, bos)]
    with (edit * scale).on(model):
        evaluation = evaluate(model, RECORDS, prepend_bos=bos)
        after = list(read_by_hand(model, bos))
    each = [
        float((p.exp() * (p - q)).sum())
        for one, (other, _) in zip(before, after, strict=True)
        for p, q in zip(one, other, strict=True)
    ]
    nll = [-float(value) for _, values in after for value in values]
    return evaluation, sum(each) / len(each), math.exp(sum(nll) / len(nll))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_what_the_scaled_weights_do(case):
    model, bos = tiny_models.build(case, dtype=torch.float64), case.family == "gpt2"
    edit = make_edit(model, layers=(0, 2), rank=2)
    before = weights(model)
    found = dose_response(model, edit, RECORDS, SCALES, texts=TEXTS, prepend_bos=bos, batch_size=2, progress=False)
    assert found.scales == SCALES
    near = tolerance(case)
    for i, scale in enumerate(SCALES):
        evaluation, kl, perplexity = obvious(model, edit, scale, bos)
        assert found.kl[i] == pytest.approx(kl, rel=near, abs=near)
        assert found.perplexity[i] == pytest.approx(perplexity, rel=near)
        for mine, theirs in zip(found.evaluations[i].scores, evaluation.scores, strict=True):
            for group in ("efficacy", "paraphrase", "neighborhood"):
                for one, other in zip(getattr(mine, group), getattr(theirs, group), strict=True):
                    assert one.prob_new == pytest.approx(other.prob_new, rel=10 * near, abs=0)
                    assert one.prob_true == (other.prob_true and pytest.approx(other.prob_true, rel=10 * near, abs=0))
                    assert one.prompt == other.prompt
            assert len(mine.other_facts) == len(theirs.other_facts)
    assert found.kl[0] > 1e-3
    assert same(weights(model), before)
    assert no_hooks(model)
    assert applied_edits(model) == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scale_0_is_the_unedited_model_bit_for_bit(case):
    model = tiny_models.build(case)
    found = dose_response(model, make_edit(model), RECORDS, (0, 1), progress=False)
    plain = evaluate(model, RECORDS)
    assert found.evaluations[0].scores == plain.scores
    assert found.evaluations[0].efficacy == plain.efficacy
    assert found.evaluations[1].scores != plain.scores
    assert found.kl[0] == 0.0
    assert found.kl[1] > 0


def test_the_batch_size_is_irrelevant():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    edit = make_edit(model)
    found = [
        dose_response(model, edit, RECORDS, (1, 2), texts=TEXTS, batch_size=size, progress=False) for size in (1, 128)
    ]
    assert found[0].kl == pytest.approx(found[1].kl, rel=1e-12)
    assert found[0].perplexity == pytest.approx(found[1].perplexity, rel=1e-12)
    assert found[0].evaluations[1].magnitude("efficacy").mean == pytest.approx(
        found[1].evaluations[1].magnitude("efficacy").mean, rel=1e-12
    )


def test_texts_are_the_neighbors_with_their_true_object_each_once():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    edit = make_edit(model)
    found = dose_response(model, edit, RECORDS, (1,), progress=False)
    assert found.texts == ("The Louvre is in Paris", "Notre Dame stands in the middle of Paris")
    again = dose_response(model, edit, RECORDS, (1,), texts=list(found.texts), progress=False)
    assert again.kl == found.kl
    assert again.perplexity == found.perplexity


@pytest.mark.parametrize(("records", "texts"), [(RECORDS[1], None), (RECORDS, ())])
def test_without_texts_the_divergence_is_absent(records, texts):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    model = tiny_models.build("gpt2")
    found = dose_response(model, make_edit(model), records, (0, 1), texts=texts, progress=False)
    assert found.kl is None
    assert found.perplexity is None
    assert found.texts == ()
    assert "KL" not in repr(found) + found._repr_html_()
    assert found.to_dataframe()["kl"].isna().all()
    assert len(found.plot().figure.axes) == 1


def test_a_text_of_one_token_predicts_nothing():
    model = tiny_models.build("gpt2")
    found = dose_response(model, make_edit(model), RECORDS, (1,), texts=["I"], prepend_bos=False, progress=False)
    assert found.kl[0] > 0
    assert found.perplexity is None


def test_the_edits_own_bos_setting_is_taken():
    model = tiny_models.build("gpt2")
    made = make_edit(model)
    edit = replace(made, provenance=replace(made.provenance, prepend_bos=False))
    own, asked = (dose_response(model, edit, RECORDS, (1,), prepend_bos=bos, progress=False) for bos in (None, True))
    assert own.provenance.prepend_bos is False
    assert asked.provenance.prepend_bos is True
    for found, bos in ((own, False), (asked, True)):
        told = evaluate(model, RECORDS, edit=edit, prepend_bos=bos).magnitude("efficacy").mean
        assert found.evaluations[0].magnitude("efficacy").mean == pytest.approx(told, rel=1e-4)
    assert own.kl[0] != pytest.approx(asked.kl[0], rel=1e-3)


def test_nothing_is_left_after_an_exception(monkeypatch):
    model = tiny_models.build("gpt2")
    before, calls, run = weights(model), [], forward.log_probs

    def stops(*args):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(forward, "log_probs", stops)
    with pytest.raises(KeyboardInterrupt):
        dose_response(model, make_edit(model), RECORDS, texts=TEXTS, progress=False)
    assert same(weights(model), before)
    assert no_hooks(model)
    assert applied_edits(model) == []


def test_hooks_and_other_edits_of_the_user_stay_on():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    other, edit = make_edit(model, seed=1), make_edit(model, seed=2)
    with other.on(model):
        found = dose_response(model, edit, RECORDS, (0, 1), progress=False)
        assert applied_edits(model) == [other]
        assert found.evaluations[0].scores == evaluate(model, RECORDS).scores
    both = evaluate(model, RECORDS, edit=edit + other).magnitude("efficacy").mean
    assert found.evaluations[1].magnitude("efficacy").mean == pytest.approx(both, rel=1e-10)


def test_an_applied_edit_is_refused():
    model = tiny_models.build("gpt2")
    edit = make_edit(model).apply(model)
    with pytest.raises(ValueError, match=r"is applied to this model; expected it off.*call edit.undo\(model\) first"):
        dose_response(model, edit, RECORDS, progress=False)
    assert applied_edits(model) == [edit]


def test_an_edit_of_other_weights_is_refused_unless_it_is_meant():
    model, other = tiny_models.build("gpt2"), tiny_models.build("gpt2", seed=1)
    edit = make_edit(other)
    with pytest.raises(ValueError, match="was computed on other weights.*allow_mismatch=True"):
        dose_response(model, edit, RECORDS, progress=False)
    assert dose_response(model, edit, RECORDS, (1,), allow_mismatch=True, progress=False).kl[0] > 0


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ((), "is empty"),
        ((0, 1, 1.0), "a number twice"),
        ((0, math.inf), "holds inf"),
        ((math.nan,), "holds nan"),
        ((True,), "holds True"),
    ],
)
def test_scales_are_checked(scales, words):
    model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match=words):
        dose_response(model, make_edit(model), RECORDS, scales, progress=False)


def test_records_and_texts_are_checked():
    model = tiny_models.build("gpt2")
    edit = make_edit(model)
    with pytest.raises(ValueError, match="at least one EditRecord"):
        dose_response(model, edit, [], progress=False)
    with pytest.raises((ValueError, TypeCheckError), match="one string|texts"):
        dose_response(model, edit, RECORDS, texts=5, progress=False)
    with pytest.raises(ValueError, match="it has no tokens"):
        dose_response(model, edit, RECORDS, texts=["Rome", ""], progress=False)


def test_it_shows_itself():
    model = tiny_models.build("gpt2")
    made = make_edit(model)
    edit = replace(made, method="<b>$test$</b>")
    found = dose_response(model, edit, RECORDS, (0, 0.5), progress=False)
    assert "\n" not in repr(found)
    assert re.search(r"at scales 0, 0.5: p\(new\) .*, ES .*, PS .*, NS .*, KL 0 → ", repr(found))
    page = found._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("</tr>") == 3
    assert f"{found.perplexity[1]:.4g}" in page


def test_the_frame_has_a_row_for_each_scale():
    pytest.importorskip("pandas")
    model = tiny_models.build("gpt2")
    found = dose_response(model, make_edit(model), RECORDS, (1, 0), progress=False)
    frame = found.to_dataframe()
    assert list(frame["scale"]) == [1.0, 0.0]
    assert list(frame["kl"]) == list(found.kl)
    assert list(frame["perplexity"]) == list(found.perplexity)
    assert list(frame["efficacy_magnitude"]) == [m.mean for m in found.magnitude("efficacy")]
    assert list(frame["neighborhood"]) == [m.mean for m in found.success("neighborhood")]


def test_lines_are_drawn_by_scale_and_the_figure_is_closed():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    model = tiny_models.build("gpt2")
    found = dose_response(model, make_edit(model), RECORDS, (1, 0, 2), progress=False)
    ax = found.plot()
    assert pyplot.get_fignums() == []
    left, right = ax.figure.axes
    assert [line.get_label() for line in (*left.lines, *right.lines)] == ["ES", "PS", "NS", "KL"]
    assert list(right.lines[0].get_xdata()) == [0, 1, 2]
    assert list(right.lines[0].get_ydata()) == [found.kl[i] for i in (1, 0, 2)]
    ax.figure.savefig(io.BytesIO())
    figure, own = pyplot.subplots()
    assert found.plot(own) is own
    assert pyplot.get_fignums() == [figure.number]
    pyplot.close(figure)


def test_a_real_edit_takes_as_it_is_scaled_up_and_moves_more_either_way(fact_model, world, eiffel):
    (edit,), records = rome_edits(fact_model, world, [eiffel])
    found = dose_response(fact_model, edit, records, (-2, -1, -0.5, 0, 0.25, 0.5, 0.75, 1, 2), progress=False)
    told = [metric.mean for metric in found.magnitude("efficacy")]
    assert told[3:8] == sorted(told[3:8])
    assert told[3] < -0.5 < 0.5 < told[7]
    assert max(told[:3]) < -0.5
    assert list(found.kl[:4]) == sorted(found.kl[:4], reverse=True)
    assert list(found.kl[3:]) == sorted(found.kl[3:])
    assert found.perplexity[8] > found.perplexity[3]


def drop_the_last(act, hook):
    """A user's hook that counts from the end, where padding would be."""
    return torch.cat([act[:, :-1], 0 * act[:, -1:]], dim=1)


def test_batches_do_not_matter_to_hooks_that_count_from_the_end():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    edit, found = make_edit(model), []
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", drop_the_last)]):
        for size in (1, 3, 64):
            response = dose_response(model, edit, RECORDS, (0, 1), texts=TEXTS, batch_size=size, progress=False)
            judged = evaluate(model, RECORDS, batch_size=size)
            probs = [
                score.prob_new
                for each in (*response.evaluations, judged)
                for record in each.scores
                for score in (*record.efficacy, *record.neighborhood)
            ]
            found.append([*probs, *response.kl, *response.perplexity])
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[0] == pytest.approx(found[2], rel=1e-9)
    as_argument = [
        evaluate(model, RECORDS, hooks=[("blocks.1.hook_resid_post", drop_the_last)], batch_size=size)
        for size in (1, 64)
    ]
    first, second = ([score.efficacy[0].prob_new for score in each.scores] for each in as_argument)
    assert first == pytest.approx(second, rel=1e-9)


def test_an_edit_that_is_part_of_the_unedited_model_is_warned_of():
    model = tiny_models.build("gpt2")
    edit = make_edit(model)
    with (edit * 0.5).on(model), pytest.warns(UserWarning, match="is applied while .* part of what is called unedited"):
        dose_response(model, edit, RECORDS, (0, 1), progress=False)
    for hooked in (model.hooks(fwd_hooks=edit.hooks()), attached(model, edit.hooks())):
        with hooked, pytest.warns(UserWarning, match="hooks of an edit are on the model while"):
            dose_response(model, edit, RECORDS, (0, 1), progress=False)
    with edit.on(model), pytest.warns(UserWarning, match="its hooks add it once more"):
        edit.hooks(model)


def test_records_of_another_subject_are_warned_of():
    model = tiny_models.build("gpt2")
    with pytest.warns(UserWarning, match="the records: not about a subject of the edit"):
        dose_response(model, make_edit(model), RECORDS[1], (0, 1), progress=False)


def test_scales_may_be_arrays_and_are_bounded():
    numpy = pytest.importorskip("numpy")
    model = tiny_models.build("gpt2")
    for scales in (numpy.linspace(0, 1, 3), torch.linspace(0, 1, 3), [numpy.float32(0), numpy.int64(1)]):
        try:
            found = dose_response(model, make_edit(model), RECORDS[0], scales, progress=False)
        except TypeCheckError:
            continue
        assert found.scales[0] == 0
        assert found.scales[-1] == 1
    for wrong in (10**400, 1e39, math.inf, math.nan):
        with pytest.raises(ValueError, match="scales holds .*; expected numbers of at most 1e\\+06 in size"):
            dose_response(model, make_edit(model), RECORDS[0], (0, wrong), progress=False)


def test_records_without_a_true_object_show_the_new_ones_probability():
    model = tiny_models.build("gpt2")
    record = EditRecord(EditRequest("{} is in", "The Eiffel Tower", "Rome"))
    found = dose_response(model, make_edit(model), record, (0, 1), progress=False)
    probs = [evaluation.scores[0].efficacy[0].prob_new for evaluation in found.evaluations]
    assert found.prob_new == pytest.approx(probs)
    assert f"p(new) {probs[0]:.3f} → {probs[1]:.3f}" in repr(found)
    assert "<th" in found._repr_html_()
    assert "p(new)" in found._repr_html_()


def test_other_facts_are_shown():
    model = tiny_models.build("gpt2")
    found = dose_response(model, make_edit(model), RECORDS, (0, 1), progress=False)
    assert found.other_facts[0] == found.evaluations[0].other_facts
    assert "other facts" in found._repr_html_()


def test_a_title_with_dollars_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    model = tiny_models.build("gpt2")
    edit = replace(make_edit(model), method="$x_$ " * 30)
    axes = dose_response(model, edit, RECORDS[0], (0, 1), progress=False).plot()
    axes.figure.savefig(tmp_path / "x.png")
