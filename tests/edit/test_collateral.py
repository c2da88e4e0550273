"""What an edit will do elsewhere: the shift that was computed is the one that is measured."""

import contextlib
import functools
import html.parser
from dataclasses import replace

import pytest
import tiny_models
import torch
from jaxtyping import TypeCheckError
from tiny_models import HOOKED_TRANSFORMER, TRANSFORMER_BRIDGE, Case, available_cases

from tl_edit import Edit, EditRequest, LowRank, applied_edits, host, tokens
from tl_edit.attach import attached

TEXTS = ["The Louvre is in Paris", "Rome", "The Eiffel Tower is in the city of Rome, not Paris"]
REQUESTS = [
    EditRequest("{} is in", "The Eiffel Tower", "Rome", "Paris"),
    EditRequest("The city of {} is", "Rome", "old"),
    EditRequest("My friend saw {} in the city of", "the Space Needle", "Paris"),
]
INTERFACES = list(tiny_models.interfaces())
GPT2 = Case("gpt2", INTERFACES[0], False)
every_case = pytest.mark.parametrize("case", available_cases(), ids=str)
some_cases = pytest.mark.parametrize("case", available_cases(("gpt2", "gemma2", "opt")), ids=str)


@functools.cache
def shared(case):
    """A model that tests leave as it is."""
    return tiny_models.build(case, dtype=torch.float64)


def make(model, layers=(1,), *, seed=0, rank=2, scale=0.1, **options) -> Edit:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = {layer: host.w_out(model, layer).shape for layer in layers}
    deltas = {layer: LowRank(random(shape[0], rank), random(rank, shape[1])) for layer, shape in shapes.items()}
    return Edit.of(model, deltas, method="test", **options)


@torch.no_grad()
def answers(model, layer, rows):
    """The MLP's own answers of a layer to each text [pos d_model], unpadded and alone."""
    found = []
    with attached(model, [(host.value_name(model, layer), lambda act, hook=None: found.append(act.clone()))]):
        for row in rows:
            model(row[None])
    return [answer.reshape(len(row), -1) for answer, row in zip(found, rows, strict=True)]


def rows_of(model, texts=TEXTS, bos=None):
    return [tokens.encode(model, text, prepend_bos=bos) for text in texts]


def measured(model, edit, layer, rows):
    """By row: how far the answers of a layer differ between the edit, and the edit without that layer."""
    rest = [other for other in edit.deltas if other != layer]
    with edit.layers(rest).on(model) if rest else contextlib.nullcontext():
        without = answers(model, layer, rows)
    with edit.on(model):
        edited = answers(model, layer, rows)
    return [(one - other).norm(dim=-1) for one, other in zip(edited, without, strict=True)]


def close(one, other, case, atol=1e-10) -> bool:
    # Steps of Hugging Face's in float32 depend on the shape of the batch.
    return torch.allclose(one, other, rtol=0, atol=1e-5 if case.interface == TRANSFORMER_BRIDGE else atol)


# --- the shift -----------------------------------------------------------------------------------------


@every_case
def test_the_shift_is_the_measured_one(case):
    model = shared(case)
    edit, rows = make(model), rows_of(model)
    found = edit.collateral(model, TEXTS)
    expected = torch.cat(measured(model, edit, 1, rows))
    assert found.shift.shape == (1, sum(map(len, rows)))
    assert float(expected.min()) > 1e-3
    assert close(found.shift[0], expected, case)
    assert close(found.value_norm[0], torch.cat(answers(model, 1, rows)).norm(dim=-1), case)
    # To the last digits where rows are not padded.
    alone = edit.collateral(model, TEXTS[2])
    assert torch.allclose(alone.total, measured(model, edit, 1, rows[2:])[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("case", available_cases(("gpt2", "llama", "gemma2", "phi")), ids=str)
def test_of_several_layers_each_adds_to_what_those_before_have_done(case):
    model = shared(case)
    edit, rows = make(model, (0, 1, 2)), rows_of(model, TEXTS[2:])
    found = edit.collateral(model, TEXTS[2:])
    for i, layer in enumerate((0, 1, 2)):
        assert torch.allclose(found.shift[i], measured(model, edit, layer, rows)[0], rtol=0, atol=1e-10)
    with edit.layers([0, 1]).on(model):
        before = answers(model, 2, rows)[0].norm(dim=-1)
    assert torch.allclose(found.value_norm[2], before, rtol=0, atol=1e-10)
    assert torch.equal(found.total, found.shift.sum(0))
    assert not torch.allclose(found.shift[2], edit.layers([2]).collateral(model, TEXTS[2]).shift[0], atol=1e-3)


def test_of_a_rank_one_edit_it_is_what_the_paper_says():
    model = shared(GPT2)
    edit = make(model, rank=1)
    keys = []
    with torch.no_grad(), attached(model, [(host.key_name(1), lambda act, hook: keys.append(act[0]))]):
        model(rows_of(model)[0][None])
    delta = edit.deltas[1]
    expected = (keys[0] @ delta.left[:, 0]).abs() * delta.right.norm()
    assert torch.allclose(edit.collateral(model, TEXTS[0]).total, expected, rtol=1e-10)


@some_cases
def test_of_requests_it_is_that_at_the_subject_of_the_whole_prompt(case):
    model = shared(case)
    edit = make(model, (0, 2), prepend_bos=model.tokenizer.bos_token_id is not None)
    found = edit.collateral(model, REQUESTS)
    assert found.of_subjects
    assert found.texts == tuple(request.prompt for request in REQUESTS)
    bos = edit.provenance.prepend_bos
    prompts = [tokens.tokenize_request(model, request, prepend_bos=bos) for request in REQUESTS]
    assert found.positions.tolist() == [prompt.subject_last for prompt in prompts]
    assert found.str_tokens == tuple(prompt.str_tokens[prompt.subject_last] for prompt in prompts)
    for j, layer in enumerate((0, 2)):
        whole = measured(model, edit, layer, [prompt.tokens for prompt in prompts])
        at = torch.stack([row[prompt.subject_last] for row, prompt in zip(whole, prompts, strict=True)])
        assert close(found.shift[j], at, case)
    assert torch.equal(edit.collateral(model, REQUESTS[1]).total, edit.collateral(model, REQUESTS[1:2]).total)


@some_cases
def test_batches_and_padding_do_not_matter(case):
    model = shared(case)
    edit = make(model, (0, 2))
    found = edit.collateral(model, TEXTS)
    lengths = [len(row) for row in rows_of(model)]
    assert [int((found.text_index == i).sum()) for i in range(3)] == lengths
    assert found.positions.tolist() == [position for length in lengths for position in range(length)]
    assert found.str_tokens == tuple(token for row in rows_of(model) for token in tokens.str_tokens(model, row))
    for batch_size in (1, 2):
        other = edit.collateral(model, TEXTS, batch_size=batch_size)
        assert close(other.shift, found.shift, case)
        assert close(other.value_norm, found.value_norm, case)
        assert other.str_tokens == found.str_tokens


@some_cases
def test_it_is_the_same_before_and_after_the_edit(case):
    model = shared(case)
    edit, other = make(model, (0, 2)), make(model, (0, 1), seed=1)
    before = edit.collateral(model, TEXTS)
    with edit.on(model):
        after = edit.collateral(model, TEXTS)
    assert torch.allclose(after.shift, before.shift, rtol=0, atol=1e-10)
    assert torch.allclose(after.value_norm, before.value_norm, rtol=0, atol=1e-10)
    with other.on(model):
        assert not torch.allclose(edit.collateral(model, TEXTS).shift, before.shift, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_models_are_summed_up_in_float64(dtype):
    model = tiny_models.build(GPT2, dtype=dtype)
    edit = make(model)
    found = edit.collateral(model, TEXTS[0])
    assert found.shift.dtype == found.value_norm.dtype == torch.float64
    exact = edit.collateral(shared(GPT2), TEXTS[0], allow_mismatch=True).shift
    assert torch.allclose(found.shift, exact, rtol=1e-4 if dtype == torch.float32 else 0.1, atol=1e-3)


def test_an_edit_of_another_model_is_refused_unless_it_is_on_already():
    model, edit = tiny_models.build(GPT2), make(tiny_models.build(GPT2, seed=9))
    with pytest.raises(ValueError, match=r"^Edit.collateral: .* was computed on other weights.*allow_mismatch=True"):
        edit.collateral(model, TEXTS)
    allowed = edit.collateral(model, TEXTS, allow_mismatch=True)
    with edit.on(model, allow_mismatch=True):
        assert torch.allclose(edit.collateral(model, TEXTS).shift, allowed.shift, rtol=0, atol=1e-5)


@some_cases
def test_the_model_is_left_as_it_is(case):
    model = shared(case)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}
    mode = model.training
    edit = make(model, (0, 2))
    edit.collateral(model, TEXTS)
    edit.collateral(model, REQUESTS)
    with pytest.raises(ValueError, match="no tokens"):
        edit.collateral(model, ["Rome", ""])
    assert {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert applied_edits(model) == []
    assert model.training == mode
    assert all(parameter.grad is None for parameter in model.parameters())


@some_cases
def test_hooks_of_the_users_see_whole_texts(case):
    """A hook may count positions, also from the end, as in a run of the user's."""
    model = tiny_models.build(case, dtype=torch.float64)
    edit = make(model, (1,), prepend_bos=False)
    lengths = []

    def last_embedding_everywhere(act, hook):
        lengths.append(act.shape[1])
        return act + act[:, -1:]

    # Two of one length run together, and come back where they were.
    texts = [*TEXTS, TEXTS[0]]
    rows = rows_of(model, texts, bos=False)
    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", last_embedding_everywhere)]):
        found = edit.collateral(model, texts)
        assert sorted(lengths) == sorted(map(len, rows[:3]))
        assert torch.allclose(found.total, torch.cat(measured(model, edit, 1, rows)), rtol=0, atol=1e-6)
        subjects = edit.collateral(model, REQUESTS)
        prompts = [tokens.tokenize_request(model, request, prepend_bos=False) for request in REQUESTS]
        whole = measured(model, edit, 1, [prompt.tokens for prompt in prompts])
        at = torch.stack([row[prompt.subject_last] for row, prompt in zip(whole, prompts, strict=True)])
        assert torch.allclose(subjects.total, at, rtol=0, atol=1e-6)


# --- BOS -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interface", INTERFACES)
def test_texts_begin_as_those_of_the_edit(interface):
    model = shared(Case("gpt2", interface, False))
    for bos in (True, False):
        edit = make(model, prepend_bos=bos)
        found = edit.collateral(model, TEXTS)
        assert len(found.str_tokens) == sum(map(len, rows_of(model, bos=bos)))
        assert torch.equal(found.shift, edit.collateral(model, TEXTS, prepend_bos=bos).shift)
        other = edit.collateral(model, TEXTS, prepend_bos=not bos)
        assert len(other.str_tokens) - len(found.str_tokens) == (-3 if bos else 3)


# --- ranking -------------------------------------------------------------------------------------------


def test_tokens_are_ranked_by_their_shift():
    model = shared(GPT2)
    found = make(model, (0, 2)).collateral(model, TEXTS)
    n = len(found.str_tokens)
    ranked = found.top(n + 5)
    assert len(ranked) == n
    shifts = [moved.shift for moved in ranked]
    assert shifts == sorted(found.total.tolist(), reverse=True)
    for moved in ranked:
        i = found.texts.index(moved.text)
        at = [j for j in range(n) if int(found.text_index[j]) == i and int(found.positions[j]) == moved.position]
        assert len(at) == 1
        assert moved.token == found.str_tokens[at[0]]
        assert moved.shift == pytest.approx(float(found.total[at[0]]))
        assert moved.relative == pytest.approx(float(found.total[at[0]] / found.value_norm[:, at[0]].sum()))
    assert len(found.top()) == 10
    assert found.top(1) == ranked[:1]


def test_texts_are_ranked_by_their_most_moved_token():
    model = shared(GPT2)
    found = make(model).collateral(model, [*TEXTS, TEXTS[0]])
    ranked = found.top(10, by="text")
    assert [moved.text for moved in ranked[:1]] == [found.top(1)[0].text]
    assert len(ranked) == 4
    largest = [float(found.total[found.text_index == i].max()) for i in range(4)]
    assert [moved.shift for moved in ranked] == sorted(largest, reverse=True)
    assert found.top(2, by="text") == ranked[:2]


@pytest.mark.parametrize("options", [{"n": 0}, {"n": -1}, {"n": 1.5}, {"n": True}, {"by": "layer"}, {"by": None}])
def test_rankings_that_there_are_not(options):
    model = shared(GPT2)
    found = make(model).collateral(model, "Rome")
    with pytest.raises((ValueError, TypeCheckError)):
        found.top(**options)


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ([], "found nothing; expected texts, or requests"),
        ((), "found nothing"),
        (["Rome", REQUESTS[0]], "found EditRequest, str; expected texts, or requests, not both"),
        ([REQUESTS[0], "Rome"], "str"),
        ([None], "found NoneType"),
        (None, "found NoneType"),
        (3, "found int"),
        ({"Rome": 1}, "found dict"),
        (["Rome", ""], "it has no tokens"),
        (["Rome " * 200], "has a context of 128"),
    ],
    ids=repr,
)
def test_what_cannot_be_looked_at(what, said):
    model = shared(GPT2)
    # Without the checks of shapes and types that tests have, users get advice.
    looked = getattr(Edit.collateral, "__wrapped__", Edit.collateral)
    with pytest.raises((ValueError, TypeCheckError)) as raised:
        looked(make(model), model, what)
    assert said in str(raised.value) or isinstance(raised.value, TypeCheckError)


def test_an_iterator_is_looked_at_once():
    from tl_edit.edit.collateral import collateral

    model = shared(GPT2)
    edit = make(model)
    options = {"prepend_bos": edit.provenance.prepend_bos, "batch_size": 64}
    for several in (TEXTS, REQUESTS):
        found = collateral(model, "Edit", edit.deltas, iter(several), edit.hooks(), **options)
        assert torch.equal(found.shift, edit.collateral(model, several).shift)
        assert found.of_subjects == (several is REQUESTS)
    for wrong, said in (
        (None, "NoneType"),
        ({}, "dict"),
        (3, "int"),
        (["Rome", REQUESTS[0]], "not both"),
        ([], "nothing"),
    ):
        with pytest.raises(ValueError, match=f"Edit.collateral: found .*{said}"):
            collateral(model, "Edit", edit.deltas, wrong, edit.hooks(), **options)
    with pytest.raises(ValueError, match="Edit.collateral.*'Rome'"):
        collateral(model, "Edit", edit.deltas, [REQUESTS[0], "Rome"], edit.hooks(), **options)


def test_models_and_sizes_that_do_not_fit():
    model, other = shared(GPT2), tiny_models.build(GPT2, dtype=torch.float64, seed=1)
    edit = make(model)
    with pytest.raises(ValueError, match="computed on other weights"):
        edit.collateral(other, TEXTS)
    edit.collateral(other, TEXTS, allow_mismatch=True)
    wide = replace(edit, deltas={1: LowRank(torch.ones(81, 1).double(), torch.ones(1, 32).double())})
    with pytest.raises(ValueError, match="81 x 32"):
        wide.collateral(model, TEXTS)
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match="batch_size is"):
            edit.collateral(model, TEXTS, batch_size=batch_size)
    mine = {"requests": (), "config": None, "provenance": host.provenance(model, prepend_bos=True)}
    by_hand = Edit(method="mine", deltas=edit.deltas, **mine)
    assert torch.equal(by_hand.collateral(model, TEXTS).shift, edit.collateral(model, TEXTS).shift)


@pytest.mark.skipif(HOOKED_TRANSFORMER in INTERFACES and len(INTERFACES) < 2, reason="no dropout")
def test_dropout_is_refused():
    model = tiny_models.build("gpt2", TRANSFORMER_BRIDGE)
    edit = make(model)
    model.train()
    for module in model.original_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    with pytest.raises(ValueError, match="active dropout"):
        edit.collateral(model, TEXTS)


# --- showing -------------------------------------------------------------------------------------------


class Checker(html.parser.HTMLParser):
    """Collects tags."""

    def __init__(self):
        super().__init__()
        self.tags = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)


def test_it_shows_itself():
    model = shared(GPT2)
    edit = make(model)
    found = edit.collateral(model, TEXTS)
    most = found.top(1)[0]
    assert repr(found) == (
        f"Collateral({edit!r}: {len(found.str_tokens)} tokens, shift mean {float(found.total.mean()):.3g}, "
        f"most {most.shift:.3g} at {most.token!r} of {most.text!r})"
    )
    assert "3 subjects" in repr(edit.collateral(model, REQUESTS))
    shown = found._repr_html_()
    assert shown.count("</tr>") == 11
    assert f">{most.shift:.3g}<" in shown
    assert f">{most.relative:.1%}<" in shown


def test_html_is_escaped_and_long_texts_are_shortened():
    model = shared(GPT2)
    hostile = "<script>alert(1)</script> & <b>"
    found = make(model).collateral(model, [hostile])
    checker = Checker()
    checker.feed(found._repr_html_())
    assert checker.tags == {"div", "table", "tr", "th", "td"}
    assert "&lt;script&gt;" in found._repr_html_()
    long = "The city of Rome is old and " * 4
    found = make(model).collateral(model, long)
    assert long not in repr(found)
    assert long not in found._repr_html_()
    assert long[:79] in repr(found)
    assert found.texts == (long,)


def test_a_frame_has_a_row_for_each_token_and_layer():
    model = shared(GPT2)
    found = make(model, (0, 2)).collateral(model, TEXTS)
    frame, n = found.to_dataframe(), len(found.str_tokens)
    columns = ["layer", "token_index", "shift", "value_norm", "text_index", "position", "text", "token"]
    assert list(frame.columns) == columns
    assert len(frame) == 2 * n
    for row in (0, n - 1, n, n + 3, 2 * n - 1):
        layer, token = divmod(row, n)
        there = frame.iloc[row]
        assert there["layer"] == (0, 2)[layer]
        assert there["token_index"] == token
        assert there["shift"] == float(found.shift[layer, token])
        assert there["value_norm"] == float(found.value_norm[layer, token])
        assert there["text_index"] == int(found.text_index[token])
        assert there["position"] == int(found.positions[token])
        assert there["token"] == found.str_tokens[token]
    assert frame.groupby("token_index")["shift"].sum().tolist() == pytest.approx(found.total.tolist())


def test_what_is_moved_most_is_drawn_first_with_what_stands_before_it():
    pytest.importorskip("matplotlib")
    model = shared(GPT2)
    edit = make(model)
    found = edit.collateral(model, TEXTS)
    axis = found.plot(n=3)
    assert [patch.get_width() for patch in axis.patches] == pytest.approx([moved.shift for moved in found.top(3)])
    for label, moved in zip(axis.get_yticklabels(), found.top(3), strict=True):
        assert label.get_text().endswith(f"[{moved.token}]")
    subjects = edit.collateral(model, REQUESTS)
    first = subjects.top(1)[0]
    assert subjects.plot().get_yticklabels()[0].get_text() == f"{first.text} [{first.token}]"
    with pytest.raises(ValueError, match="n is 0; expected an integer of 1 or more"):
        found.plot(n=0)
