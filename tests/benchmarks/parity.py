"""Print how far tl_edit is from the published programs, in float64: ``python tests/benchmarks/parity.py``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
from published_runs import GOLDEN, golden_request, load_golden, read_golden
from test_parity import golden_memit, log_probs_after, relative, rome_config

from tl_edit import causal_trace, rome_edit, second_moment


def main() -> None:
    """One line for each interface."""
    golden = read_golden(GOLDEN)
    for interface in tiny_models.interfaces():
        model = load_golden(interface)
        moments = second_moment(model, golden.texts, [0, 1], prepend_bos=False, progress=False)
        worst = {
            "second moment": max(
                relative(moments[layer].matrix, golden.moments[f"blocks.{layer}.mlp.second_moment"]) for layer in (0, 1)
            )
        }

        def note(name: str, difference: float, worst: dict[str, float] = worst) -> None:
            worst[name] = max(worst.get(name, 0.0), difference)

        settings = golden.rome["config"]
        for case in golden.rome["cases"]:
            request, case_id = golden_request(case), case["request"]["case_id"]
            prefixes = settings["context_templates"][1:]
            edit = rome_edit(
                model, request, moments, config=rome_config(settings), prefixes=prefixes, prepend_bos=False, apply=False
            )
            delta = edit.deltas[settings["layer"]]
            note("left", relative(delta.left[:, 0], golden.rome_tensors[f"{case_id}.left"]))
            note("right", relative(delta.right[0], golden.rome_tensors[f"{case_id}.right"]))
            with edit.on(model):
                edited = log_probs_after(model, request.prompt)
            note("edited log-probabilities", relative(edited, golden.rome_tensors[f"{case_id}.edited_logprobs"]))
        edit = golden_memit(golden, model, moments)
        for layer, delta in edit.deltas.items():
            note(f"MEMIT left, layer {layer}", relative(delta.left, golden.memit_tensors[f"blocks.{layer}.adj_k"]))
            note(f"MEMIT right, layer {layer}", relative(delta.right.T, golden.memit_tensors[f"blocks.{layer}.resid"]))
        with edit.on(model):
            for request, expected in zip(edit.requests, golden.memit_tensors["edited_logprobs"], strict=True):
                note("MEMIT edited log-probabilities", relative(log_probs_after(model, request.prompt), expected))
        for case in golden.trace["cases"]:
            request, case_id = golden_request(case), case["request"]["case_id"]
            noise = golden.trace["config"]["noise"]
            trace = causal_trace(model, request.prompt, request.subject, noise_std=noise, window=3, prepend_bos=False)
            for kind, name in zip(trace.restored_prob, ("resid", "mlp", "attn"), strict=True):
                note("causal trace", relative(kind.T, golden.trace_tensors[f"{case_id}.{name}.scores"]))
        print(interface, {name: f"{difference:.1e}" for name, difference in worst.items()})


if __name__ == "__main__":
    main()
