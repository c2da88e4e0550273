"""Both engines of the search compute what its definition says, and a request's result does not depend on its batch."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from oracles import values as oracle

from tl_edit import EditRequest, ValueSearch, host
from tl_edit.values import optimize_value, optimize_values
from tl_edit.values import run as run_module
from tl_edit.values import tail as tail_module

REQUESTS = (
    EditRequest("{} is in the city of", "The Eiffel Tower", "Rome", "Paris"),
    EditRequest("{} is in", "The Colosseum", "Constantinople"),
    EditRequest("My friend {} lives in the city of", "Paris", "The Tower"),
    EditRequest("The café in {} is old. It is", "Zürich", "a place"),
)
PREFIXES = ("It is a fact. {}", "My favourite city in the world. {}")
SEARCH = ValueSearch(v_lr=0.2, v_num_grad_steps=20, clamp_norm_factor=2.0)
SITES = {"v*": "value", "z*": "resid_post", "pair": ("value", "attn_out")}


def float64_is_exact(case) -> bool:
    """Hugging Face computes rotary angles, norms or attention in float32 in the others."""
    return case.interface == "HookedTransformer" or case.family in ("gpt2", "gpt_neox", "gpt_neo")


def furthest(found, values, firsts):
    """Greatest difference relative to the way that was gone."""
    return max(
        float((one.v_star - value).norm() / (value - first).norm())
        for one, value, first in zip(found, values, firsts, strict=True)
    )


@pytest.mark.parametrize("site", SITES.values(), ids=list(SITES))
@pytest.mark.parametrize("case", tiny_models.available_cases(), ids=str)
def test_fast_and_plain_are_the_definition(case, site):
    model = tiny_models.build(case, dtype=torch.float64)
    sites = (site,) if isinstance(site, str) else site
    steps = 20 if case.family == "gpt2" else 6
    search = replace(SEARCH, v_num_grad_steps=steps)
    given = {"site": site, "prefixes": PREFIXES, "search": search}
    fast = optimize_values(model, REQUESTS, 1, **given)
    assert fast[0].engine.startswith("blocks"), fast[0].engine
    alone = [oracle.search(model, each, 1, sites=sites, prefixes=PREFIXES, settings=search) for each in REQUESTS]
    firsts = [first[sites[0]] for _, first, _ in alone]
    expected = [values[sites[0]] for values, _, _ in alone]
    limit = 1e-10 if float64_is_exact(case) else 1e-4
    assert furthest(fast, expected, firsts) < limit
    for one, (_, _, losses) in zip(fast, alone, strict=True):
        assert one.losses == pytest.approx(losses, rel=limit)
        assert len(one.losses) == steps
    plain = optimize_values(model, REQUESTS, 1, engine="plain", **given)
    assert plain[0].engine == "plain hooks (asked for)"
    assert furthest(plain, expected, firsts) < limit


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
@pytest.mark.parametrize("site", ["value", "resid_post"])
def test_a_request_does_not_depend_on_its_batch(interface, site):
    model = tiny_models.build("gpt2", interface, dtype=torch.float64)
    given = {"site": site, "prefixes": PREFIXES, "search": SEARCH}
    whole = optimize_values(model, REQUESTS, 1, **given)
    for requests, max_rows in ((REQUESTS, 1), (REQUESTS, 40), (REQUESTS[::-1], 2048), (REQUESTS[1:2], 2048)):
        again = optimize_values(model, requests, 1, max_rows=max_rows, **given)
        for request, found in zip(requests, again, strict=True):
            expected = whole[REQUESTS.index(request)]
            assert furthest([found], [expected.v_star], [expected.v0]) < 1e-10
            assert found.losses == pytest.approx(expected.losses, rel=1e-10)


def test_requests_that_stop_early_leave_the_others_as_they_are():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    search = ValueSearch(v_lr=0.5, v_num_grad_steps=15, clamp_norm_factor=20.0, v_weight_decay=1e-3, stop_loss=6.8)
    together = optimize_values(model, REQUESTS, 1, prefixes=PREFIXES, search=search)
    assert len({len(found.losses) for found in together}) > 1, "some stop before others"
    for request, found in zip(REQUESTS, together, strict=True):
        alone = optimize_value(model, request, 1, prefixes=PREFIXES, search=search)
        assert furthest([found], [alone.v_star], [alone.v0]) < 1e-10
        assert found.losses == pytest.approx(alone.losses, rel=1e-10)


@pytest.mark.parametrize(("stop_kl", "ends"), [(50.0, True), (0.0, False)])
def test_stop_kl_ends_where_the_target_is_said(fact_model, stop_kl, ends):
    """And from there on, if the KL term does not let it end, the target weighs a tenth."""
    requests = [EditRequest("The {} is located in", subject, "Rome") for subject in ("Eiffel Tower", "British Museum")]
    search = ValueSearch(v_lr=0.2, v_num_grad_steps=30, stop_loss=0.0, stop_kl=stop_kl)
    fast, plain = (optimize_values(fact_model, requests, 0, search=search, engine=name) for name in ("auto", "plain"))
    for request, one, other in zip(requests, fast, plain, strict=True):
        _, _, losses = oracle.search(fact_model, request, 0, settings=search)
        assert one.losses == pytest.approx(losses, rel=1e-2)
        assert other.losses == pytest.approx(losses, rel=1e-2)
        assert (len(losses) < 30) is ends
        unweighted = optimize_value(fact_model, request, 0, search=replace(search, stop_kl=None)).losses
        tenth = any(loss < 0.5 * other for loss, other in zip(losses, unweighted, strict=False))
        assert tenth is not ends


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama")), ids=str)
def test_other_precisions_agree_roughly(case, dtype):
    model = tiny_models.build(case, dtype=dtype)
    search = ValueSearch(v_lr=0.1, v_num_grad_steps=4)
    fast, plain = (
        optimize_values(model, REQUESTS, 1, prefixes=PREFIXES, search=search, engine=engine)
        for engine in ("auto", "plain")
    )
    limit = 1e-3 if dtype == torch.float32 else 0.5
    assert fast[0].engine.startswith("blocks"), fast[0].engine
    assert furthest(fast, [one.v_star for one in plain], [one.v0 for one in plain]) < limit


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_layer_but_what_nothing_carries(layer):
    model = tiny_models.build("gpt2", dtype=torch.float64)
    if layer == 2:
        with pytest.raises(ValueError, match=r"request 0 .*exactly zero.*request 1 .*after the last layer nothing"):
            optimize_values(model, REQUESTS[:2], layer, site="resid_post", search=SEARCH)
        return
    found = optimize_values(model, REQUESTS, layer, search=SEARCH)
    plain = optimize_values(model, REQUESTS, layer, search=SEARCH, engine="plain")
    assert furthest(found, [one.v_star for one in plain], [one.v0 for one in plain]) < 1e-10


def test_a_subject_that_begins_the_text_without_a_bos():
    """Then nothing at all comes before the lookup position."""
    model = tiny_models.build("gpt2", dtype=torch.float64)
    request = EditRequest("{} is a city in", "Paris", "Rome")
    fast, plain = (
        optimize_value(model, request, 1, search=SEARCH, prepend_bos=False, engine=engine)
        for engine in ("auto", "plain")
    )
    assert fast.engine.startswith("blocks")
    assert furthest([fast], [plain.v_star], [plain.v0]) < 1e-10


def test_a_prompt_that_ends_with_the_subject_is_searched_in_the_last_layer_too():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    request = EditRequest("The capital of Italy is like {}", "The Eiffel Tower", "Rome")
    for layer, site in ((2, "value"), (2, "resid_post"), (2, ("value", "attn_out")), (1, "value")):
        fast, plain = (
            optimize_values(model, request, layer, site=site, search=SEARCH, prefixes=PREFIXES, engine=engine)
            for engine in ("auto", "plain")
        )
        assert fast[0].engine.startswith("blocks"), fast[0].engine
        assert furthest(fast, [plain[0].v_star], [plain[0].v0]) < 1e-10


class TestFallback:
    """Where the fast engine cannot be trusted, whole passes are run, and the result says why."""

    def test_a_hook_of_the_users(self):
        model = tiny_models.build("gpt2", dtype=torch.float64)
        model.hook_dict["blocks.2.hook_attn_out"].add_hook(lambda act, hook: 1.5 * act)
        found = optimize_value(model, REQUESTS[0], 1, search=SEARCH)
        assert found.engine.startswith("plain hooks (a hook is attached at blocks.2.")
        _, _, losses = oracle.search(model, REQUESTS[0], 1, settings=SEARCH)
        assert found.losses == pytest.approx(losses, rel=1e-10)

    def test_a_hook_sees_one_request_at_a_time(self):
        model, seen = tiny_models.build("gpt2"), set()
        model.hook_dict["blocks.2.hook_attn_out"].add_hook(lambda act, hook: seen.add(act.shape[0]))
        optimize_values(model, REQUESTS, 1, search=ValueSearch(v_num_grad_steps=2))
        assert max(seen) == 2  # the bare prompt and the KL prompt

    def test_blocks_that_compute_something_else_alone(self, monkeypatch):
        """Nothing but the check at the end can see it."""
        model = tiny_models.build("gpt2", dtype=torch.float64)
        for kind in (tail_module.RaggedTail, tail_module.FramedTail):
            monkeypatch.setattr(kind, "logits", lambda self, *given, logits=kind.logits: 1.01 * logits(self, *given))
        found = optimize_values(model, REQUESTS, 1, search=SEARCH)
        assert "off by" in found[0].engine
        monkeypatch.undo()
        plain = optimize_values(model, REQUESTS, 1, search=SEARCH, engine="plain")
        assert all(torch.equal(a.v_star, b.v_star) for a, b in zip(found, plain, strict=True))

    def test_running_out_of_memory_is_advice(self, monkeypatch):
        def fail(*_given, **_named):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(run_module, "search", fail)
        model = tiny_models.build("gpt2")
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(MemoryError, match=r"optimize_values: memory .* max_rows=600 .* pass max_rows=300"):
            optimize_values(model, REQUESTS, 1, max_rows=600)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_requests_that_fail_are_named_and_the_others_finished(monkeypatch):
    """One whose loss is not a number must not take the others with it."""
    model, finished = tiny_models.build("gpt2"), []
    search = run_module.search

    def spoil(engine, v0, settings):
        delta, trails = search(engine, v0, settings)
        finished.extend(trails)
        trails[1].losses.append(float("nan"))
        return delta, trails

    monkeypatch.setattr(run_module, "search", spoil)
    with pytest.raises(ValueError, match=r"optimize_values: request 1 \(The Colosseum is in → .*loss is nan at eval"):
        optimize_values(model, REQUESTS, 1, search=ValueSearch(v_num_grad_steps=3))
    assert len(finished) == 4


def test_sites_and_bounds_that_do_not_exist_are_refused():
    model = tiny_models.build("gpt2")
    for site in ((), ("value", "value")):
        with pytest.raises(ValueError, match=r"site is .*expected one of value, resid_post, attn_out"):
            optimize_values(model, REQUESTS, 1, site=site)
    with pytest.raises(ValueError, match=r"max_rows is 0; expected an integer of 1 or more"):
        optimize_values(model, REQUESTS, 1, max_rows=0)


def test_weights_with_gradients_get_none_and_the_model_is_as_before():
    model = tiny_models.build("gpt2")
    assert any(parameter.requires_grad for parameter in model.parameters())
    before = [host.w_out(model, layer).clone() for layer in range(3)]
    optimize_values(model, REQUESTS, 1, search=SEARCH)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(host.w_out(model, layer), before[layer]) for layer in range(3))
