"""Kinds of noise: the published program's draws, and the distributions they claim to be."""

import math

import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import torch

from tl_edit import Noise, causal_trace, embedding_std, tokenize_prompt

PROMPT, SUBJECT = "My friend saw the Space Needle in the city of", "Space Needle"
SHAPE = (10, 3, 4)


def test_gaussian_draws_are_numpys_stream():
    wanted = np.random.RandomState(1).randn(*SHAPE)
    assert np.array_equal(Noise.gaussian(std=0.5).draws(SHAPE, seed=1, own_std=9.0).numpy(), 0.5 * wanted)
    assert np.allclose(Noise.gaussian(2.0).draws(SHAPE, seed=1, own_std=0.25).numpy(), 0.5 * wanted, rtol=1e-15)


def test_uniform_draws_are_numpys_stream():
    wanted = np.random.RandomState(7).uniform(-0.3, 0.3, SHAPE)
    assert np.array_equal(Noise.uniform(0.3).draws(SHAPE, seed=7, own_std=1.0).numpy(), wanted)


def test_multivariate_noise_has_the_embeddings_moments():
    model = tiny_models.build("gpt2")
    noise = Noise.multivariate(model, tiny_tokenizers.CORPUS)
    rows = [model.to_tokens(text, prepend_bos=False) for text in tiny_tokenizers.CORPUS]
    embedded = torch.cat([model.run_with_cache(row)[1]["hook_embed"][0] for row in rows]).double()
    assert torch.allclose(noise.mean, embedded.mean(0), atol=1e-6)
    assert torch.allclose(noise.root @ noise.root.T, torch.cov(embedded.T), atol=1e-6)
    draws = noise.draws((20_000, 1, model.cfg.d_model), seed=1, own_std=1.0)[:, 0]
    assert torch.allclose(draws.mean(0), noise.mean, atol=0.05)
    assert torch.allclose(torch.cov(draws.T), torch.cov(embedded.T), atol=0.05)


def test_student_noise_is_the_gaussian_one_with_factors_of_a_fixed_stream():
    root = torch.eye(4, dtype=torch.float64)
    mean = torch.zeros(4, dtype=torch.float64)
    gaussian = Noise(distribution="multivariate", mean=mean, root=root).draws(SHAPE, seed=1, own_std=1.0)
    student = Noise(distribution="student_t", mean=mean, root=root, degrees=5).draws(SHAPE, seed=1, own_std=1.0)
    factors = np.sqrt(3 / np.random.RandomState(2).chisquare(df=5, size=1000))[:30].reshape(10, 3, 1)
    assert np.allclose((student / gaussian).numpy(), np.broadcast_to(factors, SHAPE), rtol=1e-12)
    many = Noise(distribution="student_t", mean=mean, root=root, degrees=5).draws((40_000, 1, 4), seed=1, own_std=1.0)
    assert torch.allclose(torch.cov(many[:, 0].T), root, atol=0.1)


@pytest.mark.parametrize("case", tiny_models.available_cases(("gpt2", "llama")), ids=str)
def test_every_kind_can_be_traced_by_both_engines(case):
    model = tiny_models.build(case)
    kinds = [
        Noise.uniform(0.4),
        Noise.multivariate(model, tiny_tokenizers.CORPUS),
        Noise.student_t(model, tiny_tokenizers.CORPUS, replace=True),
    ]
    seen = set()
    for noise in kinds:
        fast, plain = (
            causal_trace(model, PROMPT, SUBJECT, noise=noise, n_samples=3, window=1, engine=engine)
            for engine in ("auto", "plain")
        )
        assert torch.allclose(fast.restored, plain.restored, rtol=1e-5)
        assert fast.noise_std is None
        assert fast.corruption == repr(noise)
        seen.add(fast.corrupted)
    assert len(seen) == 3


def test_the_hook_adds_in_float64_and_rounds_once():
    noise = Noise.gaussian(std=0.1)
    act = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    draws = noise.draws((2, 2, 8), seed=1, own_std=1.0)
    out = noise.hook((1, 3), draws)(act)
    wanted = (act[:, 1:3].double() + draws.repeat(2, 1, 1)).to(torch.bfloat16)
    assert torch.equal(out[:, 1:3], wanted)
    assert torch.equal(out[:, [0, 3, 4, 5]], act[:, [0, 3, 4, 5]])


def test_embedding_std_leaves_the_bos_out():
    model = tiny_models.build("gpt2")
    prompt = tokenize_prompt(model, SUBJECT + " is", SUBJECT, prepend_bos=False)
    embedded = model.run_with_cache(prompt.tokens[None])[1]["hook_embed"][0, slice(*prompt.subject_span)]
    assert embedding_std(model, [SUBJECT]) == pytest.approx(float(embedded.double().std()), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise.gaussian(-1.0), "multiple is -1.0; expected a number, 0 or more"),
        (lambda: Noise.gaussian(std=math.inf), "std is inf"),
        (lambda: Noise.uniform(-0.1), "bound is -0.1"),
        (lambda: Noise(distribution="multivariate"), "measure them with Noise.multivariate"),
        (
            lambda: Noise(distribution="student_t", mean=torch.zeros(2), root=torch.eye(2), degrees=2),
            "2 degrees of freedom have no variance; expected 3 or more",
        ),
        (lambda: embedding_std(tiny_models.build("gpt2"), []), r"found \[\]; expected a list of strings"),
        (lambda: embedding_std(tiny_models.build("gpt2"), [""]), "at least one of them not empty"),
        (lambda: Noise.multivariate(tiny_models.build("gpt2"), ["a"]), "fewer than 2 tokens"),
    ],
)
def test_impossible_noise_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
