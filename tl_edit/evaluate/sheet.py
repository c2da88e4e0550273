"""The questions that records ask, and their scores from what a model thinks of them."""

from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from tl_edit.data import EditRecord
from tl_edit.evaluate.asking import Asker
from tl_edit.evaluate.questions import Opinion, Question
from tl_edit.evaluate.scores import FactScore, PromptScore, RecordScores
from tl_edit.host import Model, NamedHook

Distributions = dict[int, Float[Tensor, " d_vocab"]]
"""Log-probabilities of the next token, by the number of the question."""


class Sheet:
    """All questions of some records, tokenised once, to be asked once or several times; see `Asker`."""

    def __init__(
        self,
        model: Model,
        records: Sequence[EditRecord],
        prepend_bos: bool,
        *,
        distracted: bool = False,
        asker: Asker | None = None,
    ) -> None:
        """Tokenise the questions.

        Args:
            model: A HookedTransformer or TransformerBridge.
            records: What to ask.
            prepend_bos: Whether prompts begin with a BOS.
            distracted: Whether to ask the neighborhood's prompts behind the edited statement, too (CounterFact+).
            asker: Who asks, if that one has asked the model before and knows how; None for a new one.
        """
        self.model, self.records, self.distracted = model, records, distracted
        self.questions: list[Question] = []
        self.compared: list[int] = []
        """Questions whose next-token distribution tells what moved: the neighborhood's prompts, distracted or not."""
        for record in records:
            for group, prompt, answers in _asked(record, distracted):
                if group in ("neighborhood", "distracted"):
                    self.compared.append(len(self.questions))
                self.questions += [Question.of(model, prompt, answer, prepend_bos=prepend_bos) for answer in answers]
        self._asker = Asker(model) if asker is None else asker

    @property
    def engine(self) -> str:
        """How the questions were asked last; empty before."""
        return self._asker.engine

    def distributions(self, batch_size: int) -> Distributions:
        """What the model says next after the prompts that are compared."""
        found: Distributions = {}
        for i, opinion in self._ask(self.compared, (), batch_size, whole=True).items():
            if opinion.following is not None:
                found[i] = opinion.following
        return found

    def scores(
        self,
        hooks: Sequence[NamedHook],
        batch_size: int,
        *,
        unpadded: bool = False,
        against: Distributions | None = None,
    ) -> tuple[RecordScores, ...]:
        """Ask the model as it is now, with ``hooks`` attached; ``against`` the unedited model's distributions."""
        everything = range(len(self.questions))
        found = self._ask(everything, hooks, batch_size, unpadded=unpadded, whole=against is not None)
        answered = iter([(found[i], _kl(found[i], (against or {}).get(i))) for i in everything])
        return tuple(self._collect(record, answered) for record in self.records)

    def _ask(
        self,
        wanted: Sequence[int],
        hooks: Sequence[NamedHook],
        batch_size: int,
        *,
        unpadded: bool = False,
        whole: bool = False,
    ) -> dict[int, Opinion]:
        """Opinions by the number of the question; with ``whole``, those that are compared have the distribution."""
        compared = set(self.compared) if whole else set[int]()
        asked = {i: self.questions[i] for i in wanted}
        return self._asker(asked, hooks, batch_size=batch_size, unpadded=unpadded, whole=compared)

    def _collect(self, record: EditRecord, answered: Iterator[tuple[Opinion, float | None]]) -> RecordScores:
        """Take the opinions on the record's questions off the iterator and put them in their groups."""
        prompts: dict[str, list[PromptScore]] = {}
        facts: dict[str, list[FactScore]] = {}
        decode = self.model.tokenizer.decode
        for group, prompt, answers in _asked(record, self.distracted):
            first, kl = next(answered)
            prediction = decode([first.predicted])
            if group in ("other_facts", "unrelated_facts"):
                facts.setdefault(group, []).append(
                    FactScore(prompt=prompt, answer=answers[0], prob=first.prob, hits=first.hits, prediction=prediction)
                )
                continue
            true = next(answered)[0] if len(answers) > 1 else None
            prompts.setdefault(group, []).append(
                PromptScore(
                    prompt=prompt,
                    prob_new=first.prob,
                    prob_true=true.prob if true else None,
                    hits_new=first.hits,
                    hits_true=true.hits if true else None,
                    prediction=prediction,
                    kl=kl,
                    tied=(first.log_prob, true.log_prob) if true and first.prob == true.prob else None,
                )
            )
        return RecordScores(
            record=record,
            efficacy=tuple(prompts["efficacy"]),
            paraphrase=tuple(prompts.get("paraphrase", ())),
            neighborhood=tuple(prompts.get("neighborhood", ())),
            attribute=tuple(prompts.get("attribute", ())),
            distracted=tuple(prompts.get("distracted", ())),
            other_facts=tuple(facts.get("other_facts", ())),
            unrelated_facts=tuple(facts.get("unrelated_facts", ())),
        )


def _asked(record: EditRecord, distracted: bool) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(group, prompt, answers) of a record, in the order in which `Sheet._collect` takes them back."""
    request = record.request
    targets = tuple(target for target in (request.target_new, request.target_true) if target is not None)
    groups = {
        "efficacy": (request.prompt,),
        "paraphrase": record.paraphrase_prompts,
        "neighborhood": record.neighborhood_prompts,
        "attribute": record.attribute_prompts,
        "distracted": distracted_prompts(record) if distracted else (),
    }
    for group, prompts in groups.items():
        for prompt in prompts:
            yield group, prompt, targets
    for group, facts in {"other_facts": record.other_facts, "unrelated_facts": record.unrelated_facts}.items():
        for prompt, answer in facts:
            yield group, prompt, (answer,)


def distracted_prompts(record: EditRecord) -> tuple[str, ...]:
    """The neighborhood's prompts behind the edited statement (CounterFact+, arXiv 2305.17553)."""
    statement = f"{record.request.prompt} {record.request.target_new}."
    return tuple(f"{statement} {prompt}" for prompt in record.neighborhood_prompts)


def _kl(edited: Opinion, base: Float[Tensor, " d_vocab"] | None) -> float | None:
    """KL divergence of the edited model's next-token distribution from the unedited one's, in nats."""
    if edited.following is None or base is None:
        return None
    now, before = edited.following.double(), base.double()
    return float((now.exp() * (now - before)).nan_to_num(nan=0.0).sum())
