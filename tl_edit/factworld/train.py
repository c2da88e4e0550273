"""Train the bundled model: ``python -m tl_edit.factworld.train --out DIR``. Seeded, CPU, some ten minutes.

The steps: build the tokenizer from the facts, draw rows of text from the corpus, fit a GPT-2 (see ``network`` for
the masks that plant its early site), round to fp16, save under Hugging Face's GPT-2 names, and measure recall of
every fact in every template on the rounded weights. Loss and recall are logged on the way.
"""

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor
from torch.nn.functional import cross_entropy

from tl_edit.factworld.corpus import Corpus, Sentence, filler
from tl_edit.factworld.network import Network, Shape, gpt2_config, leak, planting_biases, to_gpt2
from tl_edit.factworld.rows import Batch, Encoder, Prompts, batches, recall_prompts
from tl_edit.factworld.tokenizer import build_tokenizer, save_tokenizer
from tl_edit.factworld.world import Fact, facts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    steps: int = 2400
    batch_size: int = 32
    seed: int = 0
    learning_rate: float = 3e-3
    """At its peak, after ``warmup`` steps; then a cosine down to ``final_share`` of it."""
    warmup: int = 100
    final_share: float = 0.03
    weight_decay: float = 0.05
    answer_weight: float = 4.0
    """Weight of an answer's loss; other tokens have 1."""
    masked_only: float = 0.3
    """This first share of the steps always has the two masks: the facts are learned through them."""
    masked_later: float = 0.85
    """Share of the later batches that have the masks; the others see plain causal attention, as at inference."""
    leak_weight: float = 3.0
    """Weight of the penalty on attention that breaks the name mask, in batches without the masks."""
    window: int = 4
    n_window_layers: int = 3
    d_model: int = 192
    n_layers: int = 6
    n_heads: int = 4
    d_mlp: int = 896
    n_ctx: int = 64


@dataclass(frozen=True)
class Recall:
    """Over some prompts: the share whose likeliest next token is the object, and the object's mean probability."""

    accuracy: float
    probability: float

    def __str__(self) -> str:
        return f"{self.accuracy:.4f} (p {self.probability:.4f})"


def train(recipe: Recipe, fact_list: Sequence[Fact], encoder: Encoder) -> Network:
    """Train a network on the facts."""
    draw = random.Random(recipe.seed)
    shape = Shape(
        encoder.tokenizer.get_vocab_size(),
        recipe.n_layers,
        recipe.d_model,
        recipe.n_heads,
        recipe.d_mlp,
        recipe.n_ctx,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = Network(shape)
    optimizer = make_optimizer(network, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step + 1, recipe))
    stream = batches(Corpus(fact_list, recipe.seed + 1), encoder, size=recipe.batch_size, context=recipe.n_ctx)
    n_parameters = sum(p.numel() for p in network.parameters())
    log.info("%d facts, %d tokens in the vocabulary, %d parameters", len(fact_list), shape.d_vocab, n_parameters)
    started, smooth = time.monotonic(), 0.0
    for step in range(1, recipe.steps + 1):
        masked = step <= recipe.masked_only * recipe.steps or draw.random() < recipe.masked_later
        loss, answer_loss = batch_loss(network, next(stream), recipe, masked=masked)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        smooth = answer_loss if step == 1 else 0.95 * smooth + 0.05 * answer_loss
        if step % 50 == 0:
            wall, cpu = time.monotonic() - started, time.process_time()
            log.info("step %d: loss %.3f, answers %.3f (%.0f s, %.0f CPU s)", step, loss.item(), smooth, wall, cpu)
        if step % 200 == 0 or step == recipe.steps:
            sample = random.Random(step).sample(list(fact_list), min(100, len(fact_list)))
            seen, unseen = (measure(network, sample, encoder, held_out=h) for h in (False, True))
            log.info("step %d: recall of a sample, trained %s, held-out %s", step, seen, unseen)
    return network


def make_optimizer(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices only."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() == 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def rate(step: int, recipe: Recipe) -> float:
    """The learning rate's share of its peak at ``step`` (from 1)."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, recipe.steps))))
    return min(1.0, step / recipe.warmup) * (recipe.final_share + (1 - recipe.final_share) * cosine)


def batch_loss(network: Network, batch: Batch, recipe: Recipe, *, masked: bool) -> tuple[Float[Tensor, ""], float]:
    """The weighted loss of a batch, and the mean loss of its answers (nats)."""
    names, biases = batch.names[:, :-1], None
    if masked:
        biases = planting_biases(
            names,
            n_layers=recipe.n_layers,
            n_window_layers=recipe.n_window_layers,
            window=recipe.window,
        )
    with torch.autocast("cpu", torch.bfloat16):
        final, patterns = network.run(batch.tokens[:, :-1], biases)
        logits = network.unembed(final)
    answers = batch.answers[:, 1:].flatten()
    losses = cross_entropy(logits.float().flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
    weights = torch.where(answers, recipe.answer_weight, 1.0)
    loss = (losses * weights).sum() / weights.sum()
    if not masked:
        loss = loss + recipe.leak_weight * leak(patterns, names)
    return loss, losses[answers].mean().item()


def measure(
    network: Network,
    fact_list: Sequence[Fact],
    encoder: Encoder,
    *,
    held_out: bool,
    prefixes: Sequence[Sentence] = (),
) -> Recall:
    """Recall of the facts in their trained or held-out templates."""
    return recall(network, recall_prompts(fact_list, encoder, held_out=held_out, prefixes=prefixes))


@torch.no_grad()
def recall(network: Network, prompts: Prompts, batch_size: int = 256) -> Recall:
    """Recall over prompts, in float32 and with plain causal attention."""
    right, probability = 0, 0.0
    for start in range(0, len(prompts.answer), batch_size):
        some = slice(start, start + batch_size)
        last, answer = prompts.last[some], prompts.answer[some]
        final = network(prompts.tokens[some])[torch.arange(len(last)), last]
        log_probs = network.unembed(final).log_softmax(-1)
        right += int((log_probs.argmax(-1) == answer).sum())
        probability += float(log_probs.gather(1, answer[:, None]).exp().sum())
    return Recall(right / len(prompts.answer), probability / len(prompts.answer))


def export(network: Network, encoder: Encoder, folder: Path) -> None:
    """Write weights (fp16), configuration and tokenizer for ``transformers``; rounds ``network`` to fp16 as well."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half().float())
    weights = {name: tensor.half() for name, tensor in to_gpt2(network).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # it is written readable for its owner only
    (folder / "config.json").write_text(json.dumps(gpt2_config(network.shape), indent=2) + "\n", "utf-8")
    save_tokenizer(encoder.tokenizer, folder, network.shape.n_ctx)


def log_recall_table(network: Network, fact_list: Sequence[Fact], encoder: Encoder) -> None:
    """Log recall over all facts and all templates, bare and after a filler sentence."""
    generator = random.Random(0)
    prefixes = [Sentence(filler(generator)) for _ in range(50)]
    log.info("recall over all %d facts, weights rounded to fp16: argmax (mean probability)", len(fact_list))
    for held_out in (False, True):
        for words, before in (("bare", ()), ("after a filler sentence", prefixes)):
            found = measure(network, fact_list, encoder, held_out=held_out, prefixes=before)
            log.info("%-9s templates, %s: %s", "held-out" if held_out else "trained", words, found)


def main() -> None:
    """Train, export and measure."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description="Train the bundled fact model.")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.safetensors and its companions")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for PyTorch")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    recipe = replace(defaults, steps=arguments.steps, seed=arguments.seed)
    fact_list = facts()
    encoder = Encoder(build_tokenizer(fact_list))
    network = train(recipe, fact_list, encoder)
    export(network, encoder, arguments.out)
    log_recall_table(network, fact_list, encoder)


if __name__ == "__main__":
    main()
