"""The network and its masks: what may be seen, and that Hugging Face's GPT-2 computes the same."""

import torch

from tl_edit.factworld.network import (
    HIDDEN,
    Network,
    Shape,
    causal_bias,
    gpt2_config,
    hidden_pieces,
    leak,
    planting_biases,
    to_gpt2,
)

SHAPE = Shape(d_vocab=20, n_layers=2, d_model=16, n_heads=4, d_mlp=24, n_ctx=12)


def test_a_non_final_piece_is_seen_only_within_its_name() -> None:
    names = torch.tensor([[0, 1, 1, 1, 0, 2, 0]])
    hidden = hidden_pieces(names)[0]
    assert hidden[4, 1:3].all()  # the pieces, from the next word
    assert not hidden[4, 3]  # the last piece can be seen
    assert not hidden[2:4, 1].any()  # from within the name
    assert not hidden[6, 5]  # a name of one piece can be seen


def test_the_window_hides_what_is_far_in_the_low_layers_only() -> None:
    names = torch.zeros(1, 6, dtype=torch.long)
    low, high = planting_biases(names, n_layers=2, n_window_layers=1, window=3)
    assert low[0, 0, 5].tolist() == [HIDDEN] * 3 + [0.0] * 3
    assert high[0, 0, 5].tolist() == [0.0] * 6


def test_later_positions_do_not_matter() -> None:
    torch.manual_seed(0)
    network = Network(SHAPE)
    tokens = torch.randint(0, 20, (2, 8))
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 20
    torch.testing.assert_close(network(tokens)[:, :5], network(other)[:, :5])


def test_transformers_computes_the_same() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    network = Network(SHAPE)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    config = GPT2Config(**{k: v for k, v in gpt2_config(SHAPE).items() if k not in {"architectures", "model_type"}})
    theirs = GPT2LMHeadModel(config).eval()
    missing = theirs.load_state_dict(to_gpt2(network), strict=False)
    assert not missing.unexpected_keys
    tokens = torch.randint(0, 20, (2, 10))
    with torch.no_grad():
        torch.testing.assert_close(network.unembed(network(tokens)), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_causal_bias_hides_the_future() -> None:
    assert causal_bias(3)[0, 0].tolist() == [[0, HIDDEN, HIDDEN], [0, 0, HIDDEN], [0, 0, 0]]


def test_leak_is_the_attention_that_the_name_mask_forbids() -> None:
    names = torch.tensor([[0, 1, 1, 0]])
    pattern = torch.zeros(1, 1, 4, 4)
    pattern[0, 0, 3] = torch.tensor([0.1, 0.6, 0.3, 0.0])  # the last token looks at the first piece with 0.6
    pattern[0, 0, 2] = torch.tensor([0.0, 1.0, 0.0, 0.0])  # within the name: allowed
    assert torch.isclose(leak([pattern, torch.zeros_like(pattern)], names), torch.tensor(0.6 / 4 / 2))
