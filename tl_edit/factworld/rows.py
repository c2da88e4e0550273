"""Training rows and recall prompts: sentences as token ids, with the tokens of names and of answers marked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer
from torch import Tensor

from tl_edit.factworld.corpus import Corpus, Sentence, state
from tl_edit.factworld.world import Fact

BOS = 0
"""``<|endoftext|>`` begins every document."""


@dataclass(frozen=True)
class Encoded:
    """One sentence as ids; ``name`` marks the tokens of its subject, ``answer`` the token of its answer."""

    ids: list[int]
    name: list[bool]
    answer: list[bool]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of text, one token longer than the context so that each position has a next token.

    ``names`` numbers the subjects in a row (0: not part of a name); ``answers`` marks objects and kinds.
    """

    tokens: Int[Tensor, "batch pos"]
    names: Int[Tensor, "batch pos"]
    answers: Bool[Tensor, "batch pos"]


@dataclass(frozen=True, eq=False)
class Prompts:
    """Right-padded prompts, the position of their last token, and the token that answers them."""

    tokens: Int[Tensor, "batch pos"]
    last: Int[Tensor, " batch"]
    answer: Int[Tensor, " batch"]


class Encoder:
    """Encodes sentences, at the start of a text or after a space, and remembers them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[tuple[Sentence, bool], Encoded] = {}

    def __call__(self, sentence: Sentence, *, begins: bool) -> Encoded:
        """The sentence as it stands at the beginning of a document, or (with a leading space) inside one."""
        key = (sentence, begins)
        if key not in self._known:
            self._known[key] = self._encode(sentence, 0 if begins else 1)
        return self._known[key]

    def _encode(self, sentence: Sentence, shift: int) -> Encoded:
        encoding = self.tokenizer.encode(" " * shift + sentence.text)
        if sentence.subject_span is None:
            nothing = [False] * len(encoding.ids)
            return Encoded(encoding.ids, nothing, nothing)
        start, end = (i + shift for i in sentence.subject_span)
        name = [last > start and first < end for first, last in encoding.offsets]
        answer = [i == len(encoding.ids) - 2 for i in range(len(encoding.ids))]  # the last word before the dot
        return Encoded(encoding.ids, name, answer)


def batches(corpus: Corpus, encoder: Encoder, *, size: int, context: int) -> Iterator[Batch]:
    """Endless batches of rows; sentences run on until a row is full and are then cut off."""
    stream = corpus.sentences()
    while True:
        rows = [_row(stream, encoder, context + 1) for _ in range(size)]
        tokens, names, answers = (torch.tensor(part) for part in zip(*rows, strict=True))
        yield Batch(tokens, names, answers.bool())


def _row(
    stream: Iterator[tuple[bool, Sentence]], encoder: Encoder, length: int
) -> tuple[list[int], list[int], list[bool]]:
    ids, names, answers = [BOS], [0], [False]
    subjects = 0
    while len(ids) < length:
        begins, sentence = next(stream)
        first = len(ids) == 1
        if begins and not first:
            ids, names, answers = [*ids, BOS], [*names, 0], [*answers, False]
        encoded = encoder(sentence, begins=begins or first)
        subjects += any(encoded.name)
        ids += encoded.ids
        names += [subjects if part else 0 for part in encoded.name]
        answers += encoded.answer
    return ids[:length], names[:length], answers[:length]


def recall_prompts(
    facts: Sequence[Fact], encoder: Encoder, *, held_out: bool, prefixes: Sequence[Sentence] = ()
) -> Prompts:
    """All prompts of ``facts`` in their trained or held-out templates, each after one of ``prefixes`` in turn."""
    pairs = [(fact, t) for fact in facts for t in (fact.held_out_templates if held_out else fact.trained_templates)]
    ids: list[list[int]] = []
    answers: list[int] = []
    for i, (fact, template) in enumerate(pairs):
        prefix = encoder(prefixes[i % len(prefixes)], begins=True).ids if prefixes else []
        statement = encoder(state(template, fact.subject, fact.object), begins=not prefix).ids
        ids.append([BOS, *prefix, *statement[:-2]])
        answers.append(statement[-2])
    longest = max(len(row) for row in ids)
    tokens = torch.tensor([row + [BOS] * (longest - len(row)) for row in ids])
    last = torch.tensor([len(row) - 1 for row in ids])
    return Prompts(tokens, last, torch.tensor(answers))
