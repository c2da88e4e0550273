"""Entropy of words and cosines of TF-IDF vectors, on numbers worked out by hand and beside plain oracles."""

import json
import math
import random
import sys

import numpy as np
import pytest

from tl_edit.evaluate import TfIdf, generation_entropy
from tl_edit.evaluate.fluency import nltk_words

SENTENCE = "The tower is in Rome, and the tower is in Rome again."


def test_entropies_by_hand():
    # Bigrams ab ba ab: frequencies 2/3 and 1/3; trigrams aba bab: 1/2 each.
    two = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert generation_entropy("a b a b") == pytest.approx(two / 3 + 2 / 3 * 1.0, rel=1e-12)
    # All different: log2 of 7 bigrams and of 6 trigrams.
    assert generation_entropy("a b c d e f g h") == pytest.approx(math.log2(7) / 3 + 2 * math.log2(6) / 3, rel=1e-12)
    assert generation_entropy("a a a a a") == 0.0
    # A single bigram and no trigram.
    assert [str(generation_entropy(text)) for text in ("a b", "a", "")] == ["0.0", "0.0", "0.0"]


def test_the_mean_is_over_texts():
    both = generation_entropy(["a b a b", "a a a a"])
    assert both == pytest.approx(generation_entropy("a b a b") / 2, rel=1e-12)


def oracle_entropy(words: list[str]) -> float:
    """Written from the definition with arrays."""
    entropies = []
    for n in (2, 3):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        _, counts = np.unique(grams, return_counts=True)
        share = counts / counts.sum()
        entropies.append(-(share * np.log(share) / np.log(2)).sum())
    return float(np.mean(np.array(entropies) * np.array([2 / 3, 4 / 3])))


@pytest.mark.parametrize("seed", range(5))
def test_entropies_equal_an_oracle(seed):
    words = random.Random(seed).choices(["the", "a", "of", "tower", "Rome", "Paris", "is", "in", "and", "was"], k=60)
    assert generation_entropy(" ".join(words)) == pytest.approx(oracle_entropy(words), rel=1e-12)
    assert generation_entropy(" ".join(words), words=str.split) == pytest.approx(oracle_entropy(words), rel=1e-12)


def test_words_are_nltks_and_stops_end_sentences():
    assert nltk_words("here")('It didn\'t say "Rome." He left.') == [
        *("It", "did", "n't", "say", "``", "Rome", ".", "''", "He", "left", "."),
    ]
    # What Punkt's parameters would tell; the published programs have "Mr." as one word.
    assert nltk_words("here")("Mr. Smith left") == ["Mr", ".", "Smith", "left"]


def test_another_way_to_split_can_be_given():
    assert generation_entropy("abab", words=list) == generation_entropy("a b a b")


def test_no_texts_are_refused():
    with pytest.raises(ValueError, match="found no text; expected at least one"):
        generation_entropy([])


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ImportError, match=r'generation_entropy needs nltk, .* run pip install "tl-edit\[text\]"'):
        generation_entropy("a b")
    assert generation_entropy("a b", words=str.split) == 0.0
    with pytest.raises(ImportError, match=r'TfIdf.fit needs sklearn, .* run pip install "tl-edit\[text\]"'):
        TfIdf.fit(["a text"])
    with pytest.raises(ImportError, match=r"TfIdf.load needs sklearn"):
        TfIdf.load(tmp_path)


VOCABULARY = {"paris": 1, "rome": 0, "tower": 2}


def released(folder, idf, vocabulary=VOCABULARY):
    np.save(folder / "idf.npy", np.array(idf))
    (folder / "tfidf_vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    return folder


def test_similarity_by_hand(tmp_path):
    tfidf = TfIdf.load(released(tmp_path, [1.0, 2.0, 3.0]))
    # [2, 0, 3] and [1, 2, 0]; "is", "a" and "London" are unknown.
    found = tfidf.similarity("Rome is a tower. ROME, London!", "Paris rome")
    assert found == pytest.approx(2 / (math.sqrt(13) * math.sqrt(5)), rel=1e-12)
    assert tfidf.similarity("tower tower", "a tower") == pytest.approx(1.0)
    assert tfidf.similarity("Rome", "Rome, and Rome") <= 1.0
    assert tfidf.similarity("Rome", "Paris") == 0.0
    assert tfidf.similarity("London", "Paris") == 0.0
    assert repr(tfidf) == "TfIdf(3 words)"


def oracle_similarity(documents: list[str], first: str, second: str) -> float:
    """Counts times ``ln((1 + n) / (1 + documents with the word)) + 1``, and the cosine."""
    words = sorted({word for document in documents for word in document.split()})
    holding = {word: sum(word in document.split() for document in documents) for word in words}
    idf = {word: math.log((1 + len(documents)) / (1 + holding[word])) + 1 for word in words}
    one, other = ([text.split().count(word) * idf[word] for word in words] for text in (first, second))
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def test_fitted_ones_equal_an_oracle():
    documents = ["the tower of rome", "the tower of paris", "the louvre", "rome rome rome"]
    tfidf = TfIdf.fit(documents)
    first, second = "the tower of rome rome", "the louvre of paris and rome"
    assert tfidf.similarity(first, second) == pytest.approx(oracle_similarity(documents, first, second), rel=1e-12)


@pytest.mark.parametrize(
    ("idf", "vocabulary", "words"),
    [
        ([1.0, 2.0], VOCABULARY, "idf"),
        ([1.0, 2.0, 3.0], ["rome", "paris"], "cannot be read"),
        ([1.0, 2.0, 3.0], {"rome": 0, "paris": 5, "tower": 2}, "cannot be read"),
        (["one", "two", "three"], VOCABULARY, "cannot be read"),
    ],
    ids=["too short", "a list", "a gap", "words"],
)
def test_files_of_something_else_are_refused(tmp_path, idf, vocabulary, words):
    with pytest.raises(ValueError, match=words) as error:
        TfIdf.load(released(tmp_path, idf, vocabulary))
    assert "expected the released idf.npy" in str(error.value)


def test_pickles_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read .*No such file"):
        TfIdf.load(tmp_path)
    released(tmp_path, [1.0, 2.0, 3.0])
    np.save(tmp_path / "idf.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        TfIdf.load(tmp_path)


@pytest.mark.parametrize("texts", [[], "one text", ["a", "."]], ids=["none", "a string", "no words"])
def test_texts_without_words_are_refused(texts):
    with pytest.raises(ValueError, match="expected a list of texts, each a document"):
        TfIdf.fit(texts)
