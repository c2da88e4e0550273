"""Trace effects against edit scores: the statistics by hand, and the run against its parts."""

import math

import pytest
import torch
from some_edits import make_edit

from tl_edit import (
    Edit,
    EditRecord,
    EditRequest,
    Evaluation,
    LocateVsEdit,
    ROMEConfig,
    SecondMoments,
    causal_trace,
    evaluate,
    locate_vs_edit,
    rome_edit,
)
from tl_edit.evaluate import PromptScore, RecordScores
from tl_edit.factworld.records import sample_records

REQUEST = EditRequest("{} is in", "The Eiffel Tower", "Rome", "Paris")


def evaluation(*probs: float) -> Evaluation:
    """Of records with a probability of the new object each, and of 0.4 for the true one."""
    return Evaluation(
        scores=tuple(
            RecordScores(
                record=EditRecord(REQUEST, name=str(i)),
                efficacy=(
                    PromptScore(
                        prompt="p", prob_new=p, prob_true=0.4, hits_new=(False,), hits_true=(True,), prediction="x"
                    ),
                ),
            )
            for i, p in enumerate(probs)
        )
    )


def by_hand(effect: list[list[float]], edited: dict[int, tuple[float, ...]], before=(0.0, 0.0, 0.5)) -> LocateVsEdit:
    return LocateVsEdit(
        layers=tuple(edited),
        kind="mlp_out",
        effect=torch.tensor(effect, dtype=torch.float64),
        before=evaluation(*before),
        edited={layer: evaluation(*probs) for layer, probs in edited.items()},
        control={layer: evaluation(*before) for layer in edited},
        skipped=(),
        seed=0,
    )


@pytest.fixture
def found() -> LocateVsEdit:
    return by_hand([[0.1, 0.3], [0.2, 0.6], [0.0, 0.9]], {2: (0.5, 0.1, 0.6), 5: (1.0, 0.5, 0.4)})


def test_the_rewrite_score_is_the_share_of_the_possible_gain(found):
    expected = [[0.5, 1.0], [0.1, 0.5], [0.1 / 0.5, -0.1 / 0.5]]
    assert torch.allclose(found.scores(), torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(found.scores(control=True), torch.zeros(3, 2, dtype=torch.float64))
    assert found.scores("EM").flatten().tolist() == pytest.approx([0.1, 0.6, -0.3, 0.1, 0.2, 0.0])
    with pytest.raises(ValueError, match="no record has the score 'PS'; expected 'rewrite' or one of ES, EM"):
        found.scores("PS")


def test_correlations_among_cells_layers_and_records(found):
    ranks_of_effects = [2, 4, 3, 5, 1, 6]
    ranks_of_scores = [4.5, 6, 2, 4.5, 3, 1]
    a, b = (torch.tensor(ranks, dtype=torch.float64) - 3.5 for ranks in (ranks_of_effects, ranks_of_scores))
    assert found.correlation().value == pytest.approx(float(a @ b / (a.norm() * b.norm())))
    # Within layer 2: effects 2 3 1, scores 3 1 2; within layer 5: effects 1 2 3, scores 3 2 1.
    assert found.correlation(among="records").value == pytest.approx((-0.5 - 1.0) / 2)
    assert math.isnan(found.correlation(among="layers").value), "two layers have no rank correlation"
    assert found.correlation(control=True).n == 3
    assert math.isnan(found.correlation(control=True).value)


def test_correlation_over_layers_is_of_their_means():
    effect = [[0.1, 0.3, 0.2], [0.3, 0.5, 0.4]]
    found = by_hand(effect, {0: (0.1, 0.3), 1: (0.8, 0.7), 2: (0.4, 0.4)}, before=(0.0, 0.0))
    assert found.correlation(among="layers").value == pytest.approx(1.0)


def test_shuffled_effects_lose_what_the_layer_tells():
    generator = torch.Generator().manual_seed(0)
    effect = torch.rand(60, 4, generator=generator, dtype=torch.float64)
    edited = {layer: tuple((0.9 * effect[:, layer]).tolist()) for layer in range(4)}
    found = by_hand(effect.tolist(), edited, before=(0.0,) * 60)
    assert found.correlation().value == pytest.approx(1.0)
    shuffled = found.correlation(shuffled=True)
    assert abs(shuffled.value) < 0.1
    assert found.correlation(shuffled=True) == shuffled
    with pytest.raises(ValueError, match="shuffled effects have no means by layer"):
        found.correlation(among="layers", shuffled=True)


def test_explained_variance_by_hand():
    """Scores that are a layer's mean plus half the effect: both explain all, the layer alone its share."""
    effect = [[0.0, 0.4], [0.4, 0.0], [0.2, 0.2]]
    scores = {0: (0.1, 0.3, 0.2), 1: (0.7, 0.5, 0.6)}
    explained = by_hand(effect, scores, before=(0.0, 0.0, 0.0)).explained()
    assert explained["layer and effect"] == pytest.approx(1.0)
    within, between = 4 * 0.01, 6 * 0.04
    assert explained["layer"] == pytest.approx(between / (within + between))
    assert 0 <= explained["effect"] < explained["layer"]


@pytest.mark.parametrize("score", [0.9, 0.3, 0.1])
def test_equal_scores_have_no_variance_to_explain(score):
    """Rounding leaves a little, of which a share says nothing."""
    found = by_hand([[0.1 * i, 0.2] for i in range(15)], dict.fromkeys((0, 1), (score,) * 15), before=(0.0,) * 15)
    assert all(math.isnan(value) for value in found.explained().values())


def test_choosing_a_layer(found):
    chosen = found.choosing()
    assert chosen["located"].mean == pytest.approx((1.0 + 0.5 - 0.2) / 3)
    assert chosen["random layer"].mean == pytest.approx((0.75 + 0.3 + 0.0) / 3)
    assert chosen["best layer (5)"].mean == chosen["located"].mean
    assert chosen["located, random direction"].mean == 0.0


def test_it_shows_itself(found):
    assert repr(found).startswith("LocateVsEdit(3 records, layers [2, 5], mlp_out: rank correlation")
    assert (
        f"score {found.correlation().value:+.2f}, within layers {found.correlation(among='records').value:+.2f}"
        in repr(found)
    )
    assert "random direction, same norm" in found._repr_html_()
    pandas = pytest.importorskip("pandas")
    frame = found.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["layer"]) == [2, 5] * 3
    assert frame["rewrite"].tolist() == pytest.approx([0.5, 1.0, 0.1, 0.5, 0.2, -0.2])
    assert "EM, random direction" in frame


def editor(layer: int):
    def method(model, requests):
        edit = make_edit(model, layers=(layer,), seed=len(requests[0].subject), scale=0.2)
        return Edit.of(model, edit.deltas, method="any", requests=tuple(requests), prepend_bos=True)

    return method


few = pytest.mark.filterwarnings("ignore:locate_vs_edit. .* records? left")


@pytest.fixture(scope="module")
def records(world):
    return sample_records(world[1::2], world, 3, seed=5)


@few
def test_effects_are_those_of_traces_and_scores_those_of_edits(fact_model, records):
    found = locate_vs_edit(fact_model, records, [1, 0], editor=editor, n_samples=2, progress=False)
    assert found.layers == (0, 1)
    assert found.records == tuple(records)
    for i, record in enumerate(records):
        request = record.request
        trace = causal_trace(
            fact_model, request.prompt, request.subject, answer=request.target_true, kinds=("mlp_out",), n_samples=2
        )
        expected = trace.of("mlp_out")[:2, trace.subject_last].double()
        assert torch.allclose(found.effect[i], expected, atol=1e-6)
        for layer in (0, 1):
            edit = editor(layer)(fact_model, [request])
            assert found.edited[layer].scores[i] == evaluate(fact_model, record, edit=edit).scores[0]
    assert found.before.scores == tuple(evaluate(fact_model, record).scores[0] for record in records)
    assert found.control[0].scores != found.edited[0].scores


def test_few_records_are_warned_of(fact_model, records):
    with pytest.warns(UserWarning, match="3 of 3 records left; expected 10 or more"):
        locate_vs_edit(fact_model, records, [0, 1], editor=editor, n_samples=2, progress=False)


@few
def test_an_editor_that_forgets_its_layer_is_warned_of(fact_model, records):
    with pytest.warns(UserWarning, match="score the same, to the last bit; .*edits at the layer that it is given"):
        locate_vs_edit(fact_model, records, [0, 1], editor=lambda layer: editor(0), n_samples=2, progress=False)


@few
def test_rome_is_the_default_method(fact_model, records):
    moments = SecondMoments.identity(fact_model, [0, 1])
    config = ROMEConfig(n_prefixes=0, v_num_grad_steps=4, disabling_edit="allow")
    found = locate_vs_edit(fact_model, records[:1], [0, 1], moments, config=config, n_samples=2, progress=False)
    edit = rome_edit(fact_model, records[0].request, moments, layer=1, config=config, apply=False)
    assert found.edited[1].scores == evaluate(fact_model, records[0], edit=edit).scores


@few
def test_facts_that_the_model_does_not_know_are_left_out_and_named(fact_model, records):
    unknown = EditRecord(EditRequest("{} is located in", "The Eiffel Tower", "Rome", "Oslo"))
    nameless = EditRecord(EditRequest("{} is located in", "The Eiffel Tower", "Rome"))
    given = [unknown, records[0], nameless]
    found = locate_vs_edit(fact_model, given, [0, 1], editor=editor, n_samples=2, progress=False)
    assert found.records == (records[0],)
    assert [record for record, _ in found.skipped] == [unknown, nameless]
    assert "the model says ' Paris', not 'Oslo'" in found.skipped[0][1]
    assert "has no target_true" in found.skipped[1][1]
    assert ", 2 left out" in repr(found)
    with pytest.raises(ValueError, match="none of 1 record is left: .*expected facts that the model knows"):
        locate_vs_edit(fact_model, unknown, [0, 1], editor=editor, progress=False)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layers": [1]}, r"layers is \[1\]; expected two layers or more"),
        ({"layers": [0, 9]}, "locate_vs_edit"),
        ({"editor": None}, "moments is of type NoneType; expected the second moments"),
        ({"records": []}, "at least one EditRecord"),
        ({"config": ROMEConfig(layer=0)}, "editor is given with moments or config"),
        ({"editor": None, "moments": "of layer 0"}, r"the second moments given are for layers \[0\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(fact_model, records, wrong, words):
    given = {"records": records, "layers": [0, 1], "editor": editor, "progress": False} | wrong
    if "moments" in wrong:
        given["moments"] = SecondMoments.identity(fact_model, [0])
    with pytest.raises(ValueError, match=words):
        locate_vs_edit(fact_model, **given)


def test_effect_and_score_are_drawn_by_layer_and_by_record(found):
    pytest.importorskip("matplotlib")
    by_layer, points = found.plot()
    effect, score, control = by_layer.lines
    assert list(effect.get_ydata()) == pytest.approx(found.effect.mean(dim=0).tolist())
    assert list(score.get_ydata()) == pytest.approx(found.scores().mean(dim=0).tolist())
    assert list(control.get_ydata()) == pytest.approx(found.scores(control=True).mean(dim=0).tolist())
    half = 1.96 * found.effect.std(dim=0) / len(found.effect) ** 0.5
    low = (found.effect.mean(dim=0) - half).tolist()
    band = by_layer.collections[0].get_paths()[0].vertices[:, 1].tolist()
    assert all(any(end == pytest.approx(each) for each in band) for end in low)
    assert points.collections[0].get_offsets()[:, 0].tolist() == found.effect.flatten().tolist()
    assert found.plot(name="EM")[1].get_ylabel() == "EM score"
    with pytest.raises(ValueError, match="no record has the score"):
        found.plot(name="XX")
