"""Averages over facts: pooled as published, resumable, with what is unknown left out and counted."""

import math

import numpy as np
import pytest
import torch

from tl_edit import KnownFact, Noise, average_traces, causal_trace, host, trace_facts
from tl_edit.factworld import Fact, load_fact_model
from tl_edit.trace import ROLES


@pytest.fixture(scope="module")
def known(world: tuple[Fact, ...]) -> list[KnownFact]:
    chosen = world[100:108]
    return [KnownFact(fact.trained_templates[0].format(fact.subject), fact.subject, fact.object) for fact in chosen]


@pytest.fixture(scope="module")
def average(fact_model, known):
    return trace_facts(fact_model, known, n_samples=3, progress=False)


def test_tokens_are_pooled_by_role_as_published(fact_model, known, average):
    traces = [causal_trace(fact_model, fact.prompt, fact.subject, n_samples=3) for fact in known]
    pooled = {role: [] for role in ROLES}
    for trace in traces:
        (first, end), length = trace.subject_span, len(trace.str_tokens)
        table = trace.restored[0].T  # [pos layer] of resid_post
        pooled["first subject token"].append(table[first])
        pooled["middle subject tokens"] += list(table[first + 1 : end - 1])
        pooled["last subject token"].append(table[end - 1])
        pooled["first token after"].append(table[end])
        pooled["further tokens"] += list(table[end + 1 : length - 1])
        pooled["last token"].append(table[length - 1])
    low = np.mean([trace.corrupted for trace in traces])
    for r, role in enumerate(ROLES):
        rows = torch.stack(pooled[role])
        assert average.count[r] == len(rows)
        assert torch.allclose(average.of("resid_post", role), rows.mean(0) - low, atol=1e-9)
        assert torch.allclose(average.confidence()[0, r], 1.96 * rows.std(0) / math.sqrt(len(rows)), atol=1e-9)
    assert average.total_effect == pytest.approx(np.mean([trace.total_effect for trace in traces]))
    totals = [trace.total_effect for trace in traces]
    assert average.total_effect_error == pytest.approx(np.std(totals, ddof=1) / math.sqrt(len(totals)))


def test_the_error_over_draws_is_that_of_the_mean_effect_of_each_draw(fact_model, known, average):
    traces = [causal_trace(fact_model, fact.prompt, fact.subject, n_samples=3, keep_samples=True) for fact in known]
    effects = [trace.restored_samples[1, 0, trace.subject_last] - trace.corrupted_samples for trace in traces]
    wanted = torch.stack(effects).mean(0).std() / math.sqrt(3)
    assert float(average.draws_error[1, 2, 0]) == pytest.approx(float(wanted), rel=1e-9)


def test_unknown_facts_are_skipped_and_counted(fact_model, known):
    wrong = KnownFact(known[0].prompt, known[0].subject, "Atlantis")
    average = trace_facts(fact_model, [wrong, *known[1:3]], n_samples=1, progress=False)
    assert average.n_facts == 2
    assert average.skipped == (known[0].prompt,)
    assert "2 facts, 1 skipped as unknown" in repr(average)
    with pytest.raises(ValueError, match=r"no traces \(1 fact skipped as unknown\)"):
        trace_facts(fact_model, [wrong], n_samples=1, progress=False)


def test_a_run_that_was_stopped_goes_on_with_equal_results(fact_model, known, average, tmp_path, monkeypatch):
    wrong = KnownFact(known[0].prompt, known[0].subject, "Atlantis")
    facts = [wrong, *known]
    whole = trace_facts(fact_model, facts, n_samples=3, progress=False)
    traced = []

    def stopping(model, prompt, *arguments, **settings):
        if len(traced) == 3:
            raise KeyboardInterrupt
        traced.append(prompt)
        return causal_trace(model, prompt, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr("tl_edit.trace.average.causal_trace", stopping)
        with pytest.raises(KeyboardInterrupt):
            trace_facts(fact_model, facts, n_samples=3, progress=False, folder=tmp_path / "run")
    assert len(list((tmp_path / "run").glob("*.safetensors"))) == 3

    def counting(model, prompt, *arguments, **settings):
        traced.append(prompt)
        return causal_trace(model, prompt, *arguments, **settings)

    monkeypatch.setattr("tl_edit.trace.average.causal_trace", counting)
    again = trace_facts(fact_model, facts, n_samples=3, progress=False, folder=tmp_path / "run")
    assert traced == [fact.prompt for fact in known]
    assert torch.equal(again.restored, whole.restored)
    assert torch.equal(again.draws_error, whole.draws_error)
    assert again.skipped == whole.skipped
    assert torch.equal(whole.restored, average.restored)


def test_a_folder_of_another_run_is_refused(fact_model, known, tmp_path):
    folder = tmp_path / "run"
    trace_facts(fact_model, known[:1], n_samples=1, progress=False, folder=folder)

    def again(facts=known[:1], **settings):
        return trace_facts(fact_model, facts, progress=False, folder=folder, **({"n_samples": 1} | settings))

    with pytest.raises(ValueError, match=r"holds another run: n_samples 1 \(now 2\); expected the same"):
        again(n_samples=2)
    with pytest.raises(ValueError, match="another run: facts "):
        again(known[:2])
    with pytest.raises(ValueError, match=r"another run: noise multiple 3.0 \(now 3.0000001\)"):
        again(noise=3.0000001)
    with pytest.raises(ValueError, match=r"another run: seed 1 \(now 2\)"):
        again(seed=2)
    again(noise=3.0, max_rows=100, engine="plain")  # the same run, however it is computed
    with (
        fact_model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda act, hook: act * 0)]),
        pytest.raises(ValueError, match=r"a hook is attached at .*; expected none with folder="),
    ):
        again()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it", "utf-8")
    with pytest.raises(ValueError, match="holds other files; expected a new one"):
        trace_facts(fact_model, known[:1], n_samples=1, progress=False, folder=tmp_path / "mine")


def test_one_changed_weight_is_another_model(known, tmp_path):
    model = load_fact_model()
    trace_facts(model, known[:1], n_samples=1, progress=False, folder=tmp_path)
    host.write_w_out(model, 0, host.w_out(model, 0) + torch.eye(896, 192))
    with pytest.raises(ValueError, match="another run: weights "):
        trace_facts(model, known[:1], n_samples=1, progress=False, folder=tmp_path)


def test_equal_weights_that_compute_something_else_are_another_model(known, tmp_path):
    model = load_fact_model()
    one = {"n_samples": 1, "progress": False, "folder": tmp_path}
    trace_facts(model, known[:1], **one)
    mlp = model.blocks[2].mlp
    mlp = getattr(mlp, "original_component", mlp)
    forward = mlp.forward
    mlp.forward = lambda *args: 0 * forward(*args)
    with pytest.raises(ValueError, match="the same weights that computes something else: after "):
        trace_facts(model, known[:1], **one)
    del mlp.forward
    trace_facts(model, known[:1], **one)
    model.cfg.seed, model.cfg.default_prepend_bos = 5, not model.cfg.default_prepend_bos
    trace_facts(model, known[:1], prepend_bos=True, **one)


def test_noise_of_the_same_kind_and_another_fit_is_another_run(fact_model, known, tmp_path):
    one, two = (Noise.multivariate(fact_model, texts) for texts in (["Paris is a city."], ["Opera and rock music."]))
    trace_facts(fact_model, known[:1], n_samples=1, progress=False, folder=tmp_path, noise=one)
    with pytest.raises(ValueError, match="another run: noise mean .* noise root"):
        trace_facts(fact_model, known[:1], n_samples=1, progress=False, folder=tmp_path, noise=two)


def test_fitted_noise_in_half_precision_can_be_kept(fact_model, known, tmp_path):
    fitted = Noise.multivariate(fact_model, ["Paris is a city.", "Opera and rock music."])
    half = Noise(distribution="multivariate", mean=fitted.mean.bfloat16(), root=fitted.root.bfloat16().requires_grad_())
    first, again = (
        trace_facts(fact_model, known[:1], n_samples=1, progress=False, folder=tmp_path, noise=half) for _ in range(2)
    )
    assert torch.equal(first.restored, again.restored)


def test_a_part_of_a_word_is_noticed_with_the_fact_it_is_in(fact_model):
    facts = [("Paris is located in", "Paris"), ("Paris is located in", "is")]
    with pytest.warns(UserWarning, match="trace_facts: fact 1: 'is' stands in") as seen:
        trace_facts(fact_model, facts, n_samples=1, progress=False)
    assert len(seen) == 1


def test_what_is_refused_leaves_no_folder(fact_model, known, tmp_path):
    for settings in ({"noise": -1.0}, {"window": 0}, {"measure": "kl", "kinds": ()}):
        with pytest.raises(ValueError, match="causal_trace"):
            trace_facts(fact_model, known[:1], progress=False, folder=tmp_path / "run", **settings)
    wrong = (known[0].prompt, "Atlantis")
    with pytest.raises(ValueError, match="fact 1, "):
        trace_facts(fact_model, [known[0], wrong], progress=False, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["{", "[]", "\xff"])
def test_a_damaged_folder_is_refused(fact_model, known, tmp_path, damage):
    trace_facts(fact_model, known[:2], n_samples=1, progress=False, folder=tmp_path)
    manifest = tmp_path / "traces.json"
    kept = manifest.read_bytes()
    manifest.write_bytes(damage.encode("latin-1"))
    with pytest.raises(ValueError, match="traces.json is damaged; expected the manifest"):
        trace_facts(fact_model, known[:2], n_samples=1, progress=False, folder=tmp_path)
    manifest.write_bytes(kept)
    (tmp_path / "00000.safetensors").write_bytes((tmp_path / "00001.safetensors").read_bytes())
    with pytest.raises(ValueError, match="is a trace of .*; expected .*; remove the file"):
        trace_facts(fact_model, known[:2], n_samples=1, progress=False, folder=tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        trace_facts(fact_model, known[:2], n_samples=1, progress=False, folder=manifest)


def test_the_paired_effect_is_within_each_fact(fact_model, known):
    """A role that one fact lacks: restoring above the last layer does nothing, and nothing is what it shows."""
    facts = [known[0], ("Paris is located in", "Paris")]
    average = trace_facts(fact_model, facts, n_samples=2, progress=False)
    traces = [causal_trace(fact_model, *fact[:2], n_samples=2) for fact in facts]
    middle = ROLES.index("middle subject tokens")
    assert average.count[middle] > 0
    assert average.paired_effect[:, middle, -1].abs().max() < 1e-6
    assert average.indirect_effect[:, middle, -1].abs().max() > 0.01
    last = torch.stack([(trace.restored - trace.corrupted)[:, :, trace.subject_last] for trace in traces])
    assert torch.allclose(average.paired_effect[:, ROLES.index("last subject token")], last.mean(0), atol=1e-9)
    error = last.std(0) / math.sqrt(2)
    assert torch.allclose(average.paired_error[:, ROLES.index("last subject token")], error, atol=1e-9)


def test_pictures_say_which_roles_rest_on_which_facts(fact_model, known):
    pytest.importorskip("matplotlib")
    facts = [known[0], ("Paris is located in", "Paris"), ("Paris is located in the", "Paris")]
    found = trace_facts(fact_model, [(prompt, subject) for prompt, subject, *_ in facts], n_samples=1, progress=False)
    middle, further = (ROLES.index(role) for role in ("middle subject tokens", "further tokens"))
    assert found.n_facts_by_role[middle] == 1
    assert found.n_facts_by_role[ROLES.index("last token")] == 3
    several = f"middle subject tokens (n = {found.count[middle]} in 1 fact)"
    assert found.count[middle] > 1
    assert set(found.uneven()) == {"middle subject tokens", "further tokens"}
    assert found.count[further] > found.n_facts_by_role[further] - 1
    page = found._repr_html_()
    assert "against the mean corrupted value of all 3 facts, as published" in page
    assert "Middle subject tokens and further tokens do not stand once in each fact" in page
    assert ".plot(paired=True)" in page
    for form in ("lines", "heatmaps"):
        axes = found.plot(form=form)
        heading = axes[0].figure.get_suptitle().replace("\n", " ")
        assert "not once in each fact, compare paired=True" in heading
        drawn = [line.get_label() for line in axes[0].lines]
        assert several in (drawn or [label.get_text() for label in axes[0].get_yticklabels()])
        assert several in page
    paired = found.plot(paired=True)[0].figure.get_suptitle().replace("\n", " ")
    assert "effects within each fact" in paired
    assert "compare" not in paired
    # Where each role stands once in each fact there is nothing to say.
    even = average_traces([causal_trace(fact_model, "Paris is located in", "Paris", n_samples=1)])
    assert even.uneven() == []
    assert "do not stand" not in even._repr_html_()
    assert repr(even).startswith("AverageTrace(1 fact, ")


def test_a_subject_at_the_end_has_nothing_after_it(fact_model):
    trace = causal_trace(fact_model, "People often talk about Paris", "Paris", n_samples=1)
    average = average_traces([trace])
    assert average.count[ROLES.index("first token after")] == 0
    assert average.of("resid_post", "first token after").isnan().all()
    assert average.count[ROLES.index("last token")] == 1


def test_traces_with_other_settings_do_not_mix(fact_model, known):
    one, two = (causal_trace(fact_model, known[0].prompt, known[0].subject, n_samples=n) for n in (1, 2))
    with pytest.raises(ValueError, match="n_samples is 1 in one trace and 2 in another"):
        average_traces([one, two])
    for changed, message in (({"seed": 2}, "seed is 1"), ({"noise": 2.0}, "corruption is .gaussian noise, 3 x")):
        other = causal_trace(fact_model, known[0].prompt, known[0].subject, n_samples=1, **changed)
        with pytest.raises(ValueError, match=message):
            average_traces([one, other])
    swapped = [
        causal_trace(fact_model, f"The {name} is located in", name, counterfactual="The Gazi University is located in")
        for name in ("British Museum", "Eiffel Tower")
    ]
    assert average_traces(swapped).n_facts == 2
    part = causal_trace(fact_model, known[0].prompt, known[0].subject, n_samples=1, positions="last")
    with pytest.raises(ValueError, match="restores some positions only"):
        average_traces([part])
    with pytest.raises(ValueError, match="one of resid_post"):
        average_traces([one]).of("resid_post", "subject")


def test_no_noise_is_told_of_once(fact_model, known):
    with pytest.warns(UserWarning, match="nothing is corrupted") as told:
        found = trace_facts(fact_model, known[:2], n_samples=1, layers=[0], noise=0.0, progress=False)
    assert found.n_facts == 2
    assert sum("nothing is corrupted" in str(each.message) for each in told) == 1


def test_no_facts_are_refused(fact_model):
    with pytest.raises(ValueError, match=r"trace_facts: no facts; expected \(prompt, subject, answer\)"):
        trace_facts(fact_model, [], progress=False)


def test_pictures_and_frames(average):
    page = average._repr_html_()
    assert page.count("title=") == average.restored.numel()
    frame = average.to_dataframe()
    assert len(frame) == average.restored.numel()
    row = frame[(frame.kind == "mlp_out") & (frame.role == "last subject token") & (frame.layer == 0)].iloc[0]
    assert row.indirect_effect == float(average.of("mlp_out", "last subject token")[0])
    pytest.importorskip("matplotlib")
    role = list(ROLES).index("last subject token")
    axes = average.plot()
    assert len(axes) == 3
    assert len({axis.get_ylim() for axis in axes}) == 1
    label = f"last subject token (n = {average.count[role]})"
    assert label in page
    for k, axis in enumerate(axes):
        (line,) = [line for line in axis.lines if line.get_label() == label]
        assert list(line.get_ydata()) == average.indirect_effect[k, role].tolist()
    band = axes[0].collections[role].get_paths()[0].vertices[:, 1]
    low = (average.indirect_effect - average.confidence())[0, role]
    assert set(low.tolist()) <= set(band.tolist())
    heatmaps = average.plot(form="heatmaps")
    assert {mesh.get_clim()[0] for axis in heatmaps for mesh in axis.collections} == {0.0}
    paired = average.plot(form="heatmaps", paired=True)[0].collections[0].get_array().data
    assert torch.equal(torch.as_tensor(paired), average.paired_effect[0].clamp(min=0))
