"""What is applied is known whatever happens to the model: casts, copies, loaded states, garbage collection."""

import copy
import gc
import weakref

import pytest
import tiny_models
import torch
from some_edits import both_interfaces, logits, make_edit, same, weights

from tl_edit import applied_edits, forget_edits, host, undo_edits
from tl_edit.edit.ledger import ledger_of

HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(params=list(tiny_models.interfaces()))
def model(request):
    return tiny_models.build("gpt2", request.param)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64], ids=str)
def test_a_cast_model_is_the_cast_base_plus_the_edits(model, dtype):
    base = weights(model)
    first, second = make_edit(model, (0, 1), seed=1).apply(model), make_edit(model, (1, 2), seed=2).apply(model)
    edited = weights(model)
    model.to(dtype)
    assert applied_edits(model) == [first, second]
    assert first.is_applied(model)
    assert same(weights(model), [weight.to(dtype) for weight in edited]), "a question does not write"
    third = make_edit(model, (0,), seed=3).apply(model)
    expected = [weight.to(dtype) for weight in base]
    for edit in (first, second, third):
        for layer, delta in edit.deltas.items():
            expected[layer] = (expected[layer].double() + delta.matrix).to(dtype)
    assert same(weights(model), expected)
    for edit in (second, first, third):
        edit.undo(model)
    assert same(weights(model), [weight.to(dtype) for weight in base])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_cast_there_and_back_is_recognised(model, dtype):
    base = weights(model)
    edit = make_edit(model, (0, 2)).apply(model)
    model.to(dtype)
    model.to(torch.float32)
    edit.undo(model)
    assert same(weights(model), [weight.to(dtype).float() for weight in base])


def test_an_edit_of_a_wide_model_fits_the_cast_one_and_the_other_way_round():
    wide = tiny_models.build("gpt2")
    edit = make_edit(wide)
    narrow = copy.deepcopy(wide).to(torch.bfloat16)
    with edit.on(narrow):
        assert edit.is_applied(narrow)
    made_narrow = make_edit(narrow, seed=4)
    with made_narrow.on(wide):
        assert made_narrow.is_applied(wide)
    with pytest.raises(ValueError, match="on bfloat16 weights .* and these are float16, which cannot be compared"):
        made_narrow.apply(copy.deepcopy(wide).half())


def test_loading_an_earlier_state_leaves_its_edits(model):
    base, original = weights(model), {name: value.clone() for name, value in model.state_dict().items()}
    first = make_edit(model, (0, 1), seed=1).apply(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    then = weights(model)
    second = make_edit(model, (1, 2), seed=2).apply(model)
    model.load_state_dict(state)
    assert applied_edits(model) == [first]
    assert not second.is_applied(model)
    second.apply(model)
    second.undo(model)
    assert same(weights(model), then)
    second.apply(model)
    model.load_state_dict(original)
    assert applied_edits(model) == []
    first.apply(model).undo(model)
    assert same(weights(model), base)


def test_loading_an_earlier_state_into_a_cast_model_is_recognised(model):
    base = weights(model)
    first = make_edit(model, (0, 1), seed=1).apply(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    make_edit(model, (1, 2), seed=2).apply(model)
    model.to(torch.bfloat16)
    model.load_state_dict(state)
    assert applied_edits(model) == [first]
    first.undo(model)
    assert same(weights(model), [weight.to(torch.bfloat16) for weight in base])


def test_an_edited_state_in_a_fresh_model_is_not_edited_twice():
    """The weights hold the edit, nobody knows it there; so applying it again is refused by the base's hash."""
    model, fresh = tiny_models.build("gpt2"), tiny_models.build("gpt2")
    edit = make_edit(model).apply(model)
    fresh.load_state_dict(model.state_dict())
    assert applied_edits(fresh) == []
    with pytest.raises(ValueError, match=r"on other weights .* W_out of layer 1 differ.*allow_mismatch=True"):
        edit.apply(fresh)


def test_one_layer_changed_from_outside_does_not_hold_up_the_others(model):
    first, second = make_edit(model, (0,), seed=1).apply(model), make_edit(model, (2,), seed=2).apply(model)
    host.write_w_out(model, 2, host.w_out(model, 2) + 1)
    theirs = host.w_out(model, 2).clone()
    first.undo(model)
    with pytest.raises(ValueError, match="layer 2 was changed from outside"):
        second.undo(model)
    with pytest.raises(ValueError, match="listing the applied edits: W_out of layer 2"):
        applied_edits(model)
    assert torch.equal(host.w_out(model, 2), theirs)
    forget_edits(model)
    assert applied_edits(model) == []


def test_the_base_is_kept_once_for_each_layer_and_shared_with_copies(model):
    edits = [make_edit(model, (1,), seed=seed).apply(model) for seed in range(5)]
    layers = ledger_of(model).layers
    assert list(layers) == [1]
    assert layers[1].base.nbytes == host.w_out(model, 1).nbytes
    copied = copy.deepcopy(model)
    assert ledger_of(copied).layers[1].base.data_ptr() == layers[1].base.data_ptr()
    edits[2].undo(copied)
    assert len(applied_edits(model)) == 5
    assert len(applied_edits(copied)) == 4
    for edit in edits:
        edit.undo(model)
    assert not ledger_of(model).layers


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_no_model_is_kept_alive(interface):
    model = tiny_models.build("gpt2", interface)
    edit = make_edit(model).apply(model)
    hooks, half = edit.hooks(model), edit * 0.5
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert hooks
    assert half.deltas


def test_blocks_end_in_any_order(model):
    base, first, second = weights(model), make_edit(model, (0, 1), seed=1), make_edit(model, (1, 2), seed=2)
    one, two = first.on(model), second.on(model)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert applied_edits(model) == [second]
    two.__exit__(None, None, None)
    assert same(weights(model), base)
    with first.on(model), second.on(model):
        with pytest.raises(ValueError, match="applied to this model already.*edit \\* 2"), first.on(model):
            pass
        assert applied_edits(model) == [first, second]
    assert same(weights(model), base)


def test_what_the_state_holds_is_the_same_behind_both_interfaces():
    """An edit goes from one interface to the other, as their weights are equal bit for bit."""
    models = both_interfaces()
    edit = make_edit(models[0])
    found = []
    for model in models:
        with edit.on(model):
            found.append(logits(model).log_softmax(-1))
    assert all(torch.allclose(one, found[0], atol=1e-5) for one in found)


def test_a_second_wrapper_does_not_overwrite_the_first():
    """Two bridges over one Hugging Face model share its weights, each with a ledger of its own."""
    if tiny_models.TRANSFORMER_BRIDGE not in tiny_models.interfaces():
        pytest.skip("needs TransformerBridge")
    case = tiny_models.Case("gpt2", tiny_models.TRANSFORMER_BRIDGE, False)
    tokenizer = tiny_models.default_tokenizer("gpt2")
    hf_model = tiny_models.build_hf("gpt2", len(tokenizer))
    one, two = (tiny_models.boot(hf_model, tokenizer, case, torch.float32) for _ in range(2))
    first = make_edit(one, (1,), seed=1).apply(one)
    second = make_edit(two, (1,), seed=2).apply(two)
    with pytest.raises(ValueError, match="changed from outside"):
        first.undo(one)
    second.undo(two)
    first.undo(one)


def test_a_state_with_undone_edits_is_not_believed_to_be_without(model):
    base = weights(model)
    first, second = make_edit(model, (0,), seed=1).apply(model), make_edit(model, (1,), seed=2).apply(model)
    state = copy.deepcopy(model.state_dict())
    second.undo(model)
    model.load_state_dict(state)
    for ask in (applied_edits, second.is_applied, second.undo, second.apply):
        with pytest.raises(ValueError, match="layer 1 is again as it was with edits on that were undone since"):
            ask(model)
    assert first.is_applied(model), "another layer does not matter"
    host.write_w_out(model, 1, base[1])
    assert applied_edits(model) == [first]
    first.undo(model)
    model.load_state_dict(state)
    with pytest.raises(ValueError, match="again as it was with edits on"):
        applied_edits(model)
    copied = copy.deepcopy(model)
    with pytest.raises(ValueError, match="again as it was with edits on"):
        applied_edits(copied)
    forget_edits(model)
    assert applied_edits(model) == []


def test_a_look_forgets_nothing(model):
    first = make_edit(model, (0,), seed=1).apply(model)
    early = copy.deepcopy(model.state_dict())
    second = make_edit(model, (0, 1), seed=2).apply(model)
    late = copy.deepcopy(model.state_dict())
    for _ in range(2):
        model.load_state_dict(early)
        assert applied_edits(model) == [first]
        model.load_state_dict(late)
        assert applied_edits(model) == [first, second]


def test_one_layer_put_back_alone_is_said_to_be_so(model):
    edit = make_edit(model, (0, 1))
    base = weights(model)
    edit.apply(model)
    host.write_w_out(model, 0, base[0])
    with pytest.raises(ValueError, match=r"layer 0 was changed .* \(to what it was before the edits\)"):
        edit.undo(model)


def test_casts_by_way_of_both_halves_are_recognised(model):
    edit = make_edit(model).apply(model)
    model.half().to(torch.bfloat16).float()
    assert edit.is_applied(model)
    edit.undo(model)
    assert applied_edits(model) == []


def test_an_edit_fits_a_model_that_was_cast_and_back(model):
    edit = make_edit(model)
    model.to(torch.bfloat16).to(torch.float32)
    edit.apply(model).undo(model)


def test_all_can_be_taken_back_at_once(model):
    base = weights(model)
    edits = [make_edit(model, (seed % 3, 1), seed=seed).apply(model) for seed in (2, 3, 4)]
    assert undo_edits(model) == edits
    assert same(weights(model), base)
    assert undo_edits(model) == applied_edits(model) == []


def test_appending_is_summing_anew(model):
    """`apply` adds to the weights there are; a model on which all is summed from the base must agree bit for bit."""
    edits = [make_edit(model, (0, 1), seed=seed, rank=5).apply(model) for seed in range(6)]
    base = ledger_of(model).layers[0].base
    for edit in edits:
        base = (base.double() + edit.deltas[0].left @ edit.deltas[0].right).to(base.dtype)
    assert torch.equal(host.w_out(model, 0), base)
    edits[0].undo(model)
    edits[0].apply(model)
    assert applied_edits(model) == [*edits[1:], edits[0]]


@pytest.mark.parametrize("how", ["cast, save, undo, load", "save, undo, cast, load", "save, undo, load, cast"])
@pytest.mark.parametrize("half", HALVES, ids=str)
def test_a_cast_does_not_hide_an_edit_that_came_back(model, how, half):
    edit, state = make_edit(model).apply(model), None
    for step in how.split(", "):
        if step == "cast":
            model.to(half)
        elif step == "save":
            state = copy.deepcopy(model.state_dict())
        elif step == "undo":
            edit.undo(model)
        else:
            model.load_state_dict(state)
    with pytest.raises(ValueError, match="again as it was with edits on that were undone since"):
        applied_edits(model)


def test_copies_of_a_weight_that_differ_are_seen():
    if tiny_models.TRANSFORMER_BRIDGE not in tiny_models.interfaces():
        pytest.skip("needs TransformerBridge")
    original = tiny_models.build("llama", tiny_models.TRANSFORMER_BRIDGE, True)
    model = copy.deepcopy(original)
    if len(host.w_out_views(model, 1)) == 1:
        pytest.skip("this version keeps one")
    edit = make_edit(model).apply(model)
    model.load_state_dict(original.state_dict())
    with pytest.raises(ValueError, match="has two live copies in this model that differ"):
        edit.undo(model)


def test_training_after_all_is_undone_is_nobodys_business(model):
    edit = make_edit(model)
    edit.apply(model).undo(model)
    host.write_w_out(model, 1, host.w_out(model, 1) * 1.01)
    assert applied_edits(model) == []
    with edit.on(model, allow_mismatch=True):
        assert applied_edits(model) == [edit]


def test_one_layer_does_not_hold_up_undoing_all_of_the_others(model):
    first = make_edit(model, (1,), seed=1).apply(model)
    state = copy.deepcopy(model.state_dict())
    first.undo(model)
    model.load_state_dict(state)
    second = make_edit(model, (0,), seed=2).apply(model)
    assert undo_edits(model) == [second]


def test_changed_weights_are_said_to_be_so_before_all_else(model):
    edit, other = make_edit(model).apply(model), make_edit(model, seed=5)
    host.write_w_out(model, 1, host.w_out(model, 1) + 1)
    with pytest.raises(ValueError, match="applying an edit: W_out of layer 1 was changed from outside"):
        edit.apply(model, allow_mismatch=True)
    assert other.hooks(model, allow_mismatch=True), "hooks write nothing"
    with pytest.raises(ValueError, match="Edit.collateral: W_out of layer 1 was changed"):
        other.collateral(model, "Rome is old")
