"""The bundled facts, as the options ask for them."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import replace

from tl_edit import EditRecord, EditRequest, KnownFact
from tl_edit.command.models import is_bundled
from tl_edit.factworld import RELATIONS, Fact, facts
from tl_edit.factworld.records import article_of, edit_record, neighbors_of, objects_of, relation_template

DEFAULT_SUBJECT, DEFAULT_TARGET = "Eiffel Tower", "Rome"


def find_relation(name: str) -> str:
    """A relation's id from its id or name.

    Raises:
        ValueError: If there is none.
    """
    wanted = name.strip().lower()
    for relation in RELATIONS.values():
        if wanted in (relation.id.lower(), relation.name.lower()):
            return relation.id
    names = ", ".join(relation.name for relation in RELATIONS.values())
    raise ValueError(
        f"--relation {name!r} is neither a template with one {{}} nor a relation of the bundled model; "
        f"expected one of: {names}; or write a template such as '{{}} is in the city of'."
    )


def select(options: argparse.Namespace, world: Sequence[Fact]) -> list[Fact]:
    """The bundled facts that ``--subject`` and ``--relation`` (name or id) select."""
    subject = None if options.subject is None else options.subject.strip().lower()
    relation = find_relation(options.relation) if options.relation and "{}" not in options.relation else None
    return [
        fact
        for fact in world
        if (subject is None or fact.subject.lower() == subject) and (relation is None or fact.relation == relation)
    ]


def bundled_record(options: argparse.Namespace) -> EditRecord:
    """What to edit in the bundled model, with everything it is judged by where the fact is known.

    Raises:
        ValueError: If the options do not say what.
    """
    world = facts()
    if options.subject is None and options.relation is None:
        options.subject = DEFAULT_SUBJECT
        options.target_new = DEFAULT_TARGET if options.target_new is None else options.target_new
    chosen = select(options, world)
    if options.relation and "{}" in options.relation:
        chosen = []
    if chosen:
        fact = chosen[0]
        others = [name for name in objects_of(fact.relation, world) if name != fact.object]
        record = edit_record(
            fact, others[0] if options.target_new is None else options.target_new, world, seed=options.seed
        )
        true = getattr(options, "target_true", None)
        return record if true is None else replace(record, request=replace(record.request, target_true=true))
    if options.subject is None:
        raise ValueError(
            f"--subject is missing: --relation {options.relation!r} is a template of your own; expected a subject "
            "to put into it, e.g. --subject 'Eiffel Tower' --target-new Rome."
        )
    if options.relation is None:
        raise ValueError(
            f"no bundled fact has the subject {options.subject!r}; expected one that `python -m tl_edit --list-facts` "
            "shows, or a --relation and a --target-new of your own beside it."
        )
    relation = options.relation
    if "{}" not in relation and options.target_new is None:
        raise ValueError(_no_such_relation(options, world))
    if "{}" not in relation:
        relation = relation_template(find_relation(relation), article_of(options.subject, world))
    return own_record(options, relation)


def _no_such_relation(options: argparse.Namespace, world: Sequence[Fact]) -> str:
    """What is known of the subject, where it is not what was asked for."""
    subject = options.subject.strip().lower()
    there = [RELATIONS[fact.relation].name for fact in world if fact.subject.lower() == subject]
    known = f"expected one that it has: {', '.join(dict.fromkeys(there))}" if there else "it has none"
    return (
        f"--relation {options.relation!r}: no bundled fact of {options.subject!r} has it; {known}; choose such a fact "
        "(python -m tl_edit --list-facts shows all), or add --target-new, what shall be said of it."
    )


def own_record(options: argparse.Namespace, relation: str | None) -> EditRecord:
    """A request in the user's words.

    Raises:
        ValueError: If a part of it is missing.
    """
    given = {"--subject": options.subject, "--relation": relation, "--target-new": options.target_new}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        known = (
            "" if is_bundled(options.model) else f", since --model {options.model} has no bundled facts to choose from"
        )
        raise ValueError(
            f"{' and '.join(missing)} missing{known}; expected a subject, a template with one {{}} and an object, e.g. "
            "--subject 'The Space Needle' --relation '{} is in the city of' --target-new Paris."
        )
    if relation is not None and "{}" not in relation:
        raise ValueError(
            f"--relation {relation!r} has no {{}}, where the subject goes; expected a template such as '{{}} is in the "
            "city of' (names of relations are for the bundled model alone); write one."
        )
    true = getattr(options, "target_true", None)
    return EditRecord(request=EditRequest(relation or "", options.subject, options.target_new, true))


def bundled_records(limit: int | None, seed: int) -> tuple[EditRecord, ...]:
    """Edits of bundled facts in an order that ``seed`` decides, each of another subject: fewer are the first of more.

    Only facts of odd index, since settings were chosen on the others, and with a neighbor.
    """
    world = facts()
    pool = world[1::2]
    taken: set[str] = set()
    records: list[EditRecord] = []
    for fact in random.Random(seed).sample(pool, len(pool)):
        if limit is not None and len(records) >= limit:
            break
        if fact.subject in taken or not neighbors_of(fact, world):
            continue
        taken.add(fact.subject)
        generator = random.Random(f"{seed} {fact.subject} {fact.relation}")
        target = generator.choice([name for name in objects_of(fact.relation, world) if name != fact.object])
        records.append(edit_record(fact, target, world, seed=seed))
    return tuple(records)


def bundled_facts(limit: int | None, seed: int) -> tuple[KnownFact, ...]:
    """Bundled facts to trace, in an order that ``seed`` decides."""
    world = facts()
    chosen = random.Random(seed).sample(world, len(world))[:limit]
    return tuple(
        KnownFact(fact.trained_templates[0].format(fact.subject), fact.subject, fact.object) for fact in chosen
    )
