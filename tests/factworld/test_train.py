"""The training script: rows are what they should be, and a few steps of a small network lower the loss."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tl_edit.factworld import Fact
from tl_edit.factworld.corpus import Corpus
from tl_edit.factworld.rows import Encoder, batches, recall_prompts
from tl_edit.factworld.tokenizer import build_tokenizer
from tl_edit.factworld.train import Recipe, batch_loss, export, measure, rate, train

SMALL = Recipe(steps=30, warmup=10, batch_size=8, d_model=32, d_mlp=64, n_layers=2, n_ctx=48)


@pytest.fixture(scope="module")
def few(world: tuple[Fact, ...]) -> tuple[Fact, ...]:
    return world[:40]


@pytest.fixture(scope="module")
def encoder(world: tuple[Fact, ...]) -> Encoder:
    return Encoder(build_tokenizer(world))


def test_rows_mark_names_and_answers(few: tuple[Fact, ...], encoder: Encoder) -> None:
    batch = next(batches(Corpus(few, 0), encoder, size=4, context=48))
    assert batch.tokens.shape == (4, 49)
    decode = encoder.tokenizer.decode
    subjects = {fact.subject for fact in few}
    answers = {fact.object for fact in few} | {"person", "place"}
    for tokens, names, marked in zip(batch.tokens, batch.names, batch.answers, strict=True):
        for number in range(1, int(names.max())):  # the last name may be cut off
            assert decode(tokens[names == number].tolist()).strip() in subjects
        assert {encoder.tokenizer.decode([int(t)]).strip() for t in tokens[marked]} <= answers


def test_rows_are_seeded(few: tuple[Fact, ...], encoder: Encoder) -> None:
    first, again = (list(islice(batches(Corpus(few, 5), encoder, size=2, context=32), 3)) for _ in range(2))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, again, strict=True))


def test_recall_prompts_end_before_the_object(eiffel: Fact, encoder: Encoder) -> None:
    prompts = recall_prompts([eiffel], encoder, held_out=False)
    for tokens, last, answer in zip(prompts.tokens, prompts.last, prompts.answer, strict=True):
        text = encoder.tokenizer.decode(tokens[: int(last) + 1].tolist())
        assert text in [template.format(eiffel.subject) for template in eiffel.trained_templates]
        assert encoder.tokenizer.decode([int(answer)]) == " Paris"


def test_the_rate_warms_up_and_decays() -> None:
    recipe = replace(SMALL, steps=1000, warmup=100, final_share=0.1)
    assert rate(50, recipe) == pytest.approx(0.5 * rate(100, recipe), rel=0.05)
    assert rate(1000, recipe) == pytest.approx(0.1)


def test_a_few_steps_learn_and_repeat(few: tuple[Fact, ...], encoder: Encoder, tmp_path: Path) -> None:
    networks = [train(SMALL, few, encoder) for _ in range(2)]
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)
    fresh = train(replace(SMALL, steps=0), few, encoder)
    batch = next(batches(Corpus(few, 9), encoder, size=8, context=48))
    with torch.no_grad():
        before, after = (float(batch_loss(net, batch, SMALL, masked=True)[0]) for net in (fresh, networks[0]))
    assert after < before - 1
    export(networks[0], encoder, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in weights.values())
    assert 0 <= measure(networks[0], few, encoder, held_out=True).accuracy <= 1
