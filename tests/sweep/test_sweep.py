"""Sweeps against the obvious loop; methods that break the rules; folders that go on."""

import json
import os
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import tiny_models
import torch
from some_edits import make_edit, same, weights

from tl_edit import (
    Edit,
    EditRecord,
    EditRequest,
    Evaluation,
    Generation,
    MEMITConfig,
    ROMEConfig,
    SecondMoments,
    Sweep,
    applied_edits,
    evaluate,
    memit_edit,
    no_edit,
    random_direction,
    rome_edit,
    sweep,
)
from tl_edit.sweep.runner import _furthest

CITIES = ("Rome", "Berlin", "Oslo", "Lima")
RECORDS = tuple(
    EditRecord(
        EditRequest("{} is in", subject, city, "Paris"),
        paraphrase_prompts=(f"Where is {subject}? In",),
        neighborhood_prompts=("The Louvre is in", "Notre Dame is in"),
        name=f"case {i}",
    )
    for i, (subject, city) in enumerate(
        zip(("The Eiffel Tower", "The Pantheon", "Montmartre", "The Sorbonne"), CITIES, strict=True)
    )
)
SETTINGS = {"progress": False, "prepend_bos": True}


def any_edit(model, requests, scale=0.5, seed=0) -> Edit:
    """A change that depends on the requests alone."""
    seeds = sum(ord(letter) for request in requests for letter in request.subject) + seed
    edit = make_edit(model, seed=seeds, scale=scale)
    return Edit.of(model, edit.deltas, method="any", requests=tuple(requests), prepend_bos=True)


@pytest.fixture
def model():
    return tiny_models.build("gpt2")


def test_a_sweep_is_the_obvious_loop(model):
    before = weights(model)
    found = sweep(
        model, RECORDS, {"none": no_edit, "any": any_edit}, distracted=True, kl=True, texts="Rome.", **SETTINGS
    )
    parts = [
        evaluate(model, record, edit=any_edit(model, [record.request]), distracted=True, kl=True, texts="Rome.")
        for record in RECORDS
    ]
    expected = Evaluation.of(parts)
    assert found.evaluation("any").scores == expected.scores
    assert found.evaluation("any").drifts == expected.drifts
    assert found.evaluation("any").provenance == expected.provenance
    one_by_one = Evaluation.of(evaluate(model, record) for record in RECORDS)
    assert found.evaluation("none").success("neighborhood") == one_by_one.success("neighborhood")
    assert found.evaluation("none").kl("neighborhood").mean == pytest.approx(0, abs=1e-6)
    assert same(weights(model), before)
    assert applied_edits(model) == []
    assert repr(found) == "Sweep(4 records: none, any)"


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2",)), ids=str)
def test_the_editors_of_the_package_are_methods(case):
    model = tiny_models.build(case)
    moments = SecondMoments.identity(model, [0, 1])
    rome = partial(rome_edit, moments=moments, layer=1, prefixes=(), apply=False)
    config = MEMITConfig(layers=(0, 1), share=0.9)
    memit = partial(memit_edit, moments=moments, config=config, prefixes=(), apply=False, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sweep(model, RECORDS[:2], {"ROME": rome, "MEMIT": memit}, **SETTINGS)
        together = sweep(model, RECORDS[:2], {"MEMIT": memit}, batch=2, **SETTINGS)
        edit = memit(model, [record.request for record in RECORDS[:2]])
    assert found.failures == ()
    for record, outcome in zip(RECORDS, found.outcomes["ROME"], strict=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = rome(model, [record.request])
        assert outcome.norms == alone.norms
        assert outcome.diagnostics["divisor"] == alone.diagnostics["divisor"]
        assert outcome.scores == evaluate(model, record, edit=alone).scores
    assert len(together.outcomes["MEMIT"]) == 1
    assert together.evaluation("MEMIT").scores == evaluate(model, RECORDS[:2], edit=edit).scores


def test_the_control_has_the_norms_of_the_method(model):
    rank = 2

    def method(model, requests):
        edit = make_edit(model, layers=(0, 1), seed=len(requests[0].subject), rank=rank)
        return Edit.of(model, edit.deltas, method="any", requests=tuple(requests), prepend_bos=True)

    control = random_direction(method, seed=3)
    edits = [control(model, [record.request]) for record in RECORDS[:2]]
    for edit, record in zip(edits, RECORDS, strict=False):
        original = method(model, [record.request])
        assert edit.norms == pytest.approx(original.norms, rel=1e-10)
        assert edit.ranks == original.ranks
        one, other = (each.deltas[0].left @ each.deltas[0].right for each in (edit, original))
        assert abs(float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))) < 0.2
    assert edits[0] != edits[1]
    assert control(model, [RECORDS[0].request]) == edits[0]
    assert random_direction(method, seed=4)(model, [RECORDS[0].request]) != edits[0]


def test_an_edit_that_another_is_derived_from_is_computed_once(model):
    calls = []

    def counted(model, requests):
        calls.append(requests[0].subject)
        return any_edit(model, requests)

    methods = {"any": counted, "random": random_direction(counted), "other": random_direction(counted, seed=1)}
    found = sweep(model, RECORDS[:2], methods, **SETTINGS)
    assert calls == [record.request.subject for record in RECORDS[:2]]
    assert found.outcomes["random"][0].norms == pytest.approx(found.outcomes["any"][0].norms)


def test_records_on_which_a_method_fails_are_named_and_left_out_of_comparisons(model):
    def picky(model, requests):
        if requests[0].subject == "Montmartre":
            raise ValueError("no hills")
        return any_edit(model, requests)

    bad = EditRecord(EditRequest("{} is in", "The Eiffel Tower", "Rome", "Paris"), ("It ends in a\xa0",))
    found = sweep(model, [*RECORDS, bad], {"none": no_edit, "picky": picky}, **SETTINGS)
    whys = {(name, record.name): why for name, record, why in found.failures}
    assert whys["picky", "case 2"] == "no hills"
    assert ("none", "case 2") not in whys
    assert len(found.evaluation("picky").scores) == 5 - sum(name == "picky" for name, _, _ in found.failures)
    comparison = found.compare()
    assert {len(each.scores) for each in comparison.evaluations.values()} == {
        5 - len({record.name for _, record, _ in found.failures})
    }
    assert "failed" in repr(found)
    frame = found.to_dataframe()
    assert frame.set_index(["method", "name"]).loc[("picky", "case 2"), "failed"] == "no hills"


def test_a_comparison_of_nothing_is_refused(model):
    def never(model, requests):
        raise ValueError("never")

    found = sweep(model, RECORDS[:1], {"none": no_edit, "never": never}, **SETTINGS)
    with pytest.raises(ValueError, match=r"no record that all methods worked on; .*'never' \(never\), with methods="):
        found.compare()
    assert list(found.compare(["none"]).evaluations) == ["none"]
    with pytest.raises(ValueError, match=r"methods is \['ROME'\]; expected a list of some of none, never"):
        found.compare(["ROME"])
    with pytest.raises(ValueError, match="no method 'ROME'; expected one of none, never"):
        found.evaluation("ROME")


def test_methods_that_apply_their_edit_are_refused_and_undone(model):
    before = weights(model)
    with pytest.raises(ValueError, match=r"the method 'bad' applied its edit; .* pass apply=False"):
        sweep(model, RECORDS, {"bad": lambda model, requests: any_edit(model, requests).apply(model)}, **SETTINGS)
    assert same(weights(model), before)
    assert applied_edits(model) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_a_failing_method_applied_is_undone(model, error):
    """Otherwise all that follows would be measured on the edited model."""
    before = weights(model)

    def bad(model, requests):
        any_edit(model, requests).apply(model)
        raise error("later")

    with pytest.raises(ValueError if error is ValueError else error, match="applied its edit|later"):
        sweep(model, RECORDS, {"bad": bad}, **SETTINGS)
    assert same(weights(model), before)


def test_methods_that_return_nothing_to_switch_on_are_refused(model):
    with pytest.raises(
        ValueError, match="the method 'bad' returned something of type NoneType; expected something with"
    ):
        sweep(model, RECORDS, {"bad": lambda model, requests: None}, **SETTINGS)


def test_a_control_of_what_is_no_edit_is_refused(model):
    with pytest.raises(ValueError, match="the control 'control' takes norms and ranks of an Edit"):
        sweep(model, RECORDS[:1], {"control": random_direction(no_edit)}, **SETTINGS)
    with pytest.raises(ValueError, match="expected an Edit, as the control takes its norms"):
        random_direction(no_edit)(model, [RECORDS[0].request])


class Leaving:
    """Something that does not restore the weights."""

    @contextmanager
    def on(self, model):
        with torch.no_grad():
            next(iter(model.parameters())).add_(0.1)
        yield


def test_methods_that_do_not_restore_the_weights_are_noticed(model):
    with pytest.raises(ValueError, match="'bad', or one that ran before it, did not leave the model's weights"):
        sweep(model, RECORDS, {"bad": lambda model, requests: Leaving()}, **SETTINGS)


def test_what_decides_between_equal_probabilities_may_be_absent_from_older_folders():
    before = [{"efficacy": [{"prob_new": 0.0, "prob_true": 0.0}]}]
    now = [{"efficacy": [{"prob_new": 0.0, "prob_true": 0.0, "tied": (-800.0, -900.0)}]}]
    assert _furthest(before, now) == _furthest(now, before) == 0.0
    assert _furthest(before, [{"efficacy": [{"prob_new": 0.0}]}]) == float("inf")


def test_what_was_measured_on_spoiled_weights_is_not_kept(tmp_path):
    """A method that spoils weights while it computes an edit is noticed by their hash, now and then."""
    calls = []

    def spoiling(model, requests):
        calls.append(requests)
        if len(calls) == 3:
            model.blocks[0].attn.W_Q.data.mul_(1.001)
        return any_edit(model, requests)

    model = tiny_models.build("gpt2")
    if not hasattr(model.blocks[0].attn, "W_Q") or "Bridge" in type(model).__name__:
        pytest.skip("the name of a weight of HookedTransformer")
    given = {"folder": tmp_path, **SETTINGS}
    with pytest.raises(ValueError, match="did not leave the model's weights .*not kept"):
        sweep(model, RECORDS, {"bad": spoiling, "none": no_edit}, **given)
    kept = (tmp_path / "results.0.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in kept] == ["bad", "none"] * 2, "those of the first two batches"


@pytest.mark.parametrize("named", [True, False])
def test_hooks_that_a_method_leaves_are_noticed(model, named):
    class Hooking:
        @contextmanager
        def on(self, model):
            point = model.hook_dict["blocks.1.hook_mlp_out"]
            point.add_hook(lambda act, hook: act) if named else point.register_forward_hook(lambda *_: None)
            yield

    with pytest.raises(ValueError, match="the method 'bad' left a hook at blocks.1.(hook_mlp_out|mlp.hook_out),"):
        sweep(model, RECORDS, {"bad": lambda model, requests: Hooking()}, **SETTINGS)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (lambda model: None, "the method 'bad' cannot be called with a model and requests"),
        (rome_edit, "cannot be called with a model and requests .*'moments'"),
        (lambda model, requests: Leaving, "returned something of type type"),
        (lambda model, requests: Wrong(lambda: None), "cannot be switched on; .*context manager"),
        (lambda model, requests: Wrong(lambda model: None), "cannot be switched on; .*of type NoneType"),
    ],
)
def test_methods_that_cannot_be_used_are_refused_by_name(model, method, words):
    with pytest.raises(ValueError, match=words):
        sweep(model, RECORDS, {"bad": method}, **SETTINGS)


class Wrong:
    def __init__(self, on):
        self.on = on


@pytest.mark.parametrize("name", ["", " ", "two\nlines"])
def test_names_that_cannot_stand_in_a_table_are_refused(model, name):
    with pytest.raises(ValueError, match="expected a name that can stand in a table"):
        sweep(model, RECORDS, {name: no_edit}, **SETTINGS)


def test_failures_are_tried_again(model, tmp_path):
    broken = True

    def flaky(model, requests):
        if broken:
            raise ValueError("a bug")
        return any_edit(model, requests)

    with pytest.warns(UserWarning, match="the method 'flaky' failed on The Eiffel Tower .*a bug"):
        first = sweep(model, RECORDS[:2], {"flaky": flaky}, folder=tmp_path, **SETTINGS)
    assert len(first.failures) == 2
    broken = False
    again = sweep(model, RECORDS[:2], {"flaky": flaky}, folder=tmp_path, **SETTINGS)
    assert again.failures == ()
    assert Sweep.load(tmp_path).evaluation("flaky").scores == again.evaluation("flaky").scores


def test_a_folder_is_read_without_the_model(model, tmp_path):
    found = sweep(model, RECORDS, METHODS, folder=tmp_path, kl=True, texts="Rome.", **SETTINGS)
    read = Sweep.load(tmp_path)
    assert read.batches == found.batches
    assert read.outcomes == found.outcomes
    assert read.provenance == found.provenance
    assert read.to_markdown() == found.to_markdown()
    with pytest.raises(ValueError, match=r"Sweep.load: .*holds no run that can be read"):
        Sweep.load(tmp_path / "nothing")


def test_an_edit_that_is_applied_is_warned_of(model):
    edit = make_edit(model, seed=9).apply(model)
    try:
        with pytest.warns(UserWarning, match="is part of what is called unedited"):
            sweep(model, RECORDS[:1], {"none": no_edit}, **SETTINGS)
    finally:
        edit.undo(model)


def test_edits_computed_with_another_bos_are_warned_of(model):
    with pytest.warns(UserWarning, match="'any' were computed with a BOS and are evaluated without one"):
        sweep(model, RECORDS[:1], {"any": any_edit}, progress=False, prepend_bos=False)


def test_what_editors_warn_of_edit_by_edit_is_said_once_for_each_method(model):
    def hesitant(model, requests):
        warnings.warn(f"rome_edit: for {requests[0]} no value was found.", stacklevel=2)
        warnings.warn(f"something else about {requests[0]}", stacklevel=2)
        return any_edit(model, requests)

    with pytest.warns(UserWarning, match="no value was found") as said:
        sweep(model, RECORDS, {"a": hesitant, "b": lambda *given: hesitant(*given)}, **SETTINGS)
    words = [str(warning.message) for warning in said]
    assert sum("no value was found" in each for each in words) == 2
    assert any("Further edits of 'b' are not warned of" in each for each in words)
    assert sum("something else about" in each for each in words) == 2 * len(RECORDS)


def test_the_words_of_the_editors_themselves_are_known(model):
    config = ROMEConfig(layer=0, n_prefixes=0, v_num_grad_steps=1)
    rome = partial(rome_edit, moments=SecondMoments.identity(model, [0]), config=config, prepend_bos=True, apply=False)
    with pytest.warns(UserWarning, match="no value was found") as said:
        sweep(model, RECORDS, {"ROME": rome}, **SETTINGS)
    assert sum("no value was found" in str(warning.message) for warning in said) == 1


def test_neighborhoods_that_nobody_has_are_not_measured(model):
    bare = EditRecord(RECORDS[0].request)
    for wanted in ({"kl": True}, {"distracted": True}):
        with pytest.raises(ValueError, match="no record has neighborhood_prompts"):
            sweep(model, bare, {"none": no_edit}, **wanted, **SETTINGS)


METHODS = {
    "none": no_edit,
    "any": partial(any_edit, scale=0.5),
    "random": random_direction(partial(any_edit, scale=0.5)),
}


def test_a_sweep_that_was_stopped_goes_on_with_equal_results(model, tmp_path):
    whole = sweep(model, RECORDS, METHODS, kl=True, texts="Rome.", **SETTINGS)
    calls = []

    def stopping(model, requests):
        calls.append(requests)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return any_edit(model, requests)

    methods = METHODS | {"stopping": stopping}
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, RECORDS, methods, folder=tmp_path / "run", kl=True, texts="Rome.", **SETTINGS)
    assert same(weights(model), before)
    kept = (tmp_path / "run" / "results.0.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in kept] == ["none", "any", "random", "stopping"] * 2
    again = sweep(model, RECORDS, methods, folder=tmp_path / "run", kl=True, texts="Rome.", **SETTINGS)
    for name in METHODS:
        assert again.evaluation(name).scores == whole.evaluation(name).scores
        assert again.evaluation(name).drifts == whole.evaluation(name).drifts
        assert [outcome.norms for outcome in again.outcomes[name]] == [each.norms for each in whole.outcomes[name]]
    assert len((tmp_path / "run" / "results.0.jsonl").read_text().splitlines()) == 4 * len(RECORDS)


def test_of_what_is_there_one_result_of_each_method_is_computed_again(model, tmp_path):
    sweep(model, RECORDS, {"any": any_edit}, folder=tmp_path, **SETTINGS)
    calls = []

    def spy(model, requests):
        calls.append(requests)
        return any_edit(model, requests)

    spy.__module__, spy.__qualname__ = any_edit.__module__, any_edit.__qualname__
    sweep(model, RECORDS, {"any": spy}, folder=tmp_path, **SETTINGS)
    assert calls == [[RECORDS[-1].request]], "the last"


def test_records_and_methods_may_be_added(model, tmp_path):
    sweep(model, RECORDS[:2], {"any": any_edit}, folder=tmp_path, **SETTINGS)
    found = sweep(model, RECORDS, {"none": no_edit, "any": any_edit}, folder=tmp_path, **SETTINGS)
    whole = sweep(model, RECORDS, {"none": no_edit, "any": any_edit}, **SETTINGS)
    for name in ("none", "any"):
        assert found.evaluation(name).scores == whole.evaluation(name).scores
    few = sweep(model, RECORDS[1:3], {"any": any_edit}, folder=tmp_path, **SETTINGS)
    assert few.evaluation("any").scores == whole.evaluation("any").scores[1:3]


@pytest.mark.parametrize("cut", [5, 200])
def test_a_line_that_was_cut_off_is_done_again(model, tmp_path, cut):
    whole = sweep(model, RECORDS, {"any": any_edit}, folder=tmp_path, **SETTINGS)
    file = tmp_path / "results.0.jsonl"
    file.write_text(file.read_text()[:-cut])
    again = sweep(model, RECORDS, {"any": any_edit}, folder=tmp_path, **SETTINGS)
    assert again.evaluation("any").scores == whole.evaluation("any").scores
    third = sweep(model, RECORDS, {"any": any_edit}, folder=tmp_path, **SETTINGS)
    assert third.evaluation("any").scores == whole.evaluation("any").scores


def other_model():
    return tiny_models.build("gpt2", seed=1)


def test_folders_of_another_run_are_refused(model, tmp_path):
    sweep(model, RECORDS, {"any": partial(any_edit, scale=0.5)}, folder=tmp_path, **SETTINGS)
    for changed, words in (
        ({"methods": {"any": partial(any_edit, scale=0.7)}}, r"method 'any' …scale=0.5\)… \(now …scale=0.7\)…\)"),
        ({"kl": True}, r"kl False \(now True\)"),
        ({"distracted": True}, r"distracted False \(now True\)"),
        ({"texts": "Rome."}, "texts"),
        ({"batch": 2}, r"batch 1 \(now 2\)"),
        ({"prepend_bos": False}, r"prepend_bos True \(now False\)"),
        ({"model": other_model()}, "weights"),
        ({"model": model.double()}, "dtype"),
    ):
        given = {"model": tiny_models.build("gpt2"), "methods": {"any": partial(any_edit, scale=0.5)}, **SETTINGS}
        with pytest.raises(ValueError, match=rf"holds another run: .*{words}.*choose another folder"):
            sweep(records=RECORDS, folder=tmp_path, **(given | changed))


def test_other_methods_are_noticed_where_their_name_does_not_tell(model, tmp_path):
    scale = 0.5

    def closure(model, requests):
        return any_edit(model, requests, scale=scale)

    sweep(model, RECORDS[:2], {"any": closure}, folder=tmp_path, **SETTINGS)
    scale = 5.0
    for records in (RECORDS, RECORDS[:2]):  # also where all is there
        with pytest.raises(ValueError, match=r"results of another 'any': repeated on .* a probability differs"):
            sweep(model, records, {"any": closure}, folder=tmp_path, **SETTINGS)


def test_folders_with_something_else_are_refused(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files; expected a new one"):
        sweep(model, RECORDS, {"none": no_edit}, folder=tmp_path, **SETTINGS)
    file = tmp_path / "a file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="cannot be read"):
        sweep(model, RECORDS, {"none": no_edit}, folder=file, **SETTINGS)
    (tmp_path / "notes.txt").unlink()
    run = tmp_path / "run"
    sweep(model, RECORDS[:1], {"none": no_edit}, folder=run, **SETTINGS)
    with pytest.raises(ValueError, match="holds results of other records"):
        sweep(model, RECORDS[1:], {"none": no_edit}, folder=run, **SETTINGS)
    (run / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run.json is damaged, or of another version"):
        sweep(model, RECORDS, {"none": no_edit}, folder=run, **SETTINGS)


def test_two_runs_in_one_folder_at_a_time_are_refused(model, tmp_path):
    """The second begins while the first computes an edit."""

    def second(model, requests):
        with pytest.raises(
            ValueError, match=rf"another run works in .*\(process {os.getpid()} on .*, since 2.*one at a"
        ):
            sweep(model, RECORDS, {"none": no_edit}, folder=tmp_path / "run", **SETTINGS)
        return any_edit(model, requests)

    found = sweep(model, RECORDS[:1], {"second": second}, folder=tmp_path / "run", **SETTINGS)
    assert found.failures == ()
    assert len((tmp_path / "run" / "results.0.jsonl").read_text().splitlines()) == 1
    with pytest.raises(RuntimeError, match="a crash"):
        sweep(model, RECORDS, {"none": no_edit, "bad": crashing}, folder=tmp_path / "run", **SETTINGS)
    sweep(model, RECORDS[:2], {"none": no_edit}, folder=tmp_path / "run", **SETTINGS)


def crashing(model, requests):
    raise RuntimeError("a crash")


def test_where_there_are_no_locks_one_goes_without(model, tmp_path, monkeypatch):
    """A finished run in a folder that can only be read is read, and some file systems know no locks."""
    sweep(model, RECORDS[:1], {"none": no_edit}, folder=tmp_path, **SETTINGS)
    for error in (PermissionError("read-only"), NotImplementedError("no flock")):

        def refuse(*_, error=error, **__):
            raise error

        monkeypatch.setattr("filelock.FileLock.acquire", refuse)
        assert len(sweep(model, RECORDS[:1], {"none": no_edit}, folder=tmp_path, **SETTINGS).outcomes["none"]) == 1


HOLDING = """
import sys, time
from pathlib import Path
from tl_edit.processes import Processes
from tl_edit.sweep.alone import alone

with alone(Path(sys.argv[1]), Processes()):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_run_that_was_killed_keeps_nobody_out(model, tmp_path):
    holding = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holding.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"another run works in the folder .*\(process {holding.pid} on "):
            sweep(model, RECORDS[:1], {"none": no_edit}, folder=tmp_path, **SETTINGS)
        assert not (tmp_path / "run.json").exists()
    finally:
        holding.kill()
        holding.communicate()
    assert (tmp_path / ".running").exists(), "it could not tidy up"
    sweep(model, RECORDS[:1], {"none": no_edit}, folder=tmp_path, **SETTINGS)
    assert sorted(each.name for each in tmp_path.iterdir() if each.name != ".lock") == [
        *("records.jsonl", "results.0.jsonl", "run.json")
    ]


def test_hooks_of_the_user_take_part_but_not_beside_a_folder(model, tmp_path):
    point = model.hook_dict["blocks.1.hook_mlp_out"]
    plain = sweep(model, RECORDS[:1], {"none": no_edit}, **SETTINGS)
    handle = point.register_forward_hook(lambda module, args, output: output * 0.0)
    try:
        hooked = sweep(model, RECORDS[:1], {"none": no_edit}, **SETTINGS)
        with pytest.raises(ValueError, match="a hook is attached at .*sweep without a folder"):
            sweep(model, RECORDS[:1], {"none": no_edit}, folder=tmp_path / "run", **SETTINGS)
    finally:
        handle.remove()
    assert hooked.evaluation("none").scores != plain.evaluation("none").scores
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"methods": {}}, "methods is an empty mapping; expected methods by name"),
        ({"methods": {"ROME": None}}, "methods holds 'ROME' with something of type NoneType"),
        ({"batch": 0}, "batch is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"records": []}, "at least one EditRecord"),
        ({"texts": ""}, "expected one text or several"),
    ],
)
def test_what_cannot_be_swept_is_refused(model, wrong, words):
    from jaxtyping import TypeCheckError

    given = {"records": RECORDS, "methods": {"none": no_edit}, **SETTINGS} | wrong
    with pytest.raises((ValueError, TypeCheckError), match=f"{words}|Type-check"):
        sweep(model, **given)


def test_tables_of_a_sweep(model):
    found = sweep(model, RECORDS, METHODS, **SETTINGS)
    assert found.to_markdown().count("\n") == 4
    assert r"\toprule" in found.to_latex(["NS", "NM"])
    assert "paraphrase success" in found._repr_html_()
    assert found.records == RECORDS


def test_texts_are_generated_in_a_sweep(model, tmp_path):
    record = replace(RECORDS[0], generation_prompts=("The Eiffel Tower is", "It is"), essence_texts=("It is a tower.",))
    generate = Generation(n_tokens=16)
    given = {"generate": generate, "folder": tmp_path, **SETTINGS}
    found = sweep(model, [record, RECORDS[1]], {"any": any_edit}, **given)
    edit = any_edit(model, [record.request])
    assert found.evaluation("any").scores[0] == evaluate(model, record, edit=edit, generate=generate).scores[0]
    assert {"GE", "EP"} <= found.evaluation("any").metrics().keys()
    with pytest.raises(ValueError, match=r"generate .Generation\(n_tokens=16.*now .Generation\(n_tokens=17"):
        sweep(model, [record], {"any": any_edit}, **given | {"generate": Generation(n_tokens=17)})
    with pytest.raises(ValueError, match="no record has generation_prompts"):
        sweep(model, RECORDS, {"any": any_edit}, generate=generate, **SETTINGS)


def test_divergences_of_large_batches_are_taken_in_portions(model, monkeypatch):
    from tl_edit.evaluate import judge

    given = {"kl": True, "batch": 4, "texts": "Rome.", **SETTINGS}
    whole = sweep(model, RECORDS, METHODS, **given)
    monkeypatch.setattr(judge, "_DISTRIBUTIONS", 1)
    parts = sweep(model, RECORDS, METHODS, **given)
    for name in METHODS:
        one, other = (each.evaluation(name) for each in (whole, parts))
        assert len(other.scores) == 4
        assert other.drifts == one.drifts
        for key, metric in one.metrics().items():
            assert other.metrics()[key].mean == pytest.approx(metric.mean, rel=1e-4, abs=1e-6)
