"""A package that is not installed is named, with what to run."""

import sys

import pytest

from tl_edit.extras import EXTRAS, extra


@pytest.mark.parametrize(
    ("package", "remedy"),
    [("matplotlib.pyplot", "tl-edit[plot]"), ("nltk.tokenize", "tl-edit[text]"), ("sklearn.svm", "tl-edit[text]")],
)
def test_a_missing_extra_is_named(monkeypatch, package, remedy):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as error:
        extra(package, "plot")
    name = package.split(".")[0]
    assert str(error.value) == f"plot needs {name}, which is not installed; run {EXTRAS[name]}."
    assert remedy in EXTRAS[name]


def test_what_is_installed_is_given():
    assert extra("json", "anything") is sys.modules["json"]
