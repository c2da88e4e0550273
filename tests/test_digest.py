"""Hashes of texts and tensors."""

from tl_edit.digest import digest


def test_lone_surrogates_have_a_hash_of_their_own():
    assert digest(["a\ud800"]) != digest(["a\ud801"])
    assert digest(["Zürich"]) == digest(["Zürich"])
