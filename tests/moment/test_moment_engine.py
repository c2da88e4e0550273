"""Keys by packed blocks are those of the model's own pass, and that is used wherever they cannot be trusted."""

import pytest
import tiny_models
import tiny_tokenizers
import torch

from tl_edit import second_moment
from tl_edit.blocks import PackedBlocks
from tl_edit.moment import engine
from tl_edit.moment.engine import Engine

TEXTS = [*tiny_tokenizers.CORPUS, "Rome.", "The café in Zürich is old"]


@pytest.mark.parametrize("case", tiny_models.available_cases(), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_both_ways_give_the_same(case, dtype, monkeypatch):
    model = tiny_models.build(case, dtype=dtype)
    found = second_moment(model, TEXTS, [2, 0], progress=False)
    monkeypatch.setattr(PackedBlocks, "__init__", None)
    expected = second_moment(model, TEXTS, [2, 0], progress=False)
    for layer in (0, 2):
        difference = (found[layer].matrix - expected[layer].matrix).norm() / expected[layer].matrix.norm()
        assert float(difference) < (1e-6 if dtype == torch.float32 else 1e-12)


hooked = pytest.mark.skipif(
    tiny_models.HOOKED_TRANSFORMER not in tiny_models.interfaces(), reason="only HookedTransformer has packed blocks"
)


@hooked
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_common_kinds_are_packed(family):
    assert Engine(tiny_models.build(family), [1]).description == "packed weights"


def test_the_own_pass_is_used_with_hooks_in_half_precision_and_on_bridges():
    model = tiny_models.build("gpt2")
    with model.hooks([("blocks.0.hook_resid_post", lambda act, hook: act)]):
        assert Engine(model, [1]).description == "the model's own pass"
    half = tiny_models.build("gpt2", dtype=torch.bfloat16)
    assert Engine(half, [1]).description == "the model's own pass"
    if tiny_models.TRANSFORMER_BRIDGE in tiny_models.interfaces():
        bridge = tiny_models.build("gpt2", tiny_models.TRANSFORMER_BRIDGE)
        assert Engine(bridge, [1]).description == "the model's own pass"


@hooked
def test_other_keys_are_noticed(monkeypatch):
    model = tiny_models.build("gpt2")
    monkeypatch.setattr(engine, "LIMITS", {torch.float32: 1e-9})
    assert Engine(model, [1]).description == "the model's own pass"
    monkeypatch.undo()
    model.cfg.act_fn = "relu"
    model.blocks[0].mlp.act_fn = lambda x: torch.relu(x - 1)
    assert Engine(model, [1]).description == "the model's own pass"
