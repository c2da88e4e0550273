"""`SecondMoment`: solving, ridge, convergence, and which model it fits."""

import warnings
from dataclasses import replace

import pytest
import tiny_models
import tiny_tokenizers
import torch

from tl_edit import Convergence, EditRequest, ROMEConfig, SecondMoment, SecondMoments, rome_edit, second_moment
from tl_edit.moment import fingerprint
from tl_edit.moment.convergence import largest_eigenvalue

TEXTS = [*tiny_tokenizers.CORPUS, "Rome.", "The café in Zürich is old"]


def random_moment(d_mlp=20, count=100, **given):
    half = torch.randn(d_mlp, d_mlp, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return SecondMoment(layer=0, matrix=half @ half.T + torch.eye(d_mlp).double(), count=count, **given)


def keys(n, d_mlp=20):
    return torch.randn(n, d_mlp, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_cholesky_is_computed_once_and_solves():
    moment = random_moment()
    assert moment.cholesky is moment.cholesky
    assert torch.allclose(moment.cholesky @ moment.cholesky.T, moment.matrix)
    assert torch.allclose(moment.matrix @ moment.solve(keys(3).T), keys(3).T)
    assert moment.solve(keys(3).float().T).dtype == torch.float64


def test_solving_needs_columns_of_the_right_width():
    with pytest.raises(
        ValueError, match=r"shape \[3, 20\]; expected a tensor \[d_mlp n\] with d_mlp 20; pass keys as columns"
    ):
        random_moment().solve(keys(3))


def test_the_ridge_is_relative_to_the_diagonal_and_changes_no_measurement():
    moment = random_moment()
    regular = moment.with_ridge(0.5)
    added = 0.5 * float(moment.matrix.trace()) / 20
    assert torch.equal(regular.matrix, moment.matrix)
    expected = torch.linalg.solve(moment.matrix + added * torch.eye(20).double(), keys(2).T)
    assert torch.allclose(regular.solve(keys(2).T), expected)
    assert "ridge 0.5" in repr(regular)
    assert "ridge" not in repr(moment)
    assert regular.condition_number < moment.condition_number


def test_a_singular_moment_can_be_solved_with_a_ridge():
    moment = second_moment(tiny_models.build("gpt2"), TEXTS, [1], max_tokens=30, progress=False)[1]
    with pytest.raises(ValueError, match=r"singular after 30 tokens.*or solve with a ridge, e.g. moment.with_ridge"):
        moment.solve(keys(1, 80).T)
    assert torch.isfinite(moment.with_ridge(1e-3).solve(keys(1, 80).T)).all()
    measured = second_moment(tiny_models.build("gpt2"), TEXTS, [1], max_tokens=30, ridge=1e-3, progress=False)[1]
    assert torch.equal(measured.matrix, moment.matrix)
    assert measured.ridge == 1e-3


def test_a_ridge_is_a_number_of_0_or_more():
    with pytest.raises(ValueError, match="ridge is -1.0; expected a number of 0 or more"):
        random_moment().with_ridge(-1.0)


def test_a_count_is_0_or_more():
    with pytest.raises(ValueError, match="count is -5; expected 0 or more"):
        random_moment(count=-5)


def test_the_settings_are_recorded():
    model = tiny_models.build("gpt2")
    options = {"max_tokens": 60, "max_length": 9, "progress": False}
    plain = second_moment(model, TEXTS, [0], **options)
    found = plain[0].settings
    assert (found["max_tokens"], found["max_length"], found["edits"], found["hooks"]) == (60, 9, [], "")
    config = ROMEConfig(layer=0, v_num_grad_steps=3, n_prefixes=0)
    request = EditRequest("The {} is in", "Eiffel Tower", " Rome")
    with (
        rome_edit(model, request, plain.with_ridge(0.1), config=config, apply=False).on(model) as edit,
        model.hooks([("blocks.1.hook_resid_post", lambda act, hook: act)]),
    ):
        found = second_moment(model, TEXTS, [0], **options)[0].settings
    assert found["edits"] == [repr(edit)]
    assert found["hooks"].startswith("blocks.1.")  # a bridge has another name for the same point


def test_moving_keeps_the_factor():
    moment = random_moment()
    moved = moment.to("cpu")
    assert "cholesky" not in vars(moved)
    factor = moment.cholesky
    assert torch.equal(vars(moment.to("cpu"))["cholesky"], factor)
    assert moment.to("meta").matrix.is_meta


@pytest.mark.parametrize("d_mlp", [1, 3, 20, 200])
def test_the_condition_number_is_that_of_the_eigenvalues(d_mlp):
    moment = random_moment(d_mlp)
    values = torch.linalg.eigvalsh(moment.matrix)
    assert moment.condition_number == pytest.approx(float(values[-1] / values[0]), rel=0.01)


def test_the_largest_eigenvalue_of_a_multiple_of_the_identity():
    assert largest_eigenvalue(lambda x: 3 * x, torch.ones(50).double()) == pytest.approx(3)


# --- convergence ---------------------------------------------------------------------------------------


def test_convergence_of_halves_that_agree_and_of_halves_that_do_not():
    whole = random_moment(count=200)
    same = random_moment(count=200, half_matrix=whole.matrix, half_count=100, sample_keys=keys(5)).convergence()
    assert same.cosine_mean == pytest.approx(1)
    assert same.tokens_per_dimension == 10
    assert same.verdict.startswith("Converged")
    other = random_moment(count=200, half_matrix=torch.diag(torch.logspace(-3, 0, 20).double()), half_count=100)
    judged = other.convergence(keys(7))
    assert judged.n_keys == 7
    assert judged.cosine_lowest < judged.cosine_mean < 0.9


def test_convergence_by_hand():
    generator = torch.Generator().manual_seed(3)
    halves = [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (40, 60)]
    whole = torch.cat(halves)
    moment = SecondMoment(
        layer=2,
        matrix=whole.T @ whole / 100,
        count=100,
        half_matrix=halves[0].T @ halves[0] / 40,
        half_count=40,
        ridge=0.1,
    )
    added = 0.1 * float(moment.matrix.trace()) / 6
    ridge = added * torch.eye(6).double()
    solved = [torch.linalg.solve(half.T @ half / len(half) + ridge, keys(9, 6).T) for half in halves]
    cosines = torch.cosine_similarity(*solved, dim=0)
    found = moment.convergence(keys(9, 6))
    assert found.cosine_mean == pytest.approx(float(cosines.mean()), rel=1e-9)
    assert found.cosine_lowest == pytest.approx(float(cosines.min()), rel=1e-9)
    assert found.cosines == pytest.approx(cosines.tolist(), rel=1e-9)
    assert found.condition_number == pytest.approx(float(torch.linalg.cond(moment.matrix + ridge)), rel=1e-6)


def test_convergence_says_what_is_missing():
    without = random_moment().convergence()
    assert without.cosine_mean is None
    assert "split_halves=True" in repr(without)
    few = random_moment(count=30, half_matrix=torch.eye(20).double(), half_count=15, sample_keys=keys(5)).convergence()
    assert few.cosine_mean is None
    assert "a half of the tokens alone is singular" in repr(few)
    singular = SecondMoment(layer=0, matrix=torch.ones(4, 4).double(), count=9).convergence()
    assert singular.condition_number == float("inf")
    assert "Singular" in singular.verdict
    identity = SecondMoment(layer=0, matrix=torch.eye(4).double(), count=0).convergence()
    assert "control" in identity.verdict
    with pytest.raises(ValueError, match=r"shape \[5, 20\]; expected a tensor \[n d_mlp\] with d_mlp 4"):
        SecondMoment(layer=0, matrix=torch.eye(4).double(), count=9).convergence(keys(5))


def test_convergence_is_shown():
    given = {"layer": 3, "count": 5000, "d_mlp": 1000, "ridge": 0.0, "condition_number": 1e9, "n_keys": 64}
    shown = Convergence(**given, cosine_mean=0.3, cosine_lowest=-0.1)
    assert "mean 0.300, lowest -0.100 over 64 keys" in repr(shown)
    assert "Not converged" in shown.verdict
    assert "ridge" in shown.verdict
    assert "5,000 (5.0 per dimension of 1,000)" in shown._repr_html_()
    assert Convergence(**given, cosine_mean=0.7, cosine_lowest=0.5).verdict.startswith("Usable")


def test_more_tokens_converge(fact_model):
    from tl_edit.factworld import fact_texts

    cosines = [
        second_moment(fact_model, fact_texts(), [0], max_tokens=n, split_halves=True, progress=False)[0]
        .convergence()
        .cosine_mean
        for n in (5 * 896, 20 * 896)
    ]
    assert 0.3 < cosines[0] < 0.7 < cosines[1] < 0.95


# --- which model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_fingerprint_tells_models_apart(family):
    """The distances on which the thresholds rest."""
    cases = tiny_models.available_cases((family,))
    first = fingerprint.probe_keys(tiny_models.build(cases[0]), [0, 2])
    for case in cases:
        exact = fingerprint.probe_keys(tiny_models.build(case), [0, 2])
        assert max(fingerprint.distance(exact[layer], first[layer]) for layer in (0, 2)) < 1e-5, case
    for dtype in (torch.bfloat16, torch.float16):
        half = fingerprint.probe_keys(tiny_models.build(cases[0], dtype=dtype), [0, 2])
        assert max(fingerprint.distance(half[layer], first[layer]) for layer in (0, 2)) < fingerprint.DOUBTED / 3
    other = fingerprint.probe_keys(tiny_models.build(cases[0].family, seed=1), [0, 2])
    assert min(fingerprint.distance(other[layer], first[layer]) for layer in (0, 2)) > 1.2 * fingerprint.REFUSED


def test_another_model_of_the_same_shape_is_refused():
    moment = second_moment(tiny_models.build("gpt2"), TEXTS, [1], progress=False)[1]
    moment.check_fits(tiny_models.build("gpt2", dtype=torch.bfloat16), "testing")
    with pytest.raises(
        ValueError, match=r"testing: .*layer 1 was computed on a model with other keys.*compute it with"
    ):
        moment.check_fits(tiny_models.build("gpt2", seed=1), "testing")


def test_a_related_model_is_warned_of():
    moment = second_moment(tiny_models.build("gpt2"), TEXTS, [1], progress=False)[1]
    related = tiny_models.build("gpt2")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in related.parameters():
            if parameter.ndim > 1:
                parameter += 0.15 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    with pytest.warns(UserWarning, match="if this is not a related model, compute it"):
        moment.check_fits(related, "testing")


def test_edited_and_hooked_models_are_the_users_business():
    model = tiny_models.build("gpt2")
    moments = second_moment(model, TEXTS, [0, 1], progress=False)
    config = ROMEConfig(layer=0, v_num_grad_steps=3, n_prefixes=0)
    request = EditRequest("The {} is in", "Eiffel Tower", " Rome")
    edit = rome_edit(model, request, moments, config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moments[1].check_fits(model, "testing")
        edit.undo(model)
        with model.hooks([("blocks.0.mlp.hook_post", lambda act, hook: -act)]):
            moments[1].check_fits(model, "testing")


def test_without_a_fingerprint_width_and_name_are_compared():
    identity = SecondMoments.identity(tiny_models.build("gpt2"), [1])[1]
    identity.check_fits(tiny_models.build("gpt2", seed=1), "testing")
    with pytest.raises(ValueError, match="layers 0 to 0"):
        identity.check_fits(tiny_models.build("gpt2", n_layers=1), "testing")


def test_a_moment_shows_what_was_measured_and_its_spectrum():
    matrix = torch.diag(torch.tensor([1.0, 4.0, 0.0, 9.0], dtype=torch.float64))
    moment = SecondMoment(layer=2, matrix=matrix, count=40, corpus="<b>", ridge=0.5, counts_bos=False)
    assert moment.eigenvalues.tolist() == pytest.approx([9.0, 4.0, 1.0, 0.0])
    page = moment._repr_html_()
    assert "40 (10.0 per dimension of 4)" in page
    assert "are left out" in page
    assert "&lt;b&gt;" in page
    assert "adds 1.75 to the diagonal" in page
    identity = SecondMoment(layer=0, matrix=torch.eye(4).double(), count=0)
    assert "the identity, a control" in identity._repr_html_()
    pytest.importorskip("matplotlib")
    axis = moment.plot()
    line, ridge = axis.lines
    assert axis.get_yscale() == "log"
    assert list(line.get_ydata())[:3] == pytest.approx([9.0, 4.0, 1.0])
    assert line.get_label() == "layer 2: 10.0 tokens per dimension, 1 eigenvalue of 0"
    assert list(ridge.get_ydata()) == [1.75, 1.75]
    both = SecondMoments([moment, identity])
    assert len(both.plot().lines) == 3
    many = SecondMoments([replace(moment, layer=layer) for layer in range(7)])
    assert len(many.plot().lines) == 7
    assert many.plot().figure.axes[1].get_ylabel() == "layer"
    assert "layer 2, d_mlp 4, 40 tokens without BOS of &lt;b&gt;" in both._repr_html_()


def test_there_are_no_more_directions_than_tokens():
    """What rounding makes of the others is no spectrum."""
    matrix = torch.diag(torch.tensor([4.0, 1.0, 1e-8, 1e-9], dtype=torch.float64))
    few = SecondMoment(layer=0, matrix=matrix, count=2)
    assert "not possible: fewer tokens than dimensions" in few._repr_html_()
    assert "not possible" not in replace(few, ridge=0.1)._repr_html_()
    pytest.importorskip("matplotlib")
    (line,) = few.plot().lines
    assert line.get_label() == "layer 0: 0.5 tokens per dimension, 2 eigenvalues of 0"
    (line,) = replace(few, count=4).plot().lines
    assert line.get_label() == "layer 0: 1.0 tokens per dimension"


def test_moments_in_a_folder_are_not_read_for_a_table(tmp_path):
    SecondMoments([SecondMoment(layer=0, matrix=torch.eye(4).double(), count=9)]).save(tmp_path)
    assert "read when it is asked for" in SecondMoments.load(tmp_path)._repr_html_()


def test_convergence_draws_every_key():
    pytest.importorskip("matplotlib")
    given = {"layer": 3, "count": 50, "d_mlp": 10, "ridge": 0.0, "condition_number": 1e3, "n_keys": 3}
    shown = Convergence(**given, cosine_mean=0.5, cosine_lowest=0.2, cosines=(0.8, 0.2, 0.5))
    assert list(shown.plot().lines[0].get_ydata()) == [0.2, 0.5, 0.8]
    with pytest.raises(ValueError, match="layer 3 has no split-half cosines; expected some; there are no halves"):
        Convergence(**given, cosine_mean=None, cosine_lowest=None, advice="there are no halves; call it.").plot()
