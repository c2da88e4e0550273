"""Second moments: the mean of k k^T over real tokens, whatever the batches."""

import pytest
import tiny_models
import tiny_tokenizers
import torch

from tl_edit import SecondMoment, SecondMoments, host, second_moment
from tl_edit.moment import gram, sample

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


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_weight_processing_and_interface_do_not_change_keys(family):
    """So a moment, also one of the published programs' files, fits the model however it is loaded."""
    first = None
    for case in tiny_models.available_cases((family,)):
        moments = second_moment(tiny_models.build(case), TEXTS, [0, 2], prepend_bos=False, progress=False)
        first = moments if first is None else first
        for layer in (0, 2):
            difference = (moments[layer].matrix - first[layer].matrix).norm() / first[layer].matrix.norm()
            assert float(difference) < 1e-5, case
            moments[layer].check_fits(tiny_models.build(case), "testing")


def test_keys_are_summed_beyond_one_float32_sum(monkeypatch):
    """Many partial sums, and batches that are longer than one of them."""
    model = tiny_models.build("gpt2", dtype=torch.float64)
    whole = second_moment(model, TEXTS, [1], progress=False)[1]
    monkeypatch.setattr(gram, "PARTIAL", 7)
    again = second_moment(model, TEXTS, [1], progress=False)[1]
    assert torch.allclose(again.matrix, whole.matrix, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("width", [1, 5, 8, 80])
def test_the_sum_is_symmetric_to_the_last_bit(width):
    keys = torch.randn(50, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    summed = gram.Gram(0, width)
    summed.add(keys)
    whole = summed.whole()
    assert torch.equal(whole, whole.T)
    assert torch.allclose(whole, keys.T @ keys, rtol=1e-12, atol=1e-13)
    assert summed.count == 50


def test_keys_that_are_not_finite_are_refused():
    summed = gram.Gram(3, 4)
    summed.add(torch.full((2, 4), float("inf")))
    with pytest.raises(ValueError, match="keys of layer 3 are not finite"):
        summed.flush()


def test_halves_make_up_the_whole():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    for batch_tokens in (1, 4096):
        options = {"batch_tokens": batch_tokens, "progress": False}
        whole = second_moment(model, TEXTS, [1], **options)[1]
        halved = second_moment(model, TEXTS, [1], split_halves=True, **options)[1]
        assert torch.allclose(halved.matrix, whole.matrix, rtol=1e-11, atol=1e-13)
        assert 0.25 * whole.count < halved.half_count < 0.75 * whole.count
        # What is left of the whole is again a sum of k k^T.
        rest = halved.matrix * halved.count - halved.half_matrix * halved.half_count
        assert float(torch.linalg.eigvalsh(rest)[0]) > -1e-8
        assert float(torch.linalg.eigvalsh(halved.half_matrix)[0]) > -1e-8


def test_sample_keys_are_keys_of_the_texts_and_do_not_depend_on_batches():
    model = tiny_models.build("gpt2", dtype=torch.float64)
    moments = second_moment(model, TEXTS, [0, 2], seed=4, progress=False)
    again = second_moment(model, TEXTS, [0, 2], seed=4, batch_tokens=30, progress=False)
    other = second_moment(model, TEXTS, [0], seed=5, progress=False)
    everything = second_moment(model, TEXTS[:1], [0], progress=False)[0]
    assert moments[0].sample_keys.shape == (64, 80)
    for layer in (0, 2):
        assert torch.allclose(moments[layer].sample_keys, again[layer].sample_keys, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(moments[0].sample_keys, other[0].sample_keys)
    keys = everything.sample_keys
    assert len(keys) == everything.count < 64
    assert torch.allclose(keys.T @ keys / len(keys), everything.matrix, rtol=1e-9, atol=1e-12)


def test_marks_are_even_and_of_their_own():
    drawn = torch.cat([sample.marks(seed, text, 100) for seed in (0, 1) for text in range(50)])
    assert len(drawn.unique()) == len(drawn)
    shares = torch.histc(drawn.double() / 2**63, bins=10, min=0, max=1) / len(drawn)
    assert float((shares - 0.1).abs().max()) < 0.015
    assert torch.equal(sample.marks(3, 7, 10), sample.marks(3, 7, 20)[:10])


def test_hooks_of_the_users_take_part_and_stay():
    model = tiny_models.build("gpt2")
    name = host.key_name(1)
    model.hook_dict[name].add_hook(lambda act, hook: 2 * act)
    doubled = second_moment(model, TEXTS, [1], progress=False)[1].matrix
    assert len(model.hook_dict[name].fwd_hooks) == 1
    model.reset_hooks()
    plain = second_moment(model, TEXTS, [1], progress=False)[1].matrix
    assert torch.allclose(doubled, 4 * plain, rtol=1e-5, atol=1e-6)


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
