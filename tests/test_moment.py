"""Second moments: the mean of k k^T over real tokens, whatever the batches."""

import pytest
import tiny_models
import tiny_tokenizers
import torch

from tl_edit import SecondMoment, SecondMoments, host, second_moment

TEXTS = [*tiny_tokenizers.CORPUS, "Rome.", "The café in Zürich is old"]


def naive(model, texts, layer, prepend_bos):
    """One text at a time, everything in float64."""
    total, count = torch.zeros(80, 80, dtype=torch.float64), 0
    for text in texts:
        store = []
        name = host.key_name(layer)
        tokens = model.to_tokens(text, prepend_bos=prepend_bos)
        model.run_with_hooks(tokens, fwd_hooks=[(name, lambda act, hook, store=store: store.append(act))])
        keys = store[0][0].detach().double()
        total, count = total + keys.T @ keys, count + len(keys)
    return total / count, count


@pytest.fixture(scope="module", params=tiny_models.available_cases(("gpt2", "llama")), ids=str)
def model(request):
    return tiny_models.build(request.param)


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_is_the_mean_over_all_real_tokens(model, prepend_bos):
    moments = second_moment(model, TEXTS, [0, 2], prepend_bos=prepend_bos, progress=False)
    for layer in (0, 2):
        expected, count = naive(model, TEXTS, layer, prepend_bos)
        assert moments[layer].count == count
        assert torch.allclose(moments[layer].matrix, expected, rtol=1e-4, atol=1e-6)


def test_batch_size_and_order_do_not_matter():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    whole = second_moment(model, TEXTS, [1], progress=False)[1]
    for batch_tokens, seed in ((1, 0), (40, 3), (100_000, 8)):
        again = second_moment(model, TEXTS, [1], batch_tokens=batch_tokens, seed=seed, progress=False)[1]
        assert torch.allclose(again.matrix, whole.matrix, rtol=1e-11, atol=1e-13)


def test_token_rows_are_taken_as_they_are():
    model = tiny_models.build("gpt2")
    rows = [model.to_tokens(text, prepend_bos=True)[0] for text in TEXTS]
    assert torch.allclose(
        second_moment(model, rows, [1], progress=False)[1].matrix,
        second_moment(model, TEXTS, [1], prepend_bos=True, progress=False)[1].matrix,
    )


def test_max_tokens_cuts_exactly_and_the_seed_decides_what():
    model = tiny_models.build("gpt2")
    cut = [second_moment(model, TEXTS, [1], max_tokens=50, seed=seed, progress=False)[1] for seed in (0, 0, 1)]
    assert [moment.count for moment in cut] == [50, 50, 50]
    assert torch.equal(cut[0].matrix, cut[1].matrix)
    assert not torch.allclose(cut[0].matrix, cut[2].matrix)


def test_long_texts_are_cut_at_the_context():
    model = tiny_models.build("gpt2")
    moment = second_moment(model, ["Paris and Rome " * 200], [1], progress=False)[1]
    assert moment.count == tiny_models.N_CTX


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keys_are_summed_in_float32(dtype):
    exact = second_moment(tiny_models.build("gpt2"), TEXTS, [1], progress=False)[1].matrix
    half = second_moment(tiny_models.build("gpt2", dtype=dtype), TEXTS, [1], progress=False)[1].matrix
    assert half.dtype == torch.float64
    assert float((half - exact).norm() / exact.norm()) < 0.05


def test_processing_does_not_change_keys():
    interface = next(iter(tiny_models.interfaces()))
    raw, processed = (
        second_moment(tiny_models.build("gpt2", interface, processed), TEXTS, [1], progress=False)[1].matrix
        for processed in (False, True)
    )
    assert torch.allclose(raw, processed, rtol=1e-3, atol=1e-5)


def test_cholesky_is_computed_once_and_solves():
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    moment = SecondMoment(layer=0, matrix=half @ half.T + torch.eye(20).double(), count=100)
    assert moment.cholesky is moment.cholesky
    assert torch.allclose(moment.cholesky @ moment.cholesky.T, moment.matrix)


def test_a_singular_moment_says_how_many_tokens_are_missing():
    model = tiny_models.build("gpt2")
    moment = second_moment(model, TEXTS, [1], max_tokens=30, progress=False)[1]
    with pytest.raises(ValueError, match=r"singular after 30 tokens.*80 x 80.*at least 50 more.*about 800"):
        _ = moment.cholesky


def test_a_singular_moment_of_enough_tokens_names_dead_neurons_or_asks_for_other_texts():
    """With ReLU some neurons may never fire, and then no number of tokens is enough."""
    matrix = torch.eye(5).double()
    matrix[[1, 3], [1, 3]] = 0
    with pytest.raises(ValueError, match=r"after 900 tokens; .* 2 of the neurons never fired.*identity\(model, \[4\]"):
        _ = SecondMoment(layer=4, matrix=matrix, count=900).cholesky
    with pytest.raises(ValueError, match="after 900 tokens; .*5 x 5 matrix; about 50 tokens are advisable; .*varied"):
        _ = SecondMoment(layer=4, matrix=torch.ones(5, 5).double(), count=900).cholesky


def test_a_missing_layer_is_named():
    model = tiny_models.build("gpt2")
    moments = second_moment(model, TEXTS, [0, 1], progress=False)
    assert list(moments) == [0, 1]
    with pytest.raises(KeyError, match=r"no second moment for layer 2; these are for layers \[0, 1\]"):
        moments[2]


def test_the_identity_control():
    model = tiny_models.build("gpt2")
    identity = SecondMoments.identity(model, [1])[1]
    assert torch.equal(identity.matrix, torch.eye(80).double())
    assert repr(identity) == "SecondMoment(layer 1, d_mlp 80, identity)"


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "hold no tokens"),
        (TEXTS, {"max_tokens": 0}, "max_tokens is 0"),
        (TEXTS, {"layers": [9]}, "layers 0 to 2"),
        (TEXTS, {"layers": []}, "at least one layer"),
    ],
)
def test_bad_input_is_refused(texts, options, message):
    model = tiny_models.build("gpt2")
    with pytest.raises(ValueError, match=message):
        second_moment(model, texts, **({"layers": [1], "progress": False} | options))


def test_one_string_is_not_a_list_of_texts():
    with pytest.raises(ValueError, match="one string"):
        second_moment(tiny_models.build("gpt2"), "The Eiffel Tower", [1], progress=False)


def test_ids_of_another_tokenizer_are_refused():
    with pytest.raises(ValueError, match=r"token ids from 5 to 10000000; .* tokenise with the model's own"):
        second_moment(tiny_models.build("gpt2"), [torch.tensor([5, 10_000_000])], [0], progress=False)
