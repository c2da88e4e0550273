"""What commands cannot use: exit code 2 with advice, and no traceback."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from tl_edit import SecondMoments, host
from tl_edit.command import inputs

pytestmark = pytest.mark.usefixtures("few_steps")

EIFFEL = ("--subject", "Eiffel Tower")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "--limit", 0), ("--limit 0", "1 or more")),
        (("sweep", "--limit", -1), ("--limit -1",)),
        (("evaluate", "--records", "no/such.json"), ("no/such.json", "expected one that exists", "multi_counterfact")),
        (("evaluate", "--records", "counterfakt"), ("counterfakt", "published")),
        (("evaluate", "--snippets", "x.json"), ("--snippets", "leave it out")),
        (("evaluate", "--kl"), ("--kl compares", "--edit")),
        (("evaluate", "--edit", "none.safetensors"), ("none.safetensors",)),
        (("evaluate", "--perplexity", "no.txt", "--edit", "x"), ("--perplexity no.txt", "no file or folder")),
        (("evaluate", "--tfidf", "x"), ("--tfidf x", "--generate")),
        (("evaluate", "--limit", 1, "--generate", 100), ("--generate 100", "context of 64", "--generate 64")),
        (("evaluate", "--limit", 1, "--generate", 20, "--tfidf", "none"), ("none", "idf.npy")),
        (("trace",), ("either --subject", "--facts")),
        (("trace", *EIFFEL, "--facts", "bundled"), ("not both",)),
        (("trace", *EIFFEL, "--folder", "x"), ("--folder does not go with --subject",)),
        (("trace", "--facts", "bundled", "--prompt", "x"), ("--prompt does not go with --facts",)),
        (("trace", "--subject", "Atlantis"), ("--prompt is missing", "Atlantis")),
        (("trace", "--facts", "none.json"), ("none.json",)),
        (("trace", "--facts", "bundled", "--limit", 0), ("--limit 0",)),
        (("trace", *EIFFEL, "--samples", 0), ("--samples 0", "1 or more")),
        (("edit",), ("nothing says what to edit", "--subject")),
        (("edit", *EIFFEL, "--records", "bundled"), ("--subject does not go with --records",)),
        (("edit", *EIFFEL, "--limit", 3), ("--limit goes with --records",)),
        (("edit", *EIFFEL, "--method", "role"), ("no method 'role'", "rome, rome-identity")),
        (("edit", *EIFFEL, "--layer", 9), ("layer 9", "layers 0 to 5")),
        (("edit", *EIFFEL, "--method", "memit", "--layers", 0, 9), ("9", "layers 0 to 5")),
        (("edit", *EIFFEL, "--moments", "none.npz"), ("--moments none.npz", "no such file")),
        (("edit", *EIFFEL, "--out", "no/such/folder/rome.safetensors"), ("--out no/such/folder", "is not there")),
        (("evaluate", "--limit", 1, "--out", "."), ("--out .", "is a folder")),
        (("edit", *EIFFEL, "--ridge", -1), ("--ridge -1.0", "0 or more", "1e-3")),
        (("edit", *EIFFEL, "--layers", 0, 1), ("layers [0, 1] are given", "--layer")),
        (("reproduce", "rome-counterfact", "--layers", 0, 1), ("--layers is for MEMIT",)),
        (("edit", "--records", "bundled", "--limit", 2), ("--method rome edits one record", "--method memit", "sweep")),
        (("sweep", "--methods", "none", "role", "--limit", 2), ("no method 'role'", "expected some of none")),
        (("sweep", "--methods", "none", "none"), ("a method twice",)),
        (("sweep", "--methods", "none", "random"), ("'random' takes its norm", "add e.g. rome")),
        (("sweep", "--methods", "rome", "--batch", 3), ("rome edits one record at a time", "the batch is 3")),
        (("sweep", "--methods", "none", "--batch", 0, "--limit", 1), ("--batch 0",)),
        (("sweep", "--methods", "none", "--limit", 1, "--batch-size", 0), ("--batch-size 0",)),
        (("sweep", "--limit", 1, "--texts", "no.txt"), ("--texts no.txt", "no file or folder")),
        (("reproduce", "trace-averages", "--limit", 0), ("--limit 0",)),
        (("reproduce", "memit-scaling", "--n", 5, "--limit", 3), ("5 edits at once", "3 records", "--n")),
        (("reproduce", "rome-counterfact", "--records", "none.json"), ("none.json",)),
        (("evaluate", "--model", "no-such-model-anywhere", "--records", "bundled"), ("could not load", "--model")),
        (("evaluate", "--device", "nowhere", "--limit", 1), ("--device nowhere", "expected one of cpu")),
    ],
)
def test_code_2_with_advice(run, arguments, words):
    code, out, err = run(*arguments)
    assert code == 2, out
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in err.replace("\n", " ")


def test_a_package_that_is_not_there(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    code, _, err = run("evaluate", "--limit", 1, "--generate", 20)
    assert code == 2
    assert 'pip install "tl-edit[text]"' in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "--limits", "3"),
        ("evaluate", "--limit", "three"),
        ("sweep", "--dtype", "int8"),
        ("sweep", "--markdown", "--latex"),
        ("reproduce", "rome"),
        ("reproduce",),
    ],
)
def test_what_the_parser_refuses(run, arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2


def test_the_folder_of_another_run(run, moments):
    ask = ("sweep", "--limit", 1, "--methods", "none", "--folder", "runs", "--quiet")
    assert run(*ask)[0] == 0
    code, _, err = run(*ask, "--no-prepend-bos")
    assert code == 2
    assert "holds another run: prepend_bos True (now False)" in err
    code, _, err = run(*ask, "--seed", 5)
    assert code == 2
    assert "other records" in err


def test_texts_beside_moments_that_are_there_are_warned_of(run, moments, tmp_path):
    (tmp_path / "texts.txt").write_text("", "utf-8")
    code, _, err = run(
        "sweep", "--methods", "rome", "--limit", 1, "--moments", moments, "--texts", "texts.txt", "--quiet"
    )
    assert code == 0
    assert "--texts would only count where it had to be measured" in err.replace("\n", " ")


def test_an_edit_of_another_model(run, moments, tiny_folder):
    ask = ("edit", *EIFFEL, "--target-new", "Rome", "--moments", moments, "--out", "rome.safetensors", "--quiet")
    assert run(*ask)[0] == 0
    code, _, err = run(
        "evaluate", "--model", tiny_folder, "--records", "bundled", "--limit", 1, "--edit", "rome.safetensors"
    )
    assert code == 2
    assert "192" in err, "its width"


def test_moments_that_do_not_fit(run, moments, tmp_path, fact_model, tiny_folder):
    file = moments / "layer-1.safetensors"
    code, _, err = run("edit", *EIFFEL, "--layer", 3, "--moments", file)
    assert code == 2
    assert "has layers [1]; expected [3]" in err
    ask = ("--relation", "The {} is in", "--target-new", "Rome", "--layer", 0)
    code, _, err = run("edit", "--model", tiny_folder, *EIFFEL, *ask, "--moments", moments)
    assert code == 2
    assert "896" in err
    np.savez(tmp_path / "statistics.npz", a=np.zeros(3))
    code, _, err = run("edit", *EIFFEL, "--moments", "statistics.npz")
    assert code == 2
    assert "does not say which layer" in err


def test_a_ridge_bounds_a_change_that_dwarfs_its_layer(run, moments):
    ask = ("edit", *EIFFEL, "--target-new", "Rome", "--layer", 1, "--moments", moments)
    _, large, err = run(*ask, "--json")
    assert "more than 10 times as large as its W_out" in err
    assert "e.g. --ridge 1e-3" in err
    _, small, err = run(*ask, "--ridge", "1e-3", "--json")
    assert "times as large" not in err
    assert json.loads(large)["norms"]["1"] > 10 * json.loads(small)["norms"]["1"]


@pytest.mark.filterwarnings("ignore:.*counts keys at a BOS")
def test_published_files_and_a_folder_to_keep_moments_in(plain, moments, tmp_path):
    known = SecondMoments.load(moments)
    known[0].to_npz(tmp_path / "transformer.h.0.mlp.c_proj_float32_mom2_100.npz")
    ask = ("edit", *EIFFEL, "--target-new", "Rome")
    from_npz = plain(*ask, "--moments", "transformer.h.0.mlp.c_proj_float32_mom2_100.npz")
    (tmp_path / "texts.txt").write_text("", "utf-8")
    kept = plain(*ask, "--moments", "new")
    assert list(SecondMoments.load("new")) == [0]
    assert not (tmp_path / "new.unfinished").exists()
    again = plain(*ask, "--moments", "new", "--texts", "texts.txt")
    assert kept["norms"] == again["norms"], "what is kept is read again, and no text"
    assert from_npz["norms"]["0"] == pytest.approx(kept["norms"]["0"], rel=1e-4)


@pytest.mark.parametrize("number", [1, 0], ids=["a layer is there", "an empty folder"])
def test_a_folder_gets_the_layers_it_lacks(plain, moments, tmp_path, monkeypatch, number):
    folder = tmp_path / "growing"
    folder.mkdir()
    known = SecondMoments.load(moments)
    if number:
        known[0].save(folder / "layer-0.safetensors")
    asked = []

    def measured(model, texts, layers, **_):
        asked.append(list(layers))
        return SecondMoments(known[layer] for layer in layers)

    monkeypatch.setattr(inputs, "second_moment", measured)
    ask = ("edit", *EIFFEL, "--target-new", "Rome", "--method", "memit", "--layers", "0,1", "--moments", folder)
    first = plain(*ask)
    assert asked == [[0, 1][number:]]
    assert list(SecondMoments.load(folder)) == [0, 1]
    assert plain(*ask)["norms"] == first["norms"]
    assert len(asked) == 1, "what is kept is read again"


@pytest.mark.usefixtures("quick")
def test_layers_of_other_texts_are_warned_of(run, moments, tmp_path):
    replace(SecondMoments.load(moments)[0], count=99_000).save(tmp_path / "layer-0.safetensors")
    ask = ("edit", *EIFFEL, "--target-new", "Rome", "--method", "memit", "--layers", 0, 1, "--moments", ".", "--quiet")
    code, _, err = run(*ask)
    assert code == 0
    assert "layer 0 is of 99,000 tokens and layer 1 is of 33,886 tokens; expected the same --texts" in err


def test_a_folder_with_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "louvre.jpg").write_text("", "utf-8")
    code, _, err = run("edit", *EIFFEL, "--target-new", "Rome", "--moments", "photos")
    assert code == 2
    assert "--moments photos: the folder holds louvre.jpg, but no second moments" in err
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["louvre.jpg"]


def test_a_model_without_published_settings_needs_a_layer(run, tiny_folder):
    fact = (*EIFFEL, "--relation", "The {} is in", "--target-new", "Rome")
    code, _, err = run("edit", "--model", tiny_folder, *fact)
    assert code == 2
    assert "no layer is given, and no published settings are known for tiny-folder" in err
    assert "--layer 0" in err


def test_a_folder_of_a_hugging_face_model(plain, tiny_folder, tmp_path):
    (tmp_path / "mine.json").write_text(
        json.dumps([{"relation": "The {} is in", "subject": "Louvre", "target_new": "Rome", "target_true": "Paris"}])
    )
    found = plain("evaluate", "--model", tiny_folder, "--records", "mine.json")
    assert found["model"]["model_name"] == "tiny-folder"
    assert found["model"]["n_layers"] == 2
    assert not found["model"]["processed"]
    relative = plain("evaluate", "--model", "tiny-folder/", "--records", "mine.json", "--dtype", "float64")
    assert relative["model"]["dtype"] == "float64"
    assert relative["metrics"]["EM"]["mean"] == pytest.approx(found["metrics"]["EM"]["mean"], abs=1e-4)


def test_a_folder_gives_the_model_in_it(tiny_folder):
    import torch
    from transformers import GPT2LMHeadModel

    from tl_edit.command.models import load_model

    model = load_model(str(tiny_folder), dtype="float64")
    tokens = model.to_tokens("The Louvre is located in")
    expected = GPT2LMHeadModel.from_pretrained(tiny_folder).double().eval()(tokens).logits
    torch.testing.assert_close(model(tokens).log_softmax(-1), expected.log_softmax(-1), atol=1e-6, rtol=0)
    assert host.model_name(model) == "tiny-folder"


@pytest.fixture
def tiny_folder(tmp_path):
    """A small GPT-2 with the bundled tokenizer, as save_pretrained writes it."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from tl_edit.factworld.loader import DATA

    tokenizer = AutoTokenizer.from_pretrained(DATA)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    config.n_ctx = 64  # TransformerLens 2 asks for the name that old checkpoints have
    folder = tmp_path / "tiny-folder"
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
