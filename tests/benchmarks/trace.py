"""Speed of `causal_trace` against one `run_with_hooks` for each state: ``python tests/benchmarks/trace.py``.

A model of GPT-2 small's size with random weights, a prompt of 16 tokens, 10 noise draws. It takes some twelve minutes
on two cores; compare the ratios, not the seconds. Seconds are of the CPU (all threads), of one process per case, ours
and the naive runs in turn. ``--quick`` only shows that the benchmark works. For Linux and macOS.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported: threads that wait take no time
os.environ["OMP_NUM_THREADS"] = "1"  # and no threads before the forks
os.environ["TQDM_DISABLE"] = "1"

import argparse
import functools
import multiprocessing
import random
import resource
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
import torch
from gpt2_small import BRIDGE, HOOKED, VOCABULARY, WIDTH, build, gemm_peak, timed

from tl_edit import causal_trace
from tl_edit.blocks import blocks_of
from tl_edit.hooks import capture, corrupt_subject, restore
from tl_edit.host import installed_version
from tl_edit.trace import KINDS, CausalTrace, Kind
from tl_edit.trace import run as trace_run
from tl_edit.trace.plan import Branch, hook_name

LENGTH, SAMPLES, WINDOW, NOISE, SEED = 16, 10, 10, 0.1, 1
TOLERANCE = 1e-5
SUBJECT = "Little Red Tower"
PROMPTS = {
    2: f"Today the {SUBJECT} can be seen from far away , in the centre of",
    6: f"Today as in all times the {SUBJECT} can be seen in the centre of",
}  # by the position where the subject begins
RESID, MLP, ATTN = (("resid_post",), ("mlp_out",), ("attn_out",))


@dataclass(frozen=True)
class Case:
    """A trace, and the way in which it is computed."""

    kinds: tuple[Kind, ...]
    start: int = 2
    path: str = "auto"
    """"auto", "own" (the model's own blocks) or "plain"."""
    interface: str = HOOKED
    step: int = 1
    """Between restored layers; plain runs take long, and each takes the same."""

    def __str__(self) -> str:
        parts = ["all three kinds" if self.kinds == KINDS else self.kinds[0], f"subject at {self.start}"]
        parts += [f"window {WINDOW}"] * (self.kinds != RESID) + [f"each {self.step}rd layer"] * (self.step > 1)
        return ", ".join(parts + [self.interface] * (self.interface == BRIDGE))


CASES = [
    *(Case(RESID), Case(RESID, start=6), Case(MLP), Case(ATTN), Case(KINDS)),
    *(Case(kinds, path="own") for kinds in (RESID, MLP, ATTN)),
    Case(RESID, path="plain", step=3),
    *(Case(kinds, interface=BRIDGE) for kinds in (RESID, MLP)),
]


class Bench:
    """One case, by us and by others."""

    def __init__(self, model: Any, case: Case) -> None:
        self.model, self.case, self.depth = model, case, len(model.blocks)
        self.layers = range(0, self.depth, case.step)
        self.cells = [(kind, layer, pos) for kind in case.kinds for layer in self.layers for pos in range(LENGTH)]
        self.tokens = model.to_tokens(PROMPTS[case.start], prepend_bos=False)
        assert self.tokens.shape == (1, LENGTH)
        self.noise, self.clean = corrupt_subject((case.start, case.start + 3), noise_std=NOISE, seed=SEED), {}

    def ours(self) -> CausalTrace:
        prompt, path = PROMPTS[self.case.start], self.case.path
        given = {"kinds": self.case.kinds, "layers": self.layers, "engine": "plain" if path == "plain" else "auto"}
        given |= {"window": WINDOW, "noise_std": NOISE, "n_samples": SAMPLES, "seed": SEED, "prepend_bos": False}
        with mock.patch.object(trace_run, "blocks_of", functools.partial(blocks_of, packed=path != "own")):
            return causal_trace(self.model, prompt, SUBJECT, **given)

    def run_clean(self) -> None:
        """What the others put back, and the answer."""
        names = [hook_name(kind, layer) for kind in KINDS for layer in range(self.depth)]
        logits = self.model.run_with_hooks(self.tokens, fwd_hooks=[(name, capture(self.clean, name)) for name in names])
        self.answer = logits[0, -1].argmax()

    def read(self, logits: torch.Tensor) -> torch.Tensor:
        """The mean probability of the answer."""
        return torch.softmax(logits[:, -1], dim=-1)[:, self.answer].mean()

    def naive(self, cells: list[tuple[Kind, int, int]]) -> list[float]:
        """One pass for each state."""
        found = []
        for kind, layer, pos in cells:
            names = [hook_name(kind, each) for each in Branch.around(kind, layer, WINDOW, self.depth).layers]
            hooks = [("hook_embed", self.noise), *((name, restore(self.clean[name], pos)) for name in names)]
            found.append(float(self.read(self.model.run_with_hooks(self.tokens.expand(SAMPLES, -1), fwd_hooks=hooks))))
        return found

    def patching(self, cells: list[tuple[Kind, int, int]]) -> None:
        """TransformerLens' own loop, on so many copies of a prompt with another subject as we have noise draws."""
        from pandas import DataFrame
        from transformer_lens.patching import generic_activation_patch, layer_pos_patch_setter

        corrupted = self.tokens.repeat(SAMPLES, 1)
        corrupted[:, self.case.start : self.case.start + 3] += 100
        index = DataFrame([cell[1:] for cell in cells], columns=["layer", "pos"])
        given = (self.model, corrupted, self.clean, self.read, layer_pos_patch_setter, "resid_post")
        generic_activation_patch(*given, index_df=index)

    def gflop(self, engine: str) -> float:
        """What is to be computed: 24 d^2 for a position in a block, 2 d V for a row of logits."""
        start, path = self.case.start, self.case.path
        branches = {Branch.around(kind, layer, WINDOW, self.depth) for kind in self.case.kinds for layer in self.layers}
        if path == "plain":
            rows = SAMPLES * LENGTH * (1 + len(branches) * (LENGTH - start))
            return rows * (24 * WIDTH**2 * self.depth + 2 * WIDTH * VOCABULARY) / 1e9
        lengths = [LENGTH - pos for pos in range(start, LENGTH)]
        blocks = (1.0 + SAMPLES) * LENGTH * self.depth  # the clean and the corrupted runs
        for stem in {(branch.kind, branch.first) for branch in branches}:
            ends = [branch.end for branch in branches if (branch.kind, branch.first) == stem]
            for layer in range(stem[1] + 1, self.depth):
                going = SAMPLES * (sum(end <= layer for end in ends) + (max(ends) > layer))
                # In the last block, packed weights give queries, keys and values of all positions, the rest of one.
                short = "packed" in engine and layer == self.depth - 1
                blocks += going * sum(length / 4 + 3 / 4 if short else length for length in lengths)
        rows = SAMPLES * (1 + len(branches) * len(lengths))
        return (24 * WIDTH**2 * blocks + 2 * WIDTH * VOCABULARY * rows) / 1e9


def measure(sender: Any, bench: Bench, threads: int, repeats: int, n_cells: int) -> None:
    """Send one row of the table, the greatest error and the greatest effect."""
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    case, before = bench.case, resource.getrusage(resource.RUSAGE_SELF)
    trace, after = bench.ours(), resource.getrusage(resource.RUSAGE_SELF)
    memory = (after.ru_maxrss - before.ru_maxrss) / (2**20 if sys.platform == "darwin" else 2**10)
    bench.run_clean()
    bench.naive(bench.cells[:1])
    draw, scale = random.Random(0), len(bench.cells) / n_cells
    patched = case.kinds == RESID and case.interface == HOOKED and case.path == "auto"
    runs, errors = [], []
    for _ in range(repeats):
        cells = draw.sample(bench.cells, n_cells)
        ours, (naive, found) = timed(bench.ours)[0], timed(bench.naive, cells)
        patching = timed(bench.patching, cells)[0] if patched else 0.0
        runs.append((ours, scale * naive, scale * naive / ours, scale * patching / ours, gemm_peak()))
        for (kind, layer, pos), expected in zip(cells, found, strict=True):
            value = trace.restored_prob[case.kinds.index(kind), bench.layers.index(layer), pos]
            errors.append(abs(float(value) / expected - 1))
    ours, naive, ratio, patching, peak = map(statistics.median, zip(*runs, strict=True))
    row = [f"{case}: {trace.engine}", f"{ours:.1f}", f"{naive:.1f}", f"{ratio:.1f}"]
    row += [f"{patching:.1f}" if patched else "–", f"{bench.gflop(trace.engine) / ours:.0f} of {peak:.0f}"]
    row += [f"{max(errors):.1e}", f"{memory:.0f}"]
    effect = float((trace.restored_prob / trace.corrupted_prob - 1).abs().max())
    sender.send((f"| {' | '.join(row)} |", max(errors), effect))


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("--threads", 2), ("--repeats", 3)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--quick", action="store_true", help="four layers, one repeat: only whether it works")
    args = parser.parse_args()
    depth, repeats, n_cells = (4, 1, 4) if args.quick else (12, args.repeats, 12)
    versions = ", ".join(f"{package} {installed_version(package)}" for package in ("transformer-lens", "torch"))
    print(f"{versions}; {depth} layers, {LENGTH} tokens, {SAMPLES} draws, {args.threads} threads, {repeats} repeats.")
    print(f"Naive runs and TransformerLens' `patching` are estimated from {n_cells} cells per repeat.\n")
    print("| case: engine | ours, CPU s | naive, CPU s (estimated) | naive / ours | `patching` / ours ", end="")
    print("| GFLOP per CPU s, of a product's | greatest relative error | peak memory above the start, MiB |")
    print("|---|" + "---:|" * 7, flush=True)
    worst = strongest = 0.0
    fork = multiprocessing.get_context("fork")  # each case has a peak of memory of its own
    words = list(dict.fromkeys(" ".join(PROMPTS.values()).split()))
    models = {name: build(name, depth, words) for name in tiny_models.interfaces()}
    for case in [case for case in CASES if case.interface in models]:
        receiver, sender = fork.Pipe(duplex=False)
        bench = Bench(models[case.interface], case)
        fork.Process(target=measure, args=(sender, bench, args.threads, repeats, n_cells)).start()
        sender.close()
        row, error, effect = receiver.recv()
        print(row, flush=True)
        worst, strongest = max(worst, error), max(strongest, effect)
    print(f"\nGreatest relative error: {worst:.1e}, where restoring changes the probability by up to {strongest:.0%}.")
    sys.exit(f"That is above {TOLERANCE:.0e}." if not worst <= TOLERANCE else 0)


if __name__ == "__main__":
    main()
