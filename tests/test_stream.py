"""What is written to the residual stream and read from it, against the model's own modules."""

import functools

import pytest
import tiny_models
import torch
from torch import nn

from tl_edit import stream

CASES = tiny_models.available_cases()
each_case = pytest.mark.parametrize("case", CASES, ids=str)
PROMPT = "The Eiffel Tower is in Rome"


@functools.cache
def model_of(case):
    with torch.inference_mode(False):
        return tiny_models.build(case, dtype=torch.float64)


def watched(model, module):
    """Input and output of a module in one pass."""
    seen = {}

    def keep(_module, args, output):
        seen["in"], seen["out"] = args[0].detach(), output.detach()

    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            model(model.to_tokens(PROMPT))
    finally:
        handle.remove()
    return seen["in"][0].double(), seen["out"][0].double()


def scale_of(x, centred: bool, eps: float):
    x = x - x.mean(-1, keepdim=True) if centred else x
    return (x.square().mean(-1, keepdim=True) + eps).sqrt()


@each_case
def test_parts_of_a_norms_input_sum_to_its_output(case):
    model = model_of(case)
    norm = stream.final_norm(model)
    shown, output = watched(model, model.ln_final)
    eps = 1e-6 if case.family in ("llama", "gemma2", "qwen2", "qwen3") else 1e-5
    assert norm.centred == (eps == 1e-5)
    scale = scale_of(shown, norm.centred, eps)
    first = torch.rand_like(shown)
    total = norm.part(first, scale) + norm.part(shown - first, scale) + norm.offset
    torch.testing.assert_close(total, output, atol=1e-6 if eps == 1e-6 else 1e-10, rtol=0)


@each_case
def test_heads_and_the_bias_are_what_attention_gives(case):
    model = model_of(case)
    with torch.no_grad():
        _, cache = model.run_with_cache(model.to_tokens(PROMPT))
    for layer in range(3):
        z = cache[stream.head_name(layer)][0, -1]
        written, bias = stream.head_outputs(model, layer, z)
        norm = stream.norm_after_attention(model, layer)
        assert (norm is None) == (case.family != "gemma2")
        total = written.sum(0) + bias
        if norm is not None:
            total = norm.part(total, cache[stream.attention_scale_name(layer)][0, -1].double())
        torch.testing.assert_close(total, cache[stream.attn_out_name(layer)][0, -1].double(), atol=1e-6, rtol=0)


@each_case
def test_columns_of_the_unembedding_make_the_logits_that_are_shown(case):
    model = model_of(case)
    tokens = torch.tensor([3, 100, 3])
    columns, biases = stream.unembedding(model, tokens)
    shown = []
    with stream.shown_unembedded(model, shown.append):
        normed, _ = watched(model, model.unembed)
    torch.testing.assert_close(normed @ columns.T + biases, shown[0][0][:, tokens].double(), atol=1e-10, rtol=0)
    assert not model.unembed._forward_hooks


def test_a_gain_is_found_whatever_the_width():
    for width in (5, 6):
        for norm in (nn.LayerNorm(width), nn.RMSNorm(width)):
            with torch.no_grad():
                for parameter in norm.parameters():
                    parameter.copy_(torch.randn(width))
            found = stream._probed(norm.double(), isinstance(norm, nn.LayerNorm), width)
            torch.testing.assert_close(found.gain, norm.weight.detach(), atol=1e-10, rtol=0)


def test_what_is_no_norm_gets_advice():
    model = tiny_models.build("gpt2")
    model.ln_final = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="its ln_final is of type Linear; expected a layer norm"):
        stream.final_norm(model)
    with pytest.raises(ValueError, match=r"W_O is \[4, 8, 32\]; expected \[3, 8, 32\]"):
        stream.head_outputs(model, 0, torch.zeros(3, 8))
