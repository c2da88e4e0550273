"""Every metric on numbers worked out by hand, and the probabilities behind them on a model."""

import math
import warnings
from dataclasses import replace

import pytest
import tiny_models
import torch
from jaxtyping import TypeCheckError
from some_edits import make_edit

from tl_edit import EditRecord, EditRequest, Evaluation, applied_edits, evaluate, host
from tl_edit.evaluate import FactScore, Metric, Opinion, PromptScore, Question, RecordScores, Sheet, opinions
from tl_edit.evaluate.plain import plain_scores, read_scores

REQUEST = EditRequest("{} is in", "The Eiffel Tower", "Rome", "Paris")
RECORD = EditRecord(REQUEST)


def prompt(new: float, true: float | None, says_new: bool = False, says_true: bool | None = False) -> PromptScore:
    hits_true = None if says_true is None else (says_true,)
    return PromptScore(
        prompt="p", prob_new=new, prob_true=true, hits_new=(says_new,), hits_true=hits_true, prediction="x"
    )


def other(kept: bool) -> FactScore:
    return FactScore(prompt="p", answer="a", prob=0.5, hits=(kept,), prediction="x")


BY_HAND = Evaluation(
    scores=(
        RecordScores(
            record=RECORD,
            efficacy=(prompt(0.9, 0.1, says_new=True),),
            paraphrase=(prompt(0.6, 0.2, says_new=True), prompt(0.1, 0.3)),
            neighborhood=(prompt(0.1, 0.7, says_true=True), prompt(0.0, 0.5), prompt(0.4, 0.2), prompt(0.1, 0.2)),
            other_facts=(other(True), other(False)),
        ),
        RecordScores(
            record=RECORD,
            efficacy=(prompt(0.2, 0.5),),
            paraphrase=(prompt(0.5, 0.1, says_new=True),),
            neighborhood=(),
            other_facts=(),
        ),
    )
)


def test_success_is_averaged_within_records_and_then_over_them():
    assert BY_HAND.efficacy.mean == pytest.approx((1 + 0) / 2)
    assert BY_HAND.paraphrase.mean == pytest.approx((1 / 2 + 1) / 2)
    assert BY_HAND.neighborhood.mean == pytest.approx(3 / 4)
    assert [BY_HAND.efficacy.n, BY_HAND.neighborhood.n] == [2, 1]


def collected(answers: dict[str, tuple[float, ...]], predicted: int = 0) -> RecordScores:
    """The scores of a record whose answers, new and true by turns, have these log-probabilities."""
    model = tiny_models.build("gpt2")
    record = replace(RECORD, paraphrase_prompts=("Its city is",), neighborhood_prompts=("The Louvre is in",))
    sheet = Sheet(model, [record], False)
    said = [Opinion(log_probs, (False,) * len(log_probs), predicted) for log_probs in answers.values()]
    return sheet._collect(record, iter([(opinion, None) for opinion in said]))


UNLIKELY = {
    "new": (-700.0, -900.0),  # -800 per token
    "true": (-900.0,),
    "new again": (-1000.0,),
    "true again": (-900.0, -902.0, -898.0),
    "new elsewhere": (-math.inf,),
    "true elsewhere": (-2000.0,),
}


def test_objects_too_unlikely_for_a_float_are_told_apart(tmp_path):
    """All probabilities underflow to zero; their logarithms are compared, as published."""
    assert math.exp(-800.0) == 0.0
    found = Evaluation(scores=(collected(UNLIKELY),))
    assert all(score.prob_new == score.prob_true == 0.0 for score in (*found.scores[0].efficacy,))
    assert found.scores[0].efficacy[0].tied == (-800.0, -900.0)
    assert (found.efficacy.mean, found.paraphrase.mean, found.neighborhood.mean) == (1.0, 0.0, 1.0)
    assert found.magnitude("efficacy").mean == 0.0
    found.save(tmp_path / "found")
    assert Evaluation.load(tmp_path / "found").scores == found.scores
    opposite = dict(zip(UNLIKELY, [UNLIKELY["true"], UNLIKELY["new"], *list(UNLIKELY.values())[2:]], strict=True))
    assert Evaluation(scores=(collected(opposite),)).efficacy.mean == 0.0


def test_equally_likely_objects_are_no_success_of_either():
    for one in (-900.0, -1.0, -math.inf):
        found = Evaluation(scores=(collected(dict.fromkeys(UNLIKELY, (one,))),))
        assert (found.efficacy.mean, found.paraphrase.mean, found.neighborhood.mean) == (0.0, 0.0, 0.0)


def test_scores_of_earlier_versions_are_read():
    """They have probabilities alone, which say the same unless both are zero."""
    plain = plain_scores(BY_HAND.scores[0])
    assert all("tied" not in score for score in (*plain["efficacy"], *plain["paraphrase"], *plain["other_facts"]))
    assert read_scores(RECORD, plain) == BY_HAND.scores[0]
    assert plain_scores(collected(UNLIKELY))["efficacy"][0]["tied"] == (-800.0, -900.0)


@pytest.mark.parametrize("interface", tiny_models.interfaces())
def test_success_of_a_model_that_is_sure_of_something_else(interface):
    """With logits ten thousand times as large, what is not the likeliest has a probability of zero."""
    model = tiny_models.build("gpt2", interface, dtype=torch.float64)
    name = "ln_final.hook_normalized"
    hooks = [(name, lambda act, hook: 1e4 * act)]
    record = replace(RECORD, paraphrase_prompts=("Its city is", "One says that it is in"))
    found = evaluate(model, record, hooks=hooks, prepend_bos=False)
    scores = (*found.scores[0].efficacy, *found.scores[0].paraphrase)
    assert any(score.prob_new == score.prob_true == 0.0 for score in scores)
    for score in scores:
        asked = [Question.of(model, score.prompt, answer, prepend_bos=False) for answer in ("Rome", "Paris")]
        new, true = (sum(each.log_probs) / len(each.log_probs) for each in opinions(model, asked, hooks))
        assert score.prefers_new == (new > true) != score.prefers_true


def test_magnitude_is_the_difference_in_the_direction_that_should_win():
    assert BY_HAND.magnitude("efficacy").mean == pytest.approx((0.8 - 0.3) / 2)
    assert BY_HAND.magnitude("paraphrase").mean == pytest.approx(((0.4 - 0.2) / 2 + 0.4) / 2)
    assert BY_HAND.magnitude("neighborhood").mean == pytest.approx((0.6 + 0.5 - 0.2 + 0.1) / 4)


def test_accuracy_asks_for_the_likeliest_of_all():
    assert BY_HAND.accuracy("efficacy").mean == pytest.approx(1 / 2)
    assert BY_HAND.accuracy("paraphrase").mean == pytest.approx((1 / 2 + 1) / 2)
    assert BY_HAND.accuracy("neighborhood").mean == pytest.approx(1 / 4)


def test_score_is_the_harmonic_mean():
    assert BY_HAND.score.mean == pytest.approx(3 / (1 / 0.5 + 1 / 0.75 + 1 / 0.75))


def test_other_facts_count_only_records_that_have_some():
    assert (BY_HAND.other_facts.mean, BY_HAND.other_facts.n) == (0.5, 1)


def test_standard_error():
    metric = Metric.over([0.0, 1.0, 1.0, 1.0])
    assert metric.standard_error == pytest.approx(0.5 / math.sqrt(4))
    assert (str(metric), metric.percent()) == ("0.750 ± 0.250", "75.0 ± 25.0")
    assert (str(Metric.over([1.0])), Metric.over([1.0]).percent()) == ("1.000", "100.0")


def test_what_cannot_be_measured_is_absent_not_zero():
    record = EditRecord(EditRequest("{} is in", "The Eiffel Tower", "Rome"))
    scores = RecordScores(
        record=record, efficacy=(prompt(0.9, None, True, None),), paraphrase=(), neighborhood=(), other_facts=()
    )
    evaluation = Evaluation(scores=(scores,))
    assert evaluation.efficacy is None
    assert evaluation.neighborhood is None
    assert evaluation.score is None
    assert evaluation.accuracy("efficacy").mean == 1.0
    assert "S " not in repr(evaluation)


def test_parts_join():
    joined = Evaluation.of([BY_HAND, BY_HAND])
    assert joined.efficacy.n == 4
    assert joined.score.mean == BY_HAND.score.mean


def test_the_provenance_is_recorded_and_kept_where_parts_agree():
    model = tiny_models.build("gpt2")
    with_bos, without = (evaluate(model, RECORD, prepend_bos=bos) for bos in (True, False))
    assert (with_bos.provenance.prepend_bos, without.provenance.prepend_bos) == (True, False)
    assert with_bos.provenance.model_name == host.model_name(model)
    assert Evaluation.of([with_bos, with_bos]).provenance == with_bos.provenance
    assert Evaluation.of([with_bos, without]).provenance is None
    assert Evaluation.of([BY_HAND, without]).provenance is None
    assert Evaluation.of([]).provenance is None


def test_an_edit_made_with_another_bos_setting_is_evaluated_with_a_warning():
    model = tiny_models.build("gpt2")
    edit = make_edit(model)
    other = replace(edit, provenance=replace(edit.provenance, prepend_bos=False))
    with pytest.warns(
        UserWarning, match=r"computed without a BOS .*with one, the model's default; pass prepend_bos=False .*=True if"
    ):
        assert evaluate(model, RECORD, edit=other).provenance.prepend_bos is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(model, RECORD, edit=edit)
        evaluate(model, RECORD, edit=other, prepend_bos=True)
        evaluate(model, RECORD, edit=other, prepend_bos=False)


def geometric_mean(model, text: str, target: str) -> float:
    tokens = model.to_tokens(f"{text} {target}")
    start = model.to_tokens(text).shape[1]
    log_probs = model(tokens)[0].log_softmax(-1)
    picked = [log_probs[i - 1, tokens[0, i]] for i in range(start, tokens.shape[1])]
    return float(torch.stack(picked).mean().exp())


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama")), ids=str)
def test_probabilities_are_geometric_means_over_tokens(case):
    model = tiny_models.build(case)
    record = EditRecord(
        EditRequest("{} is in", "The Eiffel Tower", "Constantinople", "Paris"),
        paraphrase_prompts=("Where is the Eiffel Tower? In the city of",),
        neighborhood_prompts=("The Louvre is in", "Notre Dame is in"),
        other_facts=(("The capital of France is", "Paris"),),
    )
    for batch_size in (128, 3):
        with torch.no_grad():
            scores = evaluate(model, record, batch_size=batch_size).scores[0]
            for score in (*scores.efficacy, *scores.paraphrase, *scores.neighborhood):
                assert score.prob_new == pytest.approx(geometric_mean(model, score.prompt, "Constantinople"), rel=1e-3)
                assert score.prob_true == pytest.approx(geometric_mean(model, score.prompt, "Paris"), rel=1e-3)
            assert scores.other_facts[0].prob == pytest.approx(
                geometric_mean(model, "The capital of France is", "Paris"), rel=1e-3
            )
    assert [len(scores.efficacy), len(scores.paraphrase), len(scores.neighborhood)] == [1, 1, 2]


def test_no_records_are_refused():
    with pytest.raises(ValueError, match="at least one EditRecord"):
        evaluate(tiny_models.build("gpt2"), [])


def test_records_are_checked():
    with pytest.raises(ValueError, match="does not end in a space"):
        EditRecord(REQUEST, neighborhood_prompts=("The Louvre is in ",))
    with pytest.raises(ValueError, match="does not end in a space"):
        EditRecord(REQUEST, other_facts=((" ", "Paris"),))


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluate(tiny_models.build("gpt2"), RECORD, batch_size=0)


def test_an_edit_whose_weights_are_gone_is_switched_on_again():
    """After the original weights are loaded, the edit must not be believed to be in them."""
    model = tiny_models.build("gpt2")
    original = {name: value.clone() for name, value in model.state_dict().items()}
    edit = make_edit(model).apply(model)
    edited = evaluate(model, RECORD, edit=edit).scores
    model.load_state_dict(original)
    assert evaluate(model, RECORD, edit=edit).scores == edited
    assert evaluate(model, RECORD).scores != edited


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "gemma2")), ids=str)
def test_hooks_act_in_every_pass_as_the_weights_would(case):
    model = tiny_models.build(case)
    record = EditRecord(REQUEST, ("Where is it? In",), ("The Louvre is in",), (("The capital is", "Paris"),))
    edit, plain = make_edit(model), evaluate(model, record)
    hooked = evaluate(model, record, hooks=edit.hooks(model, scale=0.5), batch_size=3)
    weights = evaluate(model, record, edit=edit * 0.5)
    for group in ("efficacy", "paraphrase", "neighborhood"):
        for one, other, before in zip(
            *(getattr(each.scores[0], group) for each in (hooked, weights, plain)), strict=True
        ):
            assert one.prob_new == pytest.approx(other.prob_new, rel=1e-4)
            assert one.prob_true == pytest.approx(other.prob_true, rel=1e-4)
            assert one.prob_new != before.prob_new
    assert hooked.scores[0].other_facts[0].prob == pytest.approx(weights.scores[0].other_facts[0].prob, rel=1e-4)
    assert evaluate(model, record).scores == plain.scores
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_hooks_act_beside_an_edit_that_is_switched_on():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    first, second = make_edit(model, seed=1), make_edit(model, seed=2)
    both = evaluate(model, RECORD, edit=first, hooks=second.hooks(model)).scores[0].efficacy[0].prob_new
    assert both == pytest.approx(evaluate(model, RECORD, edit=first + second).scores[0].efficacy[0].prob_new, rel=1e-10)


def test_hooks_that_are_none_are_refused_and_leave_nothing():
    model = tiny_models.build("gpt2")
    for hooks, words in (
        ([("blocks.0.hook_mlp_out", None)], "(?i)hooks"),
        ([("blocks.0.hook_mlp_ou", print)], "'blocks.0.hook_mlp_ou' is not a hook point"),
    ):
        # In the test run the shape checker speaks first of what is no function.
        with pytest.raises((ValueError, TypeCheckError), match=words):
            evaluate(model, RECORD, edit=make_edit(model), hooks=hooks)
        assert applied_edits(model) == []
        assert not any(point.fwd_hooks for point in model.hook_dict.values())
