"""Edits of the fact world, with the prompts that judge them.

The request uses one of the fact's trained templates. Paraphrases are its held-out templates, bare and behind a
filler sentence; neighbors are other subjects with the same relation and object, asked in the request's template;
attribute prompts are about subjects of which the new object is true; other facts are what else the world says of the
subject. Texts are sentences of the world: the subject's own, and those about subjects of which the new object is true.
"""

import random
from collections.abc import Sequence

from tl_edit.data import EditRecord
from tl_edit.factworld.corpus import filler
from tl_edit.factworld.relations import RELATIONS
from tl_edit.factworld.world import Fact, with_article
from tl_edit.request import EditRequest


def edit_record(
    fact: Fact, target_new: str, world: Sequence[Fact], *, template: int | None = None, seed: int = 0
) -> EditRecord:
    """The record of changing ``fact``'s object to ``target_new``.

    Args:
        fact: The fact to change.
        target_new: The object to write.
        world: All facts, to find neighbors and the subject's other facts in.
        template: Index of the relation's template to use; None for the first that the fact was trained on.
        seed: Seed of the filler sentences and of the choice among neighbors and other subjects (at most 10 each).
    """
    generator = random.Random(f"{seed} {fact.subject} {fact.relation}")
    trained = [i for i in range(len(fact.templates)) if i not in fact.held_out]
    template = trained[0] if template is None else template
    neighbors = neighbors_of(fact, world)
    held_out = [wording.format(fact.subject) for wording in fact.held_out_templates]
    behind_filler = [f"{filler(generator)} {prompt}" for prompt in held_out]
    chosen = generator.sample(neighbors, min(10, len(neighbors)))
    of_new = _with_object(fact, target_new, world)
    of_new = generator.sample(of_new, min(10, len(of_new)))
    own = [other for other in world if other.subject == fact.subject]
    return EditRecord(
        request=EditRequest(fact.templates[template], fact.subject, target_new, fact.object),
        paraphrase_prompts=(*held_out, *behind_filler),
        neighborhood_prompts=tuple(other.templates[template].format(other.subject) for other in chosen),
        attribute_prompts=tuple(other.templates[template].format(other.subject) for other in of_new),
        other_facts=tuple(
            (other.trained_templates[0].format(other.subject), other.object)
            for other in own
            if other.relation != fact.relation
        ),
        generation_prompts=tuple(wording.format(fact.subject) for wording in fact.trained_templates),
        reference_texts=tuple(text for other in of_new for text in _sentences(other)),
        essence_texts=tuple(text for other in own if other.relation != fact.relation for text in _sentences(other)),
        name=f"{fact.subject}, {fact.relation}",
        relation_id=fact.relation,
    )


def neighbors_of(fact: Fact, world: Sequence[Fact]) -> list[Fact]:
    """Facts about other subjects with the same relation and object."""
    return _with_object(fact, fact.object, world)


def _with_object(fact: Fact, name: str, world: Sequence[Fact]) -> list[Fact]:
    """Facts about other subjects with the relation of ``fact`` and this object."""
    return [
        other
        for other in world
        if (other.relation, other.object) == (fact.relation, name) and other.subject != fact.subject
    ]


def _sentences(fact: Fact) -> list[str]:
    """The fact in the wordings that the model was trained on."""
    return [f"{wording.format(fact.subject)} {fact.object}." for wording in fact.trained_templates]


def objects_of(relation: str, world: Sequence[Fact]) -> list[str]:
    """The objects that a relation has in this world, in order of first appearance."""
    return list(dict.fromkeys(fact.object for fact in world if fact.relation == relation))


def sample_records(candidates: Sequence[Fact], world: Sequence[Fact], n: int, *, seed: int) -> list[EditRecord]:
    """Records of ``n`` random candidates with at least one neighbor, each with a random other object.

    Raises:
        ValueError: If there are fewer such candidates.
    """
    usable = [fact for fact in candidates if neighbors_of(fact, world)]
    if len(usable) < n:
        raise ValueError(
            f"sample_records: {n} records asked for; only {len(usable)} candidates have a neighbor; ask fewer."
        )
    generator = random.Random(seed)
    records: list[EditRecord] = []
    for fact in generator.sample(usable, n):
        target = generator.choice([name for name in objects_of(fact.relation, world) if name != fact.object])
        trained = [i for i in range(len(fact.templates)) if i not in fact.held_out]
        records.append(edit_record(fact, target, world, template=generator.choice(trained), seed=seed))
    return records


def article_of(subject: str, world: Sequence[Fact]) -> str:
    """The article that the world puts before ``subject``; none for an unknown one."""
    return next((fact.article for fact in world if fact.subject == subject), "")


def relation_template(relation: str, article: str) -> str:
    """A relation's first template with the subject's article."""
    return with_article(RELATIONS[relation].templates[0], article)
