"""Edits on each other, against the obvious way: weights with both applied, and `evaluate`."""

import contextlib
import io
import itertools
import re
from dataclasses import replace

import pytest
import tiny_models
import torch
from real_edits import rome_edits
from some_edits import make_edit, same, weights

from tl_edit import EditRecord, EditRequest, applied_edits, capture, evaluate, forward, host, interference, tokens
from tl_edit.evaluate.ranks import spearman

CASES = tiny_models.available_cases(("gpt2", "gemma2"))
RECORDS = (
    EditRecord(EditRequest("{} is in", "The Eiffel Tower", "Constantinople", "Paris")),
    EditRecord(EditRequest("The mother tongue of {} is", "Angela Merkel", "French", "German")),
    EditRecord(EditRequest("{} lies in", "The Louvre", "Rome")),
)


def tolerance(case) -> float:
    """Bridges have steps in float32, and so has the processing of weights."""
    return 1e-10 if case.interface == tiny_models.HOOKED_TRANSFORMER and not case.processed else 1e-4


def three_edits(model) -> list:
    """Two of one layer, one of two layers; of a size at which they do something to each other."""
    made = [make_edit(model, (1,), 1), make_edit(model, (1,), 2, rank=2), make_edit(model, (0, 1), 3)]
    return [replace(edit, requests=(record.request,)) for edit, record in zip(made, RECORDS, strict=True)]


def in_the_weights(model, edits, bos=True):
    """p(new) and p(true) of every record with these edits applied one after another."""
    with contextlib.ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.on(model))
        scores = evaluate(model, RECORDS, prepend_bos=bos).scores
    return [(score.efficacy[0].prob_new, score.efficacy[0].prob_true) for score in scores]


def no_hooks(model) -> bool:
    return not any(point.fwd_hooks for point in model.hook_dict.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pairs_are_what_the_weights_with_both_do(case):
    model, bos = tiny_models.build(case, dtype=torch.float64), case.family == "gpt2"
    edits, before, near = three_edits(model), weights(model), tolerance(case)
    found = interference(model, edits, RECORDS, n_orders=1, prepend_bos=bos, batch_size=5, progress=False)
    assert found.before.tolist() == pytest.approx([new for new, _ in in_the_weights(model, [], bos)], rel=near, abs=0)
    for pair in ((0,), (1,), (2,), (0, 1), (2, 0), (1, 2)):
        told = in_the_weights(model, [edits[i] for i in pair], bos)
        for i, j in {pair, pair[::-1]} if len(pair) == 2 else {pair * 2}:
            new, true = told[i]
            assert float(found.together[i, j]) == pytest.approx(new, rel=near, abs=0)
            if true is None:
                assert found.together_true[i, j].isnan()
                assert found.success[i, j].isnan()
            else:
                assert float(found.together_true[i, j]) == pytest.approx(true, rel=near, abs=0)
                assert bool(found.success[i, j]) == (new > true)
    assert torch.equal(found.alone, found.together.diagonal())
    assert float(found.loss.abs().max()) > 0.01 * float(found.alone.max())
    assert same(weights(model), before)
    assert no_hooks(model)
    assert applied_edits(model) == []


@pytest.mark.parametrize("case", [case for case in CASES if case.family == "gemma2" and not case.processed], ids=str)
def test_forgetting_is_that_of_a_loop_over_weights(case):
    model = tiny_models.build(case, dtype=torch.float64)
    edits = three_edits(model)
    found = interference(model, edits, RECORDS, n_orders=2, seed=4, prepend_bos=True, progress=False)
    assert found.retained.shape == (2, 3)
    for o, order in enumerate(found.orders.tolist()):
        assert sorted(order) == [0, 1, 2]
        by_age: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for step in range(3):
            told = in_the_weights(model, [edits[i] for i in order[: step + 1]])
            for place in range(step + 1):
                by_age[step - place].append(told[order[place]][0])
        for age, values in by_age.items():
            mean = sum(values) / len(values)
            assert float(found.retained[o, age]) == pytest.approx(mean, rel=tolerance(case), abs=0)
    assert torch.equal(found.forgetting, found.retained.mean(0))


def test_the_order_of_the_edits_is_irrelevant():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    edits = three_edits(model)
    found = interference(model, edits, RECORDS, n_orders=1, progress=False)
    for order in itertools.permutations(range(3)):
        other = interference(
            model, [edits[i] for i in order], [RECORDS[i] for i in order], n_orders=1, batch_size=4, progress=False
        )
        where = torch.tensor(order)
        for name in ("together", "inner", "overlap", "loss"):
            torch.testing.assert_close(
                getattr(other, name), getattr(found, name)[where][:, where], rtol=1e-12, atol=1e-14
            )


def test_orders_come_from_the_seed():
    model = tiny_models.build("gpt2")
    edits = three_edits(model)
    one, same_seed, other = (
        interference(model, edits, RECORDS, n_orders=5, seed=seed, progress=False) for seed in (0, 0, 1)
    )
    assert torch.equal(one.orders, same_seed.orders)
    assert torch.equal(one.retained, same_seed.retained)
    assert not torch.equal(one.orders, other.orders)
    assert (one.n_orders, one.seed, one.provenance.seed) == (5, 0, 0)


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_the_overlap_is_how_far_the_answers_at_the_keys_are_moved(interface):
    """Measured where the MLP answers, with and without each edit."""
    model = tiny_models.build("gpt2", interface, dtype=torch.float64)
    edits = [replace(make_edit(model, seed=seed), requests=()) for seed in (1, 2, 3)]
    found = interference(model, edits, RECORDS, n_orders=1, progress=False)
    shift = torch.zeros(3, 3, dtype=torch.float64)
    for i, record in enumerate(RECORDS):
        prompt = tokens.tokenize_request(model, record.request, prepend_bos=True)
        name, batch = host.value_name(model, 1), tokens.pad(model, [prompt.tokens])
        for j, edit in enumerate(edits):
            store: dict[str, torch.Tensor] = {}
            for key, hooks in (("off", []), ("on", edit.hooks(model))):
                with torch.no_grad():
                    forward.logits(model, batch, [*hooks, (name, capture(store, key, prompt.subject_last))])
            shift[i, j] = (store["on"] - store["off"]).norm()
            size = edit.deltas[1].right.norm()
            assert float(found.inner[i, j]) == pytest.approx(float(shift[i, j] / size), rel=1e-8)
    torch.testing.assert_close(found.overlap, shift / shift.diagonal()[:, None], rtol=1e-8, atol=1e-12)
    assert torch.equal(found.overlap.diagonal(), torch.ones(3, dtype=torch.float64))


def test_lengths_are_summed_over_the_layers_of_an_edit():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    both, other = (replace(make_edit(model, *given), requests=()) for given in (((0, 2), 1), ((1,), 2)))
    whole, first, second = (
        interference(model, [each, other], RECORDS[:2], n_orders=1, progress=False)
        for each in (both, both.layers([0]), both.layers([2]))
    )
    torch.testing.assert_close(whole.inner[:, 0], first.inner[:, 0] + second.inner[:, 0])
    # The other edit's own shift is the same in all, so that what it is divided by goes out.
    torch.testing.assert_close(whole.overlap[1, 0], first.overlap[1, 0] + second.overlap[1, 0])


def test_the_correlation_is_that_of_the_pairs_that_differ():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    found = interference(model, three_edits(model), RECORDS, n_orders=1, progress=False)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    overlap, loss = (torch.stack([table[pair] for pair in pairs]) for table in (found.overlap, found.loss))
    assert found.rank_correlation == spearman(overlap, loss)
    assert found.size_correlation == spearman(overlap, loss.abs())
    assert replace(found, overlap=torch.ones_like(found.overlap)).rank_correlation is None


def test_the_edits_own_bos_setting_is_taken_where_they_agree():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    edits = [replace(edit, provenance=replace(edit.provenance, prepend_bos=False)) for edit in three_edits(model)]
    found = interference(model, edits, RECORDS, n_orders=1, progress=False)
    assert found.provenance.prepend_bos is False
    assert float(found.before[0]) == evaluate(model, RECORDS[0], prepend_bos=False).scores[0].efficacy[0].prob_new
    mixed = [three_edits(model)[0], *edits[1:]]
    with pytest.raises(ValueError, match="some of the edits were computed with a BOS and some without; .*prepend_bos="):
        interference(model, mixed, RECORDS, progress=False)
    asked = interference(model, mixed, RECORDS, n_orders=1, prepend_bos=False, progress=False)
    assert torch.equal(asked.together, found.together)


def test_nothing_is_left_after_an_exception(monkeypatch):
    model = tiny_models.build("gpt2")
    before, calls, run = weights(model), [], forward.log_probs

    def stops(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(forward, "log_probs", stops)
    with pytest.raises(KeyboardInterrupt):
        interference(model, three_edits(model), RECORDS, batch_size=8, progress=False)
    assert same(weights(model), before)
    assert no_hooks(model)
    assert applied_edits(model) == []


def test_other_edits_of_the_user_stay_on():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    edits, other = three_edits(model), make_edit(model, (2,), seed=9)
    with other.on(model):
        found = interference(model, edits, RECORDS, n_orders=1, progress=False)
        assert applied_edits(model) == [other]
    new, _ = in_the_weights(model, [other, edits[0], edits[1]])[0]
    assert float(found.together[0, 1]) == pytest.approx(new, rel=1e-10, abs=0)


def test_what_cannot_be_measured_is_refused():
    model = tiny_models.build("gpt2")
    edits = three_edits(model)
    first, second, third = edits
    for given, records, words in (
        ([first], RECORDS[:1], "found 1; expected two edits or more"),
        ([], RECORDS[:1], "expected two edits or more"),
        (edits, RECORDS[:2], r"2 records for 3 edits; expected one for each"),
        ([first, second, replace(first)], RECORDS, "edits 0 and 2 are the same"),
        (edits, [], "at least one EditRecord"),
    ):
        with pytest.raises(ValueError, match=words):
            interference(model, given, records, progress=False)
    second.apply(model)
    with pytest.raises(ValueError, match=r"is applied to this model; expected it off.*edit.undo\(model\)"):
        interference(model, edits, RECORDS, progress=False)
    second.undo(model)
    for name, value in (("n_orders", 0), ("seed", -1), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}; expected an integer"):
            interference(model, edits, RECORDS, progress=False, **{name: value})
    other = tiny_models.build("gpt2", seed=1)
    with pytest.raises(ValueError, match="was computed on other weights.*allow_mismatch=True"):
        interference(other, edits, RECORDS, progress=False)
    mixed = [first, replace(make_edit(other, seed=5), requests=()), third]
    with pytest.raises(ValueError, match="was computed on other weights"):
        interference(model, mixed, RECORDS, progress=False)
    assert (
        interference(model, mixed, RECORDS, n_orders=1, allow_mismatch=True, progress=False).together.isfinite().all()
    )


def test_records_in_another_order_get_a_warning():
    model = tiny_models.build("gpt2")
    with pytest.warns(UserWarning, match="not about a subject of edit") as caught:
        interference(model, three_edits(model), RECORDS[::-1], n_orders=1, progress=False)
    assert len(caught) == 2
    assert re.search("record 0, 'The Louvre': not about a subject of edit 0, .*; expected", str(caught[0].message))


def test_it_shows_itself():
    pytest.importorskip("pandas")
    model = tiny_models.build("gpt2")
    record = EditRecord(EditRequest("{} is in", "<b>$A$</b>", "Rome"))
    edits = [replace(edit, requests=()) for edit in three_edits(model)]
    found = interference(model, edits, (*RECORDS[:2], record), n_orders=2, progress=False)
    assert re.fullmatch(r"Interference\(3 edits: mean p\(new\) .* before, .* alone, .* undefined|.*\)", repr(found))
    assert "\n" not in repr(found)
    page = found._repr_html_()
    assert page.count("<table") == 2
    assert "<b>" not in page
    assert (
        f'title="2: <b>$A$</b> → Rome, 1: {float(found.overlap[2, 1]):.4f}"'.replace("<b>", "&lt;b&gt;").replace(
            "</b>", "&lt;/b&gt;"
        )
        in page
    )
    frame = found.to_dataframe()
    assert len(frame) == 9
    row = frame[(frame["edit"] == 1) & (frame["other"] == 0)].iloc[0]
    assert (row["edit_subject"], row["other_subject"]) == ("Angela Merkel", "The Eiffel Tower")
    assert row["together"] == float(found.together[1, 0])
    assert row["loss"] == float(found.alone[1] - found.together[1, 0])
    assert row["overlap"] == float(found.overlap[1, 0])
    assert row["before"] == float(found.before[1])


def test_points_are_the_pairs_and_the_figure_is_closed():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    model = tiny_models.build("gpt2")
    found = interference(model, three_edits(model), RECORDS, n_orders=1, progress=False)
    ax = found.plot()
    assert pyplot.get_fignums() == []
    points = ax.collections[0].get_offsets().tolist()
    assert len(points) == 6
    assert [float(found.overlap[1, 0]), float(found.loss[1, 0])] in points
    ax.figure.savefig(io.BytesIO())
    figure, own = pyplot.subplots()
    assert found.plot(own) is own
    pyplot.close(figure)


def test_real_edits_of_one_subject_disturb_each_other_and_others_hardly(fact_model, world):
    """As their keys foretell, which are nearly the same whatever is asked of a subject."""
    facts = [fact for fact in world if fact.subject in ("Spain", "John Calvin")]
    edits, records = rome_edits(fact_model, world, facts)
    found = interference(fact_model, edits, records, progress=False)
    alike = torch.tensor([[one.subject == other.subject for other in facts] for one in facts])
    own = torch.eye(len(facts), dtype=torch.bool)
    assert float(found.overlap[alike].min()) > 0.3
    assert float(found.overlap[~alike].max()) < 0.2
    assert float(found.loss[alike & ~own].mean()) > 0.1
    assert float(found.loss[~alike].abs().max()) < 0.1
    assert found.size_correlation > 0.3
    assert float(found.before.max()) < 0.01
    assert float(found.alone.min()) > 0.5
    assert float(found.forgetting[-1]) < float(found.alone.mean())


def test_batches_do_not_matter_to_hooks_that_count_from_the_end():
    model = tiny_models.build("gpt2", dtype=torch.float64)

    def drop_the_last(act, hook):
        return torch.cat([act[:, :-1], 0 * act[:, -1:]], dim=1)

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", drop_the_last)]):
        found = [
            interference(model, three_edits(model), RECORDS, n_orders=2, batch_size=size, progress=False)
            for size in (1, 64)
        ]
    assert torch.allclose(found[0].together, found[1].together, rtol=1e-9, atol=0)
    assert torch.allclose(found[0].retained, found[1].retained, rtol=1e-9, atol=0)


def test_an_edit_that_does_nothing_has_no_overlap_and_two_edits_no_correlation():
    model = tiny_models.build("gpt2")
    first, second = three_edits(model)[:2]
    found = interference(model, [first - first, second], RECORDS[:2], n_orders=1, progress=False)
    assert found.overlap[0].isnan().all()
    assert found.overlap[1].isfinite().all()
    assert found.rank_correlation is None
    assert "over 2 pairs" in repr(found)
    assert "nan" not in found._repr_html_()
