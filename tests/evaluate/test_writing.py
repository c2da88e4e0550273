"""Fluency, consistency and essence as parts of an evaluation."""

import dataclasses
import math
import sys

import pytest
import tiny_models
import torch
from some_edits import make_edit

from tl_edit import EditRecord, EditRequest, Evaluation, evaluate
from tl_edit.evaluate import Generation, Sheet, TextScores, TfIdf, generate_texts, generation_entropy

GENERATION = Generation(n_tokens=30, seed=3)
FULL = EditRecord(
    EditRequest("{} is in", "The Eiffel Tower", "Rome", "Paris"),
    generation_prompts=("The Eiffel Tower is", "Near the Eiffel Tower,", "The Eiffel Tower is"),
    reference_texts=("Rome is a city.", "The Colosseum is in Rome"),
    essence_texts=("The Eiffel Tower is a tower of iron.", "It was built by Gustave Eiffel."),
)
BARE = EditRecord(EditRequest("{} is in", "The Louvre", "Rome", "Paris"))


@pytest.fixture(params=list(tiny_models.interfaces()))
def model(request):
    return tiny_models.build("gpt2", request.param, dtype=torch.float64)


def tfidf():
    return TfIdf.fit(["Rome is a city", "The Eiffel Tower is near", "a e i o u the is in"])


def test_nothing_is_generated_unless_asked_for(model):
    found = evaluate(model, [FULL, BARE])
    assert [each.texts.texts for each in found.scores] == [(), ()]
    assert not {"GE", "RS"} & set(found.metrics())
    assert found.scores[1].texts == TextScores()


def test_scores_are_those_of_the_texts(model):
    found = evaluate(model, [FULL, BARE], generate=dataclasses.replace(GENERATION, tfidf=tfidf()))
    texts = generate_texts(model, FULL.generation_prompts, n_tokens=30, seed=3)
    own = found.scores[0].texts
    assert own.texts == texts
    assert own.entropy == generation_entropy(texts)
    assert own.reference == tfidf().similarity(" ".join(texts), "Rome is a city. The Colosseum is in Rome")
    assert 0 < own.reference < 1
    assert own.engine.startswith("blocks (")
    metrics = found.metrics()
    assert (metrics["GE"].mean, metrics["GE"].n) == (own.entropy, 1)
    assert (metrics["RS"].mean, metrics["RS"].n) == (own.reference, 1)
    assert found.scores[1].texts == TextScores()


def by_hand(model, text, bos):
    tokens = model.to_tokens(text, prepend_bos=bos)[:, :100]
    with torch.no_grad():
        log_probs = model(tokens)[0].log_softmax(-1)
    said = [float(log_probs[i - 1, tokens[0, i]]) for i in range(1, tokens.shape[1])]
    return len(said), math.exp(-math.fsum(said) / tokens.shape[1])


@pytest.mark.parametrize("bos", [True, False])
def test_essence_perplexity_is_that_of_the_first_hundred_tokens(model, bos):
    long = dataclasses.replace(FULL, essence_texts=FULL.essence_texts * 6)
    found = evaluate(model, [FULL, BARE, long], prepend_bos=bos)
    for score, record in zip(found.scores[::2], (FULL, long), strict=True):
        n, expected = by_hand(model, " ".join(record.essence_texts), bos)
        assert score.texts.essence_perplexity == pytest.approx(expected, rel=1e-9)
    assert n == 99
    assert found.metrics()["EP"].n == 2


def test_without_reference_texts_or_tfidf_there_is_no_reference_score(model):
    plain = dataclasses.replace(FULL, reference_texts=(), essence_texts=())
    with_tfidf = evaluate(model, plain, generate=dataclasses.replace(GENERATION, tfidf=tfidf())).scores[0].texts
    without = evaluate(model, FULL, generate=GENERATION).scores[0].texts
    assert with_tfidf.reference is without.reference is None
    assert with_tfidf.entropy == without.entropy
    assert with_tfidf.essence_perplexity is None


def test_texts_do_not_depend_on_the_other_records(model):
    other = dataclasses.replace(FULL, generation_prompts=("The Eiffel Tower is", "Rome"))
    together = evaluate(model, [other, FULL], generate=GENERATION)
    alone = [evaluate(model, record, generate=GENERATION, batch_size=1) for record in (other, FULL)]
    assert [each.texts.texts for each in together.scores] == [each.scores[0].texts.texts for each in alone]


def test_an_edit_and_hooks_are_on_while_texts_are_written(model):
    edit = make_edit(model)
    before, after = (evaluate(model, FULL, edit=each, generate=GENERATION).scores[0].texts for each in (None, edit))
    hooked = evaluate(model, FULL, hooks=edit.hooks(model), generate=GENERATION).scores[0].texts
    assert before.texts != after.texts == hooked.texts
    assert hooked.engine == "whole passes (hooks are given)"
    assert hooked.essence_perplexity == pytest.approx(after.essence_perplexity, rel=1e-9)
    assert after.essence_perplexity != pytest.approx(before.essence_perplexity, rel=1e-6)
    again = evaluate(model, FULL, edit=edit.apply(model), generate=GENERATION).scores[0].texts
    assert again.texts == after.texts


def test_it_goes_together_with_kl_and_texts(model):
    record = dataclasses.replace(FULL, neighborhood_prompts=("The Louvre is in",))
    found = evaluate(
        model, [record, record], edit=make_edit(model), kl=True, texts=["Rome is a city."], generate=GENERATION
    )
    assert found.scores[0].texts == found.scores[1].texts
    assert {"GE", "EP", "PPL"} <= set(found.metrics())


def test_they_are_saved_and_listed(model, tmp_path):
    found = evaluate(model, [FULL, BARE], generate=GENERATION)
    found.save(tmp_path / "evaluation.safetensors")
    loaded = Evaluation.load(tmp_path / "evaluation.safetensors")
    assert loaded.scores == found.scores
    assert loaded.metrics() == found.metrics()
    pandas = pytest.importorskip("pandas")
    frame = found.to_dataframe(by="record")
    assert frame["GE"][0] == found.scores[0].texts.entropy
    assert pandas.isna(frame["GE"][1])


def test_records_without_prompts_are_refused_with_advice(model):
    with pytest.raises(ValueError, match=r"no record has generation_prompts; .* leave generate= out"):
        evaluate(model, [BARE, BARE], generate=GENERATION)


def test_texts_that_do_not_fit_are_refused_before_anything_runs(model, monkeypatch):
    def ran(*_, **__):
        raise AssertionError

    monkeypatch.setattr(Sheet, "scores", ran)
    for generation, words in (
        (Generation(n_tokens=129), "evaluate: n_tokens is 129; .* has a context of 128"),
        (Generation(n_tokens=4), "evaluate: the prompt '.*' has .* tokens; expected less than n_tokens, 4"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(model, FULL, generate=generation)


def test_a_missing_nltk_is_named_before_anything_runs(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    with pytest.raises(ImportError, match=r'evaluate with generate= needs nltk, .* run pip install "tl-edit\[text\]"'):
        evaluate(model, FULL, generate=GENERATION)
    assert "EP" in evaluate(model, FULL).metrics()
