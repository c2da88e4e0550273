"""The search for v* and z* as its definition says it: one request, whole passes, logits everywhere, at every step.

Slow and obvious; tl_edit's engines are checked against it, and timed against it.
"""

import torch

from tl_edit import EditRequest, host, tokens


def rows_of(model, request, prefixes, prepend_bos):
    """Token rows (the KL prompt last), lookup positions, and the target's tokens."""
    target = tokens.target_tokens(model, request.prompt, request.target_new, prepend_bos=prepend_bos)
    kl = EditRequest("{} is a", request.subject, request.target_new)
    asked = [(request, prefix) for prefix in ("{}", *prefixes)] + [(kl, "{}")]
    prompts = [tokens.tokenize_request(model, of, prefix=prefix, prepend_bos=prepend_bos) for of, prefix in asked]
    rows = [torch.cat([prompt.tokens, target[:-1]]) for prompt in prompts[:-1]] + [prompts[-1].tokens]
    return rows, [prompt.subject_last for prompt in prompts], target


def site_name(model, site, layer):
    return host.value_name(model, layer) if site == "value" else f"blocks.{layer}.hook_{site}"


def search(model, request, layer, *, sites=("value",), prefixes=(), settings, prepend_bos=None):
    """v* by site, v0 by site, and the losses."""
    rows, lookup, target = rows_of(model, request, prefixes, prepend_bos)
    length, filler = max(map(len, rows)), 0
    batch = torch.stack([torch.cat([row, row.new_full((length - len(row),), filler)]) for row in rows])
    mask = torch.ones_like(batch)  # padding is on the right, and attention looks back only
    every, lookup = torch.arange(len(rows)), torch.tensor(lookup)
    deltas, first = {}, {}

    def adder(site):
        def add(act, hook):
            shape = act.shape
            act = act.reshape(*batch.shape, -1).clone()
            if site not in first:
                first[site] = act[0, lookup[0]].detach().clone()
                deltas[site] = torch.zeros_like(first[site], requires_grad=True)
            act[every, lookup] = act[every, lookup] + deltas[site]
            return act.reshape(shape)

        return (site_name(model, site, layer), add)

    unedited, optimizer, losses, weight = None, None, [], 1.0
    while True:
        log_probs = forward(model, batch, mask, [adder(site) for site in sites]).log_softmax(-1)
        if optimizer is None:
            optimizer = torch.optim.Adam(deltas.values(), lr=settings.v_lr)
            unedited = log_probs[-1, lookup[-1]].detach()
        nll, said = [], True
        for row, read in zip(rows[:-1], log_probs, strict=False):
            at = range(len(row) - len(target), len(row))
            nll.append(-torch.stack([read[pos, token] for pos, token in zip(at, target, strict=True)]).mean())
            said &= all(int(read[pos].argmax()) == int(token) for pos, token in zip(at, target, strict=True))
        now = log_probs[-1, lookup[-1]]
        kl = (now.exp() * (now - unedited)).sum()
        decay = sum(norm(deltas[site]) / norm(first[site]) ** 2 for site in sites)
        loss = weight * torch.stack(nll).mean() + settings.kl_factor * kl + settings.v_weight_decay * decay
        losses.append(float(loss))
        kept = settings.stop_kl is not None and said and float(kl) < settings.stop_kl
        if losses[-1] < settings.stop_loss or kept or len(losses) == settings.v_num_grad_steps:
            break
        weight = 0.1 if said and settings.stop_kl is not None else 1.0
        optimizer.zero_grad()
        for delta, slope in zip(deltas.values(), torch.autograd.grad(loss, list(deltas.values())), strict=True):
            delta.grad = slope
        optimizer.step()
        with torch.no_grad():
            for site, delta in deltas.items():
                delta.mul_(min(1.0, float(settings.clamp_norm_factor * norm(first[site]) / norm(delta))))
    return {site: first[site] + deltas[site].detach() for site in sites}, first, losses


def rome(model, request, layer, factor, config, *, prefixes, prepend_bos):
    """ROME's left and right as the program computes them: keys from a pass of all prompts, then of the bare one."""
    values, _, _ = search(model, request, layer, prefixes=prefixes, settings=config, prepend_bos=prepend_bos)
    rows, lookup, _ = rows_of(model, request, prefixes, prepend_bos)
    keys = [keys_values(model, [row], [at], layer) for row, at in zip(rows[:-1], lookup, strict=False)]
    key, value = (part[0].double() for part in keys[0])
    mean = torch.stack([each[0].double() for each, _ in keys]).mean(0)
    left = torch.cholesky_solve(mean[:, None], factor)[:, 0]
    left = left / left.norm()
    return [left[:, None], ((values["value"].double() - value) / (key @ left))[None]]


@torch.no_grad()
def keys_values(model, rows, lookup, layer):
    """Keys and values at the lookup positions, in a whole pass."""
    store = {}

    def keeper(name):
        def keep(act, hook):
            store[name] = act.detach().reshape(len(rows), -1, act.shape[-1])[torch.arange(len(rows)), lookup]

        return (name, keep)

    batch = torch.stack(rows)
    names = [host.key_name(layer), host.value_name(model, layer)]
    forward(model, batch, torch.ones_like(batch), [keeper(name) for name in names])
    return tuple(store[name] for name in names)


def norm(vector):
    """Length; with a gradient of zero at zero."""
    return torch.linalg.vector_norm(vector)


def forward(model, batch, mask, hooks):
    """Logits everywhere. TransformerBridge's run_with_hooks would do, too, if it knew the MLP of Gemma by name."""
    from tl_edit.attach import attached

    with attached(model, hooks):
        return model(batch, attention_mask=mask, return_type="logits")
