"""The tokenizer: what the shipped files say is what is built, and every object is one token."""

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from tl_edit.factworld import Fact, fact_texts
from tl_edit.factworld.loader import DATA
from tl_edit.factworld.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def built(world: tuple[Fact, ...]) -> Tokenizer:
    return build_tokenizer(world)


def test_the_shipped_tokenizer_is_the_one_built_from_the_facts(built: Tokenizer) -> None:
    assert json.loads(built.to_str()) == json.loads((DATA / "tokenizer.json").read_text("utf-8"))


def test_objects_are_one_token_after_a_space(built: Tokenizer, world: tuple[Fact, ...]) -> None:
    assert all(len(built.encode(" " + fact.object).ids) == 1 for fact in world)


def test_most_names_are_several_pieces(built: Tokenizer, world: tuple[Fact, ...]) -> None:
    pieces = [len(built.encode(" " + fact.subject).ids) for fact in world]
    assert 4 < sum(pieces) / len(pieces) < 6
    assert sum(n > 1 for n in pieces) / len(pieces) > 0.97


@pytest.mark.parametrize(
    "text", ["The Eiffel Tower is in Paris.", "Zoë's 東京 cost 5€!", "  two  spaces", *fact_texts(20)]
)
def test_any_text_survives_encoding_and_decoding(built: Tokenizer, text: str) -> None:
    assert built.decode(built.encode(text).ids) == text


def test_tokens_through_transformer_lens(fact_model: Any) -> None:
    tokens = fact_model.to_str_tokens("The Eiffel Tower is in")
    assert tokens[0] == "<|endoftext|>"
    assert tokens[-2:] == [" is", " in"]
    assert "".join(tokens[1:]) == "The Eiffel Tower is in"
    assert fact_model.to_tokens("The Eiffel Tower is in").shape == (1, len(tokens))


def test_offsets_locate_the_subject(fact_model: Any) -> None:
    text = "The Eiffel Tower is in"
    encoded = fact_model.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    words = "".join(text[a:b] for a, b in encoded["offset_mapping"])
    assert words == text
    assert len(encoded["input_ids"]) == fact_model.to_tokens(text).shape[1] - 1
