"""The fact world: real subjects, relations and objects, and the sentences that state them.

The facts are T-REx triples as ParaRel selected them (see ``data/NOTICE``). Every subject-relation pair has one
object, and every object is one word and one token. Two templates of each fact are *held out*: the bundled model
never saw that fact in those words, so they measure whether it learned a fact or a string.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from tl_edit.factworld.relations import RELATIONS, Relation


@dataclass(frozen=True)
class Fact:
    """One real fact, such as ``Eiffel Tower, P276 (location), Paris``.

    Attributes:
        subject: The bare name, without an article.
        relation: The relation's id, a key of ``RELATIONS``.
        object: One word, without a leading space.
        article: ``"the"`` where the subject needs one, else ``""``.
        held_out: Which of the relation's templates the model never saw with this fact.
    """

    subject: str
    relation: str
    object: str
    article: str
    held_out: tuple[int, ...]

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """All templates of the relation, ready for the bare subject: ``"The {} is in"``."""
        return tuple(with_article(t, self.article) for t in RELATIONS[self.relation].templates)

    @property
    def trained_templates(self) -> tuple[str, ...]:
        """The templates in which the model was trained on this fact."""
        return tuple(t for i, t in enumerate(self.templates) if i not in self.held_out)

    @property
    def held_out_templates(self) -> tuple[str, ...]:
        """The templates in which the model never saw this fact."""
        return tuple(self.templates[i] for i in self.held_out)


def with_article(template: str, article: str) -> str:
    """Put ``article`` before the ``{}`` of ``template`` and capitalise the sentence."""
    sentence = template.replace("{}", f"{article} {{}}") if article else template
    return sentence[0].upper() + sentence[1:]


def facts() -> tuple[Fact, ...]:
    """All facts of the bundled model, in the order of ``data/facts.json``."""
    return facts_from_json(files("tl_edit.factworld").joinpath("data/facts.json").read_text("utf-8"))


def facts_from_json(text: str) -> tuple[Fact, ...]:
    """Facts from rows of: subject, relation, object, article, held-out templates."""
    return tuple(
        Fact(subject, relation, obj, article, tuple(held_out))
        for subject, relation, obj, article, held_out in json.loads(text)
    )


__all__ = ["RELATIONS", "Fact", "Relation", "facts", "facts_from_json", "with_article"]
