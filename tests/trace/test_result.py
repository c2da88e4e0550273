"""A trace as an object: files, frames, pictures, differences."""

import dataclasses
import html.parser
import re

import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from same_trace import same_trace

from tl_edit import CausalTrace, Noise, causal_trace, host, show, trace_difference

PROMPT, SUBJECT = "My friend saw the Space Needle in the city of", "Space Needle"


@pytest.fixture(scope="module")
def trace():
    return causal_trace(tiny_models.build("gpt2"), PROMPT, SUBJECT, n_samples=3, window=2, keep_samples=True)


def test_effects_are_differences_of_what_is_stored(trace):
    assert trace.restored_prob is not None
    assert torch.equal(trace.restored, trace.restored_prob)
    assert torch.equal(trace.indirect_effect, trace.restored_prob - trace.corrupted_prob)
    assert trace.total_effect == trace.clean_prob - trace.corrupted_prob
    assert torch.allclose(trace.restored_samples.mean(-1), trace.restored)
    assert float(trace.corrupted_samples.mean()) == pytest.approx(trace.corrupted)
    assert torch.equal(trace.of("mlp_out"), trace.indirect_effect[1])
    assert "window 2" in repr(trace)


def test_a_kind_that_is_not_there_is_refused(trace):
    part = causal_trace(tiny_models.build("gpt2"), PROMPT, SUBJECT, n_samples=1, kinds=("mlp_out",))
    with pytest.raises(ValueError, match="this trace has mlp_out"):
        part.of("attn_out")


def test_a_file_gives_an_equal_trace(trace, tmp_path):
    trace.save(tmp_path / "one.safetensors")
    again = CausalTrace.load(tmp_path / "one.safetensors")
    assert same_trace(trace, again)
    assert again.provenance == trace.provenance
    bare = causal_trace(
        tiny_models.build("gpt2"), PROMPT, SUBJECT, n_samples=1, counterfactual=PROMPT.replace("city", "the")
    )
    bare.save(tmp_path / "two.safetensors")
    assert same_trace(bare, CausalTrace.load(tmp_path / "two.safetensors"))


def test_files_that_are_not_traces_are_refused(trace, tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="cannot be read .* expected a file written by CausalTrace.save"):
        CausalTrace.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        CausalTrace.load(path)
    save_file({"a": torch.zeros(2)}, str(path))
    with pytest.raises(ValueError, match="schema None"):
        CausalTrace.load(path)
    trace.save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read"):
        CausalTrace.load(path)


def test_a_frame_has_one_row_for_every_state(trace):
    frame = trace.to_dataframe()
    assert len(frame) == trace.restored.numel()
    row = frame[(frame.kind == "mlp_out") & (frame.layer == 1) & (frame.position == trace.subject_last)].iloc[0]
    assert row.indirect_effect == float(trace.of("mlp_out")[1, trace.subject_last])
    assert row.in_subject
    assert row.token == trace.str_tokens[trace.subject_last]


class Reader(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.titles, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.titles += [value for name, value in attributes if name == "title"]

    def handle_data(self, data):
        self.text += data


def test_the_heatmap_is_plain_html_with_a_value_on_every_cell(trace):
    read = Reader(trace._repr_html_())
    assert set(read.tags) == {"div", "table", "tr", "th", "td"}
    assert len(read.titles) == trace.restored.numel()
    assert any(title.endswith(f"{float(trace.of('resid_post')[2, -1]):.4f}") for title in read.titles)
    assert "window of 2" in read.text
    assert not re.search(r"https?://|<script|<style", trace._repr_html_())


@pytest.mark.parametrize("token", ["<bos>", "</script>", '<img/src="x"onerror="x=1">', "&amp;", "\n", "", '"'])
def test_tokens_are_literal(token):
    page = show.heatmaps_html(
        [torch.ones(1, 1)], titles=[token], rows=[token], columns=[token], heading=token, unit=token
    )
    read = Reader(page)
    assert set(read.tags) == {"div", "table", "tr", "th", "td"}
    assert show.visible(token) in read.text


@pytest.mark.parametrize(
    ("clean", "corrupted", "words"),
    [(0.5, 0.1, None), (0.182, 0.180, "hardly changes this"), (1e-7, 5e-4, "raises this")],
)
def test_next_to_nothing_is_not_shown_as_a_finding(trace, clean, corrupted, words):
    shown = dataclasses.replace(trace, clean=clean, corrupted=corrupted)._repr_html_()
    assert words in shown if words else "next to nothing" not in shown


def test_where_the_noise_raises_what_is_measured_the_figure_shows_what_restoring_takes_away(trace):
    raised = dataclasses.replace(trace, clean=0.0, corrupted=float(trace.restored.max()))
    pytest.importorskip("matplotlib")
    lower, upper = raised.plot()[0].collections[0].get_clim()
    assert lower == -upper < 0
    ordinary = dataclasses.replace(trace, clean=0.9, corrupted=0.1).plot()[0].collections[0].get_clim()
    assert ordinary[0] == 0.1


def test_a_severed_trace_says_so(trace):
    cut = dataclasses.replace(trace, severed="mlp_out")
    assert "MLP outputs severed" in repr(cut)
    assert "restoring the block output, MLP outputs severed" in cut._repr_html_()
    assert "MLP outputs severed" in cut.view_tokens().heading
    assert "severed" not in repr(trace) + trace._repr_html_()
    pytest.importorskip("matplotlib")
    assert "MLP outputs severed" in cut.plot()[0].figure.get_suptitle()


@pytest.mark.parametrize("measure", ["prob", "kl", "log_prob"])
def test_without_noise_there_is_a_warning_and_the_pictures_are_blank(measure):
    with pytest.warns(UserWarning, match=r"^causal_trace: the noise is .*, so nothing is corrupted"):
        none = causal_trace(tiny_models.build("gpt2"), PROMPT, SUBJECT, n_samples=2, noise=0.0, measure=measure)
    page = none._repr_html_()
    assert "so there is nothing to bring back" in page
    assert set(re.findall(r'title="[^"]*: (-?[0-9.]+)"', page)) == {"0.0000"}
    assert {value for row in none.view_tokens().parts[0].props["activations"][0][1:-2] for (value,) in row} == {0.0}
    pytest.importorskip("matplotlib")
    axes = none.plot()
    for axis in axes:
        assert not axis.collections[0].get_array().any()
        assert axis.collections[0].get_cmap().name == show.BOTH_WAYS
    assert "nothing to bring back" in axes[0].figure.get_suptitle().replace("\n", " ")


def test_noise_that_replaces_or_a_counterfactual_is_something(trace, recwarn):
    model = tiny_models.build("gpt2")
    causal_trace(model, PROMPT, SUBJECT, n_samples=1, layers=[0], noise=Noise.uniform(0.0, replace=True))
    causal_trace(model, PROMPT, SUBJECT, layers=[0], noise=0.0, counterfactual=PROMPT.replace("city", "the"))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="nothing is corrupted"):
        causal_trace(model, PROMPT, SUBJECT, n_samples=1, layers=[0], noise=Noise.uniform(0.0))
    # And what is measured without a remark has none in its figure.
    pytest.importorskip("matplotlib")
    shown = dataclasses.replace(trace, clean=0.5, corrupted=0.1)
    assert "bring back" not in shown.plot()[0].figure.get_suptitle()


def test_large_heatmaps_are_capped_with_a_note():
    page = show.heatmaps_html(
        [torch.rand(100, 200)],
        titles=["t"],
        rows=[f"r{i}" for i in range(100)],
        columns=[str(i) for i in range(200)],
        heading="h",
        unit="u",
    )
    assert "One column in 4 is shown" in page
    assert len(Reader(page).titles) == 100 * 50


def test_the_figure_has_tokens_as_rows_and_one_scale(trace):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = trace.plot()
    assert len(axes) == 3
    assert len({mesh.get_clim() for axis in axes for mesh in axis.collections}) == 1
    labels = [label.get_text() for label in axes[0].get_yticklabels()]
    assert len(labels) == len(trace.str_tokens)
    start, end = trace.subject_span
    assert [i for i, label in enumerate(labels) if label.endswith("*")] == list(range(start, end))
    assert not pyplot.get_fignums()
    figure, axis = pyplot.subplots()
    assert trace.plot(axis, kind="mlp_out") is axis
    with pytest.raises(ValueError, match="1 axes for 3 heatmaps; expected one each"):
        trace.plot(axis)
    pyplot.close(figure)


@pytest.mark.filterwarnings("ignore:.*does not predict")
def test_the_difference_that_an_edit_makes(trace):
    model = tiny_models.build("gpt2")
    base = causal_trace(model, PROMPT, SUBJECT, answer=trace.answer, n_samples=3)
    host.write_w_out(model, 1, -host.w_out(model, 1).clone())
    edited = causal_trace(model, PROMPT, SUBJECT, answer=trace.answer, n_samples=3)
    both = trace_difference(base, edited)
    assert torch.equal(both.difference, edited.indirect_effect - base.indirect_effect)
    assert both.total_difference == edited.total_effect - base.total_effect
    assert len(Reader(both._repr_html_()).titles) == 3 * base.restored.numel()
    other = causal_trace(model, PROMPT, SUBJECT, answer=trace.answer, n_samples=2)
    with pytest.raises(ValueError, match="n_samples is 3 in the base and 2 in the edited trace"):
        trace_difference(base, other)
    for changed, message in (({"noise": 1.0}, "corruption is .gaussian noise, 3 x"), ({"seed": 2}, "seed is 1 in")):
        other = causal_trace(model, PROMPT, SUBJECT, answer=trace.answer, n_samples=3, **changed)
        with pytest.raises(ValueError, match=message):
            trace_difference(base, other)


def test_the_figure_says_which_layers_were_restored_and_begins_at_the_corrupted_value(trace):
    pytest.importorskip("matplotlib.pyplot")
    axes = trace.plot()
    assert [axis.get_xlabel() for axis in axes] == ["restored layer", *["middle of 2 restored layers"] * 2]
    assert {mesh.get_clim()[0] for axis in axes for mesh in axis.collections} == {trace.corrupted}
    assert axes[0].figure.get_suptitle().startswith(f"{trace.prompt} → {trace.answer.strip()}: clean ")
    assert [bool(axis.get_yticklabels()) for axis in axes] == [True, False, False]


def test_the_tokens_are_coloured_by_their_own_effect(trace):
    view = trace.view_tokens()
    (part,) = view.parts
    assert part.props["firstDimensionLabels"] == [str(layer) for layer in trace.layers]
    row = part.props["activations"][trace.kinds.index("mlp_out")]
    pos, layer = trace.subject_last, 2
    # The first token is the row's name.
    assert row[1 + pos][layer] == [float(f"{float(trace.of('mlp_out')[layer, pos]):.4g}")]
    assert "indirect effect (prob), window 2 for MLP and attention" in view.note


@pytest.mark.filterwarnings("ignore:.*does not predict")
def test_the_difference_is_drawn_on_one_symmetric_scale(trace):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    moved = dataclasses.replace(trace, restored=trace.restored - 0.25)
    axes = trace_difference(trace, moved).plot()
    assert len(axes) == 3 * len(trace.kinds)
    ((low, high),) = {axis.collections[0].get_clim() for axis in axes}
    assert low == -high
    tables = [torch.as_tensor(axis.collections[0].get_array().data) for axis in axes]
    assert torch.allclose(tables[0].flatten(), trace.of(trace.kinds[0]).T.flatten())
    assert torch.allclose(tables[2], torch.full_like(tables[2], -0.25))
    assert [axis.get_title() for axis in trace_difference(trace, moved).plot(kind="mlp_out")] == [
        f"{name}: MLP output" for name in ("base", "edited", "edited - base")
    ]
    assert not pyplot.get_fignums()
