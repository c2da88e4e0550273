"""An edit in a file: equal afterwards, refused on other weights, and never half read."""

import json
import pickle
import struct
from dataclasses import replace

import pytest
import tiny_models
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from some_edits import make_edit, random_deltas, same, weights

from tl_edit import (
    AlphaEditConfig,
    Edit,
    EditRequest,
    EMMETConfig,
    MEMITConfig,
    PMETConfig,
    ROMEConfig,
    rome_edit,
    second_moment,
)
from tl_edit.factworld import fact_texts, load_fact_model
from tl_edit.request import EditRequest as Request

CONFIGS = [
    None,
    ROMEConfig(layer=1, seed=3),
    MEMITConfig(share=0.5, layers=(0, 1)),
    EMMETConfig(layers=[0]),
    AlphaEditConfig(layers=(1, 2)),
    PMETConfig(layers=(0,)),
    (ROMEConfig(layer=0), None),
    {"mine": [1, 2.5, "x"], "more": {"deep": True}},
]


def model_of(interface=None, **kwargs):
    return tiny_models.build("gpt2", interface, **kwargs)


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture
def saved(model, tmp_path):
    edit = make_edit(model, (0, 2), rank=2)
    edit.save(tmp_path / "edit.safetensors")
    return edit, tmp_path / "edit.safetensors"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_everything_comes_back(model, tmp_path, config):
    edit = Edit.of(
        model,
        random_deltas(model, (0, 2), rank=2),
        method="MEMIT",
        requests=(EditRequest("{} is in", "Zürich \ud800 北京", "Rome", "Paris"), EditRequest("{} is", "x", "y")),
        config=config,
        prepend_bos=False,
        seed=7,
        diagnostics={
            "losses": (1.5, float("inf"), float("nan")),
            "residual": {0: 1.0, 2: 2.0},
            "prefixes": ("{}",),
            "dropped": (EditRequest("{} is", "a", "b"),),
        },
        statistics={0: "SecondMoment(...)", 2: "another"},
    )
    edit.save(tmp_path / "edit")
    again = Edit.load(str(tmp_path / "edit"))
    assert again.fingerprint == edit.fingerprint
    for name in ("method", "requests", "provenance", "base", "statistics"):
        assert getattr(again, name) == getattr(edit, name), name
    assert again.config == (config if not isinstance(config, dict) else {"mine": (1, 2.5, "x"), "more": {"deep": True}})
    assert repr(again.diagnostics) == repr(edit.diagnostics)
    assert repr(again) == repr(edit)


def test_a_loaded_edit_is_the_edit(model, saved):
    edit, path = saved
    again, before = Edit.load(path), weights(model)
    edit.apply(model)
    with pytest.raises(ValueError, match="applied to this model already"):
        again.apply(model)
    again.undo(model)
    assert same(weights(model), before)


def test_a_real_edit_takes_kilobytes(tmp_path):
    model = load_fact_model()
    request = EditRequest("The {} is located in", "Eiffel Tower", "Rome", "Paris")
    edit = rome_edit(model, request, second_moment(model, fact_texts()[:300], [0], progress=False), apply=False)
    edit.save(tmp_path / "rome")
    factors = 8 * (896 + 192)
    assert factors < (tmp_path / "rome").stat().st_size < factors + 8_000
    again = Edit.load(tmp_path / "rome")
    assert again.config == edit.config
    assert again.diagnostics == edit.diagnostics
    assert "tokens" in again.statistics[0]
    fresh = load_fact_model()
    with again.on(fresh):
        said = fresh.tokenizer.decode(fresh(fresh.to_tokens(request.prompt))[0, -1].argmax())
    assert said == " Rome"


def test_other_weights_are_refused_with_the_difference_named(saved):
    edit = Edit.load(saved[1])
    other = model_of(seed=1)
    with pytest.raises(ValueError, match=r"on other weights of tiny-gpt2: those of W_out of layer 0 differ; expected"):
        edit.apply(other)
    with pytest.raises(ValueError, match=r"Edit.hooks: .* was computed on other weights"):
        edit.hooks(other)
    before = weights(other)
    with edit.on(other, allow_mismatch=True):
        assert not same(weights(other), before)
    assert edit.hooks(other, allow_mismatch=True)


def test_another_processing_is_refused(saved):
    with pytest.raises(ValueError, match="on raw weights of tiny-gpt2, and these are processed; expected"):
        Edit.load(saved[1]).apply(model_of(processed=True))


def test_another_model_and_another_layout_are_refused(saved):
    edit = Edit.load(saved[1])
    with pytest.raises(ValueError, match="on tiny-gpt2, and this is tiny-gpt_neo"):
        edit.apply(tiny_models.build("gpt_neo"))
    with pytest.raises(ValueError, match="got layer 2; .* has layers 0 to 1"):
        edit.apply(model_of(n_layers=2))
    transposed = replace(
        edit, base=None, deltas={0: type(edit.deltas[0])(edit.deltas[0].right.T, edit.deltas[0].left.T)}
    )
    with pytest.raises(ValueError, match="32 x 80; W_out of tiny-gpt2 is 80 x 32"):
        transposed.apply(model_of(), allow_mismatch=True)


def truncated(content: bytes) -> bytes:
    return content[:-20]


def flipped(at: float):
    def damage(content: bytes) -> bytes:
        i = int(at * (len(content) - 1))
        return content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]

    return damage


def relabelled(content: bytes) -> bytes:
    return content.replace(b"Rome", b"Oslo")


DAMAGES = [truncated, relabelled, *(flipped(i / 40) for i in range(41)), lambda _: b"", lambda _: b"x" * 1000]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(saved, damage):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    with pytest.raises(ValueError, match="Edit.load: .* cannot be read .*expected a file written by Edit.save"):
        Edit.load(path)


def test_foreign_files_are_refused(model, saved, tmp_path):
    save_file({"left.0": torch.eye(3)}, tmp_path / "foreign")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"left": 1}))
    torch.save({"left": torch.eye(2)}, tmp_path / "torch.pt")
    for name, words in (
        ("foreign", "schema None"),
        ("pickle", "cannot be read"),
        ("torch.pt", "cannot be read"),
        ("missing", "cannot be read"),
        (".", "it is a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            Edit.load(tmp_path / name)
    with pytest.raises(ValueError, match="Edit.save: .* cannot be written"):
        saved[0].save(tmp_path / "no folder" / "edit")


def test_a_file_of_another_version_says_so(saved):
    content = saved[1].read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + size])
    head["__metadata__"]["schema"] = "tl_edit edit 9"
    new = json.dumps(head).encode()
    saved[1].write_bytes(struct.pack("<Q", len(new)) + new + content[8 + size :])
    with pytest.raises(ValueError, match="schema 'tl_edit edit 9'; another version of tl_edit wrote it"):
        Edit.load(saved[1])


def test_the_head_can_be_read_by_anyone(saved):
    """The metadata is JSON with all that the edit says of itself."""
    edit, path = saved
    with safe_open(str(path), framework="pt") as file:
        plain = json.loads(file.metadata()["plain"])
        assert set(file.keys()) == {"left.0", "right.0", "left.2", "right.2"}
    assert plain["method"] == "test"
    assert plain["requests"][0]["target_new"] == "Rome"
    assert plain["provenance"]["model_name"] == edit.provenance.model_name
    assert plain["provenance"]["processed"] is False
    assert "transformer-lens" in plain["provenance"]["versions"]
    assert [layer for layer, _ in plain["base"]["weights"]["__pairs__"]] == [0, 2]


def test_what_a_file_cannot_hold_is_refused(model, tmp_path):
    for edit in (
        replace(make_edit(model), config=object()),
        replace(make_edit(model), diagnostics={"x": torch.ones(2)}),
    ):
        with pytest.raises(ValueError, match="which a file cannot hold; expected numbers"):
            edit.save(tmp_path / "edit")
        assert not (tmp_path / "edit").exists()


def test_settings_that_are_not_known_come_as_a_dictionary(saved, monkeypatch):
    from tl_edit.edit import file

    plain = file.to_plain(ROMEConfig(layer=2), "x")
    assert file.from_plain(plain) == ROMEConfig(layer=2)
    assert file.from_plain(plain | {"of_tomorrow": 1})["of_tomorrow"] == 1
    assert file.from_plain({"__class__": "Gone", "layer": 2}) == {"class": "Gone", "layer": 2}
    assert file.from_plain(file.to_plain(Request("{} is", "a", "b"), "x")) == Request("{} is", "a", "b")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_dtype_knows_its_base_again(tmp_path, dtype):
    model = model_of(dtype=dtype)
    make_edit(model).save(tmp_path / "edit")
    edit = Edit.load(tmp_path / "edit")
    with edit.on(model):
        assert edit.is_applied(model)
    with pytest.raises(ValueError, match="computed on"):
        edit.apply(model_of(dtype=dtype, seed=5))


def test_the_base_is_that_before_all_edits(model, tmp_path):
    first = make_edit(model, (1,), seed=1).apply(model)
    second = make_edit(model, (1,), seed=2)
    first.undo(model)
    assert second.base.edits == (repr(first),)
    second.save(tmp_path / "edit")
    with Edit.load(tmp_path / "edit").on(model):
        pass
