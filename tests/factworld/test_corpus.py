"""The training text: seeded, true to the facts, and blind to the held-out templates."""

from itertools import islice

from tl_edit.factworld import Fact, fact_texts
from tl_edit.factworld.corpus import KINDS, Corpus, Sentence, kinds, state
from tl_edit.factworld.curation import WELL_KNOWN


def sentences(world: tuple[Fact, ...], seed: int, n: int) -> list[tuple[bool, Sentence]]:
    return list(islice(Corpus(world, seed).sentences(), n))


def test_the_same_seed_gives_the_same_text(world: tuple[Fact, ...]) -> None:
    assert sentences(world, 3, 200) == sentences(world, 3, 200)
    assert sentences(world, 3, 200) != sentences(world, 4, 200)


def test_held_out_wordings_never_occur(world: tuple[Fact, ...]) -> None:
    held_out = {t.format(f.subject) + f" {f.object}." for f in world for t in f.held_out_templates}
    seen = {sentence.text for _, sentence in sentences(world, 0, 20_000)}
    assert not seen & held_out


def test_the_span_is_the_bare_subject(world: tuple[Fact, ...]) -> None:
    subjects = {fact.subject for fact in world}
    stated = [s for _, s in sentences(world, 1, 500) if s.subject_span]
    assert len(stated) > 400
    assert all(s.text[slice(*s.subject_span)] in subjects for s in stated if s.subject_span)


def test_a_link_lowers_the_first_letter_unless_the_subject_begins() -> None:
    assert state("The {} is in", "Eiffel Tower", "Paris", "Also").text == "Also, the Eiffel Tower is in Paris."
    assert state("{} died in", "Ovid", "Rome", "Also").text == "Also, Ovid died in Rome."


def test_kinds_follow_from_relations(world: tuple[Fact, ...]) -> None:
    found = kinds(world)
    assert found["", "Danielle Darrieux"] == "person"
    assert set(found.values()) == set(KINDS)


def test_fact_texts_are_seeded_and_full_sentences() -> None:
    texts = fact_texts(50, seed=1)
    assert texts == fact_texts(50, seed=1)
    assert len(texts) == 50
    assert all(text.endswith(".") and "{" not in text for text in texts)


def test_well_known_subjects_are_stated_twice_as_often(world: tuple[Fact, ...]) -> None:
    stated = [s.text[slice(*s.subject_span)] for _, s in sentences(world, 2, 40_000) if s.subject_span]
    known = {fact.subject for fact in world if fact.subject in WELL_KNOWN}
    share = sum(subject in known for subject in stated) / len(stated)
    n_known = sum(fact.subject in known for fact in world)
    assert abs(share - 2 * n_known / (len(world) + n_known)) < 0.01
