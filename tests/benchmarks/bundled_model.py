"""Measure the bundled model: recall, causal trace, ROME by layer with controls.

``python tests/benchmarks/bundled_model.py`` takes some twenty minutes on two cores.

Settings were chosen on development facts (even index in ``facts()``); what is printed here is measured on test facts
(odd index). The markdown it prints is the README's.
"""

import argparse
import random
import time
from dataclasses import replace

import torch

import tl_edit
from tl_edit import Evaluation, ROMEConfig, SecondMoments
from tl_edit.factworld import Fact, fact_texts, facts, load_fact_model
from tl_edit.factworld.records import sample_records
from tl_edit.sweep.methods import random_edit
from tl_edit.trace import ROLES


def recall(model, world: tuple[Fact, ...], held_out: bool) -> tuple[float, float, int]:
    """Argmax accuracy and mean probability over every prompt of every fact."""
    from tl_edit import forward, tokens

    prompts = [
        (template.format(fact.subject), fact.object)
        for fact in world
        for template in (fact.held_out_templates if held_out else fact.trained_templates)
    ]
    hits, probability = 0, 0.0
    for start in range(0, len(prompts), 256):
        chunk = prompts[start : start + 256]
        batch = tokens.pad(model, [tokens.encode(model, prompt) for prompt, _ in chunk])
        log_probs = forward.last_log_probs(model, batch)
        answers = torch.tensor([model.to_tokens(f" {answer}", prepend_bos=False)[0, 0] for _, answer in chunk])
        hits += int((log_probs.argmax(-1) == answers).sum())
        probability += float(log_probs.gather(-1, answers[:, None]).exp().sum())
    return hits / len(prompts), probability / len(prompts), len(prompts)


def average_trace(model, sample: list[Fact]) -> None:
    """Mean indirect effects by the role of the token."""
    known = [(fact.trained_templates[0].format(fact.subject), fact.subject, fact.object) for fact in sample]
    start = time.process_time()
    average = tl_edit.trace_facts(model, known, progress=False)
    print(f"\n{average}; {time.process_time() - start:.0f} CPU s; window {average.window} for mlp_out and attn_out\n")
    print("| kind | role | n | " + " | ".join(f"layer {layer}" for layer in average.layers) + " |")
    print("|---|---|---|" + "---|" * len(average.layers))
    for k, kind in enumerate(average.kinds):
        for r, role in enumerate(ROLES):
            half = average.confidence()[k, r]
            cells = [f"{effect:.3f} ± {half[i]:.3f}" for i, effect in enumerate(average.of(kind, role))]
            print(f"| {kind} | {role} | {average.count[r]} | " + " | ".join(cells) + " |")


def rome(model, records, moments, config: ROMEConfig, control: str = "") -> Evaluation:
    """Edit, evaluate and undo each record in turn."""
    prefixes = (
        tl_edit.generate_prefixes(
            model, lengths=config.prefix_lengths, n_per_length=config.n_prefixes, seed=config.seed
        )
        if config.n_prefixes
        else ()
    )
    parts = []
    for i, record in enumerate(records):
        edit = tl_edit.rome_edit(model, record.request, moments, config=config, prefixes=prefixes, apply=False)
        if control == "random":
            edit = random_edit(edit, i)
        parts.append(tl_edit.evaluate(model, record, edit=edit))
    return Evaluation.of(parts)


def row(name: str, result: Evaluation) -> str:
    """One line of the table."""
    groups = ("efficacy", "paraphrase", "neighborhood")
    success = " | ".join(result.success(group).percent() for group in groups)
    accuracy = " | ".join(f"{100 * result.accuracy(group).mean:.1f}" for group in groups)
    others = result.other_facts
    kept = f"{others.percent() if others else None} (n = {others.n if others else 0})"
    return f"| {name} | {100 * result.score.mean:.1f} | {success} | {accuracy} | {kept} |"


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100, help="facts to edit")
    parser.add_argument("--traced", type=int, default=100, help="facts to trace")
    parser.add_argument("--dev", action="store_true", help="use development facts (for choosing settings)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--layers", type=int, nargs="*", default=None)
    parts = ("recall", "trace", "edits", "controls")
    parser.add_argument("--skip", nargs="*", default=[], choices=parts, help="what to leave out")
    for name in ("v_lr", "clamp_norm_factor", "v_weight_decay", "kl_factor", "stop_loss"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("v_num_grad_steps", "n_prefixes"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    world = facts()
    pool = world[0::2] if args.dev else world[1::2]
    model = load_fact_model()
    if "recall" not in args.skip:
        print(f"{len(world)} facts, {len({fact.subject for fact in world})} subjects")
        for held_out in (False, True):
            accuracy, probability, n = recall(model, world, held_out)
            kind = "held-out" if held_out else "trained"
            print(f"recall on {kind} templates: {accuracy:.4f} (p {probability:.4f}, {n} prompts)")
    if "trace" not in args.skip:
        average_trace(model, random.Random(args.seed).sample(list(pool), args.traced))
    if "edits" in args.skip:
        return
    moments = tl_edit.second_moment(model, fact_texts(), range(model.cfg.n_layers), progress=False)
    records = sample_records(pool, world, args.n, seed=args.seed)
    config = ROMEConfig.for_model(model)
    changed = {
        name: value
        for name, value in vars(args).items()
        if hasattr(config, name) and value is not None and name != "seed"
    }
    config = replace(config, **changed)
    pool_name = "development" if args.dev else "test"
    print(f"\nROME on {args.n} {pool_name} facts, C from {moments[0].count:,} tokens, {config}\n")
    print("| layer | S | ES | PS | NS | EA | PA | NA | other facts kept |\n|---|---|---|---|---|---|---|---|---|")
    print(row("no edit", tl_edit.evaluate(model, records)), flush=True)
    # After the last layer nothing carries a value from the subject to the end of the prompt.
    for layer in range(model.cfg.n_layers - 1) if args.layers is None else args.layers:
        start = time.process_time()
        result = rome(model, records, moments, replace(config, layer=layer))
        print(row(f"{layer}", result), f"{(time.process_time() - start) / args.n:.2f} CPU s per edit", flush=True)
    if "controls" not in args.skip:
        identity = SecondMoments.identity(model, [config.layer])
        print(row(f"{config.layer}, C = I", rome(model, records, identity, config)))
        print(row(f"{config.layer}, random direction", rome(model, records, moments, config, control="random")))


if __name__ == "__main__":
    main()
