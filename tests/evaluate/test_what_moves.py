"""Distracted prompts, divergences, perplexities, token accuracies: against plain passes of the model."""

import math
import warnings

import pytest
import tiny_models
import torch
from some_edits import make_edit, same, weights

from tl_edit import EditRecord, EditRequest, Evaluation, evaluate
from tl_edit.evaluate import Drift, FactScore, PromptScore, RecordScores, TextScores

REQUEST = EditRequest("{} is in", "The Eiffel Tower", "Rome", "Paris")
RECORD = EditRecord(
    REQUEST,
    paraphrase_prompts=("Where is it? In",),
    neighborhood_prompts=("The Louvre is in", "Notre Dame is in the city of"),
    attribute_prompts=("The Colosseum is in",),
    unrelated_facts=(("Who wrote Faust?", "Johann Wolfgang von Goethe"), ("Two and two are", "four")),
)
TEXTS = ("The Louvre is a museum in Paris.", "Rome is old.")


def next_log_probs(model, text: str) -> torch.Tensor:
    with torch.no_grad():
        return model(model.to_tokens(text))[0, -1].double().log_softmax(-1)


def nll(model, text: str) -> tuple[int, float]:
    tokens = model.to_tokens(text)[0]
    with torch.no_grad():
        log_probs = model(tokens[None])[0].double().log_softmax(-1)
    return len(tokens) - 1, -sum(float(log_probs[i, tokens[i + 1]]) for i in range(len(tokens) - 1))


@pytest.fixture(scope="module", params=tiny_models.available_cases(("gpt2", "llama")), ids=str)
def model(request):
    return tiny_models.build(request.param, dtype=torch.float64)


def test_distracted_prompts_stand_behind_the_edited_statement(model):
    scores = evaluate(model, RECORD, distracted=True).scores[0]
    assert [score.prompt for score in scores.distracted] == [
        "The Eiffel Tower is in Rome. The Louvre is in",
        "The Eiffel Tower is in Rome. Notre Dame is in the city of",
    ]
    alone = evaluate(model, EditRecord(REQUEST, neighborhood_prompts=(scores.distracted[0].prompt,))).scores[0]
    for name in ("prob_new", "prob_true"):
        assert getattr(scores.distracted[0], name) == pytest.approx(getattr(alone.neighborhood[0], name), rel=1e-5)
    assert evaluate(model, RECORD).scores[0].distracted == ()


def test_the_divergence_is_of_the_edited_from_the_unedited_model(model):
    edit, before = make_edit(model), weights(model)
    found = evaluate(model, RECORD, edit=edit, distracted=True, kl=True)
    for group in ("neighborhood", "distracted"):
        for score in getattr(found.scores[0], group):
            base = next_log_probs(model, score.prompt)
            with edit.on(model):
                now = next_log_probs(model, score.prompt)
            expected = float((now.exp() * (now - base)).sum())
            assert score.kl == pytest.approx(expected, rel=1e-4, abs=1e-9)
            assert score.kl > 0
    assert found.scores[0].efficacy[0].kl is None
    mean = sum(score.kl for score in found.scores[0].neighborhood) / 2
    assert found.kl("neighborhood").mean == pytest.approx(mean)
    assert same(weights(model), before)


def test_the_divergence_in_portions_is_the_same(model, monkeypatch):
    from tl_edit.evaluate import judge

    edit, records = make_edit(model), [RECORD, EditRecord(REQUEST), RECORD]
    whole = evaluate(model, records, edit=edit, kl=True)
    monkeypatch.setattr(judge, "_DISTRIBUTIONS", 1)
    parts = evaluate(model, records, edit=edit, kl=True)
    assert parts.metrics().keys() == whole.metrics().keys()
    assert parts.kl("neighborhood").mean == pytest.approx(whole.kl("neighborhood").mean, rel=1e-6)
    assert parts.kl("neighborhood").n == 2


def test_hooks_are_compared_with_the_model_without(model):
    edit = make_edit(model)
    hooked = evaluate(model, RECORD, hooks=edit.hooks(model), kl=True, texts=TEXTS)
    written = evaluate(model, RECORD, edit=edit, kl=True, texts=TEXTS)
    assert hooked.kl("neighborhood").mean == pytest.approx(written.kl("neighborhood").mean, rel=1e-3)
    assert hooked.drift.mean == pytest.approx(written.drift.mean, rel=1e-4)


def test_perplexity_of_texts(model):
    edit = make_edit(model)
    found = evaluate(model, RECORD, edit=edit, texts=TEXTS)
    before = [nll(model, text) for text in TEXTS]
    with edit.on(model):
        after = [nll(model, text) for text in TEXTS]
    (drift,) = found.drifts
    assert drift.n_tokens == tuple(n for n, _ in before)
    assert drift.nll_before == pytest.approx([sum_ for _, sum_ in before], rel=1e-5)
    assert drift.nll_after == pytest.approx([sum_ for _, sum_ in after], rel=1e-5)
    ratios = [math.exp((b - a) / n) for (n, a), (_, b) in zip(before, after, strict=True)]
    assert found.drift.mean == pytest.approx(sum(ratios) / 2, rel=1e-5)
    assert found.drift.n == 2
    joined = Evaluation.of([found, evaluate(model, RECORD, edit=edit * 0.0, texts=TEXTS[0])])
    assert joined.drift.mean == pytest.approx((sum(ratios) / 2 + 1) / 2, rel=1e-5)
    assert "PPL" in repr(joined)


def test_perplexities_are_those_of_all_tokens():
    drift = Drift(n_tokens=(1, 3), nll_before=(2.0, 2.0), nll_after=(2.0, 6.0))
    assert drift.perplexity_before == pytest.approx(math.exp(1.0))
    assert drift.perplexity_after == pytest.approx(math.exp(2.0))
    assert drift.ratios == pytest.approx([1.0, math.exp(4 / 3)])


def test_unrelated_facts_have_answers_of_their_own(model):
    scores = evaluate(model, RECORD).scores[0].unrelated_facts
    assert [score.answer for score in scores] == ["Johann Wolfgang von Goethe", "four"]
    for score in scores:
        before = model.to_tokens(score.prompt).shape[1]
        tokens = model.to_tokens(f"{score.prompt} {score.answer}")[0]
        with torch.no_grad():
            log_probs = model(tokens[None])[0].double().log_softmax(-1)
        picked = [float(log_probs[i - 1, tokens[i]]) for i in range(before, len(tokens))]
        assert score.prob == pytest.approx(math.exp(sum(picked) / len(picked)), rel=1e-5)
        assert score.hits == tuple(int(log_probs[i - 1].argmax()) == tokens[i] for i in range(before, len(tokens)))


def prompt(hits_new: tuple[bool, ...], hits_true: tuple[bool, ...] | None = None, new: float = 0.2) -> PromptScore:
    true = None if hits_true is None else 0.3
    return PromptScore(prompt="p", prob_new=new, prob_true=true, hits_new=hits_new, hits_true=hits_true, prediction="x")


def fact(*hits: bool) -> FactScore:
    return FactScore(prompt="p", answer="a", prob=0.5, hits=hits, prediction="x")


BY_HAND = Evaluation(
    scores=(
        RecordScores(
            record=EditRecord(EditRequest("{} is in", "The Eiffel Tower", "Rome")),
            efficacy=(prompt((True, False)),),
            paraphrase=(prompt((True, True)), prompt((False, False, False, True))),
            unrelated_facts=(fact(True, True, False),),
            texts=TextScores(texts=("a",), entropy=5.0, reference=0.25, essence_perplexity=12.0),
        ),
        RecordScores(
            record=RECORD,
            efficacy=(prompt((True,), (False, True), new=0.6),),
            neighborhood=(prompt((True,), (True, True, False, False)),),
            attribute=(prompt((True,), (False,), new=0.5), prompt((False,), (False,), new=0.1)),
            distracted=(prompt((False,), (True,), new=0.9),),
            texts=TextScores(entropy=7.0),
        ),
    )
)


def test_token_accuracies_by_hand():
    assert BY_HAND.token_accuracy("efficacy").mean == pytest.approx((0.5 + 1) / 2)
    assert BY_HAND.token_accuracy("paraphrase").mean == pytest.approx((1 + 0.25) / 2)
    assert BY_HAND.token_accuracy("neighborhood").mean == pytest.approx(0.5)
    assert BY_HAND.token_accuracy("unrelated_facts").mean == pytest.approx(2 / 3)
    assert BY_HAND.kept("unrelated_facts").mean == 0.0
    assert BY_HAND.token_score.mean == pytest.approx(3 / (1 / 0.75 + 1 / 0.625 + 3 / 2))


def test_accuracy_needs_every_token():
    assert BY_HAND.accuracy("efficacy").mean == pytest.approx((0 + 1) / 2)
    assert BY_HAND.accuracy("neighborhood").mean == 0.0


def test_the_new_object_should_win_where_it_is_true_and_not_behind_the_statement():
    assert BY_HAND.success("attribute").mean == pytest.approx(0.5)
    assert BY_HAND.magnitude("attribute").mean == pytest.approx((0.2 - 0.2) / 2)
    assert BY_HAND.success("distracted").mean == 0.0
    assert BY_HAND.magnitude("distracted").mean == pytest.approx(-0.6)


def test_texts_are_averaged_over_records_that_have_them():
    found = BY_HAND.metrics()
    assert (found["GE"].mean, found["GE"].n) == (6.0, 2)
    assert (found["RS"].mean, found["RS"].n) == (0.25, 1)
    assert (found["EP"].mean, found["EP"].n) == (12.0, 1)


def test_metrics_that_the_data_does_not_give_are_absent():
    found = BY_HAND.metrics()
    assert found.keys() == {
        *("ES", "EM", "EA", "PA", "NS", "NM", "NA", "NS+", "NM+", "AS", "AM"),
        *("UF", "TS", "ET", "PT", "UT", "GE", "RS", "EP"),
    }
    assert found["ES"].n == 1, "the first record does not name its true object"
    assert found["EA"].n == 2


def test_joint_probabilities_are_products_over_tokens():
    score = prompt((True, False), (True, True, True), new=0.5)
    assert (score.joint_new, score.joint_true) == (0.25, pytest.approx(0.3**3))
    assert prompt((True,)).joint_true is None


@pytest.mark.parametrize("call", ["success", "magnitude", "accuracy", "token_accuracy", "kl", "kept"])
def test_groups_that_are_none_are_refused(call):
    with pytest.raises((ValueError, TypeError), match="no group|no facts|Type-check"):
        getattr(BY_HAND, call)("neighbourhood")


@pytest.mark.parametrize("wanted", [{"kl": True}, {"texts": TEXTS}])
def test_a_comparison_needs_something_to_compare(model, wanted):
    with pytest.raises(ValueError, match="compares the model with and without something; expected edit= or hooks="):
        evaluate(model, RECORD, **wanted)
    edit = make_edit(model).apply(model)
    try:
        with pytest.raises(ValueError, match=r"is applied to it; expected it off; call edit.undo\(model\) first"):
            evaluate(model, RECORD, edit=edit, **wanted)
    finally:
        edit.undo(model)


@pytest.mark.parametrize("texts", [(), ("",), ("fine", " ")])
def test_texts_that_are_none_are_refused(model, texts):
    with pytest.raises(ValueError, match="evaluate: texts .*expected one text or several, none of them empty"):
        evaluate(model, RECORD, edit=make_edit(model), texts=texts)


def test_a_text_of_one_token_is_refused():
    model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match="perplexity: 'a' has 1 token; expected at least 2"):
        evaluate(model, RECORD, edit=make_edit(model), texts="a", prepend_bos=False)


def test_long_texts_are_cut_at_the_context():
    model = tiny_models.build("gpt2")
    found = evaluate(model, RECORD, edit=make_edit(model), texts="word " * 500)
    assert found.drifts[0].n_tokens == (tiny_models.N_CTX - 1,)


def test_records_about_other_subjects_than_the_edits_are_warned_of(model):
    edit = make_edit(model)
    other = EditRecord(EditRequest("{} is in", "The Louvre", "Rome", "Paris"))
    with pytest.warns(UserWarning, match="1 of 2 records about other subjects .* of Edit.*, e.g. The Louvre"):
        evaluate(model, [RECORD, other], edit=edit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(model, RECORD, edit=edit)


def test_the_name_of_a_file_is_no_text(model):
    with pytest.raises(ValueError, match=r"'wiki.txt', the name of a file; .*read_texts\('wiki.txt'\)"):
        evaluate(model, RECORD, edit=make_edit(model), texts="wiki.txt")


@pytest.mark.parametrize("wanted", [{"kl": True}, {"distracted": True}])
def test_neighborhoods_are_needed_for_what_is_about_them(model, wanted):
    with pytest.raises(ValueError, match="no record has neighborhood_prompts"):
        evaluate(model, EditRecord(REQUEST), edit=make_edit(model), **wanted)


def test_perplexities_that_no_number_holds_are_infinite():
    drift = Drift(n_tokens=(1,), nll_before=(1.0,), nll_after=(5000.0,))
    assert drift.ratios == [math.inf]
    assert drift.perplexity_after == math.inf
