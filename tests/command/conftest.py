"""Running commands as a person does, with second moments that are measured once for all tests."""

import json

import pytest

from tl_edit import SecondMoments, rome, second_moment
from tl_edit.command import inputs
from tl_edit.command import main as run_main
from tl_edit.factworld import MODEL_NAME, fact_texts
from tl_edit.memit import settings


@pytest.fixture
def few_steps(monkeypatch):
    """The bundled model's settings, with searches that are short and with few prefixes."""
    short = {"v_num_grad_steps": 12, "v_lr": 0.5, "n_prefixes": 1}
    for table, own in ((rome._PUBLISHED, {"prefix_lengths": (5,)}), (settings._MEMIT, {})):
        monkeypatch.setitem(table, MODEL_NAME, table[MODEL_NAME] | short | own)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """(exit code, standard output, standard error), in a folder of the test's own."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object):
        capsys.readouterr()
        code = run_main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def plain(run):
    """What a command says with --json."""

    def call(*arguments: object) -> dict:
        code, out, err = run(*arguments, "--json", "--quiet")
        assert code == 0, err
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    return call


@pytest.fixture(scope="session")
def moments(fact_model, tmp_path_factory):
    """A folder with the second moments of the bundled model's first two layers."""
    folder = tmp_path_factory.mktemp("moments") / "bundled"
    second_moment(fact_model, fact_texts(), [0, 1], progress=False).save(folder)
    return folder


@pytest.fixture
def quick(moments, monkeypatch):
    """Second moments without a measurement, for commands that are run as they stand."""
    known = SecondMoments.load(moments)

    def measured(model, texts, layers, **_):
        return SecondMoments(known[layer] for layer in layers)

    monkeypatch.setattr(inputs, "second_moment", measured)
