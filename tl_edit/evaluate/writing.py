"""What a model writes about a record's subject, and how likely it finds texts about it.

Definitions are those of the ROME paper's program (Meng et al. 2022, section 3.3). Fluency and consistency are judged on
the same texts, one for each of the record's generation prompts (see `generation`). The essence score is the perplexity
of the record's essence texts, one after another, cut to 100 tokens; it is divided by all of them, the first included,
which is not predicted (`Drift` divides by those that are).
"""

from collections.abc import Sequence
from typing import cast

from tl_edit import forward
from tl_edit.data import EditRecord
from tl_edit.evaluate.fluency import generation_entropy, nltk_words
from tl_edit.evaluate.generation import Generation, as_text, starts_of
from tl_edit.evaluate.sampling import Start, sample
from tl_edit.evaluate.scores import TextScores
from tl_edit.evaluate.texts import nlls, perplexity
from tl_edit.host import Model, NamedHook

ESSENCE_TOKENS = 100
"""So many tokens of the essence texts count, as published."""


def check_generate(generate: Generation | None, records: Sequence[EditRecord], operation: str) -> None:
    """Refuse to generate texts that no record asks for.

    Raises:
        ValueError: If ``generate`` is something else, or no record has generation prompts.
    """
    if generate is None:
        return
    if not isinstance(cast(object, generate), Generation):
        raise ValueError(
            f"{operation}: generate is of type {type(generate).__name__}; expected a Generation, or None to "
            "generate no texts; write generate=Generation()."
        )
    if not any(record.generation_prompts for record in records):
        raise ValueError(
            f"{operation}: generate= asks for texts, but no record has generation_prompts; expected beginnings of "
            "texts, as CounterFact has them; write EditRecord(request, generation_prompts=('...', '...')), or "
            "leave generate= out."
        )


class Writing:
    """The prompts and texts of some records, ready for a model to go on from and to read."""

    def __init__(
        self,
        model: Model,
        records: Sequence[EditRecord],
        generate: Generation | None,
        operation: str,
        *,
        prepend_bos: bool,
    ) -> None:
        """Check everything before anything runs; see `check_generate` for what the records must bring.

        Raises:
            ImportError: If texts are to be generated and nltk is not installed.
            ValueError: If the texts do not fit.
        """
        self.model, self.records, self.generate = model, records, generate
        self.operation, self.prepend_bos = operation, prepend_bos
        self.starts: list[list[Start]] = [[] for _ in records]
        if generate is None:
            return
        self.words = nltk_words(f"{operation} with generate=")
        # Each record's own, so that its texts do not depend on the other records.
        self.starts = [
            starts_of(
                model, record.generation_prompts, generate.n_tokens, generate.seed, operation, prepend_bos=prepend_bos
            )
            for record in records
        ]

    def scores(self, hooks: Sequence[NamedHook], batch_size: int) -> list[TextScores]:
        """For each record, of the model as it is now, with ``hooks`` attached; what cannot be measured is None."""
        perplexities = self._essence_perplexities(hooks, batch_size)
        texts, engine = self._texts(hooks, batch_size)
        return [
            self._scored(record, own, engine, perplexity)
            for record, own, perplexity in zip(self.records, texts, perplexities, strict=True)
        ]

    def _scored(
        self, record: EditRecord, texts: tuple[str, ...], engine: str | None, perplexity: float | None
    ) -> TextScores:
        if not texts or self.generate is None:
            return TextScores(essence_perplexity=perplexity)
        reference = None
        if self.generate.tfidf is not None and record.reference_texts:
            reference = self.generate.tfidf.similarity(" ".join(texts), " ".join(record.reference_texts))
        return TextScores(
            texts=texts,
            entropy=generation_entropy(texts, words=self.words),
            reference=reference,
            essence_perplexity=perplexity,
            engine=engine,
        )

    def _texts(self, hooks: Sequence[NamedHook], batch_size: int) -> tuple[list[tuple[str, ...]], str | None]:
        """Of each record, and how they were computed."""
        every = [start for starts in self.starts for start in starts]
        if self.generate is None or not every:
            return [() for _ in self.records], None
        with forward.memory_advice(self.operation, "batch_size", batch_size):
            rows, engine = sample(
                self.model,
                every,
                hooks,
                n_tokens=self.generate.n_tokens,
                top_k=self.generate.top_k,
                batch_size=batch_size,
            )
        texts = iter([as_text(self.model, row) for row in rows])
        return [tuple(next(texts) for _ in starts) for starts in self.starts], engine

    def _essence_perplexities(self, hooks: Sequence[NamedHook], batch_size: int) -> list[float | None]:
        essences = {i: " ".join(record.essence_texts) for i, record in enumerate(self.records) if record.essence_texts}
        if not essences:
            return [None] * len(self.records)
        counts, sums = nlls(
            self.model,
            list(essences.values()),
            hooks,
            prepend_bos=self.prepend_bos,
            batch_size=batch_size,
            max_tokens=ESSENCE_TOKENS,
            unpadded=bool(hooks),
        )
        found = {i: perplexity(nll / (n + 1)) for i, n, nll in zip(essences, counts, sums, strict=True)}
        return [found.get(i) for i in range(len(self.records))]
