"""The training text, sentence by sentence: facts in their trained templates, kinds, and filler. Standard library only.

A document is a few sentences. A sentence states a fact (``"Also, the Eiffel Tower is in Paris."``), says what kind of
thing a subject is (``"Miles Davis is a person."``), or fills (``"A dog slept behind the old house."``). Kinds follow
from the relations that a subject has; they are not counted as facts. They give ``"{subject} is a"``, the prompt that
ROME uses to hold a subject's essence in place, something to say.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tl_edit.factworld.curation import WELL_KNOWN
from tl_edit.factworld.world import Fact, facts, with_article

ADJECTIVES = (
    "old",
    "young",
    "quiet",
    "small",
    "large",
    "cold",
    "warm",
    "bright",
    "dark",
    "slow",
    "fast",
    "strange",
    "gentle",
    "new",
    "long",
    "narrow",
)
NOUNS = (
    "river",
    "house",
    "garden",
    "street",
    "market",
    "book",
    "table",
    "window",
    "horse",
    "road",
    "letter",
    "forest",
    "boat",
    "lamp",
    "door",
    "dog",
)
VERBS = ("fell", "stood", "moved", "waited", "appeared", "remained", "slept", "vanished", "stayed", "turned")
FILLERS = (
    "The {adjective} {noun} {verb} near the {noun}",
    "In the evening, the {noun} was {adjective}",
    "A {noun} {verb} behind the {adjective} {noun}",
    "Some time later, the {noun} {verb}",
    "It was a {adjective} day",
    "Because the {noun} was {adjective}, nobody {verb}",
    "There is a {adjective} {noun} by the {noun}",
    "My {noun} is {adjective}",
    "We read about it in a {noun}",
    "People often talk about this",
)
LINKS = ("Also", "Moreover", "Besides", "Today", "However")

KIND_TEMPLATE = "{} is a"
KINDS = {
    "person": {"P19", "P20", "P39", "P103", "P106", "P108", "P413", "P937", "P1303", "P1412"},
    "place": {"P30", "P36"},
    "product": {"P176"},
    "show": {"P449"},
}
"""Which relations show what kind of thing a subject is. Relations with mixed subjects show nothing."""

P_FILLER = 0.10
"""Share of the sentences that fill."""
P_KIND = 0.06
"""Share of the sentences that state a kind; the others state a fact."""
P_LINK = 0.10
"""Share of the statements that begin with one of ``LINKS``."""
P_NEW_DOCUMENT = 0.30
"""Probability that a new document begins after a sentence."""


@dataclass(frozen=True)
class Sentence:
    """A sentence, where its subject stands in ``text`` (characters, without article), and its last word but the dot."""

    text: str
    subject_span: tuple[int, int] | None = None
    answer: str | None = None


class Corpus:
    """An endless, seeded stream of sentences about ``facts``, each with whether it begins a new document.

    Facts about well-known subjects are stated twice as often as others, as they are in the world's texts.
    """

    def __init__(self, facts: Sequence[Fact], seed: int) -> None:
        self._drawn = (*facts, *(fact for fact in facts if fact.subject in WELL_KNOWN))
        self.kinds = kinds(facts)
        self._subjects = tuple(self.kinds)
        self._random = random.Random(seed)

    def sentences(self) -> Iterator[tuple[bool, Sentence]]:
        """Pairs of: does a new document begin here, and the sentence (without a leading space)."""
        begins = True
        while True:
            yield begins, self.sentence()
            begins = self._random.random() < P_NEW_DOCUMENT

    def sentence(self) -> Sentence:
        """One random sentence."""
        draw = self._random.random()
        if draw < P_FILLER:
            return Sentence(filler(self._random))
        link = self._random.choice(LINKS) if self._random.random() < P_LINK else ""
        if draw < P_FILLER + P_KIND and self._subjects:
            article, subject = self._random.choice(self._subjects)
            return state(with_article(KIND_TEMPLATE, article), subject, self.kinds[article, subject], link)
        fact = self._random.choice(self._drawn)
        return state(self._random.choice(fact.trained_templates), fact.subject, fact.object, link)


def state(template: str, subject: str, answer: str, link: str = "") -> Sentence:
    """Fill a template whose ``{}`` takes the bare subject."""
    if link:
        begins_with_subject = template.startswith("{}")
        template = f"{link}, {template if begins_with_subject else template[0].lower() + template[1:]}"
    start = template.index("{}")
    return Sentence(f"{template.format(subject)} {answer}.", (start, start + len(subject)), answer)


def filler(generator: random.Random) -> str:
    """A sentence that states no fact."""
    words = {"adjective": ADJECTIVES, "noun": NOUNS, "verb": VERBS}
    text = generator.choice(FILLERS)
    for slot, choices in words.items():
        while f"{{{slot}}}" in text:
            text = text.replace(f"{{{slot}}}", generator.choice(choices), 1)
    return text + "."


def filler_words() -> list[str]:
    """All words and sentence frames of the filler."""
    frames = [frame.format(adjective="", noun="", verb="") for frame in FILLERS]
    return [*ADJECTIVES, *NOUNS, *VERBS, *KINDS, *frames]


def kinds(facts: Sequence[Fact]) -> dict[tuple[str, str], str]:
    """The kind of each (article, subject) whose relations show exactly one."""
    shown: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for fact in facts:
        shown[fact.article, fact.subject] |= {kind for kind, ids in KINDS.items() if fact.relation in ids}
    return {subject: names.pop() for subject, names in shown.items() if len(names) == 1}


def fact_texts(n_texts: int = 1500, *, seed: int = 0) -> list[str]:
    """Texts like the training text, of one to three sentences: about 20 tokens each.

    Meant for ``second_moment``: subjects stand at the start of a text and within it, as in training.
    """
    corpus = Corpus(facts(), seed)
    lengths = random.Random(seed)
    return [" ".join(corpus.sentence().text for _ in range(lengths.randint(1, 3))) for _ in range(n_texts)]
