"""Direct logit attribution: its sum, against knocking parts out with norms held, and against TransformerLens' own."""

import dataclasses
import io
import re

import pytest
import tiny_models
import torch
from followed import (
    ANSWERS,
    CASES,
    FEW,
    PROMPT,
    SUBJECT,
    edit_of,
    first_of,
    hooks_left,
    ids_of,
    kept_at_once,
    model_of,
    run_by_hand,
    tolerance,
)
from some_edits import same, weights

from tl_edit import attach, edit_circuit, host, tokenize_prompt
from tl_edit.follow import EditCircuit

each_case = pytest.mark.parametrize("case", CASES, ids=str)


def uncapped(model, case, logits):
    """Gemma 2 holds logits below 30."""
    pair = [first_of(model, answer) for answer in ANSWERS]
    said = logits[-1, pair].double()
    said = 30 * (said / 30).atanh() if case.family == "gemma2" else said
    return float(said[0] - said[1])


@each_case
def test_the_parts_sum_to_what_the_model_says(case):
    model = model_of(case)
    edit = edit_of(model)
    found = edit_circuit(model, PROMPT, *ANSWERS, edit=edit)
    for i, switched in enumerate((None, edit)):
        logits, _ = run_by_hand(model, PROMPT, switched)
        said = uncapped(model, case, logits)
        assert float(found.logit_difference[i]) == pytest.approx(said, abs=5 * tolerance(case))
        assert float(found.total[i]) == pytest.approx(said, abs=5 * tolerance(case))
    # Every part is among the components, once.
    listed = found.components()
    assert len({part.name for part in listed}) == len(listed) == 3 + 3 * (4 + 2)
    assert sum(part.after for part in listed) == pytest.approx(float(found.total[1]), abs=1e-9)
    changes = [abs(part.change) for part in listed]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 1e-3
    # With learned positions, and without.
    learned = case.family in ("gpt2", "opt")
    assert (abs(float(found.positions[0])) > 1e-6) == learned
    # Before the edited layer only the scale of the final norm differs, by one factor.
    ratio = found.heads[1, :2] / found.heads[0, :2]
    torch.testing.assert_close(ratio, ratio[:1, :1].expand(2, 4), atol=1e-6, rtol=1e-6)


def freeze(scales):
    """Hooks that hold norms at the scales that they had."""

    def held(scale):
        return lambda act, hook=None: scale

    return [(name, held(scale)) for name, scale in scales.items()]


@pytest.mark.filterwarnings("ignore:A forward hook edited hook_scale")
@each_case
def test_a_head_or_an_mlp_is_worth_what_is_lost_without_it(case):
    """Knocked out alone: its contribution to the stream is taken away at the end, all scales held."""
    model = model_of(case)
    found = edit_circuit(model, PROMPT, *ANSWERS)
    tokens = ids_of(model, PROMPT)
    points = model.hook_dict
    logits, cache = run_by_hand(model, PROMPT)
    last = "blocks.2.hook_resid_post"
    norm = {"ln_final.hook_scale": cache["ln_final.hook_scale"]}

    def without(contribution):
        def take_away(act, hook=None):
            return torch.cat([act[:, :-1], act[:, -1:] - contribution], dim=1)

        with torch.no_grad(), attach.attached(model, [(last, take_away), *freeze(norm)]):
            return uncapped(model, case, model(tokens)[0])

    def output_of(layer, head):
        """What attention adds at the last token without a head."""
        seen = {}
        scale = f"blocks.{layer}.ln1_post.hook_scale"
        frozen = {scale: cache[scale]} if scale in points else {}

        def cut(act, hook=None):
            changed = act.clone()
            changed[:, -1, head] = 0
            return changed

        hooks = [(f"blocks.{layer}.attn.hook_z", cut), *freeze(frozen)]
        hooks += [(f"blocks.{layer}.hook_attn_out", lambda act, hook=None: seen.update(out=act[:, -1:].clone()))]
        with torch.no_grad(), attach.attached(model, hooks):
            model(tokens)
        return seen["out"]

    said = uncapped(model, case, logits)
    limit = 20 * tolerance(case)
    for layer in range(3):
        out = cache[f"blocks.{layer}.hook_attn_out"][:, -1:]
        for head in range(4):
            worth = said - without(out - output_of(layer, head))
            assert float(found.heads[0, layer, head]) == pytest.approx(worth, abs=limit), (layer, head)
        worth = said - without(cache[f"blocks.{layer}.hook_mlp_out"][:, -1:])
        assert float(found.mlps[0, layer]) == pytest.approx(worth, abs=limit)
    worth = said - without(cache["hook_embed"][:, -1:])
    assert float(found.embedding[0]) == pytest.approx(worth, abs=limit)


@pytest.mark.parametrize("case", [case for case in CASES if case.processed and case.family != "gemma2"], ids=str)
def test_on_processed_models_parts_are_those_of_transformer_lens(case):
    """Which leaves out the bias of the unembedding, and the gain of norms that are not folded."""
    model = model_of(case)
    found = edit_circuit(model, PROMPT, *ANSWERS)
    _, cache = run_by_hand(model, PROMPT)
    first, second = (torch.tensor([first_of(model, answer)]) for answer in ANSWERS)

    def attributed(stack):
        return cache.logit_attrs(stack, tokens=first, incorrect_tokens=second, pos_slice=-1).flatten().double()

    heads = attributed(cache.stack_head_results(layer=-1, pos_slice=-1)[: 3 * 4])
    limit = {"atol": 20 * tolerance(case), "rtol": 0}
    torch.testing.assert_close(found.heads[0].flatten(), heads, **limit)
    mlps = attributed(torch.stack([cache[f"blocks.{layer}.hook_mlp_out"][:, -1] for layer in range(3)]))
    torch.testing.assert_close(found.mlps[0], mlps, **limit)


def test_attention_to_the_subject_is_that_of_the_last_token():
    model = model_of(FEW[0])
    edit = edit_of(model)
    found = edit_circuit(model, PROMPT, *ANSWERS, edit=edit)
    where = tokenize_prompt(model, PROMPT, SUBJECT).subject_last
    # The edit's own subject, "The Eiffel Tower", ends where this one does.
    assert found.subject_last == where
    assert found.subject == "The Eiffel Tower"
    for i, switched in enumerate((None, edit)):
        _, cache = run_by_hand(model, PROMPT, switched)
        seen = torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1, where] for layer in range(3)])
        torch.testing.assert_close(found.subject_attention[i], seen.double(), atol=1e-7, rtol=0)
    assert edit_circuit(model, PROMPT, *ANSWERS).subject_attention is None


def test_a_cap_on_logits_is_taken_off():
    model = model_of(next(case for case in FEW if case.family == "gemma2"))
    found = edit_circuit(model, PROMPT, *ANSWERS)
    logits, _ = run_by_hand(model, PROMPT)
    first, second = (float(logits[-1, first_of(model, answer)]) for answer in ANSWERS)
    assert abs(float(found.logit_difference[0]) - (first - second)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_in_other_dtypes_add_up_as_far_as_they_count(dtype):
    for interface in tiny_models.interfaces():
        model = tiny_models.build("gpt2", interface, dtype=dtype)
        exact = edit_circuit(model_of(tiny_models.Case("gpt2", interface, False)), PROMPT, *ANSWERS)
        found = edit_circuit(model, PROMPT, *ANSWERS)
        limit = 1e-4 if dtype == torch.float32 else 0.3
        torch.testing.assert_close(found.heads, exact.heads, atol=limit, rtol=0)


@pytest.mark.parametrize("family", ["mixtral", "attn_only"])
def test_models_that_cannot_be_edited_can_be_followed(family):
    for case in tiny_models.available_cases([family]):
        if case.processed and tiny_models.TRANSFORMER_BRIDGE not in tiny_models.interfaces():
            continue  # In TransformerLens 2 the new norms of `process_weights_` have no hook points.
        found = edit_circuit(tiny_models.build(case), PROMPT, *ANSWERS)
        assert float(found.total[0]) == pytest.approx(float(found.logit_difference[0]), abs=1e-4)
        assert (found.mlps == 0).all() == (family == "attn_only")


@pytest.mark.parametrize("case", FEW, ids=str)
def test_parts_that_do_not_add_up_are_refused_and_nothing_is_left(case):
    model = model_of(case)
    edit, before = edit_of(model), weights(model)

    def more(act, hook=None):
        return act + 1.0 * torch.arange(act.shape[-1]).to(act)

    for name, what in (
        ("blocks.1.hook_attn_out", "the attention's output of layer 1"),
        ("blocks.2.hook_resid_post", "the logit"),
    ):
        with pytest.raises(ValueError, match=rf"miss {what}.*take off hooks"):
            edit_circuit(model, PROMPT, *ANSWERS, edit=edit, hooks=[(name, more)])
        assert same(weights(model), before)
        assert hooks_left(model) == []
        assert not edit.is_applied(model)


def test_a_hook_that_writes_to_the_stream_through_a_part_is_that_part():
    model = model_of(FEW[0])
    found = edit_circuit(model, PROMPT, *ANSWERS, hooks=[("blocks.1.hook_mlp_out", lambda act, hook=None: 2 * act)])
    scale = found.heads[1, 0, 0] / found.heads[0, 0, 0]
    torch.testing.assert_close(found.mlps[1, 1], 2 * scale * found.mlps[0, 1], atol=1e-9, rtol=0)


def test_what_cannot_be_asked_gets_advice():
    model = model_of(FEW[0])
    with pytest.raises(ValueError, match="begin with the same token"):
        edit_circuit(model, PROMPT, "Rome", "Rome")
    with pytest.raises(ValueError, match="'Louvre' does not occur in"):
        edit_circuit(model, PROMPT, *ANSWERS, subject="Louvre")
    with edit_of(model).on(model) as edit, pytest.raises(ValueError, match="so there is no run without it"):
        edit_circuit(model, PROMPT, *ANSWERS, edit=edit)


def made(runs=("before", "after")) -> EditCircuit:
    """One layer of two heads, numbers by hand."""
    n = len(runs)
    return EditCircuit(
        prompt="<b>$x^",
        tokens=("<b>", "$x^"),
        runs=runs,
        switched="an edit",
        provenance=host.provenance(model_of(FEW[0]), prepend_bos=True),
        answer="</script>",
        other_answer="$y^",
        answer_tokens=("</", " $y"),
        embedding=torch.tensor([0.5, 0.5])[:n],
        positions=torch.tensor([0.0, 0.0])[:n],
        heads=torch.tensor([[[1.0, -2.0]], [[1.5, 2.0]]])[:n],
        attention_biases=torch.tensor([[0.25], [0.25]])[:n],
        mlps=torch.tensor([[1.0], [0.0]])[:n],
        bias=torch.tensor([0.125, 0.125])[:n],
        logit_difference=torch.tensor([0.875, 4.375])[:n],
        subject="<i>",
        subject_last=0,
        subject_attention=torch.tensor([[[0.1, 0.2]], [[0.3, 0.4]]])[:n],
    )


def test_components_are_ranked_by_their_change_and_sum():
    result = made()
    names = [part.name for part in result.components()]
    assert names[:3] == ["head 0.1", "MLP 0", "head 0.0"]
    assert [part.change for part in result.components()][:3] == [4.0, -1.0, 0.5]
    torch.testing.assert_close(result.total, torch.tensor([0.875, 4.375]))
    assert "logit(</) − logit(␣$y)" in repr(result)
    assert repr(result).endswith("+0.88 → +4.38; most by head 0.1 +4.00)")
    alone = made(("model",))
    assert [part.name for part in alone.components()][:2] == ["head 0.1", "head 0.0"]
    assert repr(alone).endswith("+0.88; most from head 0.1 -2.00)")


def test_the_table_shows_changes_attention_and_the_sum():
    html = made()._repr_html_()
    assert "-2.000" in html
    assert "+4.000" in html
    assert "0.200 → 0.400" in html
    assert html.index("head 0.1") < html.index("MLP 0") < html.index("logit difference")
    assert "+0.875" in html
    assert "+3.500" in html
    assert "logit(&lt;/) − logit(␣$y)" in html
    assert "end of &lt;i&gt;" in html
    assert "<b>" not in html
    assert "<i>" not in html
    alone = made(("model",))._repr_html_()
    assert "change" not in alone
    assert "-2.000" in alone


def test_the_table_ends_with_what_the_model_said_and_what_the_parts_miss_of_it():
    html = made()._repr_html_()
    assert "rounding" not in html
    off = dataclasses.replace(made(), logit_difference=torch.tensor([0.9, 4.375]))
    html = off._repr_html_()
    assert html.index("final bias") < html.index("rounding") < html.index("logit difference")
    cells = [re.findall(r">([+-][0-9.]+)<", row) for row in re.split("<tr[^>]*>", html)[-2:]]
    assert cells == [["+0.025", "+0.000", "-0.025"], ["+0.900", "+4.375", "+3.475"]]
    model = tiny_models.build("gpt2", dtype=torch.bfloat16)
    found = edit_circuit(model, PROMPT, *ANSWERS)
    assert f">{float(found.logit_difference[0]):+.3f}</td>" in found._repr_html_().split("logit difference<")[1]


def test_more_components_than_the_table_shows_are_summed(fact_model):
    found = edit_circuit(fact_model, "The Eiffel Tower is located in", "Paris", "Rome")
    listed = found.components()
    rest = sum(part.before for part in listed[12:])
    html = found._repr_html_()
    assert f"the other {len(listed) - 12}" in html
    assert f"{rest:+.3f}" in html


def test_the_plot_is_layer_by_component_and_takes_dollars_for_dollars():
    pytest.importorskip("matplotlib")
    axis = made().plot()
    axis.figure.savefig(io.BytesIO())
    mesh = axis.collections[0]
    assert mesh.get_array().flatten().tolist() == [0.5, 4.0, 0.0, -1.0]
    assert mesh.get_clim() == (-4.0, 4.0)
    assert "logit(</) − logit(␣$y) (nats)" in [each.get_ylabel() for each in axis.figure.axes]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "1", "bias", "MLP"]


def test_frames_have_a_row_for_each_component():
    pytest.importorskip("pandas")
    frame = made().to_dataframe()
    assert list(frame["component"])[:2] == ["head 0.1", "MLP 0"]
    assert len(frame) == 7
    assert float(frame["subject_attention_after"][0]) == pytest.approx(0.4)
    assert frame["subject_attention_after"].isna().sum() == 5
    assert made(("model",)).to_dataframe()["logits"].iloc[0] == -2.0


def test_of_patterns_only_what_is_shown_is_kept():
    model = tiny_models.build("gpt2", n_layers=6)
    n = ids_of(model, PROMPT).shape[1]
    assert (
        kept_at_once(
            model, lambda hooks: edit_circuit(model, PROMPT, *ANSWERS, hooks=hooks, subject=SUBJECT), (4, n, n)
        )
        <= 1
    )
