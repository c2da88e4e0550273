"""How records are judged, and what the unedited model says, which is asked once for all edits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from tl_edit.data import EditRecord
from tl_edit.evaluate.asking import Asker
from tl_edit.evaluate.generation import Generation
from tl_edit.evaluate.scores import RecordScores
from tl_edit.evaluate.sheet import Distributions, Sheet
from tl_edit.evaluate.texts import Drift, nlls
from tl_edit.evaluate.writing import Writing
from tl_edit.host import Model, NamedHook

_DISTRIBUTIONS = 2**28
"""Bytes of unedited distributions that are kept at a time."""


@dataclass(frozen=True, eq=False)
class Asked:
    """Records, ready to be asked, and what the unedited model said."""

    sheet: Sheet
    writing: Writing
    before: Distributions | None


def check_neighborhood(records: Sequence[EditRecord], operation: str, *, distracted: bool, kl: bool) -> None:
    """Refuse to measure what no record has prompts for.

    Raises:
        ValueError: If no record has neighborhood prompts, or a switch is neither True nor False.
    """
    for name, flag in {"distracted": distracted, "kl": kl}.items():
        if type(cast(object, flag)) is not bool:
            raise ValueError(f"{operation}: {name} is {flag!r}; expected True or False.")
    if (distracted or kl) and not any(record.neighborhood_prompts for record in records):
        raise ValueError(
            f"{operation}: {'distracted' if distracted else 'kl'}=True is about the neighborhood, but no record has "
            "neighborhood_prompts; expected prompts about other subjects with the same true object; add some, or leave "
            "it out."
        )


class Judge:
    """Judges records on a model; it is made, and records are prepared, while the model is unedited."""

    def __init__(
        self,
        model: Model,
        operation: str,
        *,
        prepend_bos: bool,
        distracted: bool = False,
        kl: bool = False,
        texts: Sequence[str] = (),
        generate: Generation | None = None,
        batch_size: int = 128,
    ) -> None:
        """See `evaluate` for what these are."""
        self.operation, self.generate = operation, generate
        self.model, self.bos, self.batch_size = model, prepend_bos, batch_size
        self.distracted, self.kl, self.texts = distracted, kl, texts
        self._asker = Asker(model)
        self._nll_before = self._nlls(())[1] if texts else ()

    def prepare(self, records: Sequence[EditRecord]) -> Asked:
        """Tokenise the records' questions, and ask the unedited model what is to be compared.

        Raises:
            ValueError: If a prompt or an object cannot be tokenised, or texts to be generated do not fit.
        """
        sheet = Sheet(self.model, records, self.bos, distracted=self.distracted, asker=self._asker)
        writing = Writing(self.model, records, self.generate, self.operation, prepend_bos=self.bos)
        return Asked(sheet, writing, sheet.distributions(self.batch_size) if self.kl else None)

    def scores(self, asked: Asked, hooks: Sequence[NamedHook] = ()) -> tuple[RecordScores, ...]:
        """Of the model as it is now."""
        scores = asked.sheet.scores(hooks, self.batch_size, unpadded=bool(hooks), against=asked.before)
        written = asked.writing.scores(hooks, self.batch_size)
        return tuple(replace(each, texts=texts) for each, texts in zip(scores, written, strict=True))

    def drifts(self, hooks: Sequence[NamedHook] = ()) -> tuple[Drift, ...]:
        """How the texts fare on the model as it is now; none where there are no texts."""
        if not self.texts:
            return ()
        n_tokens, after = self._nlls(hooks)
        return (Drift(n_tokens=n_tokens, nll_before=self._nll_before, nll_after=after),)

    @property
    def engine(self) -> str:
        """How questions were asked last; see `Evaluation.engine`."""
        return self._asker.engine

    def portions(self, records: Sequence[EditRecord]) -> Iterator[Sequence[EditRecord]]:
        """Records in portions whose unedited distributions fit into memory together."""
        portion: list[EditRecord] = []
        held = 0
        for record in records:
            portion.append(record)
            held += 2 * 4 * int(self.model.cfg.d_vocab) * len(record.neighborhood_prompts) if self.kl else 0
            if held > _DISTRIBUTIONS:
                yield portion
                portion, held = [], 0
        if portion:
            yield portion

    def _nlls(self, hooks: Sequence[NamedHook]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        return nlls(
            self.model,
            self.texts,
            hooks,
            prepend_bos=self.bos,
            batch_size=self.batch_size,
            unpadded=bool(hooks),
        )
