"""An edit's life: apply, undo bit for bit, switch on and off, refuse what would be silent harm."""

import contextlib
import copy
import warnings
from dataclasses import replace

import pytest
import tiny_models
import torch
from interrupts import Interrupts
from jaxtyping import TypeCheckError
from some_edits import logits, make_edit, same, weights

from tl_edit import EditRequest, LowRank, applied_edits, forget_edits, host
from tl_edit.edit.ledger import ledger_of

CASES = tiny_models.available_cases(("gpt2", "llama", "gemma2"))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture(params=CASES, ids=str)
def model(request):
    return tiny_models.build(request.param)


def test_apply_changes_the_forward_pass_and_undo_restores_every_bit(model):
    before, logits_before = weights(model), logits(model)
    edit = make_edit(model)
    assert edit.apply(model) is edit
    assert not torch.allclose(logits(model), logits_before, atol=1e-3)
    edit.undo(model)
    assert same(weights(model), before)
    assert torch.equal(logits(model), logits_before)


def test_the_weight_is_the_float64_sum_rounded_once(model):
    before, edit = weights(model), make_edit(model)
    with edit.on(model):
        expected = (before[1].double() + edit.deltas[1].left @ edit.deltas[1].right).to(before[1].dtype)
        assert torch.equal(host.w_out(model, 1), expected)
        assert same([weights(model)[i] for i in (0, 2)], [before[i] for i in (0, 2)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_every_dtype_comes_back_bit_for_bit(interface, dtype):
    model = tiny_models.build("gpt2", interface, dtype=dtype)
    before, edits = weights(model), [make_edit(model, (0, 2), seed=seed) for seed in range(3)]
    for edit in edits:
        edit.apply(model)
    assert host.w_out(model, 0).dtype == dtype
    for edit in edits:
        edit.undo(model)
    assert same(weights(model), before)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_three_edits_are_removed_in_any_order(order):
    model = tiny_models.build("gpt2")
    base = weights(model)
    edits = [make_edit(model, layers, seed=seed) for seed, layers in enumerate([(0, 1), (1,), (1, 2)])]
    for edit in edits:
        edit.apply(model)
    assert applied_edits(model) == edits
    left = list(edits)
    for i in order:
        edits[i].undo(model)
        left.remove(edits[i])
        assert applied_edits(model) == left
        reference = tiny_models.build("gpt2")
        for edit in left:
            edit.apply(reference)
        assert same(weights(model), weights(reference))
    assert same(weights(model), base)
    assert not ledger_of(model).layers, "the kept base is let go with the last edit"


def test_on_undoes_after_an_exception(model):
    before = weights(model)
    edit = make_edit(model)

    def fail_while_on():
        with edit.on(model):
            assert edit.is_applied(model)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail_while_on()
    assert same(weights(model), before)
    assert not edit.is_applied(model)


def test_applying_twice_is_refused_also_for_a_copy():
    model = tiny_models.build("gpt2")
    edit = make_edit(model).apply(model)
    once = weights(model)
    for again in (edit, copy.deepcopy(edit)):
        with pytest.raises(ValueError, match="applied to this model already"):
            again.apply(model)
    assert same(weights(model), once)


def test_undoing_what_is_not_applied_is_refused():
    model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match="not applied to this model"):
        make_edit(model).undo(model)


def test_weights_changed_from_outside_are_not_overwritten():
    model = tiny_models.build("gpt2")
    edit, other = make_edit(model), make_edit(model, seed=1)
    edit.apply(model)
    host.write_w_out(model, 1, host.w_out(model, 1) + 1)
    changed = weights(model)
    for attempt in (lambda: edit.undo(model), lambda: other.apply(model)):
        with pytest.raises(ValueError, match="changed from outside"):
            attempt()
    assert same(weights(model), changed)


def test_a_failing_write_leaves_nothing_half_done(monkeypatch):
    model = tiny_models.build("gpt2")
    first = make_edit(model, seed=5).apply(model)
    before = weights(model)
    write, calls = host.write_w_out, []

    def failing(model, layer, new):
        calls.append(layer)
        write(model, layer, new)
        if len(calls) == 2:
            raise RuntimeError("disk on fire")

    monkeypatch.setattr(host, "write_w_out", failing)
    with pytest.raises(RuntimeError, match="disk on fire"):
        make_edit(model, (0, 1, 2)).apply(model)
    assert same(weights(model), before)
    assert applied_edits(model) == [first]
    monkeypatch.undo()
    first.undo(model)


def test_a_copied_model_has_its_own_life(model):
    before = weights(model)
    edit = make_edit(model).apply(model)
    copied = copy.deepcopy(model)
    edit.undo(model)
    assert same(weights(model), before)
    assert edit.is_applied(copied)
    assert not torch.equal(logits(copied), logits(model))
    edit.undo(copied)
    assert same(weights(copied), before)
    assert torch.equal(logits(copied), logits(model))


def test_an_edit_of_another_width_is_refused():
    model = tiny_models.build("gpt2")
    edit = make_edit(model)
    narrow = replace(edit, deltas={1: LowRank(torch.ones(7, 1).double(), torch.ones(1, 32).double())})
    with pytest.raises(ValueError, match=r"7 x 32.*80 x 32"):
        narrow.apply(model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_factors_that_are_not_finite_are_refused(bad):
    model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match="not finite"):
        replace(make_edit(model), deltas={1: LowRank(torch.full((80, 1), bad).double(), torch.ones(1, 32).double())})


def test_an_edit_that_overflows_half_precision_is_refused():
    model = tiny_models.build("gpt2", dtype=torch.float16)
    before = weights(model)
    with pytest.raises(ValueError, match="would not be finite in torch.float16"):
        make_edit(model, scale=1e3).apply(model)
    assert same(weights(model), before)


def test_requires_grad_mode_and_hooks_stay(model):
    flags = [parameter.requires_grad for parameter in model.parameters()]
    mode, hooks = model.training, {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}
    with make_edit(model).on(model):
        pass
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert model.training == mode
    assert {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks


def test_an_exception_in_the_block_is_not_replaced_by_one_of_the_exit():
    """Weights changed from outside cannot be undone; the user's error matters more, and the weights are theirs."""
    model = tiny_models.build("gpt2")
    edit, theirs = make_edit(model), torch.ones_like(host.w_out(model, 1))

    def fail_while_on():
        with edit.on(model):
            host.write_w_out(model, 1, theirs)
            raise KeyError("mine")

    with warnings.catch_warnings(record=True) as caught, pytest.raises(KeyError, match="mine") as raised:
        fail_while_on()
    said = [*getattr(raised.value, "__notes__", ()), *(str(warning.message) for warning in caught)]
    assert any("undoing" in text or "changed from outside" in text for text in said)
    assert torch.equal(host.w_out(model, 1), theirs)
    with pytest.raises(ValueError, match="changed from outside"), make_edit(model, (0,)).on(model):
        host.write_w_out(model, 0, theirs)


def test_low_rank_norm_is_the_matrix_norm():
    edit = make_edit(tiny_models.build("gpt2"), rank=3)
    assert edit.deltas[1].norm() == pytest.approx(float(edit.deltas[1].matrix.norm()), rel=1e-12)


def test_reprs_tell_the_fact_and_escape_it():
    edit = make_edit(tiny_models.build("gpt2"))
    assert repr(edit) == "Edit(test, layer 1: The Eiffel Tower is in → Rome (was Paris))"
    hostile = replace(edit, requests=(EditRequest("{} is", "<script>x</script>", "<b>"),))
    html = hostile._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;x&lt;/script&gt; is → &lt;b&gt;" in html


def test_loading_the_original_weights_ends_all_edits():
    model = tiny_models.build("gpt2")
    original = {name: value.clone() for name, value in model.state_dict().items()}
    edit = make_edit(model, (0, 1)).apply(model)
    model.load_state_dict(original)
    assert applied_edits(model) == []
    assert not edit.is_applied(model)
    edit.apply(model)
    edit.undo(model)
    assert same(weights(model), weights(tiny_models.build("gpt2")))


def test_changed_weights_are_not_called_edited_and_can_be_accepted():
    model = tiny_models.build("gpt2")
    edit = make_edit(model).apply(model)
    host.write_w_out(model, 1, host.w_out(model, 1) + 1)
    with pytest.raises(ValueError, match=r"changed from outside.*tl_edit.forget_edits\(model\)"):
        edit.is_applied(model)
    new_base = weights(model)
    forget_edits(model)
    assert applied_edits(model) == []
    with pytest.raises(ValueError, match="computed on other weights.*allow_mismatch=True"):
        edit.apply(model)
    with edit.on(model, allow_mismatch=True):
        assert not same(weights(model), new_base)
    assert same(weights(model), new_base)


@pytest.mark.parametrize("what", [None, "gpt2"])
def test_what_is_not_a_model_is_refused(what):
    edit = make_edit(tiny_models.build("gpt2"))
    for call in (edit.apply, edit.undo, edit.is_applied, applied_edits):
        with pytest.raises((ValueError, TypeCheckError)):
            call(what)


def test_an_edit_too_small_for_the_dtype_is_applied_all_the_same():
    model = tiny_models.build("gpt2", dtype=torch.bfloat16)
    before = weights(model)
    edit = make_edit(model, scale=1e-9)
    with edit.on(model):
        assert edit.is_applied(model)
        assert same(weights(model), before)
    assert not edit.is_applied(model)


FILES = ("tl_edit/edit/edit.py", "tl_edit/edit/ledger.py", "tl_edit/host.py")


@pytest.mark.parametrize("action", ["apply", "undo", "on"])
def test_an_interrupt_at_any_line_leaves_all_or_nothing(action):
    """Whatever is listed is in the weights, nothing else is, and all of it can be undone."""
    model, n, happened = tiny_models.build("gpt2"), 0, True
    before = [host.w_out(model, layer).clone() for layer in range(3)]
    first, second = make_edit(model, layers=(0,), seed=1), make_edit(model, layers=(0, 1), seed=2)
    while happened:
        first.apply(model)
        if action == "undo":
            second.apply(model)
        with (
            contextlib.suppress(KeyboardInterrupt),
            Interrupts(n, *FILES) as interrupts,
        ):
            if action == "on":
                with second.on(model):
                    pass
            else:
                getattr(second, action)(model)
        happened, n = interrupts.raised, n + 1
        listed = applied_edits(model)
        assert listed in ([first], [first, second]), n
        if action == "on":
            assert listed == [first], n
        for edit in reversed(listed):
            edit.undo(model)
        assert all(torch.equal(host.w_out(model, layer), before[layer]) for layer in range(3)), n
        assert applied_edits(model) == []
    assert n > 100


def test_an_edit_draws_the_search_it_carries_or_its_norms():
    pytest.importorskip("matplotlib")
    edit = make_edit(tiny_models.build("gpt2"), (0, 1))
    bars = edit.plot()
    assert [patch.get_height() for patch in bars.patches] == pytest.approx(list(edit.norms.values()))
    assert [label.get_text() for label in bars.get_xticklabels()] == ["layer 0", "layer 1"]
    terms = ((1.5, 0.25, 0.25), (0.5, 0.25, 0.25))
    one = replace(edit, diagnostics={"losses": (2.0, 1.0), "loss_terms": terms})
    assert [list(line.get_ydata())[1] for line in one.plot().lines] == [1.0, 0.5, 0.25, 0.25]
    several = replace(edit, diagnostics={"losses": ((4.0,), (3.0, 1.0), (2.0, 1.0, 0.5))})
    (median,) = several.plot().lines
    assert list(median.get_ydata()) == [3.0, 1.0, 1.0]
    assert "median of 3 requests" in median.get_label()
    assert list(replace(edit, diagnostics={"losses": ((4.0, 2.0),)}).plot().lines[0].get_ydata()) == [4.0, 2.0]
    assert (several * 0.5).plot().patches
