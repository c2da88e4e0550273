"""Speed of `evaluate` against the obvious loop and against one batch: ``python tests/benchmarks/evaluate.py``.

The loop runs each prompt with each object alone, all positions to logits. The batch is all of a record's rows, padded,
with all logits, as the published program has it. The record is like CounterFact's: a prompt, two longer paraphrases,
ten prompts of its neighborhood, with and without those behind the edited statement. A model of GPT-2 small's size with
random weights; it takes some minutes on two cores. Compare the ratios, not the seconds. Seconds are of the CPU (all
threads), ours and the others in turn, in one process. ``--quick`` only shows that the benchmark works.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is imported: threads that wait take no time

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
import torch
from gpt2_small import HOOKED, build, gemm_peak, timed
from oracles import evaluate as oracle

from tl_edit import EditRecord, EditRequest, evaluate
from tl_edit.evaluate import Sheet
from tl_edit.evaluate.sheet import distracted_prompts
from tl_edit.factworld import facts, load_fact_model
from tl_edit.factworld.records import sample_records
from tl_edit.host import installed_version

LEAD = "On a day of rain in the old town nobody knew where to go and what to see there ."
PLACES = ("Red Tower", "Stone Bridge", "White House", "Blue Harbour", "Green Hill", "Royal Park", "Long Wall",
          "Old Mill", "High Gate", "Great Hall")  # fmt: skip
RECORDS = {
    "objects of 1 token": ("Rome", "Paris"),
    "objects of 3 and 2 tokens": ("New York City", "Buenos Aires"),
}


def record(objects: tuple[str, str]) -> EditRecord:
    """Like one of CounterFact's."""
    return EditRecord(
        EditRequest("As in all times the {} is in the city of", "Little Castle", *objects),
        (f"{LEAD} Today the Little Castle is in", f"{LEAD} Go to see the Little Castle , which is in"),
        tuple(f"As in all times the {place} is in" for place in PLACES),
    )


def vocabulary() -> list[str]:
    """Every word that is used."""
    prompts = [prompt for objects in RECORDS.values() for prompt in prompts_of(record(objects), True)]
    objects = [word for pair in RECORDS.values() for each in pair for word in each.split()]
    return list(dict.fromkeys([*" ".join(prompts).split(), *objects, *(f"{word}." for word in objects)]))


def prompts_of(asked: EditRecord, distracted: bool) -> list[str]:
    """In the order of scores."""
    more = distracted_prompts(asked) if distracted else ()
    return [asked.request.prompt, *asked.paraphrase_prompts, *asked.neighborhood_prompts, *more]


def probabilities(model: Any, asked: EditRecord, distracted: bool) -> list[float]:
    """Of new and true object after each prompt."""
    (scores,) = evaluate(model, asked, distracted=distracted, prepend_bos=False).scores
    every = (*scores.efficacy, *scores.paraphrase, *scores.neighborhood, *scores.distracted)
    return [prob for score in every for prob in (score.prob_new, score.prob_true)]


def compare(name: str, model: Any, asked: EditRecord, distracted: bool, repeats: int) -> float:
    """Print one line; returns the greatest relative difference."""
    pairs = [
        (prompt, answer)
        for prompt in prompts_of(asked, distracted)
        for answer in (asked.request.target_new, asked.request.target_true)
    ]
    tasks: tuple[Callable[[], list[float]], ...] = (
        lambda: probabilities(model, asked, distracted),
        lambda: [oracle.alone(model, *pair, prepend_bos=False).prob for pair in pairs],
        lambda: oracle.together(model, pairs, prepend_bos=False),
    )
    found, *expected = (task() for task in tasks)
    worst = max(abs(a / b - 1) for other in expected for a, b in zip(found, other, strict=True))
    runs = []
    for _ in range(repeats):
        ours, loop, batch = (timed(task)[0] for task in tasks)
        runs.append((ours, loop, batch, loop / ours, batch / ours, gemm_peak()))
    ours, loop, batch, by_loop, by_batch, peak = map(statistics.median, zip(*runs, strict=True))
    numbers = f"{ours:.2f} | {loop:.2f} | {batch:.2f} | {by_loop:.1f} | {by_batch:.1f} | {peak:.0f} | {worst:.0e}"
    print(f"| {name} | {len(pairs)} | {numbers} |", flush=True)
    return worst


def bundled_model() -> None:
    """All prompts of 100 records on the bundled model."""
    model, records = load_fact_model(), sample_records(facts(), facts(), 100, seed=0)
    sheet = Sheet(model, records, True)
    seconds, _ = timed(evaluate, model, records)
    begin = time.process_time()
    for question in sheet.questions:
        oracle.alone(model, question.prompt, question.answer, prepend_bos=True)
    loop = time.process_time() - begin
    print(f"\nThe bundled model, 100 records, {len(sheet.questions)} questions: {seconds:.1f} CPU s; loop {loop:.1f}.")


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("--threads", 2), ("--repeats", 5)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--quick", action="store_true", help="four layers, one repeat: only whether it works")
    parser.add_argument("--interface", choices=list(tiny_models.interfaces()), help="only this one")
    args = parser.parse_args()
    depth, repeats = (4, 1) if args.quick else (12, args.repeats)
    torch.set_num_threads(args.threads)
    versions = ", ".join(f"{package} {installed_version(package)}" for package in ("transformer-lens", "torch"))
    print(f"{versions}; {depth} layers, {args.threads} threads, {repeats} repeats.\n")
    print("| record | rows | ours, CPU s | loop | batch | loop / ours | batch / ours | GFLOP per CPU s | error |")
    print("|---|" + "---:|" * 8, flush=True)
    worst = 0.0
    for interface in [args.interface] if args.interface else tiny_models.interfaces():
        model = build(interface, depth, vocabulary())
        note = "" if interface == HOOKED else f" ({interface})"
        for name, objects in RECORDS.items():
            for distracted in (False, True):
                title = f"{name}{', distracted' if distracted else ''}{note}"
                worst = max(worst, compare(title, model, record(objects), distracted, repeats))
    bundled_model()
    sys.exit(f"The greatest difference, {worst:.1e}, is above 1e-3." if not worst <= 1e-3 else 0)


if __name__ == "__main__":
    main()
