"""How varied texts are (generation entropy), and how alike two of them (TF-IDF): measures on words alone.

Words are split by nltk's rules: sentences first, then words, the full stop at a sentence's end being a word of its own.
The published programs found sentences with the Punkt parameters for English, a download beside nltk. Here Punkt has
none, so that the number does not depend on what is installed: it takes full stops after abbreviations ("Mr.", "U.S.")
for words of their own, too, which in ordinary English prose adds some thousandths of a bit.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tl_edit.counted import counted
from tl_edit.digest import digest
from tl_edit.evaluate.scores import mean
from tl_edit.extras import extra

NGRAMS = {2: 2 / 3, 3: 4 / 3}
"""Weight of the entropy of n words in a row, by n; of the products the mean is taken."""

Words = Callable[[str], Sequence[str]]
"""The words of a text, punctuation included."""


def nltk_words(operation: str) -> Words:
    """Nltk's way to split texts into words, without Punkt's parameters.

    Raises:
        ImportError: If nltk is not installed, naming ``operation``.
    """
    tokenize = extra("nltk.tokenize", operation)
    sentences, words = tokenize.PunktSentenceTokenizer(), tokenize.NLTKWordTokenizer()

    def split(text: str) -> list[str]:
        return [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]

    return split


def generation_entropy(texts: str | Sequence[str], *, words: Words | None = None) -> float:
    """GE: weighted entropy of bigrams and trigrams of words, ``H_2 / 3 + 2 H_3 / 3``, mean over texts, in bits.

    ``H_n = -sum f log2 f`` over the frequencies f of a text's n-grams: low where a text repeats itself. Texts of 100
    tokens of a model in good health have about 6 bits (published tables show it times 100).

    Args:
        texts: One text or several, prompts included.
        words: Splits a text into words; None for nltk's rules without Punkt's parameters, the same on every machine.
            With ``nltk.word_tokenize`` and its data ("punkt_tab") words are the published ones.

    Raises:
        ImportError: If nltk is not installed and ``words`` is None.
        ValueError: If there is no text.
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise ValueError("generation_entropy: found no text; expected at least one; pass what generate_texts returns.")
    split = words or nltk_words("generation_entropy")
    return mean([_entropy(split(text)) for text in listed])


def _entropy(words: Sequence[str]) -> float:
    return mean([weight * _ngram_entropy(words, n) for n, weight in NGRAMS.items()])


def _ngram_entropy(words: Sequence[str], n: int) -> float:
    """In bits; 0 of a text that is too short."""
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    return math.fsum(count / total * math.log2(total / count) for count in counts.values())


@dataclass(frozen=True, eq=False, repr=False)
class TfIdf:
    """Words and their inverse document frequencies, by which texts are compared.

    Texts are vectors of word counts times idf, as scikit-learn's TfidfVectorizer makes them: lower case, words of two
    letters or more.
    """

    vectorizer: Any
    """The TfidfVectorizer of scikit-learn."""

    @classmethod
    def fit(cls, texts: Iterable[str]) -> "TfIdf":
        """From texts of your own, each one document.

        Published numbers rest on the released file (see `load`); reference scores of other texts do not compare to
        them.

        Raises:
            ImportError: If scikit-learn is not installed.
            ValueError: If there are no words in the texts, or something else than texts.
        """
        vectorizer = extra("sklearn.feature_extraction.text", "TfIdf.fit").TfidfVectorizer()
        try:
            vectorizer.fit(texts)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"TfIdf.fit: found texts of type {type(texts).__name__} that give no words ({error}); expected a list "
                "of texts, each a document; pass e.g. read_texts('wikipedia.txt')."
            ) from error
        return cls(vectorizer)

    @classmethod
    def load(cls, folder: str | Path) -> "TfIdf":
        """The released ones: ``idf.npy`` and ``tfidf_vocab.json`` in ``folder``.

        The first holds the idf of each word by its number, the second the numbers by word. The published programs load
        them from rome.baulab.info/data/dsets.

        Raises:
            ImportError: If scikit-learn is not installed.
            ValueError: If the files are not there, or are something else.
        """
        text = extra("sklearn.feature_extraction.text", "TfIdf.load")
        try:
            idf = np.load(Path(folder) / "idf.npy", allow_pickle=False).reshape(-1).astype(np.float64)
            vocabulary = json.loads((Path(folder) / "tfidf_vocab.json").read_text("utf-8"))
            vectorizer = text.TfidfVectorizer(vocabulary=vocabulary)
            vectorizer.idf_ = idf
            vectorizer.transform(["a text"])
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(
                f"TfIdf.load: {folder} cannot be read ({error}); expected the released idf.npy, one number for each "
                "word, and tfidf_vocab.json, {word: its place there}; download both, or use TfIdf.fit(texts)."
            ) from error
        return cls(vectorizer)

    def similarity(self, first: str, second: str) -> float:
        """Cosine of the two texts' vectors, from 0 to 1; 0 where one of them has no known word."""
        # The vectors have length 1, or 0.
        rows = self.vectorizer.transform([first, second])
        return min(1.0, float(rows[0].multiply(rows[1]).sum()))

    @property
    def fingerprint(self) -> str:
        """A hash of the words and their weights."""
        words = sorted(self.vectorizer.vocabulary_.items())
        return digest([json.dumps([[word, int(i)] for word, i in words]), self.vectorizer.idf_.tobytes().hex()], size=8)

    def __repr__(self) -> str:
        return f"TfIdf({counted(len(self.vectorizer.idf_), 'word')})"
