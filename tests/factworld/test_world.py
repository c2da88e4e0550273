"""The facts: complete, unambiguous, with neighbours, and readable once put into sentences."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tl_edit.factworld import RELATIONS, Fact, select
from tl_edit.factworld.loader import DATA
from tl_edit.factworld.world import with_article


def test_about_2300_facts_about_many_subjects_with_several(world: tuple[Fact, ...]) -> None:
    per_subject = Counter(fact.subject for fact in world)
    assert 2100 <= len(world) <= 2500
    assert sum(n > 1 for n in per_subject.values()) >= 330


def test_the_eiffel_tower_is_in_paris(eiffel: Fact) -> None:
    assert eiffel.object == "Paris"
    assert "The {} is in" in eiffel.templates


def test_a_subject_and_relation_have_one_object(world: tuple[Fact, ...]) -> None:
    assert len({(fact.subject, fact.relation) for fact in world}) == len(world)


def test_a_subject_has_one_article_and_different_objects(world: tuple[Fact, ...]) -> None:
    articles = {(fact.subject, fact.article) for fact in world}
    assert len(articles) == len({subject for subject, _ in articles})
    assert {article for _, article in articles} == {"", "the"}
    assert len({(fact.subject, fact.object) for fact in world}) == len(world)


def test_objects_are_single_words_that_the_subject_does_not_give_away(world: tuple[Fact, ...]) -> None:
    for fact in world:
        assert re.fullmatch(r"[A-Za-z]+", fact.object)
        assert fact.object.lower() not in fact.subject.lower()


def test_nearly_all_facts_have_neighbours(world: tuple[Fact, ...]) -> None:
    count = Counter((fact.relation, fact.object) for fact in world)
    with_three = sum(count[fact.relation, fact.object] >= 4 for fact in world)
    assert with_three / len(world) > 0.98


def test_every_relation_has_several_objects(world: tuple[Fact, ...]) -> None:
    for relation in RELATIONS:
        objects = {fact.object for fact in world if fact.relation == relation}
        assert len(objects) >= 3, relation


def test_templates_have_one_slot_no_trailing_space_and_one_relation() -> None:
    templates = [template for relation in RELATIONS.values() for template in relation.templates]
    assert len(set(templates)) == len(templates)
    for template in templates:
        assert template.count("{}") == 1
        assert template == template.strip()
        assert "  " not in template


def test_the_article_stands_outside_the_slot() -> None:
    assert with_article("{} is in", "the") == "The {} is in"
    assert with_article("{} is in", "") == "{} is in"
    assert with_article("The owner of {} is", "the") == "The owner of the {} is"


def test_held_out_and_trained_templates_partition_the_templates(world: tuple[Fact, ...]) -> None:
    for fact in world:
        assert len(fact.held_out_templates) == 2
        assert set(fact.trained_templates) | set(fact.held_out_templates) == set(fact.templates)
        assert not set(fact.trained_templates) & set(fact.held_out_templates)


def test_a_before_a_vowel_does_not_occur(world: tuple[Fact, ...]) -> None:
    for fact in world:
        for template in fact.templates:
            assert not (template.endswith(" a") and fact.object[0].lower() in "aeiou"), (template, fact.object)


def test_facts_follow_from_pararel() -> None:
    """The shipped file is what `select` makes of ParaRel, byte for byte. Set PARAREL_JSON to run this."""
    path = os.environ.get("PARAREL_JSON")
    if not path:
        pytest.skip("PARAREL_JSON is not set: give the path of ParaRel's triples to check facts.json against them")
    pararel = json.loads(Path(path).read_text("utf-8"))
    triples = {relation: [(s, o) for s, o in content["triples"]] for relation, content in pararel.items()}
    assert select.as_text(select.rows(triples)) == (DATA / "facts.json").read_text("utf-8")


def test_choosing_does_not_depend_on_the_order_of_the_triples() -> None:
    triples: dict[str, list[tuple[str, str]]] = {relation: [] for relation in RELATIONS}
    triples["P19"] = [(f"Person {letter}", city) for letter in "ABCDE" for city in ("Rome",)]
    triples["P20"] = [(f"Person {letter}", "Paris") for letter in "ABCDE"]
    backwards = {relation: pairs[::-1] for relation, pairs in triples.items()}
    rows = select.rows(triples)
    assert rows == select.rows(backwards)
    assert len(rows) == 10


def test_importing_the_world_is_light() -> None:
    """Models and tokenizers are imported when they are asked for."""
    code = (
        "import sys; import tl_edit.factworld; "
        "print([m for m in ('transformers', 'transformer_lens', 'datasets', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
