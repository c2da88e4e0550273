"""Methods by their names: they are the editors' own, with everything shared that can be."""

from functools import partial

import pytest
import torch

from tl_edit import MEMITConfig, SecondMoments, memit_edit, rome, rome_edit, second_moment
from tl_edit.command.bundled import bundled_records
from tl_edit.factworld import MODEL_NAME, fact_texts
from tl_edit.prefixes import generate_prefixes
from tl_edit.rome import ROMEConfig
from tl_edit.sweep import named
from tl_edit.sweep.methods import describe
from tl_edit.sweep.named import EDITORS, NAMES, layers_of, named_methods


@pytest.fixture(scope="module")
def moments(fact_model):
    return second_moment(fact_model, fact_texts()[:3000], [0, 1, 2], progress=False)


@pytest.fixture(scope="module")
def records():
    return bundled_records(2, 0)


@pytest.fixture
def measure(moments):
    """Remembers what it was asked for."""

    def measured(layers):
        measured.asked.append(list(layers))
        return SecondMoments(moments[layer] for layer in layers)

    measured.asked = []
    return measured


def test_all_names_are_methods_and_everything_is_made_once(fact_model, measure, monkeypatch):
    generated = []

    def counted(model, **rule):
        generated.append(rule)
        return generate_prefixes(model, **rule)

    monkeypatch.setattr(named, "generate_prefixes", counted)
    found = named_methods(fact_model, NAMES, measure, seed=3)
    assert list(found.methods) == list(NAMES)
    assert list(found.settings) == list(EDITORS)
    assert {config.seed for config in found.settings.values()} == {3}
    assert found.settings["r-rome"].variant == "r-ROME"
    assert measure.asked == [[0, 1]]
    assert len(generated) == 2, "ROME's rule and MEMIT's"


def test_nothing_is_measured_that_nobody_needs(fact_model, measure):
    named_methods(fact_model, ["none", "rome-identity", "random"], measure)
    assert measure.asked == []
    named_methods(fact_model, ["rome", "memit"], measure, layer=2)
    named_methods(fact_model, ["rome", "memit"], measure, layer=1, layers=[0, 2])
    assert measure.asked == [[2], [0, 1, 2]]


def whole(delta):
    return delta.left @ delta.right


def test_methods_are_the_editors(fact_model, measure, moments, records, monkeypatch):
    short = {"layer": 0, "v_num_grad_steps": 5, "n_prefixes": 1, "prefix_lengths": (5,)}
    monkeypatch.setitem(rome._PUBLISHED, MODEL_NAME, short)
    names = ["rome", "rome-identity", "memit", "random"]
    found = named_methods(fact_model, names, measure).methods
    requests = [records[0].request]
    edits = {name: method(fact_model, requests) for name, method in found.items()}
    expected = {
        "rome": rome_edit(fact_model, requests[0], moments, apply=False),
        "rome-identity": rome_edit(fact_model, requests[0], SecondMoments.identity(fact_model, [0]), apply=False),
        "memit": memit_edit(fact_model, requests, moments, apply=False, progress=False),
    }
    for name, edit in expected.items():
        for layer, delta in edit.deltas.items():
            torch.testing.assert_close(whole(edits[name].deltas[layer]), whole(delta), rtol=1e-6, atol=1e-9)
    assert edits["random"].norms[0] == pytest.approx(edits["rome"].norms[0])
    cosine = torch.cosine_similarity(*(whole(edits[name].deltas[0]).flatten() for name in ("random", "rome")), dim=0)
    assert abs(cosine) < 0.05


def test_a_method_is_described_alike_whatever_is_run_beside_it(fact_model, measure):
    alone = named_methods(fact_model, ["rome"], measure).methods["rome"]
    beside = named_methods(fact_model, ["none", "rome", "memit"], measure).methods["rome"]
    other = named_methods(fact_model, ["rome"], measure, seed=1).methods["rome"]
    assert isinstance(alone, partial)
    assert describe(alone) == describe(beside) != describe(other)


def test_layers(fact_model, measure):
    found = named_methods(fact_model, ["memit", "rome"], measure, layer=2).settings
    assert {name: layers_of(config) for name, config in found.items()} == {"memit": (2,), "rome": (2,)}
    assert found["memit"].mom2_update_weight == MEMITConfig.for_model(fact_model).mom2_update_weight
    assert layers_of(ROMEConfig()) == ()


@pytest.mark.parametrize(
    ("names", "given", "words"),
    [
        (["role"], {}, "no method 'role'; expected some of none, rome"),
        ([], {}, "no methods"),
        (["none", "none"], {}, "a method twice"),
        (["none", "random"], {}, "takes its norm from another method"),
        (["none", "r-rome"], {"batch": 2}, "r-rome edits one record at a time, and the batch is 2"),
        (["rome"], {"layer": 6}, "layers 0 to 5"),
        (["none", "rome"], {"layers": [0, 1]}, "layers .0, 1. are given, and none, rome edit one"),
        (["pmet"], {"layers": [-1]}, "layers 0 to 5"),
        (["emmet"], {"layers": [2, 1]}, "ascending"),
    ],
)
def test_refused(fact_model, measure, names, given, words):
    with pytest.raises(ValueError, match=words):
        named_methods(fact_model, names, measure, **given)
    assert measure.asked == []


def test_a_model_without_published_settings(measure):
    import tiny_models

    model = tiny_models.build("gpt2")
    for name, option in {"rome": "--layer 1", "memit": "--layers 1 2"}.items():
        with pytest.raises(ValueError, match=f"{name}: no layer is given.*pass e.g. {option}"):
            named_methods(model, [name], measure)
