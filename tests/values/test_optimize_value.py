"""The search for v*: the loss of the papers, and nothing of the model changed."""

import copy
import math
from dataclasses import replace

import pytest
import tiny_models
import torch

from tl_edit import EditRequest, ValueSearch, attach, extract_keys_values, host, optimize_value
from tl_edit.hooks import shift

REQUEST = EditRequest("{} is in the city of", "The Eiffel Tower", "Rome", "Paris")
PREFIXES = ("It is a fact. {}", "My favourite city. {}")


@pytest.fixture(scope="module", params=tiny_models.available_cases(("gpt2", "gemma2", "opt")), ids=str)
def model(request):
    return tiny_models.build(request.param)


def test_the_loss_falls_and_belongs_to_v_star(model):
    """Added with a hook of one's own, v* - v0 gives the model exactly the reported probability."""
    found = optimize_value(model, REQUEST, 1, search=ValueSearch(v_lr=0.3, clamp_norm_factor=20.0))
    assert found.losses[-1] < found.losses[0] - 0.1
    tokens, lookup = model.to_tokens(REQUEST.prompt), model.to_tokens("The Eiffel Tower").shape[1] - 1
    target = model.to_tokens(f"{REQUEST.prompt} Rome")[0, tokens.shape[1]]
    move = shift(found.v_star - found.v0, lookup)

    def hook(act, hook):
        return move(act.reshape(1, tokens.shape[1], -1)).reshape(act.shape)

    with torch.no_grad(), attach.attached(model, [(host.value_name(model, 1), hook)]):
        prob = model(tokens)[0, -1].softmax(-1)[target]
    assert float(prob) == pytest.approx(found.target_prob, rel=1e-4)


def test_the_first_loss_is_the_unedited_models_nll():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    search = ValueSearch(v_num_grad_steps=1)
    found = optimize_value(model, REQUEST, 1, prefixes=PREFIXES, search=search)
    nll = []
    for prefix in ("{}", *PREFIXES):
        text = prefix.format(REQUEST.prompt)
        tokens = model.to_tokens(f"{text} {REQUEST.target_new}")
        log_probs = model(tokens)[0].log_softmax(-1)
        start = model.to_tokens(text).shape[1]
        picked = [log_probs[i - 1, tokens[0, i]] for i in range(start, tokens.shape[1])]
        nll.append(-torch.stack(picked).mean())
    assert found.losses == pytest.approx((float(torch.stack(nll).mean()),), rel=1e-10)
    assert torch.equal(found.v_star, found.v0)


def test_targets_of_several_tokens_are_teacher_forced():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    request = EditRequest("{} is in", "The Eiffel Tower", "Constantinople")
    found = optimize_value(model, request, 1, search=ValueSearch(v_num_grad_steps=1))
    tokens = model.to_tokens(f"{request.prompt} Constantinople")
    start = model.to_tokens(request.prompt).shape[1]
    assert tokens.shape[1] - start > 1
    log_probs = model(tokens)[0].log_softmax(-1)
    expected = -torch.stack([log_probs[i - 1, tokens[0, i]] for i in range(start, tokens.shape[1])]).mean()
    assert found.losses[0] == pytest.approx(float(expected), rel=1e-10)


def test_the_clamp_bounds_delta():
    model = tiny_models.build("gpt2")
    found = optimize_value(model, REQUEST, 1, search=ValueSearch(clamp_norm_factor=0.25, v_lr=1.0))
    assert found.delta_ratio == pytest.approx(0.25, rel=1e-3)


def test_the_search_stops_below_the_stop_loss():
    model = tiny_models.build("gpt2")
    assert len(optimize_value(model, REQUEST, 1, search=ValueSearch(stop_loss=1e9)).losses) == 1


def test_prefixes_and_kl_change_the_result_and_the_same_call_repeats_it():
    model = tiny_models.build("gpt2")
    plain = optimize_value(model, REQUEST, 1)
    assert torch.equal(optimize_value(model, REQUEST, 1).v_star, plain.v_star)
    for other in (
        optimize_value(model, REQUEST, 1, prefixes=PREFIXES),
        optimize_value(model, REQUEST, 1, search=ValueSearch(kl_factor=5.0)),
        optimize_value(model, REQUEST, 1, prepend_bos=False),
    ):
        assert not torch.allclose(other.v_star, plain.v_star)


@pytest.mark.parametrize("bos", [True, False])
def test_the_bos_is_recorded(bos):
    model, search = tiny_models.build("gpt2"), ValueSearch(v_num_grad_steps=1)
    assert optimize_value(model, REQUEST, 1, search=search, prepend_bos=bos).prepend_bos is bos
    model.cfg.default_prepend_bos = bos
    assert optimize_value(model, REQUEST, 1, search=search).prepend_bos is bos


def test_prefixes_may_be_none_or_an_iterator_and_are_checked():
    model = tiny_models.build("gpt2")
    search = ValueSearch(v_num_grad_steps=2)
    plain = optimize_value(model, REQUEST, 1, search=search)
    assert torch.equal(optimize_value(model, REQUEST, 1, prefixes=None, search=search).v_star, plain.v_star)
    listed = optimize_value(model, REQUEST, 1, prefixes=PREFIXES, search=search)
    assert torch.equal(optimize_value(model, REQUEST, 1, prefixes=iter(PREFIXES), search=search).v_star, listed.v_star)
    with pytest.raises(ValueError, match="prefix 'no placeholder' has 0 placeholders; expected exactly one"):
        optimize_value(model, REQUEST, 1, prefixes=["no placeholder"])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_gradients_switched_off_by_the_user_do_not_matter(context):
    model = tiny_models.build("gpt2")
    expected = optimize_value(model, REQUEST, 1).v_star
    with context():
        assert torch.equal(optimize_value(model, REQUEST, 1).v_star, expected)


def test_nothing_of_the_model_changes(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    hooks = {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}
    optimize_value(model, REQUEST, 1)
    assert {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models_are_searched_in_float32(dtype):
    found = optimize_value(tiny_models.build("gpt2", dtype=dtype), REQUEST, 1)
    assert found.v_star.dtype == torch.float32
    assert found.losses[-1] < found.losses[0]


def test_a_setting_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="stop_loss is nan; expected a number; the default is"):
        ValueSearch(stop_loss=float("nan"))


@pytest.mark.parametrize("case", tiny_models.available_cases(["gpt2", "llama"]), ids=str)
def test_no_graph_is_left_on_the_model(case):
    """The attention of bridges keeps its last pattern; with its graph the model could not be copied."""
    model = tiny_models.build(case)
    optimize_value(model, REQUEST, 1, search=ValueSearch(v_num_grad_steps=2))
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    assert all(value.grad_fn is None for value in kept)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(REQUEST.prompt), model(REQUEST.prompt))


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_v0_is_that_of_the_users_own_run(interface):
    """A hook that counts from the end of the prompt must not act on the end of a cut one."""
    model, store = tiny_models.build("gpt2", interface), []

    def hook(act, hook):
        return torch.cat([act[:, :-1], act[:, -1:].flip(-1)], dim=1)

    model.hook_dict["blocks.0.hook_resid_post"].add_hook(hook)
    lookup = model.to_tokens("The Eiffel Tower").shape[1] - 1
    with torch.no_grad(), attach.attached(model, [(host.value_name(model, 1), lambda act, hook: store.append(act))]):
        model(model.to_tokens(REQUEST.prompt))
    found = optimize_value(model, REQUEST, 1, search=ValueSearch(v_num_grad_steps=1))
    torch.testing.assert_close(found.v0, store[0][0, lookup], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("cut", "found"),
    [(lambda act, hook: act.detach(), "missing"), (lambda act, hook: 0 * act, "exactly zero")],
    ids=["detach", "zero"],
)
@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_a_hook_that_cuts_the_gradient_is_found_out(interface, cut, found):
    """The decay keeps a gradient of its own, so the search would run on and find nothing."""
    model = tiny_models.build("gpt2", interface)
    model.hook_dict["blocks.2.hook_resid_post"].add_hook(cut)
    with pytest.raises(
        ValueError,
        match=rf"gradient .* layer 1 is {found}; .*; a hook .*blocks\.2\.hook.*cuts .*remove it .*another layer",
    ):
        optimize_value(model, REQUEST, 1)
    assert len(model.hook_dict["blocks.2.hook_resid_post"].fwd_hooks) == 1


def test_the_last_layer_is_refused_unless_the_subject_ends_the_prompt():
    model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match=r"layer 2 is exactly zero; .*after the last layer nothing carries it"):
        optimize_value(model, REQUEST, 2)
    found = optimize_value(model, EditRequest("The city of {}", "Paris", "Rome"), 2)
    assert found.losses[-1] < found.losses[0]


@pytest.mark.parametrize("stop_loss", [0.05, 0.0])
def test_a_target_that_is_certain_already_is_no_cut_gradient(stop_loss):
    model = tiny_models.build("gpt2")
    target = int(model.to_tokens(f"{REQUEST.prompt} Rome")[0, -1])
    certain = torch.zeros(model.cfg.d_vocab).index_fill(0, torch.tensor([target]), 1e4)

    handle = model.unembed.register_forward_hook(lambda module, inputs, output: output + certain)
    try:
        found = optimize_value(model, REQUEST, 1, search=ValueSearch(stop_loss=stop_loss, v_num_grad_steps=3))
    finally:
        handle.remove()
    assert found.target_prob == 1.0


def test_a_prefix_that_leaves_no_room_for_the_target_is_refused():
    """Prompt and prefix fit the context, and so do prompt and target."""
    model = tiny_models.build("gpt2")
    request = EditRequest("{} is in", "The Eiffel Tower", "Constantinople")
    bare, word = (model.to_tokens(text, prepend_bos=False).shape[1] for text in (". The Eiffel Tower is in", " Paris"))
    prefix = " Paris" * ((tiny_models.N_CTX - 1 - bare) // word) + ". {}"
    assert extract_keys_values(model, request, [1], prefixes=[prefix]).prefixes == (prefix,)
    with pytest.raises(ValueError, match=r"'Constantinople' needs \d+ tokens; .* context of 128; shorten the prefix"):
        optimize_value(model, request, 1, prefixes=[prefix])


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_a_graph_that_was_there_before_stays(interface):
    """A user may keep a tensor of their own on a module, to differentiate it later."""
    model = tiny_models.build("gpt2", interface)
    mine = torch.ones(3, requires_grad=True)
    vars(model.blocks[0])["mine"] = kept = 2 * mine
    optimize_value(model, REQUEST, 1, search=ValueSearch(v_num_grad_steps=2))
    assert vars(model.blocks[0])["mine"] is kept
    kept.sum().backward()
    assert torch.equal(mine.grad, torch.full((3,), 2.0))


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match=r"optimize_value: .*inference_mode.*; load the model outside"):
        optimize_value(model, REQUEST, 1)


@pytest.mark.parametrize(
    "bad", [{"v_num_grad_steps": 0}, {"v_lr": 0.0}, {"clamp_norm_factor": -1.0}, {"kl_factor": -0.1}]
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="the published settings are"):
        ValueSearch(**bad)


def test_a_loss_that_is_not_finite_is_refused():
    model = tiny_models.build("gpt2")
    host.write_w_out(model, 2, torch.full((80, 32), float("nan")))
    with pytest.raises(ValueError, match="loss is nan"):
        optimize_value(model, REQUEST, 1)


def test_the_terms_are_those_of_the_loss():
    """Weighted, in nats: at the first evaluation nothing has moved, and at the last the decay is that of v*."""
    model = tiny_models.build("gpt2", dtype=torch.float64)
    search = ValueSearch(v_num_grad_steps=5, kl_factor=2.0, v_weight_decay=3.0)
    found = optimize_value(model, REQUEST, 1, prefixes=PREFIXES, search=search)
    assert [sum(terms) for terms in found.loss_terms] == pytest.approx(found.losses, rel=1e-14)
    assert found.loss_terms[0][1:] == pytest.approx((0.0, 0.0), abs=1e-12)
    nll, kl, decay = found.loss_terms[-1]
    assert nll == pytest.approx(-math.log(found.target_prob), rel=1e-12)
    assert decay == pytest.approx(3.0 * float((found.v_star - found.v0).norm() / found.v0.norm() ** 2), rel=1e-12)
    assert kl > 0
    half = optimize_value(model, REQUEST, 1, prefixes=PREFIXES, search=replace(search, v_num_grad_steps=2))
    assert half.loss_terms == found.loss_terms[:1] + half.loss_terms[1:]


def test_a_value_shows_itself():
    found = optimize_value(tiny_models.build("gpt2"), REQUEST, 1, search=ValueSearch(v_num_grad_steps=3))
    assert f"{found.losses[0]:.4g} → {found.losses[-1]:.4g} in 3 evaluations" in found._repr_html_()
    assert "weight decay" in found._repr_html_()
    assert "weight decay" not in replace(found, loss_terms=())._repr_html_()
    pytest.importorskip("matplotlib")
    axis = found.plot()
    assert list(axis.lines[0].get_ydata()) == list(found.losses)
    assert len(axis.lines) == 4
    assert len(replace(found, loss_terms=()).plot().lines) == 1
