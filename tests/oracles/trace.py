"""Causal tracing as its definition says it: one ``run_with_hooks`` for every restored state, nothing shared.

Slow and obvious; tl_edit's engines are checked against it.
"""

import numpy as np
import torch


def name(kind, layer):
    return f"blocks.{layer}.hook_{kind}"


def run(model, tokens, hooks):
    """Logits; the mask keeps TransformerLens from taking a BOS for padding."""
    return model.run_with_hooks(tokens, fwd_hooks=hooks, attention_mask=torch.ones_like(tokens))


def states(model, tokens, hooks, names):
    """Activations at ``names`` in one run."""
    found = {}

    def keeper(key):
        def keep(act, hook):
            found[key] = act.detach().clone()

        return keep

    run(model, tokens, [*hooks, *((key, keeper(key)) for key in names)])
    return found


def put_back(source, position):
    """A hook that writes row 0 (clean) or every row (corrupted) of ``source`` at ``position``."""

    def hook(act, hook):
        shape = act.shape
        act = act.reshape(-1, source.shape[-2] if source.ndim == 3 else shape[-2], shape[-1]).clone()
        act[:, position] = source.reshape(-1, *act.shape[1:])[:, position]
        return act.reshape(shape)

    return hook


def gaussian(span, std, samples, seed=1, replace=False):
    """A hook for hook_embed with the published program's noise."""

    def corrupt(act, hook):
        noise = np.random.RandomState(seed).randn(samples, span[1] - span[0], act.shape[-1])
        act = act.clone()
        subject = 0 if replace else act[:, slice(*span)].double()
        act[:, slice(*span)] = (subject + std * torch.from_numpy(noise)).to(act.dtype)
        return act

    return ("hook_embed", corrupt)


@torch.no_grad()
def cell(model, tokens, rows, corrupt, kind, layers, position, *, severed=None):
    """Logits at the last position of the corrupted runs with one state restored, [row d_vocab] in float64.

    ``rows`` are the tokens of the corrupted runs, ``corrupt`` the hooks that corrupt them.
    """
    hooks = []
    if layers:
        clean = states(model, tokens, [], [name(kind, layer) for layer in layers])
        hooks = [(key, put_back(value, position)) for key, value in clean.items()]
    if severed is not None:
        depth = len(model.blocks)
        wanted = [name(severed, layer) for layer in range(max(layers) + 1, depth)]
        frozen = states(model, rows, corrupt, wanted) if wanted else {}
        hooks += [(key, put_back(value, position)) for key, value in frozen.items()]
    logits = run(model, rows, [*corrupt, *hooks])
    return logits[:, -1].double()
