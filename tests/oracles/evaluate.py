"""What a model thinks of an answer, as its definition says it: one prompt, one answer, one pass, logits everywhere.

Slow and obvious; tl_edit's ways of asking are checked against it, and timed against it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tl_edit import tokens


@dataclass(frozen=True)
class Opinion:
    """Of one answer after one prompt."""

    log_probs: list[float]
    hits: list[bool]
    predicted: int
    following: Tensor

    @property
    def prob(self):
        return float(torch.tensor(self.log_probs, dtype=torch.float64).mean().exp())


@torch.no_grad()
def alone(model, prompt, answer, *, prepend_bos):
    """Prompt and answer in one pass without padding; the last token is only predicted."""
    before = tokens.encode(model, prompt, prepend_bos=prepend_bos)
    target = tokens.target_tokens(model, prompt, answer, prepend_bos=prepend_bos)
    logits = model(torch.cat([before, target[:-1]])[None])
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = logits[0].log_softmax(-1)
    places = range(len(before) - 1, len(before) + len(target) - 1)
    return Opinion(
        log_probs=[float(log_probs[place, token]) for place, token in zip(places, target, strict=True)],
        hits=[int(log_probs[place].argmax()) == int(token) for place, token in zip(places, target, strict=True)],
        predicted=int(log_probs[len(before) - 1].argmax()),
        following=log_probs[len(before) - 1],
    )


@torch.no_grad()
def together(model, pairs, *, prepend_bos):
    """The probabilities of (prompt, answer) pairs, all in one padded batch."""
    before = [tokens.encode(model, prompt, prepend_bos=prepend_bos) for prompt, _ in pairs]
    target = [tokens.target_tokens(model, *pair, prepend_bos=prepend_bos) for pair in pairs]
    rows = [torch.cat([first, last[:-1]]) for first, last in zip(before, target, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(padded.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
    log_probs = model(padded, attention_mask=mask.long()).log_softmax(-1)
    found = []
    for own, row, first, last in zip(log_probs, rows, before, target, strict=True):
        said = own[len(first) - 1 : len(row)].gather(-1, last[:, None])
        found.append(float(said.double().mean().exp()))
    return found
