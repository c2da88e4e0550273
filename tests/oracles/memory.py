"""Key-value memories as the paper defines them: each text alone, every prefix scored, all of them sorted.

Slow and obvious; tl_edit's pass is checked against it.
"""

import torch

from tl_edit import host


def prefixes(model, layer, coefficients, texts, *, prepend_bos=None):
    """Of each memory, of all prefixes of all texts: coefficient, text, position, next token, tokens, coefficients."""
    found = None
    for number, text in enumerate(texts):
        tokens = model.to_tokens(text, prepend_bos=prepend_bos, truncate=False)
        kept = []
        with torch.no_grad():
            model.run_with_hooks(tokens, fwd_hooks=[(host.key_name(layer), lambda act, hook, to=kept: to.append(act))])
        values = coefficients(kept[0].reshape(tokens.shape[1], -1))
        row = tokens[0].tolist()
        found = found or [[] for _ in range(values.shape[1])]
        for memory, several in enumerate(found):
            for position, token in enumerate(row):
                if position == 0 and token == model.tokenizer.bos_token_id:
                    continue
                following = row[position + 1] if position + 1 < len(row) else -1
                until = values[: position + 1, memory]
                several.append((float(until[-1]), number, position, following, row[: position + 1], until.tolist()))
    return found


def triggers(several, n, *, one_per_text):
    """The ``n`` first prefixes of one memory, by coefficient, then text, then position."""
    ordered = sorted(several, key=lambda prefix: (-prefix[0], prefix[1], prefix[2]))
    if one_per_text:
        seen = set()
        ordered = [each for each in ordered if not (each[1] in seen or seen.add(each[1]))]
    return ordered[:n]


def logits_by_the_model(model, layer, value):
    """What a value adds to the logits, less their mean, by the model's own last steps, all divisors at one."""
    after = host.norm_after(model, layer)
    norms = [getattr(model.blocks[layer], after)] if after else []
    for norm in [*norms, model.ln_final]:
        value = through(norm, value)
    there, back = (model.unembed(each[None, None])[0, 0] for each in (value, torch.zeros_like(value)))
    return (there - back) - (there - back).mean()


def through(norm, value):
    """How much a norm's output moves with a small part of ``value``, beside a vector that it divides by one.

    That vector has mean zero and is orthogonal to the value, which so does not change the divisor.
    """
    across = value - value.mean()
    base = torch.ones_like(value)
    base[1::2] = -1
    base = base - (base @ across) / (across @ across) * across
    base = (base - base.mean()) / base.square().mean().sqrt()
    small = 1e-2 / float(value.abs().max())
    there, back = (norm((base + sign * small * value)[None, None])[0, 0] for sign in (1, -1))
    return (there - back) / (2 * small)
