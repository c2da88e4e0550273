"""Scores of single prompts, as they were measured; nothing here is averaged over records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tl_edit.data import EditRecord

Group = Literal["efficacy", "paraphrase", "neighborhood", "attribute", "distracted"]
"""Prompts with two objects that compete. ``distracted`` are the neighborhood's prompts behind the edited statement
(CounterFact+)."""

NEW_SHOULD_WIN = ("efficacy", "paraphrase", "attribute")
"""In the other groups the true object should stay ahead. Attribute prompts are about subjects of which the new object
is true."""

About = Literal["other_facts", "unrelated_facts"]
"""Prompts with one answer, which should stay."""


@dataclass(frozen=True, kw_only=True)
class PromptScore:
    """How one prompt is answered."""

    prompt: str
    prob_new: float
    """Probability of the new object (geometric mean over its tokens)."""
    prob_true: float | None
    """Probability of the true object; None where the request does not name it."""
    hits_new: tuple[bool, ...]
    """For each token of the new object, behind those before it, whether it is the likeliest."""
    hits_true: tuple[bool, ...] | None
    prediction: str
    """The likeliest next token."""
    kl: float | None = None
    """KL divergence of the next token's distribution, edited from unedited, in nats; None where not asked for."""
    tied: tuple[float, float] | None = None
    """Log-probabilities of the new and the true object (means over tokens, in nats) where their probabilities are equal
    as floats, as two are that underflow to zero; None elsewhere."""

    @property
    def prefers_new(self) -> bool | None:
        """Whether the new object is likelier than the true one, per token; None without a true one."""
        compared = self._compared
        return None if compared is None else compared[0] > compared[1]

    @property
    def prefers_true(self) -> bool | None:
        """Whether the true object is likelier than the new one, per token; None without a true one."""
        compared = self._compared
        return None if compared is None else compared[0] < compared[1]

    @property
    def _compared(self) -> tuple[float, float] | None:
        """What tells which object is likelier."""
        if self.prob_true is None:
            return None
        return self.tied or (self.prob_new, self.prob_true)

    @property
    def says_new(self) -> bool:
        """Whether each of the new object's tokens is the likeliest."""
        return all(self.hits_new)

    @property
    def says_true(self) -> bool | None:
        """Whether each of the true object's tokens is the likeliest."""
        return None if self.hits_true is None else all(self.hits_true)

    @property
    def joint_new(self) -> float:
        """Probability of all of the new object's tokens (their product, not the published geometric mean)."""
        return self.prob_new ** len(self.hits_new)

    @property
    def joint_true(self) -> float | None:
        """Probability of all of the true object's tokens."""
        if self.prob_true is None or self.hits_true is None:
            return None
        return self.prob_true ** len(self.hits_true)


@dataclass(frozen=True, kw_only=True)
class FactScore:
    """How a prompt with one answer is answered."""

    prompt: str
    answer: str
    prob: float
    hits: tuple[bool, ...]
    """For each of the answer's tokens, behind those before it, whether it is the likeliest."""
    prediction: str

    @property
    def kept(self) -> bool:
        """Whether each of the answer's tokens is the likeliest."""
        return all(self.hits)


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """What was generated for a record, and how the texts about its subject fare."""

    texts: tuple[str, ...] = ()
    """Generated texts, prompts included."""
    entropy: float | None = None
    """Generation entropy (GE): weighted entropy of bigrams and trigrams, mean over texts, in bits."""
    reference: float | None = None
    """Reference score (RS): cosine of the TF-IDF vectors of generated and reference texts, from 0 to 1."""
    essence_perplexity: float | None = None
    """Perplexity of the essence texts."""
    engine: str | None = None
    """How the texts were computed: with keys and values kept, or in whole passes and why."""


@dataclass(frozen=True, kw_only=True)
class RecordScores:
    """All prompts of one record."""

    record: EditRecord
    efficacy: tuple[PromptScore, ...]
    paraphrase: tuple[PromptScore, ...] = ()
    neighborhood: tuple[PromptScore, ...] = ()
    attribute: tuple[PromptScore, ...] = ()
    distracted: tuple[PromptScore, ...] = ()
    other_facts: tuple[FactScore, ...] = ()
    unrelated_facts: tuple[FactScore, ...] = ()
    texts: TextScores = TextScores()


def mean(values: Sequence[float | bool]) -> float:
    """Their arithmetic mean; NaN of none."""
    return math.fsum(values) / len(values) if values else math.nan
