"""Speed of `second_moment` against other ways to the same matrices: ``python tests/benchmarks/moments.py``.

A model of GPT-2 small's size with random weights, five layers, texts of mixed length. It takes some ten minutes on two
cores; compare the ratios, not the seconds. Seconds are of the CPU (all threads), of one process, all ways in turn.
``--quick`` only shows that the benchmark works.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported: threads that wait take no time
os.environ["TQDM_DISABLE"] = "1"

import argparse
import random
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
import torch
from gpt2_small import VOCABULARY, WIDTH, build, gemm_peak, timed

from tl_edit import second_moment
from tl_edit.host import installed_version, key_name

D_MLP, CONTEXT, GROUP = 4 * WIDTH, 1024, 100
BATCH_TOKENS = 4096
LAYERS = (3, 4, 5, 6, 7)
TOLERANCE = 1e-5


def texts(n_tokens: int) -> list[torch.Tensor]:
    """Rows as long as encyclopaedia articles are: many of a few hundred tokens, some longer than the context."""
    draw, rows = random.Random(0), []
    while sum(map(len, rows)) < n_tokens:
        length = min(CONTEXT, max(8, round(draw.lognormvariate(5.6, 1.0))))
        rows.append(torch.tensor([draw.randrange(VOCABULARY) for _ in range(length)]))
    return rows


def padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    return tokens, mask


def published_batches(rows: list[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Groups of 100 texts, sorted, in batches of at most three contexts."""
    for start in range(0, len(rows), GROUP):
        yield from batches(rows[start : start + GROUP], 3 * CONTEXT)


def batches(rows: list[torch.Tensor], budget: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    chunk: list[torch.Tensor] = []
    for row in sorted(rows, key=len, reverse=True):
        if chunk and (len(chunk) + 1) * len(chunk[0]) > budget:
            yield padded(chunk)
            chunk = []
        chunk.append(row)
    yield padded(chunk)


def ours(model: Any, rows: list[torch.Tensor], layers: tuple[int, ...]) -> dict[int, torch.Tensor]:
    moments = second_moment(model, rows, layers, batch_tokens=BATCH_TOKENS, progress=False)
    return {layer: moments[layer].matrix for layer in layers}


def pass_per_layer(model: Any, rows: list[torch.Tensor], layers: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """As the published program does: for each layer a pass over all texts up to it, sums in float32."""
    found = {}
    for layer in layers:
        total, count = torch.zeros(D_MLP, D_MLP), 0
        for tokens, mask in published_batches(rows):
            _, cache = model.run_with_cache(
                tokens, attention_mask=mask.long(), names_filter=key_name(layer), stop_at_layer=layer + 1
            )
            keys = cache[key_name(layer)][mask]
            total += keys.T @ keys
            count += len(keys)
        found[layer] = total / count
    return found


def run_with_cache(model: Any, rows: list[torch.Tensor], layers: tuple[int, ...]) -> dict[int, torch.Tensor]:
    """One pass for all layers by TransformerLens' own means, in our batches, sums in float32."""
    sums, count = {layer: torch.zeros(D_MLP, D_MLP) for layer in layers}, 0
    for tokens, mask in batches(rows, BATCH_TOKENS):
        names = [key_name(layer) for layer in layers]
        _, cache = model.run_with_cache(
            tokens, attention_mask=mask.long(), names_filter=names, stop_at_layer=max(layers) + 1
        )
        for layer in layers:
            keys = cache[key_name(layer)][mask]
            sums[layer] += keys.T @ keys
        count += int(mask.sum())
    return {layer: total / count for layer, total in sums.items()}


def gflop(rows: list[torch.Tensor], layers: tuple[int, ...], way: Any) -> float:
    """What is computed: 24 d^2 and 4 d T for a token in a block (a third of the MLP's half is not run in the last)."""
    per_block = sum(len(row) * (24 * WIDTH**2 + 4 * WIDTH * len(row)) for row in rows)
    blocks = sum(layer + 1 for layer in layers) if way is pass_per_layer else max(layers) + 1
    gram = 2 * D_MLP**2 * sum(map(len, rows)) * len(layers)
    if way is ours:
        return (per_block * blocks - 8 * WIDTH**2 * sum(map(len, rows)) + gram * 9 / 16) / 1e9
    return (per_block * blocks + gram) / 1e9


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("--threads", 2), ("--repeats", 3), ("--tokens", 8192)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--quick", action="store_true", help="two layers, one repeat: only whether it works")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    layers, depth = ((0, 1), 3) if args.quick else (LAYERS, 12)
    repeats, n_tokens = (1, 2000) if args.quick else (args.repeats, args.tokens)
    rows = texts(n_tokens)
    versions = ", ".join(f"{package} {installed_version(package)}" for package in ("transformer-lens", "torch"))
    print(f"{versions}; {depth} layers, {len(layers)} of them measured; {len(rows)} texts of ", end="")
    print(f"{sum(map(len, rows)):,} tokens; {args.threads} threads, {repeats} repeats.\n")
    print("| interface | way | CPU s | / ours | GFLOP per CPU s, of a product's | greatest relative error |")
    print("|---|---|" + "---:|" * 4, flush=True)
    worst = 0.0
    for interface in tiny_models.interfaces():
        model = build(interface, depth, context=CONTEXT)
        model.run_with_cache(rows[0][None, :16], stop_at_layer=1)  # once before it is timed
        runs: list[dict[Any, float]] = []
        for _ in range(repeats):
            times, found = {}, {}
            for way in (ours, pass_per_layer, run_with_cache):
                times[way], found[way] = timed(way, model, rows, layers)
            runs.append(times | {"peak": gemm_peak(2048)})
        peak = statistics.median(run["peak"] for run in runs)
        for way in (ours, pass_per_layer, run_with_cache):
            seconds = statistics.median(run[way] for run in runs)
            ratio = statistics.median(run[way] / run[ours] for run in runs)
            error = max(float((found[way][n] - found[ours][n]).norm() / found[ours][n].norm()) for n in layers)
            worst = max(worst, error)
            speed = f"{gflop(rows, layers, way) / seconds:.0f} of {peak:.0f}"
            print(f"| {interface} | {way.__name__} | {seconds:.1f} | {ratio:.2f} | {speed} | {error:.1e} |", flush=True)
    sys.exit(f"That is above {TOLERANCE:.0e}." if not worst <= TOLERANCE else 0)


if __name__ == "__main__":
    main()
