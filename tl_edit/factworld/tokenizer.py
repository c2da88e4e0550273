"""The tokenizer: whole words for all that is said *about* subjects, learned pieces for their names.

Byte-level like GPT-2's (a leading space belongs to the word; any text can be encoded), but a Unigram model over an
explicit vocabulary, in which the fewest pieces win. Every object is one token with its space, `` Paris``. Names
break into several pieces, so a subject has a last token that is not the whole name: causal tracing needs that.
A byte-pair encoding learned on all text would split most objects.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tl_edit.factworld import corpus
from tl_edit.factworld.relations import RELATIONS
from tl_edit.factworld.world import Fact

END_OF_TEXT = "<|endoftext|>"
"""Begins every document (BOS), and serves as EOS and padding; id 0."""

SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""How byte-level tokenizers write the space in front of a word."""

N_MERGES = 1510
"""How many name pieces are learned."""

MAX_PIECE = 7
"""Longest name piece, in characters with the leading space."""

PIECE_SCORE = -10.0
BYTE_SCORE = -12.0
"""Equal scores for all pieces: the fewest pieces win. Bytes are the last resort."""


def build_tokenizer(facts: Iterable[Fact]) -> Tokenizer:
    """The tokenizer of these facts; deterministic."""
    facts = tuple(facts)
    vocabulary: dict[str, float] = {END_OF_TEXT: 0.0}
    for piece in [*word_pieces(facts), *name_pieces(facts)]:
        vocabulary.setdefault(piece, PIECE_SCORE)
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary.setdefault(byte, BYTE_SCORE)
    tokenizer = Tokenizer(models.Unigram(list(vocabulary.items()), unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def word_pieces(facts: tuple[Fact, ...]) -> list[str]:
    """Objects and all words of templates and filler sentences; sentence starters also without a space."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    starts = [t.format("") for relation in RELATIONS.values() for t in relation.templates]
    starts += [*corpus.filler_words(), *corpus.LINKS, "The", "the", "."]
    pieces: set[str] = {SPACE + fact.object for fact in facts}
    for text in starts:
        pieces.update(piece for piece, _ in split.pre_tokenize_str(text))
        pieces.update(piece for piece, _ in split.pre_tokenize_str(" " + text))
    return sorted(pieces)


def name_pieces(facts: tuple[Fact, ...]) -> list[str]:
    """Pieces of the names, learned by byte-pair merges; those that begin a word also without the space."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + N_MERGES,
        initial_alphabet=alphabet,
        show_progress=False,
        max_token_length=MAX_PIECE,
    )
    learner.train_from_iterator(sorted({fact.subject for fact in facts}), trainer)
    learned = {piece for piece in learner.get_vocab() if len(piece) > 1}
    return sorted(learned | {piece.removeprefix(SPACE) for piece in learned})


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``, which ``transformers`` loads from the folder."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
