"""Speed of edits against the published programs' way: ``python tests/benchmarks/edits.py``.

The published way is `oracles/values.py`: one request at a time, every pass through the whole model, logits at every
position. A model of GPT-2 small's size with random weights. With ``--repeats 1`` it takes a quarter of an hour for each
interface, on two cores; compare the ratios, not the seconds. Seconds are of the CPU (all threads), ours and the others
in turn, in one process. ``--quick`` only shows that the benchmark works.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported: threads that wait take no time
os.environ["TQDM_DISABLE"] = "1"

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
import torch
from gpt2_small import HOOKED, build, gemm_peak, timed
from oracles import values as oracle

from tl_edit import EditRequest, MEMITConfig, ROMEConfig, SecondMoments, ValueSearch, memit_edit, rome_edit
from tl_edit.host import installed_version
from tl_edit.values import optimize_values

SUBJECTS = ("Little Red Tower", "Old Stone Bridge", "Great White House", "New Blue Harbour", "High Green Hill")
RELATIONS = ("Today the {} can be seen in the centre of", "As in all times the {} is in the city of")
TARGETS = ("Rome", "Madrid", "Paris", "London")
TEXT = "It was a day of rain in the old town and nobody knew where to go"
WORDS = TEXT.split()
# As the programs make them: 10 of 5 tokens and 10 of 10, the BOS counted, and a full stop.
ROME_PREFIXES = tuple(" ".join((WORDS[i:] + WORDS)[:length]) + " . {}" for length in (4, 9) for i in range(10))
MEMIT_PREFIXES = tuple(" ".join((WORDS[i:] + WORDS)[:10]) + " . {}" for i in range(5))
SEARCH = {"v_num_grad_steps": 20, "stop_loss": 0.0}
"""Random weights never come to believe anything: every search makes all of its steps, here as there."""


def requests(n: int) -> list[EditRequest]:
    """So many facts."""
    every = [(relation, subject) for relation in RELATIONS for subject in SUBJECTS]
    return [EditRequest(*every[i % len(every)], TARGETS[i % len(TARGETS)]) for i in range(n)]


def vocabulary() -> list[str]:
    """Every word that is used."""
    texts = [*ROME_PREFIXES, *RELATIONS, *SUBJECTS, *TARGETS, "is a"]
    return list(dict.fromkeys(" ".join(texts).replace("{}", " ").split()))


class Bench:
    """The tasks, by us and in the published way; each returns what is compared."""

    def __init__(self, model: Any, layer: int) -> None:
        self.model, self.layer = model, layer
        self.identity = SecondMoments.identity(model, [layer])
        _ = self.identity[layer].cholesky

    def values(self, n: int, site: str, prefixes: tuple[str, ...], **settings: float) -> tuple[Callable[[], Any], ...]:
        """The search alone; the other way for the first request only, since each takes the same."""
        search = ValueSearch(**SEARCH, **settings)
        asked = requests(n)
        given = {"prefixes": prefixes, "prepend_bos": False}

        def ours() -> list[torch.Tensor]:
            found = optimize_values(self.model, asked, self.layer, site=site, search=search, **given)
            return [found[0].v_star - found[0].v0]

        def published() -> list[torch.Tensor]:
            values, first, _ = oracle.search(self.model, asked[0], self.layer, sites=(site,), settings=search, **given)
            return [values[site] - first[site]]

        return ours, published

    def rome(self) -> tuple[Callable[[], Any], ...]:
        """One edit, from the request to the factors; the factor of the second moment is there already."""
        config, asked = ROMEConfig(layer=self.layer, **SEARCH), requests(1)[0]
        given = {"prefixes": ROME_PREFIXES, "prepend_bos": False}

        def ours() -> list[torch.Tensor]:
            edit = rome_edit(self.model, asked, self.identity, config=config, apply=False, **given)
            return [edit.deltas[self.layer].left, edit.deltas[self.layer].right]

        def published() -> list[torch.Tensor]:
            return oracle.rome(self.model, asked, self.layer, self.identity[self.layer].cholesky, config, **given)

        return ours, published

    def memit(self, n: int) -> tuple[Callable[[], Any], ...]:
        """Many edits over five layers; the factors of the second moments are there already."""
        layers = list(range(max(0, self.layer - 4), self.layer + 1))
        moments = SecondMoments.identity(self.model, layers)
        for layer in layers:
            _ = moments[layer].cholesky
        weight = 15000.0 * 1e-3  # with C = I, keys are shorter than C^-1 makes them
        config, asked = MEMITConfig(layers=layers, mom2_update_weight=weight, **SEARCH), requests(n)
        given = {"prefixes": MEMIT_PREFIXES, "prepend_bos": False}

        def ours() -> list[torch.Tensor]:
            edit = memit_edit(self.model, asked, moments, config=config, apply=False, progress=False, **given)
            return [edit.deltas[layer].matrix for layer in layers]

        def published() -> list[torch.Tensor]:
            return oracle.memit(self.model, asked, layers, moments, config, weight, **given)

        return ours, published


def compare(name: str, tasks: tuple[Callable[[], Any], ...], n: int, repeats: int, must: float, aim: float) -> float:
    """Print one line; returns the greatest relative difference."""
    ours, published = tasks
    found, expected = ours(), published()
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
    runs = []
    for _ in range(repeats):
        fast, slow = timed(ours)[0], n * timed(published)[0]
        runs.append((fast, slow, slow / fast, gemm_peak()))
    fast, slow, ratio, peak = map(statistics.median, zip(*runs, strict=True))
    print(f"| {name} | {fast:.2f} | {slow:.2f} | {ratio:.1f} | {must} / {aim} | {peak:.0f} | {worst:.0e} |", flush=True)
    return worst


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("--threads", 2), ("--repeats", 3)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--quick", action="store_true", help="four layers, one repeat: only whether it works")
    parser.add_argument("--task", default="", help="only tasks with this in their name")
    parser.add_argument("--interface", choices=list(tiny_models.interfaces()), help="only this one")
    args = parser.parse_args()
    depth, repeats = (4, 1) if args.quick else (12, args.repeats)
    torch.set_num_threads(args.threads)
    versions = ", ".join(f"{package} {installed_version(package)}" for package in ("transformer-lens", "torch"))
    print(f"{versions}; {depth} layers, 20 evaluations, {args.threads} threads, {repeats} repeats.\n")
    print("| task | ours, CPU s | published way, CPU s | ratio | must / aim | GFLOP per CPU s of a product | error |")
    print("|---|" + "---:|" * 6, flush=True)
    worst = 0.0
    for interface in [args.interface] if args.interface else tiny_models.interfaces():
        model = build(interface, depth, vocabulary())
        bench = Bench(model, depth // 2 - 1)
        note = "" if interface == HOOKED else f" ({interface})"
        lines = [
            (f"v*, one edit, layer {bench.layer}", bench.values(1, "value", ROME_PREFIXES), 1, 3.5, 5),
            ("v*, eight edits at once", bench.values(8, "value", ROME_PREFIXES), 8, 6.5, 9),
            ("z*, eight edits at once", bench.values(8, "resid_post", MEMIT_PREFIXES), 8, 6.5, 9),
            ("ROME, one edit", bench.rome(), 1, 3.5, 5),
            ("MEMIT, ten edits, five layers", bench.memit(10), 1, 7, 9),
        ]
        for name, tasks, n, must, aim in [line for line in lines if args.task in line[0]]:
            worst = max(worst, compare(name + note, tasks, n, repeats, must, aim))
    sys.exit(f"The greatest difference, {worst:.1e}, is above 1e-3." if not worst <= 1e-3 else 0)


if __name__ == "__main__":
    main()
