"""Key-value memories against the obvious way: texts alone, all prefixes sorted, logits by the model's last steps."""

import math
import re
from dataclasses import replace

import pytest
import tiny_models
import tiny_tokenizers
import torch
from oracles import memory as oracle
from some_edits import make_edit, same, weights

from tl_edit import Edit, LowRank, edit_memory, host, key_value_memory, second_moment, show
from tl_edit.memory.pictures import BARS
from tl_edit.memory.result import elsewhere
from tl_edit.memory.top import first_largest

CASES = tiny_models.available_cases()
TEXTS = [*tiny_tokenizers.CORPUS, "Rome.", "The café in Zürich is old", *tiny_tokenizers.CORPUS[:2], "I"]
NEURONS = [7, 0, 79]


def read(model, layers=1, neurons=NEURONS, texts=TEXTS, **given):
    return key_value_memory(model, layers, neurons, texts, progress=False, **given)


def tolerance(case) -> float:
    """Bridges have steps in float32, and so has the processing of weights."""
    return 1e-9 if case.interface == tiny_models.HOOKED_TRANSFORMER and not case.processed else 2e-5


def check(found, expected, i, near, *, window, bos_id):
    """Triggers of one memory are those of the oracle; places that are equal but for rounding may be in any order."""
    triggers = found.triggers(found.neurons[i], layer=found.layers[i])
    assert len(triggers) == len(expected)
    by_place = {(text, position): rest for text, position, *rest in ((e[1], e[2], *e) for e in expected)}
    for trigger, ordered in zip(triggers, expected, strict=True):
        assert trigger.coefficient == pytest.approx(ordered[0], rel=near, abs=near)
        if (trigger.text_index, trigger.position) not in by_place:
            continue
        value, _, position, following, tokens, until = by_place[trigger.text_index, trigger.position]
        assert trigger.coefficient == pytest.approx(value, rel=near, abs=near)
        j = triggers.index(trigger)
        assert found.next_id[i, j] == following
        kept = [token for token in found.context_ids[i, j].tolist() if token >= 0]
        assert kept == tokens[-window:]
        assert len(kept) == min(window, position + 1)
        for token_at, coefficient, expected_one in zip(
            range(position + 1)[-window:], trigger.coefficients.tolist(), until[-window:], strict=True
        ):
            if token_at == 0 and tokens[0] == bos_id:
                assert math.isnan(coefficient)
            else:
                assert coefficient == pytest.approx(expected_one, rel=near, abs=near)


@pytest.mark.parametrize("one_per_text", [True, False])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triggers_are_those_of_the_oracle(case, one_per_text):
    model, near = tiny_models.build(case, dtype=torch.float64), tolerance(case)
    found = read(model, n_triggers=6, window=5, one_per_text=one_per_text, batch_tokens=60)
    prefixes = oracle.prefixes(model, 1, lambda key: key[:, NEURONS], TEXTS)
    assert found.n_tokens == len(prefixes[0])
    assert found.n_texts == len(TEXTS)
    for i, several in enumerate(prefixes):
        expected = oracle.triggers(several, 6, one_per_text=one_per_text)
        check(found, expected, i, near, window=5, bos_id=model.tokenizer.bos_token_id)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_are_read_as_the_model_reads_them(case):
    model = tiny_models.build(case, dtype=torch.float64)
    found = read(model, layers=[2, 1], n_tokens=4)
    assert found.layers == (2, 2, 2, 1, 1, 1)
    for i, (layer, neuron) in enumerate(zip(found.layers, found.neurons, strict=True)):
        with torch.no_grad():
            logits = oracle.logits_by_the_model(model, layer, host.w_out(model, layer)[neuron]).double()
        order = logits.sort(descending=True)
        assert found.top_scores[i].tolist() == pytest.approx(order.values[:4].tolist(), rel=3e-4)
        assert found.bottom_scores[i].tolist() == pytest.approx(order.values.flip(0)[:4].tolist(), rel=3e-4)
        assert logits[found.top_ids[i]].tolist() == pytest.approx(found.top_scores[i].tolist(), rel=3e-4)
        token = int(found.next_id[i, 0])
        if token >= 0:
            # In float32 steps two tokens may change places.
            assert abs(int(found.next_rank[i]) - int((logits > logits[token]).sum())) <= 1


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_all_interfaces_and_processings_say_the_same(family):
    found = [read(tiny_models.build(case)) for case in tiny_models.available_cases([family])]
    for other in found[1:]:
        assert torch.allclose(other.top_scores, found[0].top_scores, rtol=1e-3, atol=1e-4)
        assert torch.allclose(other.bottom_scores, found[0].bottom_scores, rtol=1e-3, atol=1e-4)
        assert torch.allclose(other.coefficient, found[0].coefficient, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_without_the_norm_it_is_the_unembedding_alone():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    found = read(model, final_norm=False)
    logits = host.w_out(model, 1)[NEURONS] @ model.unembed.W_U.detach()
    expected = (logits - logits.mean(1, keepdim=True)).topk(10, dim=1)
    assert torch.equal(found.top_ids, expected.indices)
    assert torch.allclose(found.top_scores, expected.values)
    with pytest.raises(ValueError, match="final_norm is False, but the weights .* are processed"):
        read(tiny_models.build("gpt2", processed=True), final_norm=False)


def round_off(act, hook):
    """Activations of which many are equal, as those of ReLU are."""
    return act.round(decimals=1)


@pytest.mark.parametrize("interface", tiny_models.interfaces())
@pytest.mark.parametrize("one_per_text", [True, False])
def test_equal_places_stand_in_the_order_of_the_texts_whatever_the_batches(interface, one_per_text):
    model = tiny_models.build("gpt2", interface, dtype=torch.float64)
    texts = [*TEXTS, *TEXTS]
    for given in ({}, {"batch_tokens": 7}, {"batch_tokens": 100, "seed": 5}):
        with model.hooks([("blocks.1.mlp.hook_post", round_off)]):
            found = read(model, texts=texts, neurons=None, n_triggers=20, one_per_text=one_per_text, **given)
            several = oracle.prefixes(model, 1, lambda key: key.round(decimals=1), texts)
        for i, each in enumerate(several):
            expected = oracle.triggers(each, 20, one_per_text=one_per_text)
            assert found.coefficient[i].tolist() == [prefix[0] for prefix in expected]
            assert found.text_index[i].tolist() == [prefix[1] for prefix in expected]
            assert found.position[i].tolist() == [prefix[2] for prefix in expected]
            assert found.next_id[i].tolist() == [prefix[3] for prefix in expected]


def test_a_bos_is_no_trigger_and_the_first_token_is_without_one():
    model = tiny_models.build("gpt2")
    with_bos = read(model, neurons=None, n_triggers=50, one_per_text=False, prepend_bos=True)
    assert int(with_bos.position[with_bos.text_index >= 0].min()) == 1
    assert with_bos.context_coefficient[with_bos.context_ids == model.tokenizer.bos_token_id].isnan().all()
    without = read(model, neurons=None, n_triggers=50, one_per_text=False, prepend_bos=False)
    assert int(without.position[without.text_index >= 0].min()) == 0
    assert without.n_tokens == with_bos.n_tokens


def test_texts_that_end_have_no_next_token_and_few_texts_few_triggers():
    model = tiny_models.build("gpt2")
    found = read(model, texts=[torch.tensor([5, 9, 5]), torch.tensor([9])], n_triggers=4, one_per_text=False)
    assert (found.text_index >= 0).sum(1).tolist() == [4, 4, 4]
    last = {(0, 2), (1, 0)}
    for i in range(3):
        for j in range(4):
            place = (int(found.text_index[i, j]), int(found.position[i, j]))
            assert (int(found.next_id[i, j]) == -1) == (place in last)
            if place not in last:
                assert int(found.next_id[i, j]) == {0: 9, 1: 5}[place[1]]
    one = read(model, texts=[torch.tensor([9])])
    assert one.coefficient.shape == (3, 25)
    assert one.coefficient[:, 1:].isnan().all()
    assert len(one.triggers(7)) == 1
    assert one.triggers(7)[0].next_token is None
    assert one.agreement.isnan().all()
    assert one.next_rank.tolist() == one.control_rank.tolist() == [-1, -1, -1]
    assert "–" in repr(one)
    assert one._repr_html_()


def with_tables(found, next_id, top_ids, layers):
    """The same memory several times, with other tokens."""
    n = len(layers)
    repeated = {
        name: value[:1].expand(n, *value.shape[1:])
        for name, value in vars(found).items()
        if isinstance(value, torch.Tensor)
    }
    tables = {"next_id": torch.tensor(next_id), "top_ids": torch.tensor(top_ids)}
    names = {"layers": layers, "neurons": tuple(range(n)), "names": tuple(map(str, range(n)))}
    return replace(found, **(repeated | tables | names))


def test_agreement_and_chance_by_hand():
    found = read(tiny_models.build("gpt2"), n_triggers=2, n_tokens=2)
    hand = with_tables(found, [[5, 6], [5, -1], [7, 7], [1, 2]], [[5, 0], [6, 0], [5, 0], [1, 0]], (0, 0, 0, 2))
    assert hand.agrees[:, 0].tolist() == [1, 0, 0, 1]
    assert hand.agreement[:, 0].tolist() == pytest.approx([1 / 3, 1])
    # Layer 0, first triggers: others that say 5: one of two, two of two; that say 7: none.
    assert hand.chance[0, 0] == pytest.approx((1 / 2 + 1 + 0) / 3)
    # Second triggers: 6 is said by one of the two others, the second memory has none.
    assert hand.chance[0, 1] == pytest.approx((1 / 2 + 0) / 2)
    assert hand.chance[1].isnan().all()
    draws = hand.permuted_agreement(4000)
    assert draws.shape == (2, 4000)
    # Two permutations leave nothing in its place; by hand their agreements are 1/3 and 2/3.
    assert {round(float(each), 6) for each in draws[0]} == {round(1 / 3, 6), round(2 / 3, 6)}
    assert float(draws[0].mean()) == pytest.approx(float(hand.chance[0, 0]), abs=0.02)
    assert draws[1].isnan().all()
    assert torch.equal(draws[0], hand.permuted_agreement(4000)[0])
    assert not torch.equal(draws[0], hand.permuted_agreement(4000, seed=1)[0])


def test_the_control_is_a_value_of_another_memory():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    found = read(model, neurons=None, seed=3)
    logits = torch.stack([oracle.logits_by_the_model(model, 1, value) for value in host.w_out(model, 1)]).detach()
    other = elsewhere(80, torch.Generator().manual_seed(3))
    assert sorted(other.tolist()) == list(range(80))
    assert all(int(to) != i for i, to in enumerate(other))
    for i in range(80):
        token = int(found.next_id[i, 0])
        if token >= 0:
            assert int(found.next_rank[i]) == int((logits[i] > logits[i, token]).sum())
            assert int(found.control_rank[i]) == int((logits[other[i]] > logits[other[i], token]).sum())
        else:
            assert found.next_rank[i] == found.control_rank[i] == -1


def test_negative_finds_the_least_and_turns_values_round():
    model = tiny_models.build("llama", dtype=torch.float64)
    found = read(model, negative=True, one_per_text=False, n_triggers=5)
    prefixes = oracle.prefixes(model, 1, lambda key: -key[:, NEURONS], TEXTS)
    for i, several in enumerate(prefixes):
        check(found, oracle.triggers(several, 5, one_per_text=False), i, 2e-5, window=32, bos_id=1)
    plain = read(model)
    assert torch.equal(found.top_ids, plain.bottom_ids)
    assert torch.allclose(found.top_scores, -plain.bottom_scores)


def test_neurons_at_random_are_seeded_and_of_each_layer_others():
    model = tiny_models.build("gpt2")
    found, again, other = (read(model, [0, 1], None, n_neurons=5, seed=seed) for seed in (1, 1, 2))
    assert found.neurons == again.neurons != other.neurons
    assert len(found.neurons) == 10
    assert found.neurons[:5] != found.neurons[5:]
    assert found.names[0] == f"layer 0, neuron {found.neurons[0]}"
    assert len(read(model, neurons=None).neurons) == 80


# --- edits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "gemma2", "llama")), ids=str)
@pytest.mark.parametrize("applied", [False, True])
def test_an_edit_is_a_memory_of_each_factor(case, applied):
    model, near = tiny_models.build(case, dtype=torch.float64), tolerance(case)
    edit = make_edit(model, layers=(0, 2), rank=2)
    before = weights(model)
    if applied:
        edit.apply(model)
    found = edit_memory(model, edit, TEXTS, n_triggers=4, one_per_text=False, progress=False)
    with edit.on(model) if not applied else torch.no_grad():
        for i, (layer, factor) in enumerate(zip(found.layers, found.neurons, strict=True)):
            delta = edit.deltas[layer]
            size = delta.right[factor].norm()
            keys = delta.left * delta.right.norm(dim=1)
            several = oracle.prefixes(model, layer, lambda key, keys=keys: key.double() @ keys, TEXTS)
            expected = oracle.triggers(several[factor], 4, one_per_text=False)
            for trigger, other in zip(found.triggers(factor, layer=layer), expected, strict=True):
                assert trigger.coefficient == pytest.approx(other[0], rel=10 * near, abs=10 * near)
            with torch.no_grad():
                value = (delta.right[factor] / size).to(host.w_out(model, layer).dtype)
                logits = oracle.logits_by_the_model(model, layer, value).double()
            assert found.top_scores[i].tolist() == pytest.approx(logits.topk(10).values.tolist(), rel=3e-4)
    if applied:
        edit.undo(model)
    assert same(weights(model), before)
    assert found.value_norm.tolist() == pytest.approx([1.0] * 4)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_the_coefficient_of_one_factor_is_the_shift_of_collateral():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    edit = make_edit(model)
    shifts = edit.collateral(model, TEXTS)
    found = edit_memory(model, edit, TEXTS, n_triggers=1000, one_per_text=False, progress=False)
    real = found.text_index[0] >= 0
    lengths = {
        (int(text), int(position)): float(shift)
        for text, position, shift in zip(shifts.text_index, shifts.positions, shifts.total, strict=True)
    }
    for text, position, value in zip(
        found.text_index[0][real], found.position[0][real], found.coefficient[0][real], strict=True
    ):
        assert abs(float(value)) == pytest.approx(lengths[int(text), int(position)], rel=1e-9)
    assert found.names == ("layer 1, The Eiffel Tower",)
    twice = edit_memory(model, edit * 2, TEXTS, progress=False)
    assert float(twice.coefficient[0, 0]) == pytest.approx(2 * float(found.coefficient[0, 0]))
    assert torch.equal(twice.top_ids, found.top_ids)


def test_an_edit_of_another_model_is_refused():
    model, other = tiny_models.build("gpt2"), tiny_models.build("gpt2", seed=1)
    edit = make_edit(other)
    with pytest.raises(ValueError, match="edit_memory|Edit"):
        edit_memory(model, edit, TEXTS, progress=False)
    edit_memory(model, edit, TEXTS, allow_mismatch=True, progress=False)
    no_requests = Edit.of(model, {1: LowRank(torch.ones(80, 2), torch.eye(2, 32))}, method="own")
    found = edit_memory(model, no_requests, TEXTS, progress=False)
    assert found.names == ("layer 1, factor 0", "layer 1, factor 1")


def test_an_edit_that_changes_nothing_is_refused():
    model = tiny_models.build("gpt2")
    edit = make_edit(model, layers=(0, 2), rank=2)
    for nothing in (edit * 0, edit - edit, edit * 0.1 - edit * 0.1):
        with pytest.raises(ValueError, match=r"edit_memory: Edit\(.* changes nothing, .*; expected .*; pass one"):
            edit_memory(model, nothing, TEXTS, progress=False)
    edit_memory(model, edit * 1e-9, TEXTS, progress=False)
    edit_memory(model, edit * 2 - edit, TEXTS, progress=False)


# --- how it is asked -------------------------------------------------------------------------------


def test_advice():
    model = tiny_models.build("gpt2")
    for call, words in {
        lambda: read(model, 3): "layer 3; .* has layers 0 to 2",
        lambda: read(model, [0, 0]): "hold one twice",
        lambda: read(model, neurons=[80]): "neurons holds 80; layer 1 of the model has neurons 0 to 79",
        lambda: read(model, neurons=[-1]): "neurons holds -1",
        lambda: read(model, neurons=[]): "neurons is empty",
        lambda: read(model, neurons=[3, 3]): "neurons holds one twice",
        lambda: read(model, n_neurons=3): "found both neurons and n_neurons=3; expected one of them",
        lambda: read(model, neurons=None, n_neurons=81): "n_neurons is 81; expected an integer from 1 to 80",
        lambda: read(model, texts=[]): "key_value_memory: texts hold no tokens",
        lambda: read(model, texts=[""]): "key_value_memory: texts hold no tokens",
        lambda: read(model, texts="Rome"): "key_value_memory: texts is one string",
        lambda: read(model, texts=[None]): "key_value_memory: text 0 .* is None",
        lambda: read(model, texts=[torch.tensor([100_000])]): "key_value_memory: text 0 .* token ids",
        lambda: read(model, n_triggers=0): "n_triggers is 0",
        lambda: read(model, window=0): "window is 0",
        lambda: read(model, max_tokens=0): "max_tokens is 0",
        lambda: read(model, seed=-1): "seed is -1",
        lambda: read(model).triggers(8): "no memory 8; .* one of 7 of layer 1; 0 of layer 1; 79 of layer 1; read it",
        lambda: read(model, [0, 1]).triggers(7): re.escape("7 is in layers [0, 1]; expected one; pass layer=0"),
        lambda: read(model, [0, 1]).top_tokens(7, layer=2): "no memory 7 in layer 2",
        lambda: read(model).top_tokens(7, 11): "n is 11; expected an integer from 1 to 10",
        lambda: read(model).permuted_agreement(0): "n_draws is 0",
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_a_model_whose_activations_are_no_numbers_is_refused():
    model = tiny_models.build("gpt2")
    broken = ("blocks.1.mlp.hook_pre", lambda act, hook: act * torch.nan)
    with model.hooks([broken]), pytest.raises(ValueError, match="activations that are no finite numbers"):
        read(model)


def test_hooks_of_the_users_take_part():
    model = tiny_models.build("gpt2")
    with model.hooks([("blocks.1.mlp.hook_post", lambda act, hook: act + 100)]):
        assert float(read(model).coefficient[0, 0]) > 90


def test_max_tokens_stops():
    assert read(tiny_models.build("gpt2"), max_tokens=20).n_tokens == 20


def test_half_precision_and_generators():
    model = tiny_models.build("gpt2", dtype=torch.bfloat16)
    found = read(model, texts=(text for text in TEXTS))
    assert found.coefficient.dtype == torch.float32
    assert found.top_scores.dtype == torch.float32
    assert found.text_index.max() < len(TEXTS)


def test_first_largest_takes_the_first_of_equal_ones():
    values = torch.tensor([[1.0, 3, 3, 2, 3], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]])
    assert first_largest(values, 2).tolist() == [[1, 2], [0, 1], [0, 1]]
    assert first_largest(values, 9).tolist() == [[1, 2, 4, 3, 0], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


# --- what it looks like ----------------------------------------------------------------------------


def test_pictures_and_frames():
    model = tiny_models.build("gpt2")
    found = read(model, layers=[0, 2], neurons=None)
    frame = found.to_dataframe()
    assert len(frame) == int((found.text_index >= 0).sum())
    first = frame.iloc[0]
    assert (first["layer"], first["neuron"], first["trigger"]) == (0, 0, 0)
    assert first["token"] == found.triggers(0, layer=0)[0].tokens[-1]
    html = found._repr_html_()
    assert "The first 20 of 160 memories are shown." in html
    assert "<script" not in html
    assert found.view().parts[0].component == "TopkSamples"
    axes = found.plot()
    assert axes.get_xlabel() == "layer"
    line = axes.get_lines()[0].get_ydata()
    assert list(line) == pytest.approx((100 * found.agreement[:, 0]).tolist())
    assert found.plot(by="trigger").get_xlabel() == "trigger, strongest first"
    single = read(model, neurons=[3])
    assert "1 memory of layer 1" in repr(single)
    assert single.plot(by="trigger").get_xlabel() == "trigger, strongest first"
    assert show.page([found, found.view(), axes], title="memories")


def test_one_memory_and_those_of_edits_are_drawn_by_the_contexts_that_trigger_them_most():
    model = tiny_models.build("gpt2")
    # The same text twice is one bar.
    texts = ["The Louvre is in Rome", "The Louvre is in Rome", "Paris"]
    found = read(model, neurons=[3], texts=texts)
    axis = found.plot()
    widths = [patch.get_width() for patch in axis.patches]
    assert widths == pytest.approx(found.coefficient[0, ~found.coefficient[0].isnan()].unique().flip(0).tolist())
    labels = [label.get_text() for label in axis.get_yticklabels()]
    first = found.triggers(3)[0]
    assert sum("(2 times)" in label for label in labels) == 1
    assert f"[{first.tokens[-1]}]" in labels[0]
    assert axis.get_xlabel() == "coefficient: activation"
    edit = make_edit(model, layers=(0, 2))
    written = edit_memory(model, edit, TEXTS, one_per_text=False, progress=False)
    bars = written.plot()
    strongest = written.coefficient.flatten().nan_to_num(-math.inf).sort(descending=True).values[0]
    assert bars.patches[0].get_width() == pytest.approx(float(strongest))
    assert len(bars.patches) == BARS
    assert bars.get_yticklabels()[0].get_text().startswith(("layer 0, The Eiffel Tower: ", "layer 2, The Eiffel"))
    assert "MLP's answer is moved (its own units)" in bars.get_xlabel().replace("\n", " ")
    assert written.plot(by="layer").get_xlabel() == "layer"


def test_tokens_with_markup_are_shown_as_they_are():
    model = tiny_models.build("gpt2")
    found = read(model, texts=['<img src="x" onerror="alert(1)"> & </script>\n'], one_per_text=False)
    html = found._repr_html_()
    assert "<img" not in html
    assert "</script" not in html
    assert "&lt;" in html


def test_neurons_of_the_bundled_model_agree_with_their_values(fact_model):
    """Neurons of the bundled model agree far more often than their values do with others' triggers."""
    from tl_edit.factworld import fact_texts

    found = key_value_memory(fact_model, [1], None, fact_texts(400), progress=False)
    assert float(found.agreement[0, 0]) > 5 * float(found.chance[0, 0])
    assert float(found.agreement[0, 0]) > float(found.permuted_agreement(200).max())


def test_an_edit_of_the_bundled_model_is_triggered_by_its_subject(fact_model):
    from tl_edit import EditRequest, rome_edit
    from tl_edit.factworld import fact_texts

    texts = fact_texts(300)
    moments = second_moment(fact_model, texts, layers=[0], progress=False)
    request = EditRequest("The {} is located in", "Eiffel Tower", target_new="Rome", target_true="Paris")
    edit = rome_edit(fact_model, request, moments, apply=False)
    found = edit_memory(fact_model, edit, [*texts, "One can see the Eiffel Tower from here."], progress=False)
    first = found.triggers(0)[0]
    assert "".join(first.tokens).endswith("the Eiffel Tower")
    assert found.names == ("layer 0, Eiffel Tower",)
