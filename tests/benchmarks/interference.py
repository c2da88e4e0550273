"""Which ROME edits of the bundled model disturb each other: ``python tests/benchmarks/interference.py``.

Three minutes on one core.

Ten or twelve edits of one relation, of four subjects with three facts each, and of random facts, with the second moment
and with ``C = I``: the overlap of keys, what happens to the edited facts, and how well the one tells the other. Then
the dose-response of the sum of eight edits.
"""

import random
import sys
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tl_edit import SecondMoments, dose_response, interference, rome_edit, second_moment
from tl_edit.factworld import fact_texts, facts, load_fact_model
from tl_edit.factworld.records import edit_record, objects_of, sample_records


def sets_of_records(world):
    """Named lists of records."""
    chooser = random.Random(0)

    def records(chosen):
        others = [[name for name in objects_of(fact.relation, world) if name != fact.object] for fact in chosen]
        return [edit_record(fact, chooser.choice(names), world) for fact, names in zip(chosen, others, strict=True)]

    by_subject = defaultdict(list)
    for fact in world:
        by_subject[fact.subject].append(fact)
    several = [own for own in by_subject.values() if len(own) >= 3]
    for relation, _ in Counter(fact.relation for fact in world).most_common(3):
        chosen = random.Random(1).sample([fact for fact in world if fact.relation == relation], 10)
        yield f"relation {relation}", records(chosen)
    for seed in range(2):
        chosen = [fact for own in random.Random(seed).sample(several, 4) for fact in own[:3]]
        yield f"4 subjects, 3 facts each ({seed})", records(chosen)
    yield "random", sample_records(world[1::2], world, 10, seed=3)


def main():
    """Print both tables."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    world, model = facts(), load_fact_model()
    measured = second_moment(model, fact_texts(), layers=[0], progress=False)
    print(
        f"{'edits':28} {'C':>8}  overlap: median  most | p(new): alone  +1 other  +all | rank correlation: loss  |loss|"
    )
    for name, records in sets_of_records(world):
        for kind, moments in (("measured", measured), ("identity", SecondMoments.identity(model, [0]))):
            edits = [rome_edit(model, record.request, moments, apply=False) for record in records]
            found = interference(model, edits, records, progress=False)
            apart = ~torch.eye(len(edits), dtype=torch.bool)
            overlap, paired = found.overlap[apart], found.together[apart]
            correlations = [f"{value:+.2f}" for value in (found.rank_correlation, found.size_correlation)]
            print(
                f"{name:28} {kind:>8} {float(overlap.median()):16.3f} {float(overlap.max()):5.2f} "
                f"{float(found.alone.mean()):16.3f} {float(paired.mean()):9.3f} {float(found.forgetting[-1]):5.2f} "
                f"{correlations[0]:>24} {correlations[1]:>7}"
            )
    records = sample_records(world[1::2], world, 8, seed=3)
    edits = [rome_edit(model, record.request, measured, apply=False) for record in records]
    found = dose_response(model, sum(edits), records, progress=False)
    print("\nthe sum of eight edits, by scale:")
    print(found.to_dataframe()[["scale", "efficacy", "paraphrase", "neighborhood", "kl", "perplexity"]].to_string())


if __name__ == "__main__":
    main()
