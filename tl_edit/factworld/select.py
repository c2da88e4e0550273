"""Choose the facts of the bundled model from ParaRel: ``python -m tl_edit.factworld.select --pararel pararel.json``.

No random numbers: ties are broken by a hash of the names, so the same input gives the same file, byte for byte.
A fact is kept if its object is one word, its subject is a short plain name that does not contain the object, and the
object has at least ``MIN_SUBJECTS`` subjects in its relation (they become the neighbours when the fact is edited).
Subjects with several facts come first: a model must keep several facts per subject apart for an edit to spare the
others.
"""

import argparse
import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from pathlib import Path

from tl_edit.factworld import curation
from tl_edit.factworld.relations import RELATIONS

log = logging.getLogger(__name__)

Pair = tuple[str, str]
"""Subject and relation id."""

MIN_SUBJECTS = 4
"""An object needs so many subjects in its relation."""
MAX_SUBJECTS = 18
"""No object is filled up beyond this number (subjects with several facts may exceed it)."""
USUAL_SUBJECTS = 6
"""A relation gets as many objects as make about so many subjects each."""
N_HELD_OUT = 2
"""Templates held out per fact."""
QUOTA = dict.fromkeys(RELATIONS, 86) | {"P37": 100, "P140": 60, "P1303": 60}
"""About how many facts per relation."""
SECOND_FACTS_ONLY = {"P30", "P39"}
"""Relations asked only of subjects with another fact: by themselves they are many and dull (glaciers, bishops)."""


def order(*words: str) -> str:
    """A fixed, arbitrary order: the SHA-256 of the words."""
    return hashlib.sha256("\t".join(words).encode()).hexdigest()


def candidates(triples: dict[str, list[Pair]]) -> dict[Pair, str]:
    """All facts that meet the conditions on names, one object per subject and relation."""
    found: dict[Pair, str] = {}
    for relation in RELATIONS:
        objects: defaultdict[str, list[str]] = defaultdict(list)
        for subject, obj in triples[relation]:
            if obj not in objects[subject]:
                objects[subject].append(obj)
        for subject, names in objects.items():
            pair = (subject, relation)
            obj = curation.PREFERRED_OBJECT.get(pair, names[0])
            one_object = len(names) == 1 or subject in curation.WELL_KNOWN
            if one_object and suited(subject, relation, obj) and subject not in curation.LEFT_OUT.get(relation, ()):
                found[pair] = obj
    return found


def suited(subject: str, relation: str, obj: str) -> bool:
    """Whether the names of a fact are plain, short and do not give the answer away."""
    longest = 26 if relation in {"P276", "P17"} else 22
    plain = re.fullmatch(rf"(i?[A-Z]|[0-9])[A-Za-z0-9 '.&\-]{{2,{longest - 1}}}", subject) and not subject.isdigit()
    if not plain or len(subject.split()) > 4:
        return False
    if not re.fullmatch(r"[A-Za-z]+", obj) or obj in curation.UNSUITED_OBJECTS:
        return False
    if relation == "P106" and obj[0] in "aeiou":  # its templates end in "a"
        return False
    if relation in {"P17", "P276"} and re.search(curation.EVENTS, subject):
        return False
    return obj.lower() not in subject.lower()


def common(facts: dict[Pair, str]) -> dict[Pair, str]:
    """The facts whose object has enough subjects in its relation, or whose subject is well known."""
    count = Counter((relation, obj) for (_, relation), obj in facts.items())
    return {
        (subject, relation): obj
        for (subject, relation), obj in facts.items()
        if count[relation, obj] >= MIN_SUBJECTS or subject in curation.WELL_KNOWN
    }


def distinct(facts: dict[Pair, str]) -> dict[Pair, str]:
    """The facts without those that repeat an object of their subject (born in Paris, died in Paris)."""
    seen: set[Pair] = set()
    kept: dict[Pair, str] = {}
    for (subject, relation), obj in sorted(facts.items(), key=lambda item: order(*item[0])):
        if (subject, obj) not in seen:
            seen.add((subject, obj))
            kept[subject, relation] = obj
    return kept


def choose(triples: dict[str, list[Pair]]) -> dict[Pair, str]:
    """The chosen facts: subjects with several facts, well-known subjects, then others up to each relation's quota."""
    pool = distinct(common(candidates(triples)))
    n_facts = Counter(subject for subject, _ in pool)
    chosen = {pair: obj for pair, obj in pool.items() if n_facts[pair[0]] > 1 or pair[0] in curation.WELL_KNOWN}
    for relation in RELATIONS:
        if relation not in SECOND_FACTS_ONLY:
            in_use = {pair: obj for pair, obj in chosen.items() if pair[1] == relation}
            spare = {pair: obj for pair, obj in pool.items() if pair[1] == relation and pair not in chosen}
            chosen |= fill(in_use, spare, QUOTA[relation])
    return dict(sorted(chosen.items(), key=lambda item: (list(RELATIONS).index(item[0][1]), order(*item[0]))))


def fill(in_use: dict[Pair, str], spare: dict[Pair, str], quota: int) -> dict[Pair, str]:
    """More facts of one relation: first neighbours for the objects in use, then an even share per common object."""
    count = Counter(in_use.values())
    available = Counter(spare.values())
    by_object: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in sorted(spare, key=lambda p: order(*p), reverse=True):
        by_object[spare[pair]].append(pair)
    objects = sorted(available, key=lambda o: (-count[o], -available[o], o))
    objects = [
        o for i, o in enumerate(objects) if count[o] or (i < quota // USUAL_SUBJECTS and available[o] >= MIN_SUBJECTS)
    ]
    added: dict[Pair, str] = {}
    for share in range(1, MAX_SUBJECTS + 1):
        for obj in objects:
            wanted = share <= MIN_SUBJECTS or len(in_use) + len(added) < quota
            if wanted and count[obj] < share and by_object[obj]:
                added[by_object[obj].pop()] = obj
                count[obj] += 1
    return added


def article(subject: str, relation: str) -> str:
    """The article of a name, or nothing."""
    if subject in curation.TAKES_THE:
        return "the"
    words = subject.split()
    if words[0] == "The" or subject in curation.TAKES_NONE:
        return ""
    if relation == "P176" and words[0] not in {"Windows", "Nintendo", "Microsoft"}:
        return "the"
    ends_so = len(words) > 1 and words[-1] in curation.THE_LAST_WORD
    begins_so = len(words) > 2 and words[1] == "of" and words[0] in curation.THE_FIRST_WORD
    return "the" if ends_so or begins_so else ""


def rows(triples: dict[str, list[Pair]]) -> list[list[object]]:
    """The rows of ``facts.json``: subject, relation, object, article (one per subject), held-out templates."""
    chosen = choose(triples)
    articles: dict[str, str] = {}
    for subject, relation in chosen:
        articles[subject] = articles.get(subject, "") or article(subject, relation)
    return [
        [subject, relation, obj, articles[subject], held_out(subject, relation)]
        for (subject, relation), obj in chosen.items()
    ]


def held_out(subject: str, relation: str) -> list[int]:
    """Which templates of the relation to hold out for this fact."""
    templates = range(len(RELATIONS[relation].templates))
    return sorted(sorted(templates, key=lambda i: order(subject, relation, str(i)))[:N_HELD_OUT])


def as_text(facts: list[list[object]]) -> str:
    """The text of ``facts.json``: one fact per line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in facts) + "\n]\n"


def main() -> None:
    """Write ``facts.json``."""
    parser = argparse.ArgumentParser(description="Choose the bundled model's facts from ParaRel.")
    parser.add_argument("--pararel", type=Path, required=True, help="pararel.json: {relation: {patterns, triples}}")
    parser.add_argument("--out", type=Path, default=Path("facts.json"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pararel = json.loads(arguments.pararel.read_text("utf-8"))
    triples = {relation: [(s, o) for s, o in content["triples"]] for relation, content in pararel.items()}
    chosen = rows(triples)
    arguments.out.write_text(as_text(chosen), "utf-8")
    per_subject = Counter(Counter(str(row[0]) for row in chosen).values())
    log.info("%d facts; subjects by number of facts: %s", len(chosen), dict(sorted(per_subject.items())))


if __name__ == "__main__":
    main()
