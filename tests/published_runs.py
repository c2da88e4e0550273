"""The model on which the published programs ran, and what they computed; see golden/README.md."""

import json
from pathlib import Path
from types import SimpleNamespace

import tiny_models
import torch
from safetensors.torch import load_file

from tl_edit.request import EditRequest

GOLDEN = Path(__file__).parent / "golden"


def read_golden(folder: Path) -> SimpleNamespace:
    """What the published programs computed."""
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


def golden_request(case: dict) -> EditRequest:
    request = case["request"]
    return EditRequest(
        request["prompt"], request["subject"], request["target_new"]["str"], request["target_true"]["str"]
    )


def load_golden(interface: str, *, processed: bool = False, dtype: torch.dtype = torch.float64):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "model")
    hf_model = GPT2LMHeadModel.from_pretrained(GOLDEN / "model").to(dtype)
    # TransformerLens reads the old name.
    hf_model.config.n_ctx = hf_model.config.n_positions
    return tiny_models.boot(
        hf_model, tokenizer, tiny_models.Case("gpt2", interface, processed), dtype, d_mlp=384, n_ctx=64
    )
