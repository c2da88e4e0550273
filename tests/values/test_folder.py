"""Values in a folder: found again, never another's, and a search that was stopped goes on."""

import json

import pytest
import tiny_models
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tl_edit import EditRequest, ValueSearch, host
from tl_edit.values import optimize_values
from tl_edit.values import run as run_module

REQUESTS = (
    EditRequest("{} is in the city of", "The Eiffel Tower", "Rome", "Paris"),
    EditRequest("{} is in", "The Colosseum", "Paris"),
    EditRequest("{} is in", "The Louvre", "Rome"),
)
SEARCH = ValueSearch(v_num_grad_steps=3)


@pytest.fixture
def model():
    return tiny_models.build("gpt2")


def count_searches(monkeypatch):
    searched, search = [], run_module.search
    monkeypatch.setattr(run_module, "search", lambda *given: searched.append(len(given[1])) or search(*given))
    return searched


def numbers(value):
    return value.losses, value.loss_terms, value.target_prob, value.site


def equal(some, others):
    return all(torch.equal(a.v_star, b.v_star) and numbers(a) == numbers(b) for a, b in zip(some, others, strict=True))


def test_what_was_found_is_not_searched_again(model, tmp_path, monkeypatch):
    folder = tmp_path / "values"
    first = optimize_values(model, REQUESTS[:2], 1, search=SEARCH, folder=folder)
    searched = count_searches(monkeypatch)
    assert equal(optimize_values(model, REQUESTS[:2], 1, search=SEARCH, folder=str(folder)), first)
    assert searched == []
    more = optimize_values(model, REQUESTS[::-1], 1, search=SEARCH, folder=folder)
    assert searched == [1]
    assert equal(more[1:], first[::-1])


def test_a_search_that_was_stopped_goes_on(model, tmp_path, monkeypatch):
    whole = optimize_values(model, REQUESTS, 1, search=SEARCH, max_rows=1)
    searched, search = [], run_module.search

    def stop(*given):
        if len(searched) == 2:
            raise KeyboardInterrupt
        searched.append(1)
        return search(*given)

    monkeypatch.setattr(run_module, "search", stop)
    with pytest.raises(KeyboardInterrupt):
        optimize_values(model, REQUESTS, 1, search=SEARCH, max_rows=1, folder=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    monkeypatch.setattr(run_module, "search", search)
    searched = count_searches(monkeypatch)
    assert equal(optimize_values(model, REQUESTS, 1, search=SEARCH, max_rows=1, folder=tmp_path), whole)
    assert searched == [1]


@pytest.mark.parametrize(
    "change",
    [
        {"search": ValueSearch(v_num_grad_steps=4)},
        {"site": "resid_post"},
        {"layer": 0},
        {"prefixes": ("It was. {}",)},
        {"prepend_bos": False},
    ],
    ids=str,
)
def test_another_search_is_another_file(model, tmp_path, monkeypatch, change):
    optimize_values(model, REQUESTS, 1, search=SEARCH, folder=tmp_path)
    searched = count_searches(monkeypatch)
    given = {"layer": 1, "search": SEARCH} | change
    layer = given.pop("layer")
    assert equal(
        optimize_values(model, REQUESTS, layer, folder=tmp_path, **given),
        optimize_values(model, REQUESTS, layer, **given),
    )
    assert searched == [3, 3]


def test_other_weights_are_another_model(model, tmp_path, monkeypatch):
    optimize_values(model, REQUESTS, 1, search=SEARCH, folder=tmp_path)
    host.write_w_out(model, 2, 1.01 * host.w_out(model, 2))
    searched = count_searches(monkeypatch)
    optimize_values(model, REQUESTS, 1, search=SEARCH, folder=tmp_path)
    assert searched == [3]


@pytest.mark.skipif("HookedTransformer" not in tiny_models.interfaces(), reason="changes a number of its attention")
def test_a_model_that_computes_otherwise_with_equal_weights_is_refused(model, tmp_path):
    optimize_values(model, REQUESTS, 1, search=SEARCH, folder=tmp_path)
    model.blocks[0].attn.attn_scale *= 2
    with pytest.raises(ValueError, match=r"the model had something else \(relative difference .*choose another folder"):
        optimize_values(model, REQUESTS, 1, search=SEARCH, folder=tmp_path)


def test_damaged_files_hooks_and_paths_get_advice(model, tmp_path):
    optimize_values(model, REQUESTS[:1], 1, search=SEARCH, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"x" * 100):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged .*remove the file to search again"):
            optimize_values(model, REQUESTS[:1], 1, search=SEARCH, folder=tmp_path)
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        optimize_values(model, REQUESTS, 1, search=SEARCH, folder=file)
    model.hook_dict["blocks.0.hook_attn_out"].add_hook(lambda act, hook: act)
    with pytest.raises(ValueError, match=r"a hook is attached at blocks\.0\..*; expected none with folder="):
        optimize_values(model, REQUESTS, 1, search=SEARCH, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_files_without_terms_are_read(model, tmp_path):
    """As earlier versions wrote them."""
    (found,) = optimize_values(model, REQUESTS[:1], 1, search=SEARCH, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = file.metadata()
    result = json.loads(told["result"])
    del result["loss_terms"]
    save_file(tensors, path, metadata=told | {"result": json.dumps(result)})
    (again,) = optimize_values(model, REQUESTS[:1], 1, search=SEARCH, folder=tmp_path)
    assert (again.losses, again.loss_terms) == (found.losses, ())
