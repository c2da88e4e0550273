"""Settings: what was published, and what cannot work."""

import pytest
import tiny_models

from tl_edit import AlphaEditConfig, EMMETConfig, MEMITConfig, PMETConfig


@pytest.fixture
def named():
    model = tiny_models.build("gpt2")

    def name(text: str):
        model.cfg.model_name = text
        return model

    return name


def test_published_settings(named):
    xl, j, llama = (MEMITConfig.for_model(named(name)) for name in ("gpt2-xl", "EleutherAI/gpt-j-6B", "Llama-3.2-3B"))
    assert (xl.layers, xl.mom2_update_weight, xl.clamp_norm_factor) == ((13, 14, 15, 16, 17), 20000, 0.75)
    assert (j.layers, j.mom2_update_weight, j.v_num_grad_steps) == ((3, 4, 5, 6, 7, 8), 15000, 25)
    assert (llama.layers, llama.clamp_norm_factor, llama.v_weight_decay) == ((4, 5, 6, 7, 8), 4.0, 1e-3)
    assert (xl.n_prefixes, xl.prefix_length, xl.v_lr, xl.kl_factor) == (5, 10, 0.5, 0.0625)
    assert EMMETConfig.for_model(named("gpt2-xl")).damping == 100
    assert AlphaEditConfig.for_model(named("meta-llama/Meta-Llama-3-8B")).weight == 1.0
    assert AlphaEditConfig.for_model(named("gpt2-xl")).nullspace_threshold == 2e-2
    assert PMETConfig.for_model(named("gpt-neox-20b")).kl_factor == 0.8


@pytest.mark.parametrize("kind", [MEMITConfig, EMMETConfig, AlphaEditConfig, PMETConfig])
def test_unknown_models_get_an_example_that_works(named, kind):
    with pytest.raises(ValueError, match=rf"no published settings for 'mine'; known .*gpt.*{kind.__name__}\(layers"):
        kind.for_model(named("mine"))


def test_a_share_is_a_weight_that_suits_the_width():
    """The published weights as shares: see algorithms of the paper's programs."""
    assert MEMITConfig(mom2_update_weight=20000.0).weight_for(6400) == 20000
    assert MEMITConfig(share=0.5).weight_for(896) == 896
    assert MEMITConfig(share=6400 / 26400).weight_for(6400) == pytest.approx(20000)


@pytest.mark.parametrize("both", [{}, {"share": 0.5, "mom2_update_weight": 1000.0}])
def test_exactly_one_of_weight_and_share(both):
    with pytest.raises(ValueError, match=r"expected exactly one of them; write e.g. MEMITConfig\(share=0.5\)"):
        MEMITConfig(**both)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_impossible_shares(share):
    with pytest.raises(ValueError, match="share is"):
        MEMITConfig(share=share)


def test_impossible_settings_are_refused():
    for kind, bad, words in (
        (MEMITConfig, {"mom2_update_weight": 0.0}, "mom2_update_weight is 0.0; expected a finite number above 0"),
        (MEMITConfig, {"share": 0.5, "n_prefixes": -1}, "n_prefixes is -1; expected"),
        (EMMETConfig, {"damping": -1.0}, "damping is -1.0; expected a finite number of 0 or more"),
        (AlphaEditConfig, {"nullspace_threshold": 0.0}, "nullspace_threshold is 0.0"),
        (PMETConfig, {"mom2_update_weight": float("inf")}, "mom2_update_weight is inf"),
        (PMETConfig, {"v_lr": 0.0}, "v_lr 0.0"),
    ):
        with pytest.raises(ValueError, match=words):
            kind(**bad)


def test_layers_may_be_a_list_and_are_kept_as_a_tuple():
    assert EMMETConfig(layers=[3, 4]).layers == (3, 4)
