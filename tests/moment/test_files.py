"""Second moments in files: our own, and the published programs' npz."""

import struct
import warnings

import numpy as np
import pytest
import tiny_models
import tiny_tokenizers
import torch
from safetensors.torch import save_file

from tl_edit import SecondMoment, SecondMoments, archive, second_moment

TEXTS = [*tiny_tokenizers.CORPUS, "Rome."]


@pytest.fixture(scope="module")
def moments():
    options = {"split_halves": True, "ridge": 0.01, "corpus": "a few sentences", "count_bos": False}
    return second_moment(tiny_models.build("gpt2"), TEXTS, [0, 2], **options, progress=False)


def assert_equal(one: SecondMoment, other: SecondMoment):
    for name in ("matrix", "sample_keys", "probe_keys", "half_matrix"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("layer", "count", "provenance", "corpus", "ridge", "counts_bos", "half_count", "settings"):
        assert getattr(one, name) == getattr(other, name), name


def test_a_moment_comes_back_as_it_was(moments, tmp_path):
    moments[2].save(tmp_path / "moment.safetensors")
    found = SecondMoment.load(tmp_path / "moment.safetensors")
    assert_equal(found, moments[2])
    assert "cholesky" not in vars(found)
    assert [path.name for path in tmp_path.iterdir()] == ["moment.safetensors"]


def test_the_factor_can_be_kept(moments, tmp_path):
    moments[2].save(tmp_path / "moment.safetensors", with_factor=True)
    assert torch.equal(vars(SecondMoment.load(tmp_path / "moment.safetensors"))["cholesky"], moments[2].cholesky)


def test_float32_takes_half_the_space(moments, tmp_path):
    moments[2].save(tmp_path / "wide")
    moments[2].save(tmp_path / "narrow", dtype=torch.float32)
    assert (tmp_path / "narrow").stat().st_size < 0.7 * (tmp_path / "wide").stat().st_size
    found = SecondMoment.load(tmp_path / "narrow").matrix
    assert found.dtype == torch.float64
    assert torch.allclose(found, moments[2].matrix, rtol=1e-6)
    with pytest.raises(ValueError, match="dtype is torch.float16"):
        moments[2].save(tmp_path / "half", dtype=torch.float16)


def test_plain_moments_and_the_identity_come_back(tmp_path):
    identity = SecondMoments.identity(tiny_models.build("gpt2"), [1])[1]
    identity.save(tmp_path / "identity")
    found = SecondMoment.load(tmp_path / "identity")
    assert torch.equal(found.matrix, identity.matrix)
    assert found.provenance is None
    assert found.sample_keys is None


def test_a_folder_is_read_layer_by_layer_and_nothing_is_kept(moments, tmp_path):
    moments.save(tmp_path / "moments")
    found = SecondMoments.load(tmp_path / "moments")
    assert list(found) == [0, 2]
    assert 2 in found
    assert "layer 2 in " in repr(found)
    moment = found[2]
    assert_equal(moment, moments[2])
    assert found[2] is moment
    del moment
    assert not len(found._in_use)
    found.save(tmp_path / "again")
    assert_equal(SecondMoments.load(tmp_path / "again")[0], moments[0])


def test_folders_without_moments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no files layer-\*.safetensors; expected a folder"):
        SecondMoments.load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot be made"):
        SecondMoments([]).save(tmp_path / "file" / "folder")


def test_runs_are_not_mixed_in_a_folder(moments, tmp_path):
    moments.save(tmp_path)
    moments.save(tmp_path)
    with pytest.raises(ValueError, match=r"holds layer-2.safetensors, of another run; .* layers \[0\] only; choose"):
        SecondMoments([moments[0]]).save(tmp_path)
    moments[0].save(tmp_path / "layer-5.safetensors")
    with pytest.raises(ValueError, match=r"layer-0.safetensors and layer-5.safetensors are both of layer 0; .*remove"):
        SecondMoments.load(tmp_path)
    with pytest.raises(ValueError, match=r"it is a folder.*is for SecondMoments.load"):
        SecondMoment.load(tmp_path)


def test_all_layers_get_a_ridge(moments, tmp_path):
    moments.save(tmp_path, with_factor=True)
    for found in (moments, SecondMoments.load(tmp_path)):
        other = found.with_ridge(0.5)
        assert [other[layer].ridge for layer in other] == [0.5, 0.5]
        assert torch.equal(other[2].cholesky, moments[2].with_ridge(0.5).cholesky)
        assert found[2].ridge == 0.01
        assert [other.with_ridge(0.1)[layer].ridge for layer in other] == [0.1, 0.1]
        with pytest.raises(ValueError, match="SecondMoments.with_ridge: ridge is -1.0"):
            found.with_ridge(-1.0)
    assert "cholesky" in vars(SecondMoments.load(tmp_path).with_ridge(0.01)[2])


def test_files_without_settings_load(moments, tmp_path, monkeypatch):
    write = archive.write

    def older(path, kind, tensors, plain):
        write(path, kind, tensors, {name: value for name, value in plain.items() if name != "settings"})

    monkeypatch.setattr(archive, "write", older)
    moments[2].save(tmp_path / "moment")
    found = SecondMoment.load(tmp_path / "moment")
    assert found.settings is None
    assert torch.equal(found.matrix, moments[2].matrix)


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def relabel(content: bytes) -> bytes:
    return content.replace(b'\\"layer\\": 2', b'\\"layer\\": 1')


@pytest.mark.parametrize("damage", [truncate, flip, relabel, lambda content: b"", lambda content: b"x" * 100])
def test_damaged_files_are_refused(moments, tmp_path, damage):
    path = tmp_path / "layer-2.safetensors"
    moments[2].save(path)
    content = damage(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"SecondMoment.load: .* cannot be read .*expected a file written by"):
        SecondMoment.load(path)
    if damage is not flip and damage is not relabel:
        with pytest.raises(ValueError, match="SecondMoment.load"):
            SecondMoments.load(tmp_path)


def test_foreign_and_missing_files_are_refused(moments, tmp_path):
    save_file({"matrix": torch.eye(3)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="schema None"):
        SecondMoment.load(tmp_path / "foreign")
    with pytest.raises(ValueError, match="cannot be read"):
        SecondMoment.load(tmp_path / "missing")
    with pytest.raises(ValueError, match="cannot be written"):
        moments[2].save(tmp_path / "no folder" / "moment")


# --- the published programs' files ---------------------------------------------------------------------


def by_hand(path, **changes):
    """A file as the published program's own code writes it."""
    keys = np.random.RandomState(0).standard_normal((50, 6))
    none = np.array(struct.unpack(">d", struct.pack(">Q", 0xFFF8000000000002))[0])
    values = {
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "mom2.count": 50,
        "mom2.mom2": (keys.T @ keys).astype(np.float32),
        "sample_size": none,
    } | changes
    np.savez(path, **{name: value for name, value in values.items() if value is not None})
    return keys.T @ keys / 50


def test_a_published_file_is_read(tmp_path):
    expected = by_hand(tmp_path / "stats.npz", sample_size=100000)
    moment = SecondMoment.from_npz(tmp_path / "stats.npz", 17, corpus="wikipedia 20200501.en", ridge=0.1)
    assert (moment.layer, moment.count, moment.counts_bos, moment.ridge) == (17, 50, False, 0.1)
    assert moment.matrix.dtype == torch.float64
    assert torch.allclose(moment.matrix, torch.from_numpy(expected), rtol=1e-6, atol=1e-7)
    assert repr(moment) == "SecondMoment(layer 17, d_mlp 6, 50 tokens without BOS of wikipedia 20200501.en, ridge 0.1)"


@pytest.mark.parametrize(("sample_size", "bits"), [(None, 0xFFF8000000000002), (100000, None)])
def test_a_published_file_is_written_as_the_programs_write_it(moments, tmp_path, sample_size, bits):
    moments[2].to_npz(tmp_path / "stats.npz", sample_size=sample_size)
    with np.load(tmp_path / "stats.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["mom2.constructor", "mom2.count", "mom2.mom2", "sample_size"]
        assert file["mom2.constructor"].item() == "util.runningstats.SecondMoment()"
        assert int(file["mom2.count"]) == moments[2].count
        assert file["mom2.mom2"].dtype == np.float32
        if bits is None:
            assert int(file["sample_size"]) == sample_size
        else:
            assert struct.unpack(">Q", struct.pack(">d", float(file["sample_size"])))[0] == bits
    found = SecondMoment.from_npz(tmp_path / "stats.npz", 2)
    assert found.count == moments[2].count
    assert torch.allclose(found.matrix, moments[2].matrix, rtol=1e-6)
    found.to_npz(tmp_path / "again.npz", sample_size=sample_size)
    assert torch.equal(SecondMoment.from_npz(tmp_path / "again.npz", 2).matrix, found.matrix)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mom2.mom2": None}, r"not \['mom2.mom2'\]"),
        ({"mom2.count": None}, r"not \['mom2.count'\]"),
        ({"mom2.count": 0}, "mom2.count is 0"),
        ({"mom2.count": np.array([1, 2])}, "mom2.count is"),
        ({"mom2.mom2": np.ones((3, 4), np.float32)}, r"float32 of shape \[3, 4\]"),
        ({"mom2.mom2": np.ones(3, np.float32)}, r"shape \[3\]"),
        ({"mom2.mom2": np.full((2, 2), np.nan, np.float32)}, "not finite"),
        ({"mom2.mom2": np.array([[1, 2], [3, 1]], np.float32)}, "not symmetric"),
        ({"mom2.mom2": -np.eye(2, dtype=np.float32)}, "diagonal of 0 or more"),
        ({"mom2.constructor": "util.runningstats.Mean()"}, "mom2 is a util.runningstats.Mean"),
        ({"mom2.mom2": np.array([{}], dtype=object)}, "cannot be read"),
        ({"mom2.count": np.inf}, "mom2.count is inf, no whole number"),
        ({"mom2.count": 50 + 1j}, "mom2.count is .*, no whole number"),
        ({"mom2.count": 49.5}, "mom2.count is 49.5, no whole number"),
        ({"mom2.count": True}, "mom2.count is True, no whole number"),
        ({"mom2.mom2": np.zeros((0, 0), np.float32)}, r"shape \[0, 0\]"),
        ({"mom2.mom2": np.zeros((6, 6), np.float32)}, "0 everywhere"),
        ({"mom2.mom2": np.diag([1e9, 1, -1]).astype(np.float32)}, "diagonal of 0 or more"),
        # One large neuron does not hide the others.
        ({"mom2.mom2": np.array([[1e9, 0, 0], [0, 2, 1], [0, 0, 2]], np.float32)}, "not symmetric"),
    ],
)
def test_what_is_no_second_moment_is_refused(tmp_path, changes, message):
    by_hand(tmp_path / "stats.npz", **changes)
    with pytest.raises(ValueError, match=rf"SecondMoment.from_npz: .*{message}.*expected the published programs' keys"):
        SecondMoment.from_npz(tmp_path / "stats.npz", 17)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 torn off"])
def test_damaged_npz_files_are_refused(tmp_path, content):
    (tmp_path / "stats.npz").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        SecondMoment.from_npz(tmp_path / "stats.npz", 17)
    with pytest.raises(ValueError, match="cannot be read"):
        SecondMoment.from_npz(tmp_path / "missing.npz", 17)


def test_other_files_of_numpy_are_refused(tmp_path):
    np.save(tmp_path / "stats.npy", np.eye(3))
    with pytest.raises(ValueError, match="cannot be read .it is a single array, no .npz.*expected the published"):
        SecondMoment.from_npz(tmp_path / "stats.npy", 17)
    numbers = np.random.RandomState(0).standard_normal((60, 60)).astype(np.float32)
    np.savez_compressed(tmp_path / "stats.npz", **{"mom2.mom2": numbers, "mom2.count": 50})
    content = bytearray((tmp_path / "stats.npz").read_bytes())
    content[1000:1400] = b"\xff" * 400
    (tmp_path / "stats.npz").write_bytes(bytes(content))
    with pytest.raises(ValueError, match="from_npz: .* cannot be read"):
        SecondMoment.from_npz(tmp_path / "stats.npz", 17)


def test_the_layer_is_that_of_the_file_name(tmp_path):
    with pytest.raises(ValueError, match="layer is -1; expected 0 or more"):
        SecondMoment.from_npz(tmp_path / "stats.npz", -1)
    for name in ("transformer.h.1.mlp.c_proj_float32_mom2_100000.npz", "model.layers.1.mlp.down_proj.npz"):
        by_hand(tmp_path / name)
        with pytest.warns(UserWarning, match="layer is 2, and the file is .*pass layer=1 if the name is right"):
            SecondMoment.from_npz(tmp_path / name, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            SecondMoment.from_npz(tmp_path / name, 1)


def test_whether_a_bos_counts_is_said_by_the_user(tmp_path):
    model = tiny_models.build("gpt2")
    counting = second_moment(model, TEXTS, [2], prepend_bos=True, progress=False)[2]
    with pytest.warns(UserWarning, match="counts keys at a BOS, which the file does not say"):
        counting.to_npz(tmp_path / "stats.npz")
    without = second_moment(model, TEXTS, [2], prepend_bos=False, progress=False)[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without.to_npz(tmp_path / "without.npz")
        assert SecondMoment.from_npz(tmp_path / "stats.npz", 2, model=model, counts_bos=True).counts_bos


def test_a_published_file_is_there_whole_or_not_at_all(moments, tmp_path, monkeypatch):
    moments[2].to_npz(tmp_path / "stats.npz")
    before = (tmp_path / "stats.npz").read_bytes()

    def full(file, **values):
        file.write(b"torn")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ValueError, match="cannot be written .*No space left"):
        moments[0].to_npz(tmp_path / "stats.npz")
    assert (tmp_path / "stats.npz").read_bytes() == before


def test_a_model_is_compared_with_a_published_file_and_its_bos_warned_of(moments, tmp_path):
    model = tiny_models.build("gpt2")
    moments[2].to_npz(tmp_path / "stats.npz")
    with pytest.warns(UserWarning, match="begins prompts with a BOS.*prepend_bos=False"):
        SecondMoment.from_npz(tmp_path / "stats.npz", 2, model=model)
    by_hand(tmp_path / "narrow.npz")
    with pytest.raises(ValueError, match="layer 2 with d_mlp 6;.*has d_mlp 80"):
        SecondMoment.from_npz(tmp_path / "narrow.npz", 2, model=model)


def test_the_identity_has_no_published_form(tmp_path):
    identity = SecondMoments.identity(tiny_models.build("gpt2"), [1])[1]
    with pytest.raises(ValueError, match="0 tokens; expected a measured moment.*mom2_adjustment: false"):
        identity.to_npz(tmp_path / "stats.npz")
