"""Equal to the published programs, in float64, to a relative 1e-9."""

import pytest
import tiny_models
import torch
from published_runs import golden_request, load_golden

from tl_edit import Edit, MEMITConfig, ROMEConfig, causal_trace, memit_edit, rome_edit, second_moment

TOLERANCE = 1e-9


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def rome_config(settings: dict) -> ROMEConfig:
    floats = ("clamp_norm_factor", "v_lr", "v_weight_decay", "kl_factor")
    return ROMEConfig(
        layer=settings["layer"],
        v_num_grad_steps=settings["v_num_grad_steps"],
        **{name: float(settings[name]) for name in floats},
    )


def log_probs_after(model, prompt: str) -> torch.Tensor:
    with torch.no_grad():
        return model(model.to_tokens(prompt, prepend_bos=False))[0, -1].log_softmax(-1)


@pytest.fixture(scope="module")
def golden_moments(golden, golden_model):
    return second_moment(golden_model, golden.texts, [0, 1], prepend_bos=False, progress=False)


def test_second_moments(golden, golden_moments):
    for layer in (0, 1):
        assert golden_moments[layer].count == int(golden.moments["count"])
        assert relative(golden_moments[layer].matrix, golden.moments[f"blocks.{layer}.mlp.second_moment"]) < TOLERANCE


@pytest.mark.parametrize("i", range(8))
def test_rome(golden, golden_model, golden_moments, i):
    case, settings = golden.rome["cases"][i], golden.rome["config"]
    request, case_id = golden_request(case), case["request"]["case_id"]
    edit = rome_edit(
        golden_model,
        request,
        golden_moments,
        config=rome_config(settings),
        prefixes=settings["context_templates"][1:],
        prepend_bos=False,
        apply=False,
    )
    delta = edit.deltas[settings["layer"]]
    assert relative(delta.left[:, 0], golden.rome_tensors[f"{case_id}.left"]) < TOLERANCE
    assert relative(delta.right[0], golden.rome_tensors[f"{case_id}.right"]) < TOLERANCE
    assert edit.diagnostics["losses"] == pytest.approx(case["losses"], abs=5.1e-4)
    assert len(edit.diagnostics["losses"]) == case["n_steps"]
    with edit.on(golden_model):
        edited = log_probs_after(golden_model, request.prompt)
    assert relative(edited, golden.rome_tensors[f"{case_id}.edited_logprobs"]) < TOLERANCE


def golden_memit(golden, model, moments) -> Edit:
    """The program's own edit: its texts, its settings."""
    settings = golden.memit["config"]
    config = MEMITConfig(
        layers=tuple(settings["layers"]),
        v_num_grad_steps=settings["v_num_grad_steps"],
        **{
            name: float(settings[name])
            for name in ("mom2_update_weight", "clamp_norm_factor", "v_lr", "v_weight_decay", "kl_factor")
        },
    )
    requests = [golden_request({"request": request}) for request in golden.memit["requests"]]
    bare, *types = settings["context_templates"]
    assert bare == ["{}"]
    return memit_edit(
        model, requests, moments, config=config, prefixes=types, prepend_bos=False, apply=False, progress=False
    )


MEMIT_TOLERANCE = {0: TOLERANCE, 1: 1e-6}
"""By layer: the program rounds each layer's update to float32 before it adds it."""


@pytest.mark.filterwarnings("ignore:memit_edit. for .* requests no value was found:UserWarning")
def test_memit(golden, golden_model, golden_moments):
    edit = golden_memit(golden, golden_model, golden_moments)
    assert tuple(edit.deltas) == (0, 1)
    for layer, delta in edit.deltas.items():
        assert relative(delta.left, golden.memit_tensors[f"blocks.{layer}.adj_k"]) < MEMIT_TOLERANCE[layer]
        assert relative(delta.right.T, golden.memit_tensors[f"blocks.{layer}.resid"]) < MEMIT_TOLERANCE[layer]
        assert edit.diagnostics["residual"][layer] == pytest.approx(golden.memit["z_error"][layer], abs=5.1e-4)
    with edit.on(golden_model):
        for request, expected in zip(edit.requests, golden.memit_tensors["edited_logprobs"], strict=True):
            assert relative(log_probs_after(golden_model, request.prompt), expected) < 1e-6


@pytest.mark.parametrize("i", range(4))
def test_causal_trace(golden, golden_model, i):
    case, settings = golden.trace["cases"][i], golden.trace["config"]
    request, case_id = golden_request(case), case["request"]["case_id"]
    trace = causal_trace(
        golden_model,
        request.prompt,
        request.subject,
        noise_std=settings["noise"],
        window=settings["window"],
        n_samples=settings["samples"],
        prepend_bos=False,
    )
    assert list(trace.str_tokens) == case["input_tokens"]
    assert list(trace.subject_span) == case["subject_range"]
    assert trace.answer == case["answer"]
    assert trace.corrupted_prob == pytest.approx(case["low_score"], rel=TOLERANCE)
    assert trace.clean_prob == pytest.approx(case["high_score"], rel=TOLERANCE)
    for kind, name in zip(trace.restored_prob, ("resid", "mlp", "attn"), strict=True):
        assert relative(kind.T, golden.trace_tensors[f"{case_id}.{name}.scores"]) < TOLERANCE


@pytest.mark.parametrize("interface", list(tiny_models.interfaces()))
def test_processed_weights_give_the_same_edited_log_probs(golden, interface):
    """Folding and centring move values by their mean only, so v*, found with other norms, differs slightly."""
    model = load_golden(interface, processed=True, dtype=torch.float32)
    moments = second_moment(model, golden.texts, [1], prepend_bos=False, progress=False)
    assert relative(moments[1].matrix, golden.moments["blocks.1.mlp.second_moment"]) < 1e-5
    raw = load_golden(interface, dtype=torch.float32)
    for case in golden.rome["cases"][:3]:
        request, case_id = golden_request(case), case["request"]["case_id"]
        edit = rome_edit(
            raw,
            request,
            moments,
            config=rome_config(golden.rome["config"]),
            prefixes=golden.rome["config"]["context_templates"][1:],
            prepend_bos=False,
            apply=False,
        )
        with edit.on(model, allow_mismatch=True):
            edited = log_probs_after(model, request.prompt)
        assert (edited.double() - golden.rome_tensors[f"{case_id}.edited_logprobs"]).abs().max() < 1e-4
