"""Ten texts of 100 tokens: keys and values kept, beside whole passes for each token and TransformerLens' own way.

``python tests/benchmarks/generation.py`` takes some ten minutes on one core: a model of GPT-2 small's size
with random weights, ten prompts of 4 to 13 tokens, float32, seconds of CPU time; ours is run once before it is timed.
With TransformerLens' `generate`, which has one length of prompts, all ten are of 8 tokens.
"""

import argparse
from typing import Any

import gpt2_small
import torch
from gpt2_small import timed

from tl_edit.evaluate import generate_texts, sampling
from tl_edit.evaluate.generation import starts_of

WORDS = [f"w{i}" for i in range(200)]
N_TOKENS = 100


def prompts(lengths: list[int]) -> list[str]:
    """Of so many words."""
    return [" ".join(WORDS[10 * i : 10 * i + length]) for i, length in enumerate(lengths)]


def measure(interface: str, whole: bool) -> None:
    """Print the times of one model."""
    model = gpt2_small.build(interface, 12, WORDS, context=128)
    ragged, even = prompts(list(range(4, 14))), prompts([8] * 10)
    starts = starts_of(model, ragged, N_TOKENS, 0, "benchmark", prepend_bos=False)

    def ours(engine: str = "auto", given: Any = starts) -> tuple[Any, str]:
        return sampling.sample(model, given, n_tokens=N_TOKENS, top_k=5, batch_size=16, engine=engine)

    ours()
    fast, (rows, how) = timed(ours)
    print(f"{interface}, {how}: {fast:.2f} s", flush=True)
    if whole:
        slow, (others, _) = timed(ours, "plain")
        equal = sum(torch.equal(row, other) for row, other in zip(rows, others, strict=True))
        print(f"  whole passes: {slow:.1f} s, ratio {slow / fast:.1f}; {equal} of {len(rows)} rows equal", flush=True)
    generate = getattr(model, "generate", None)
    if generate is None:
        return
    tokens = model.to_tokens(even, prepend_bos=False)
    settings = {"max_new_tokens": N_TOKENS - tokens.shape[1], "do_sample": True, "top_k": 5, "stop_at_eos": False}

    def theirs() -> Any:
        with torch.no_grad():
            return generate(tokens, **settings, prepend_bos=False, return_type="tokens", verbose=False)

    own, made = timed(theirs)
    assert made.shape == (10, N_TOKENS), made.shape
    given = starts_of(model, even, N_TOKENS, 0, "benchmark", prepend_bos=False)
    again, _ = timed(ours, "auto", given)
    print(f"  {interface}.generate: {own:.2f} s, ours on the same prompts {again:.2f} s, ratio {own / again:.1f}")
    text, _ = timed(lambda: generate_texts(model, even, n_tokens=N_TOKENS, prepend_bos=False))
    print(f"  generate_texts as a whole: {text:.2f} s", flush=True)


def main() -> None:
    """Print all times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-whole", action="store_true", help="leave whole passes out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for interface in gpt2_small.tiny_models.interfaces():
        measure(interface, not args.skip_whole)


if __name__ == "__main__":
    main()
