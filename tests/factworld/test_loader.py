"""The bundled model through TransformerLens: it knows its facts, and both interfaces agree."""

import random
from typing import Any

import pytest
import torch

from tl_edit.factworld import MODEL_NAME, Fact, fact_texts, load_fact_model
from tl_edit.factworld.loader import DATA, fact_model_weights

INTERFACES = ("HookedTransformer", "TransformerBridge")


def load(interface: Any, **settings: Any) -> Any:
    try:
        return load_fact_model(interface=interface, **settings)
    except ValueError as error:
        pytest.skip(str(error))


def last_log_probs(model: Any, prompts: list[str]) -> torch.Tensor:
    rows = [model.to_tokens(prompt)[0] for prompt in prompts]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    last = torch.tensor([len(row) - 1 for row in rows])
    mask = (torch.arange(tokens.shape[1]) <= last[:, None]).long()
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask)
    return logits[torch.arange(len(rows)), last].float().log_softmax(-1)


def test_the_model_has_its_name_and_is_in_eval_mode(fact_model: Any) -> None:
    assert fact_model.cfg.model_name == MODEL_NAME
    assert not fact_model.training


def test_the_eiffel_tower_is_in_paris(fact_model: Any) -> None:
    log_probs = last_log_probs(fact_model, ["The Eiffel Tower is in"])[0]
    assert fact_model.tokenizer.decode([int(log_probs.argmax())]) == " Paris"
    assert log_probs.max().exp() > 0.9


@pytest.mark.parametrize(("held_out", "least"), [(False, 0.97), (True, 0.95)])
def test_recall_of_a_random_sample(fact_model: Any, world: tuple[Fact, ...], held_out: bool, least: float) -> None:
    draw = random.Random(int(held_out))
    facts = draw.sample(world, 250)
    sample = [(f, draw.choice(f.held_out_templates if held_out else f.trained_templates)) for f in facts]
    log_probs = last_log_probs(fact_model, [template.format(fact.subject) for fact, template in sample])
    said = [fact_model.tokenizer.decode([int(token)]) for token in log_probs.argmax(-1)]
    assert sum(word == f" {fact.object}" for word, (fact, _) in zip(said, sample, strict=True)) / 250 >= least


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("processing", [False, True])
def test_interfaces_and_processing_give_the_same_log_probs(fact_model: Any, interface: Any, processing: bool) -> None:
    other = load(interface, processing=processing)
    texts = fact_texts(8)
    assert not other.training
    assert other.cfg.model_name == MODEL_NAME
    tolerance = 5e-5 if processing else 1e-5  # folding rounds once more
    torch.testing.assert_close(last_log_probs(other, texts), last_log_probs(fact_model, texts), rtol=0, atol=tolerance)
    assert other.to_str_tokens("Ovid was born in") == fact_model.to_str_tokens("Ovid was born in")


@pytest.mark.parametrize("interface", INTERFACES)
def test_dtype(interface: Any) -> None:
    model = load(interface, dtype=torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16


def test_one_interface_is_always_there_and_the_other_is_refused_with_advice() -> None:
    refusals = []
    for interface in INTERFACES:
        try:
            load_fact_model(interface=interface)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) < 2
    assert all("pip install" in text for text in refusals)


def test_weights_are_small_and_half_precision() -> None:
    assert all(tensor.dtype == torch.float16 for tensor in fact_model_weights().values())
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 8_000_000
