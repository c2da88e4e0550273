"""How ROME's edits that ruin a model can be told by their numbers: ``python tests/benchmarks/disabling.py``.

For each edit: ``divisor_ratio``, ``relative_norm``, ``disturbance`` and what the edit costs the model on other texts,
in nats per token. The thresholds of `tl_edit.rome` were chosen on these: the golden GPT-2 without a BOS, where most
subjects begin the prompt, and development facts of the bundled model with and without.
"""

import json
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
from published_runs import GOLDEN, golden_request, load_golden, read_golden

import tl_edit
from tl_edit import ROMEConfig, forward, tokens
from tl_edit.factworld import fact_texts, facts, load_fact_model
from tl_edit.factworld.records import sample_records
from tl_edit.rome import LEAST_RATIO, MOST_DISTURBANCE

BAD = 0.3
"""Nats per token that a ruinous edit costs at least."""


def loss(model, texts, bos: bool) -> float:
    """Mean negative log-likelihood of a token."""
    total, count = 0.0, 0
    for start in range(0, len(texts), 64):
        rows = [tokens.encode(model, text, prepend_bos=bos) for text in texts[start : start + 64]]
        with torch.no_grad():
            log_probs = forward.logits(model, tokens.pad(model, rows)).log_softmax(-1)
        for found, row in zip(log_probs, rows, strict=True):
            total -= float(found[torch.arange(len(row) - 1), row[1:]].sum())
            count += len(row) - 1
    return total / count


def measure(name: str, model, requests, texts, corpus, layers, bos: bool, variant: str) -> None:
    """A line for each layer."""
    moments = tl_edit.second_moment(model, corpus, layers, prepend_bos=bos, progress=False)
    prefixes = tl_edit.generate_prefixes(model)
    base = loss(model, texts, bos)
    for layer in layers:
        config = ROMEConfig(layer=layer, variant=variant, disabling_edit="allow")
        rows = []
        for request in requests:
            edit = tl_edit.rome_edit(
                model, request, moments, config=config, prefixes=prefixes, prepend_bos=bos, apply=False
            )
            with edit.on(model):
                rows.append(
                    (
                        edit.diagnostics["divisor_ratio"],
                        edit.diagnostics["relative_norm"],
                        edit.diagnostics["disturbance"],
                        loss(model, texts, bos) - base,
                    )
                )
        ratio, norm, moved, cost = torch.tensor(rows, dtype=torch.float64).T
        small = ratio < (LEAST_RATIO if variant == "ROME" else -1)
        flagged, bad = small | (moved > MOST_DISTURBANCE), cost > BAD
        numbers = [
            f"{float(values.quantile(part)):.3g}"
            for values, parts in (
                (ratio, (0.0, 0.05, 0.5)),
                (norm, (0.5, 1.0)),
                (moved, (0.5, 0.95, 1.0)),
                (cost, (0.5, 0.95, 1.0)),
            )
            for part in parts
        ]
        counts = f"{int(flagged.sum())} | {int((flagged & bad).sum())} of {int(bad.sum())}"
        print(f"| {name} | {layer} | {variant} | {len(rows)} | {' | '.join(numbers)} | {counts} |", flush=True)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore", UserWarning)
    print(
        "| model | layer | variant | edits | least ratio | 5 % | median | median norm | greatest | "
        "median disturbance | 95 % | greatest | median cost | 95 % | greatest | warned of | of those that cost more "
        f"than {BAD} |\n|{'---|' * 17}"
    )
    golden, model = read_golden(GOLDEN), load_golden(next(iter(tiny_models.interfaces())), dtype=torch.float32)
    asked = json.loads((GOLDEN / "requests.json").read_text("utf-8"))
    requests = [golden_request({"request": request}) for request in asked]
    for variant in ("ROME", "r-ROME"):
        measure("golden, no BOS", model, requests, golden.texts[::6], golden.texts, range(4), False, variant)
    world, model = facts(), load_fact_model()
    records = sample_records(world[0::2], world, 60, seed=2)
    corpus = list(fact_texts())
    for name, bos in (("bundled, no BOS", False), ("bundled, BOS", True)):
        requests = [record.request for record in records]
        measure(name, model, requests, corpus[::60], corpus, range(3), bos, "ROME")


if __name__ == "__main__":
    main()
