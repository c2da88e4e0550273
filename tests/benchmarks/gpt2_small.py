"""A model of GPT-2 small's size with random weights, and how benchmarks take the time."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models
import tiny_tokenizers
import tokenizers
import torch
import transformers

HOOKED, BRIDGE = tiny_models.HOOKED_TRANSFORMER, tiny_models.TRANSFORMER_BRIDGE
WIDTH, HEADS, VOCABULARY = 768, 12, 50257


def word_tokenizer(words: Sequence[str]) -> Any:
    """One token for each of these words."""
    every = ["<unk>", "<eos>", *words]
    word_level = tokenizers.models.WordLevel({word: i for i, word in enumerate(every)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(word_level)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<eos>", "eos_token": "<eos>", "pad_token": "<eos>"}
    return tiny_tokenizers.round_trip(transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special))


def build(interface: str, depth: int, words: Sequence[str] = (), *, context: int = 64) -> Any:
    """A model of GPT-2 small's size, but for the depth and the context."""
    torch.manual_seed(0)
    model_class, tokenizer = tiny_models.interfaces()[interface], word_tokenizer(words)
    if interface == HOOKED:
        sizes = {"n_layers": depth, "d_model": WIDTH, "n_heads": HEADS, "d_head": WIDTH // HEADS, "d_mlp": 4 * WIDTH}
        kinds = {"act_fn": "gelu_new", "normalization_type": "LN", "device": "cpu"}
        return model_class(sizes | kinds | {"d_vocab": VOCABULARY, "n_ctx": context}, tokenizer=tokenizer).eval()
    sizes = {"n_layer": depth, "n_embd": WIDTH, "n_head": HEADS, "vocab_size": VOCABULARY, "n_positions": context}
    hf_config = transformers.GPT2Config(**sizes, attn_implementation="eager", architectures=["GPT2LMHeadModel"])
    hf_model = transformers.GPT2LMHeadModel(hf_config).eval()
    return model_class.boot_transformers("bench", hf_model=hf_model, tokenizer=tokenizer, device="cpu")


def timed(run: Any, *args: Any) -> tuple[float, Any]:
    """CPU seconds of all threads, and the result."""
    begin = time.process_time()
    result = run(*args)
    return time.process_time() - begin, result


def gemm_peak(rows: int = 512) -> float:
    """GFLOP per CPU second of a product as large as those of an MLP."""
    left, right = torch.randn(rows, WIDTH), torch.randn(WIDTH, 4 * WIDTH)
    left @ right  # once before it is timed
    times = max(8, 8192 // rows)
    return times * 2e-9 * rows * 4 * WIDTH**2 / timed(lambda: [left @ right for _ in range(times)])[0]
