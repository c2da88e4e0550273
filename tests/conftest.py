"""Fixtures: the model on which the published programs ran, and their numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from tl_edit.factworld import Fact, facts, load_fact_model
from tl_edit.request import EditRequest

# The models are tiny: one thread is fastest, and many threads on a busy machine can be a hundred times slower.
torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"


def read_golden(folder: Path) -> SimpleNamespace:
    """What the published programs computed: see golden/README.md."""
    return SimpleNamespace(
        texts=json.loads((folder / "texts.json").read_text("utf-8")),
        rome=json.loads((folder / "rome.json").read_text("utf-8")),
        rome_tensors=load_file(folder / "rome.safetensors"),
        memit=json.loads((folder / "memit.json").read_text("utf-8")),
        memit_tensors=load_file(folder / "memit.safetensors"),
        moments=load_file(folder / "second_moment.safetensors"),
        trace=json.loads((folder / "trace.json").read_text("utf-8")),
        trace_tensors=load_file(folder / "trace.safetensors"),
    )


@pytest.fixture(scope="session")
def golden():
    return read_golden(GOLDEN)


def golden_request(case: dict) -> EditRequest:
    request = case["request"]
    return EditRequest(
        request["prompt"], request["subject"], request["target_new"]["str"], request["target_true"]["str"]
    )


@pytest.fixture(scope="session", params=list(tiny_models.interfaces()))
def golden_model(request):
    """The golden GPT-2 in float64, unprocessed, behind each interface there is."""
    return load_golden(request.param)


def load_golden(interface: str, *, processed: bool = False, dtype: torch.dtype = torch.float64):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "model")
    hf_model = GPT2LMHeadModel.from_pretrained(GOLDEN / "model").to(dtype)
    # TransformerLens reads the old name.
    hf_model.config.n_ctx = hf_model.config.n_positions
    return tiny_models.boot(
        hf_model, tokenizer, tiny_models.Case("gpt2", interface, processed), dtype, d_mlp=384, n_ctx=64
    )


@pytest.fixture(scope="session")
def fact_model():
    """The bundled model; tests that edit it must undo."""
    return load_fact_model()


@pytest.fixture(scope="session")
def world() -> tuple[Fact, ...]:
    return facts()


@pytest.fixture(scope="session")
def eiffel(world) -> Fact:
    return next(fact for fact in world if fact.subject == "Eiffel Tower" and fact.relation == "P276")
