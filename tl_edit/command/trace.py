"""``trace``: where a model looks a fact up, or many facts on average.

The JSON of one fact has ``model``, ``seed``, ``samples`` (noise draws), ``noise`` (in standard deviations of the
embeddings), ``prompt``, ``subject``, ``answer``, ``clean``, ``corrupted``, ``total_effect``,
``layers``, ``window``, ``engine``, ``out``, ``html``, and ``effects``: by kind, ``at_subject_last`` (indirect effect by
layer), ``peak_at_subject_last`` (``effect``, ``layer``) and ``peak`` (also ``position`` and ``token``). Probabilities
and effects are from 0 to 1, on the screen too. That of many has ``model``, ``seed``, ``samples``, ``noise``,
``facts``, ``n_facts``, ``skipped``, ``clean``, ``corrupted``, ``total_effect``, ``total_effect_error``,
``layers``, ``window``, ``count`` (observations by role), ``html``, and ``effects``: by kind and role, ``effect`` and
``standard_error`` (of the effect within facts) by layer.
"""

import argparse
from typing import Any

from rich.table import Table
from rich.text import Text

from tl_edit import AverageTrace, CausalTrace, causal_trace, save_html, trace_facts
from tl_edit.command import inputs, options
from tl_edit.command.bundled import select
from tl_edit.command.models import is_bundled
from tl_edit.command.parsing import path
from tl_edit.command.report import Report, as_page, decimals, model_plain, plain_table
from tl_edit.counted import counted
from tl_edit.factworld import facts
from tl_edit.story.page import BY_LAYER, RESTORING
from tl_edit.trace import ROLES
from tl_edit.trace.result import KIND_NAMES

LAST = "last subject token"


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "trace",
        help="where a fact is looked up",
        description="Causal tracing of one fact, or of many with averages by the role of the token.",
        parents=[options.model_options(seed=1), options.output_options()],
        allow_abbrev=False,
    )
    one = parser.add_argument_group("one fact")
    one.add_argument("--prompt", help="a text whose next token is the answer")
    one.add_argument("--subject", help="the subject as it stands in the prompt; alone: one of the bundled facts'")
    one.add_argument("--answer", help="the answer to follow (default: what the model says)")
    one.add_argument("--out", type=path, metavar="FILE", help="keep the trace (CausalTrace.load reads it)")
    many = parser.add_argument_group("many facts")
    many.add_argument("--facts", type=path, metavar="FILE", help="a file of known facts, known_1000, or bundled")
    many.add_argument("--limit", type=int, metavar="N", help="take the first N facts (default: all)")
    many.add_argument(
        "--folder", type=path, help="keep each fact's trace as it is done, and go on where a run was stopped"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--samples", type=int, default=10, metavar="N", help="noise draws (default: 10)")
    how.add_argument(
        "--noise",
        type=float,
        default=3.0,
        metavar="X",
        help="in standard deviations of the subject's embeddings (default: 3)",
    )
    how.add_argument("--window", type=int, metavar="N", help="layers restored together (default: a fifth of them)")
    parser.add_argument(
        "--html", type=path, metavar="FILE", help="also write the map, of one fact or on average, as a page"
    )
    options.describe(
        parser,
        "python -m tl_edit trace --subject 'Eiffel Tower'",
        "python -m tl_edit trace --prompt 'The Louvre is located in' --subject Louvre --out louvre.safetensors "
        "--html louvre.html",
        "python -m tl_edit trace --facts bundled --limit 2 --samples 3 --json",
        elsewhere="python -m tl_edit trace --model gpt2-xl --facts known_1000 --limit 100 --no-prepend-bos "
        "--folder traces",
    )
    parser.set_defaults(run=run, relation=None)


def run(given: argparse.Namespace) -> Report:
    """Trace.

    Raises:
        ValueError: If the options cannot be used.
    """
    if (given.facts is None) == (given.subject is None):
        raise ValueError(
            "trace: expected either --subject (with --prompt, or for a bundled fact alone) or --facts, and not both; "
            "try python -m tl_edit trace --subject 'Eiffel Tower'."
        )
    alone = {"--prompt": given.prompt, "--answer": given.answer, "--out": given.out}
    averaged = {"--folder": given.folder, "--limit": given.limit}
    misplaced = [name for name, value in (alone if given.facts else averaged).items() if value is not None]
    if misplaced:
        raise ValueError(
            f"trace: {misplaced[0]} does not go with {'--facts' if given.facts else '--subject'}; expected it with "
            f"{'one fact' if given.facts else '--facts'}; leave it out."
        )
    return _many(given) if given.facts else _one(given)


def _one(given: argparse.Namespace) -> Report:
    prompt, subject = given.prompt, given.subject
    if prompt is None:
        bundled = is_bundled(given.model)
        known = select(given, facts()) if bundled else []
        if not known:
            why = (
                f"{subject!r} is no subject of a bundled fact"
                if bundled
                else f"--subject alone chooses a fact of the bundled model, which --model {given.model} is not"
            )
            raise ValueError(
                f"trace: --prompt is missing, and {why}; expected a text with the subject in it, whose next token is "
                f"the answer; pass e.g. --prompt '{subject} is in the city of'."
            )
        prompt, subject = known[0].trained_templates[0].format(known[0].subject), known[0].subject
    if subject not in prompt:
        raise ValueError(
            f"trace: --subject {subject!r} does not occur in --prompt {prompt!r}; expected it there, with the same "
            "capitals; write it as the prompt does."
        )
    model = inputs.model_of(given)
    trace = causal_trace(
        model,
        prompt,
        subject,
        answer=given.answer,
        window=given.window,
        noise=given.noise,
        n_samples=given.samples,
        seed=given.seed,
        prepend_bos=given.prepend_bos,
        progress=inputs.progress_of(given),
    )
    if given.out is not None:
        trace.save(given.out)
    if given.html is not None:
        title = f"{trace.prompt} → {trace.answer.strip()}"
        save_html(given.html, RESTORING, trace, BY_LAYER, trace.view_tokens(), title=title)
    plain = {
        "model": model_plain(model, trace.provenance.prepend_bos),
        **_how(given),
        **{name: getattr(trace, name) for name in ("prompt", "subject", "answer", "clean", "corrupted")},
        **{name: getattr(trace, name) for name in ("total_effect", "layers", "window", "engine")},
        "out": given.out,
        "html": given.html,
        "effects": {kind: _effects(trace, kind) for kind in trace.kinds},
    }
    last = trace.str_tokens[trace.subject_last]
    table = plain_table("layer", *(f"{KIND_NAMES[kind]}" for kind in trace.kinds))
    for i, layer in enumerate(trace.layers):
        table.add_row(str(layer), *(decimals(float(trace.of(kind)[i, trace.subject_last]), 3) for kind in trace.kinds))
    shown = [
        Text(f"{prompt} …{trace.answer}", style="bold"),
        Text(inputs.named_model(model), style="dim"),
        Text(
            f"Probability of {trace.answer.strip()!r}: {trace.clean_prob:.3f} clean, {trace.corrupted_prob:.3f} with "
            f"{trace.corruption}.\n"
        ),
        _peaks(trace),
        Text(f"\nIndirect effect at the subject's last token, {last!r} (MLP and attention: window {trace.window}):"),
        table,
        *([Text(f"\nKept in {given.out}.")] if given.out is not None else []),
        *as_page(given),
    ]
    return Report(plain=plain, shown=shown)


def _how(given: argparse.Namespace) -> dict[str, object]:
    """What makes the noise."""
    return {"seed": given.seed, "samples": given.samples, "noise": given.noise}


def _effects(trace: CausalTrace, kind: Any) -> dict[str, object]:
    effect = trace.of(kind)
    last = effect[:, trace.subject_last]
    layer, pos = divmod(int(effect.argmax()), effect.shape[1])
    return {
        "at_subject_last": last,
        "peak_at_subject_last": {"effect": float(last.max()), "layer": trace.layers[int(last.argmax())]},
        "peak": {
            "effect": float(effect[layer, pos]),
            "layer": trace.layers[layer],
            "position": trace.positions[pos],
            "token": trace.str_tokens[trace.positions[pos]],
        },
    }


def _peaks(trace: CausalTrace) -> Table:
    table = plain_table("strongest indirect effect", "at the subject's last token", "anywhere")
    for kind in trace.kinds:
        found: Any = _effects(trace, kind)
        early, peak = found["peak_at_subject_last"], found["peak"]
        table.add_row(
            KIND_NAMES[kind],
            f"{decimals(early['effect'], 3)} in layer {early['layer']}",
            Text(f"{decimals(peak['effect'], 3)} in layer {peak['layer']}, {peak['token']!r}"),
        )
    return table


def _many(given: argparse.Namespace) -> Report:
    known = inputs.facts_of(given, given.limit)
    model = inputs.model_of(given)
    average = trace_facts(
        model,
        known,
        window=given.window,
        noise=given.noise,
        n_samples=given.samples,
        seed=given.seed,
        prepend_bos=given.prepend_bos,
        folder=given.folder,
        progress=inputs.progress_of(given),
    )
    if given.html is not None:
        save_html(given.html, RESTORING, average, title=f"Causal traces of {counted(average.n_facts, 'fact')}")
    plain = {
        "model": model_plain(model, inputs.bos_of(given, model)),
        **_how(given),
        "facts": given.facts,
        **{name: getattr(average, name) for name in ("n_facts", "skipped", "clean", "corrupted")},
        **{name: getattr(average, name) for name in ("total_effect", "total_effect_error", "layers", "window")},
        "html": given.html,
        "count": dict(zip(ROLES, average.count, strict=True)),
        "effects": {
            kind: {
                role: {"effect": average.of(kind, role), "standard_error": average.paired_error[k, r]}
                for r, role in enumerate(ROLES)
            }
            for k, kind in enumerate(average.kinds)
        },
    }
    shown = [
        Text(repr(average), style="bold"),
        Text(inputs.named_model(model) + "\n", style="dim"),
        roles_table(average),
        Text(f"\nIndirect effect at the {LAST}, with 95 % intervals over facts:"),
        _by_layer(average),
        *as_page(given),
    ]
    return Report(plain=plain, shown=shown)


def roles_table(average: AverageTrace) -> Table:
    """The strongest mean effect of each kind at each role."""
    table = plain_table("strongest indirect effect at", *(KIND_NAMES[kind] for kind in average.kinds), "n")
    for role, n in zip(ROLES, average.count, strict=True):
        cells: list[str] = []
        for kind in average.kinds:
            effect = average.of(kind, role)
            at = int(effect.nan_to_num(-1.0).argmax())
            cells.append(f"{decimals(float(effect[at]), 3)} in layer {average.layers[at]}" if n else "–")
        table.add_row(role, *cells, str(n))
    return table


def _by_layer(average: AverageTrace) -> Table:
    table = plain_table("layer", *(KIND_NAMES[kind] for kind in average.kinds))
    half = 1.96 * average.paired_error[:, ROLES.index(LAST)]
    for i, layer in enumerate(average.layers):
        effects = [decimals(float(average.of(kind, LAST)[i]), 3) for kind in average.kinds]
        table.add_row(str(layer), *(f"{each} ± {float(half[k, i]):.3f}" for k, each in enumerate(effects)))
    return table
