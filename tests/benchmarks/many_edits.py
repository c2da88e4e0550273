"""Many edits of the bundled model: efficacy, and what else moves, as the number of edits grows.

``python tests/benchmarks/many_edits.py`` takes half an hour to an hour on one core; ``--n 1 10 100`` some minutes.

Settings were chosen on development facts (even index in ``facts()``); what is printed here is measured on test facts
(odd index), each of another subject. Nothing is shared between methods but the values of equal searches, which are
found once. All solve with a ridge of 1e-3: without one (``--ridge 0``, as the published programs do) edits of the
bundled model's layer 1 are a hundred times as large as its weights, where no key ever points, and a random change of
that size is no fair control. "Kept" is the rate at which facts about subjects that no edit touches are still the
likeliest answer, out of those that were before; it is taken over the same facts throughout.
"""

import argparse
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import tl_edit
from tl_edit import (
    AlphaEditConfig,
    EditRecord,
    EMMETConfig,
    Evaluation,
    KeyCache,
    MEMITConfig,
    PMETConfig,
    ROMEConfig,
    forward,
    host,
    tokens,
)
from tl_edit.factworld import Fact, fact_texts, facts, load_fact_model
from tl_edit.factworld.records import sample_records
from tl_edit.sweep.methods import random_edit

DRAWN = 1000
"""Edits that are drawn; fewer are the first of them, so that every run of this file edits the same facts."""
SCORED = 200
SINGLE = 60
"""For one edit: the mean over so many, each alone."""
UNTOUCHED = 400


@dataclass
class Bench:
    """The model, its moments, the edits in order, and facts that none of them is about."""

    model: object
    moments: tl_edit.SecondMoments
    records: list[EditRecord]
    untouched: list[Fact]
    from_elsewhere: int
    """Edits that are not of the pool asked for."""
    folder: str
    """Where values are kept; methods with equal searches share them."""

    @classmethod
    def make(cls, n: int, folder: str, *, dev: bool = False, seed: int = 11, ridge: float = 1e-3) -> "Bench":
        """``n`` edits of different subjects, of the pool as long as it lasts."""
        world = facts()
        model = load_fact_model()
        pool, rest = (world[0::2], world[1::2]) if dev else (world[1::2], world[0::2])
        records: list[EditRecord] = []
        taken: set[str] = set()
        from_elsewhere = 0
        for part in (pool, rest):
            candidates = one_each(part, taken, seed)
            wanted = min(n - len(records), len(candidates))
            if wanted > 0:
                usable = [fact for fact in candidates if has_neighbor(fact, world)]
                new = sample_records(usable, world, min(wanted, len(usable)), seed=seed)
                from_elsewhere += len(new) if part is rest else 0
                records += new
                taken |= {record.request.subject for record in new}
        others = [fact for fact in world if fact.subject not in taken]
        untouched = random.Random(seed).sample(others, min(UNTOUCHED, len(others)))
        moments = tl_edit.second_moment(model, fact_texts(), range(model.cfg.n_layers), progress=False)
        # After many edits that the ledger has forgotten the model's keys are no longer those that were measured.
        moments = tl_edit.SecondMoments(replace(moment, probe_keys=None) for moment in moments.values())
        moments = moments.with_ridge(ridge)
        known = says(model, untouched)
        untouched = [fact for fact, knows in zip(untouched, known, strict=True) if knows]
        return cls(model, moments, records, untouched, from_elsewhere, folder)

    def kept(self) -> float:
        """Per cent of the untouched facts that the model says now."""
        found = says(self.model, self.untouched)
        return 100 * sum(found) / len(found)


def has_neighbor(fact: Fact, world: Sequence[Fact]) -> bool:
    """Whether another subject has the same object by the same relation."""
    return any(
        (other.relation, other.object) == (fact.relation, fact.object) and other.subject != fact.subject
        for other in world
    )


def one_each(pool: Sequence[Fact], taken: set[str], seed: int) -> list[Fact]:
    """One random fact of each subject that is not taken."""
    shuffled = random.Random(seed).sample(list(pool), len(pool))
    return list({fact.subject: fact for fact in shuffled if fact.subject not in taken}.values())


def says(model, asked: Sequence[Fact]) -> list[bool]:
    """Whether the model's likeliest answer is the fact's object, in its first trained wording."""
    found: list[bool] = []
    for start in range(0, len(asked), 256):
        chunk = asked[start : start + 256]
        prompts = [fact.trained_templates[0].format(fact.subject) for fact in chunk]
        said = forward.last_log_probs(model, tokens.pad(model, [tokens.encode(model, text) for text in prompts]))
        answers = [int(model.to_tokens(f" {fact.object}", prepend_bos=False)[0, 0]) for fact in chunk]
        found += [int(row.argmax()) == answer for row, answer in zip(said, answers, strict=True)]
    return found


Editor = Callable[[Bench, Sequence[EditRecord]], tl_edit.Edit]


def batch_editor(edit, config) -> Editor:
    """All of the edits in one call."""

    def run(bench: Bench, records: Sequence[EditRecord]) -> tl_edit.Edit:
        requests = [record.request for record in records]
        return edit(
            bench.model, requests, bench.moments, config=config, folder=bench.folder, apply=False, progress=False
        )

    return run


def random_control(config: MEMITConfig) -> Editor:
    """Another direction in every layer, of the norm of MEMIT's change."""
    memit = batch_editor(tl_edit.memit_edit, config)

    def run(bench: Bench, records: Sequence[EditRecord]) -> tl_edit.Edit:
        return random_edit(memit(bench, records), len(records))

    return run


def measure(name: str, bench: Bench, run: Editor, sizes: Sequence[int]) -> None:
    """A row for each number of edits."""
    for n in sizes:
        if n > len(bench.records):
            continue
        start = time.process_time()
        try:
            result, unmoved = scores(bench, run, n)
        except ValueError as error:
            print(f"| {name} | {n} | refused: {error} |", flush=True)
            continue
        print(row(name, n, result, unmoved, time.process_time() - start), flush=True)


def scores(bench: Bench, run: Editor, n: int) -> tuple[Evaluation, float]:
    """Of the first ``n`` edits at once; for one edit, the means over several, each alone."""
    if n > 1:
        with run(bench, bench.records[:n]).on(bench.model):
            return tl_edit.evaluate(bench.model, bench.records[: min(n, SCORED)]), bench.kept()
    parts, kept = [], []
    for record in bench.records[:SINGLE]:
        with run(bench, [record]).on(bench.model):
            parts.append(tl_edit.evaluate(bench.model, record))
            kept.append(bench.kept())
    return Evaluation.of(parts), sum(kept) / len(kept)


def one_after_another(name: str, bench: Bench, step, sizes: Sequence[int], batch: int) -> None:
    """Edits in batches, each on the model that has the earlier ones; all sizes are points on one way."""
    before = {layer: host.w_out(bench.model, layer).clone() for layer in range(host.n_layers(bench.model))}
    start = time.process_time()
    try:
        for done in range(0, max([min(n, len(bench.records)) for n in sizes], default=0), batch):
            step(bench, bench.records[done : done + batch])
            # The benchmark keeps the first weights itself; the ledger would go through all edits at each write.
            tl_edit.forget_edits(bench.model)
            n = done + batch
            if n in sizes:
                result = tl_edit.evaluate(bench.model, bench.records[: min(n, SCORED)])
                print(row(name, n, result, bench.kept(), time.process_time() - start), flush=True)
    finally:
        for layer, weight in before.items():
            host.write_w_out(bench.model, layer, weight)


def row(name: str, n: int, result: Evaluation, kept: float, seconds: float) -> str:
    """One line of the table."""
    groups = ("efficacy", "paraphrase", "neighborhood")
    success = " | ".join(result.success(group).percent() for group in groups)
    accuracy = " | ".join(f"{100 * result.accuracy(group).mean:.1f}" for group in groups)
    return f"| {name} | {n} | {success} | {accuracy} | {kept:.1f} | {100 * result.score.mean:.1f} | {seconds:.0f} |"


HEAD = """| method | edits | ES | PS | NS | EA | PA | NA | kept | S | CPU s |
|---|---|---|---|---|---|---|---|---|---|---|"""


def rome_step(config: ROMEConfig, prefixes: Sequence[str]):
    """One ROME edit on the model as it is."""

    def step(bench: Bench, records: Sequence[EditRecord]) -> None:
        tl_edit.rome_edit(bench.model, records[0].request, bench.moments, config=config, prefixes=prefixes)

    return step


def rome_alone(config: ROMEConfig, prefixes: Sequence[str]) -> Editor:
    """One ROME edit, computed on the unedited model."""

    def run(bench: Bench, records: Sequence[EditRecord]) -> tl_edit.Edit:
        return tl_edit.rome_edit(
            bench.model, records[0].request, bench.moments, config=config, prefixes=prefixes, apply=False
        )

    return run


def alpha_step(config: AlphaEditConfig):
    """One batch of AlphaEdit that remembers the earlier ones."""
    cache = KeyCache()

    def step(bench: Bench, records: Sequence[EditRecord]) -> None:
        requests = [record.request for record in records]
        tl_edit.alpha_edit(bench.model, requests, bench.moments, cache=cache, config=config, progress=False)

    return step


def memit_step(config: MEMITConfig):
    """One batch of MEMIT."""

    def step(bench: Bench, records: Sequence[EditRecord]) -> None:
        requests = [record.request for record in records]
        tl_edit.memit_edit(bench.model, requests, bench.moments, config=config, progress=False)

    return step


METHODS = ("memit", "random", "emmet", "alpha", "pmet", "rome", "memit-100", "alpha-100")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, nargs="*", default=[1, 10, 100, 300, 1000])
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--dev", action="store_true", help="use development facts (for choosing settings)")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--ridge", type=float, default=1e-3)
    parser.add_argument("--folder", help="where to keep values between runs; for one run only by default")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    kept = tempfile.TemporaryDirectory()
    bench = Bench.make(DRAWN, args.folder or kept.name, dev=args.dev, seed=args.seed, ridge=args.ridge)
    pool = "development" if args.dev else "test"
    print(
        f"{len(bench.records)} edits of different subjects, of which {bench.from_elsewhere} are not {pool} facts; "
        f"scored on at most {SCORED}; one edit: the mean of {SINGLE}; kept: of {len(bench.untouched)} facts\n\n{HEAD}"
    )
    result = tl_edit.evaluate(bench.model, bench.records[:SCORED])
    print(row("none", 0, result, bench.kept(), 0.0), flush=True)
    memit, emmet, alpha, pmet = (
        kind.for_model(bench.model) for kind in (MEMITConfig, EMMETConfig, AlphaEditConfig, PMETConfig)
    )
    rome = ROMEConfig.for_model(bench.model)
    prefixes = tl_edit.generate_prefixes(
        bench.model, lengths=rome.prefix_lengths, n_per_length=rome.n_prefixes, seed=rome.seed
    )
    at_once = {
        "memit": batch_editor(tl_edit.memit_edit, memit),
        "random": random_control(memit),
        "emmet": batch_editor(tl_edit.emmet_edit, emmet),
        "alpha": batch_editor(tl_edit.alpha_edit, alpha),
        "pmet": batch_editor(tl_edit.pmet_edit, pmet),
    }
    in_steps = {
        "rome": (rome_step(rome, prefixes), 1),
        "memit-100": (memit_step(memit), 100),
        "alpha-100": (alpha_step(alpha), 100),
    }
    for name in args.methods:
        if name in at_once:
            measure(name, bench, at_once[name], args.n)
        else:
            step, batch = in_steps[name]
            if name == "rome" and 1 in args.n:
                measure(name, bench, rome_alone(rome, prefixes), [1])
            one_after_another(name, bench, step, [n for n in args.n if n >= max(batch, 2)], batch)


if __name__ == "__main__":
    main()
