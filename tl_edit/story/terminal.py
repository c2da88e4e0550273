"""A fact's story told to a terminal: what the model says, where it keeps it, the edit, the check, the undo."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from rich.bar import Bar
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from tl_edit import host, show
from tl_edit.counted import counted
from tl_edit.data import EditRecord
from tl_edit.edit import Edit
from tl_edit.evaluate import Evaluation, Metric, evaluate
from tl_edit.host import Model
from tl_edit.moment import SecondMoment, second_moment
from tl_edit.request import EditRequest
from tl_edit.rome import effective_config, rome_edit
from tl_edit.story.answers import Asked, as_object, asked, top_answers
from tl_edit.trace import CausalTrace, Kind, causal_trace

KIND_WORDS: dict[Kind, str] = {
    "resid_post": "state after the layer",
    "mlp_out": "MLP output (window)",
    "attn_out": "attention output (window)",
}
MAX_COLUMNS = 12
"""Layers that a table shows; of deeper models every second, third, ... is shown."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a story found."""

    record: EditRecord
    trace: CausalTrace
    edit: Edit
    """It is off again."""
    before: Evaluation
    after: Evaluation
    weights_before: str
    """Hash of the edited ``W_out``."""
    weights_now: str
    took: bool
    """Whether the new object won."""
    restored: bool
    """Whether the weights are what they were, and all that the model says."""


class Story:
    """The chapters of one edit, each printed as it happens."""

    def __init__(
        self, model: Model, console: Console, *, layer: int | None = None, seed: int = 0, texts: Sequence[str]
    ) -> None:
        self.model, self.console, self.texts, self.seed = model, console, texts, seed
        try:
            config = effective_config(model, layer, None)
        except ValueError as error:
            raise ValueError(
                f"--layer is missing, and no published settings are known for {host.model_name(model)}; expected 0 to "
                f"{host.n_layers(model) - 1}; pass e.g. --layer {host.n_layers(model) // 3}."
            ) from error
        self.layer = config.layer or 0
        host.check_layers(model, [self.layer], "--layer")
        self.config = replace(config, seed=seed)

    def tell(self, record: EditRecord) -> Told:
        """Tell all chapters."""
        model = self.model
        self.console.print(
            f"[bold]tl_edit[/] on {host.model_name(model)}, a {host.interface(model)} with "
            f"{host.n_layers(model)} layers"
        )
        record = replace(record, request=self.fact(record.request))
        moment = self.measure()
        trace = self.locate(record.request)
        before = evaluate(model, record)
        weights = _weights_hash(model, self.layer)
        edit = self.write(record.request, moment)
        try:
            after = evaluate(model, record)
            took = self.compare(before, after)
        finally:
            edit.undo(model)
        now = _weights_hash(model, self.layer)
        return Told(
            record=record,
            trace=trace,
            edit=edit,
            before=before,
            after=after,
            weights_before=weights,
            weights_now=now,
            took=took,
            restored=self.undone(weights, now, before, record),
        )

    def _chapter(self, number: int, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{number}  {title}", align="left", style="dim")

    def fact(self, request: EditRequest) -> EditRequest:
        """What the model says now; its answer is the true object where the user gave none."""
        self._chapter(1, "The fact")
        answers = top_answers(self.model, request.prompt)
        self.console.print(Text(request.prompt + " …"))
        table = Table.grid(padding=(0, 2))
        for token, probability in answers:
            table.add_row(
                Text("  " + _bare(self.model.tokenizer.decode([token]))),
                f"{probability:.3f}",
                Bar(1.0, 0, probability, width=30),
            )
        self.console.print(table)
        if request.target_true is None:
            return replace(request, target_true=as_object(self.model, request, answers[0][0]))
        return request

    def measure(self) -> SecondMoment:
        """The second moment, before anything that takes long, since too small a sample ends the story."""
        deep = host.n_layers(self.model) > MAX_COLUMNS
        moments = second_moment(self.model, self.texts, [self.layer], seed=self.seed, progress=deep)
        _ = moments[self.layer].cholesky
        return moments[self.layer]

    def locate(self, request: EditRequest) -> CausalTrace:
        """Where restoring one state brings the answer back."""
        self._chapter(2, "Where it is kept: causal tracing")
        trace = causal_trace(
            self.model, request.prompt, request.subject, progress=host.n_layers(self.model) > MAX_COLUMNS
        )
        self.console.print(
            f"Probability of {_bare(trace.answer)!r}: {trace.clean_prob:.3f} clean, {trace.corrupted_prob:.3f} with "
            "noise on the subject's embeddings (*).\n"
            "What restoring one clean state brings back (rows: position, columns: layer):"
        )
        self.console.print(_heatmap(trace))
        self.console.print()
        self.console.print(_strongest(trace))
        return trace

    def write(self, request: EditRequest, moment: SecondMoment) -> Edit:
        """The edit itself, with the numbers that tell whether to trust it."""
        self._chapter(3, f"The edit: {request.target_new} instead of {request.target_true or '?'}")
        layer = self.layer
        start = time.perf_counter()
        edit = rome_edit(self.model, request, moment, config=self.config)
        took = time.perf_counter() - start
        numbers = edit.diagnostics
        losses: tuple[float, ...] = numbers["losses"]
        lines = {
            "method": f"ROME: a rank-one change of W_out in layer {layer}",
            "second moment": counted(moment.count, "token"),
            "v* search": f"loss {losses[0]:.2f} → {losses[-1]:.3f} in {counted(len(losses), 'evaluation')} over "
            f"{counted(1 + len(numbers['prefixes']), 'context')}, {took:.1f} s",
            "|v* - v0| / |v0|": f"{numbers['delta_ratio']:.2f} (clamped at {self.config.clamp_norm_factor:g})",
            "k · u": f"{numbers['divisor']:.3g} (near 0 the update would explode)",
            "|ΔW| / |W_out|": f"{numbers['relative_norm']:.3f}",
        }
        table = Table.grid(padding=(0, 2))
        for name, line in lines.items():
            table.add_row(f"  [dim]{name}[/]", Text(line))
        self.console.print(table)
        return edit

    def compare(self, before: Evaluation, after: Evaluation) -> bool:
        """The same prompts before and after; whether the new object won."""
        self._chapter(4, "Before and after")
        table = Table(box=None, header_style="bold dim", pad_edge=False)
        for column in ("", "prompt", "should say", "before", "after"):
            table.add_column(column, overflow="fold")
        last = ""
        for each in asked(before.scores[0], after.scores[0]):
            table.add_row(*_row(each, "" if each.group == last else each.group))
            last = each.group
        self.console.print(table)
        self.console.print()
        self.console.print(_metrics(before, after))
        answer = after.scores[0].efficacy[0]
        return answer.says_new if answer.prefers_new is None else answer.prefers_new

    def undone(self, weights: str, now: str, before: Evaluation, record: EditRecord) -> bool:
        """Proof that the weights are what they were."""
        self._chapter(5, "Undone")
        again = evaluate(self.model, record)
        same = now == weights and again.scores == before.scores
        verdict = "[green]bit-identical[/]" if same else "[bold red]NOT restored[/]"
        self.console.print(f"  W_out before  sha256 {weights}…\n  W_out now     sha256 {now}…\n  {verdict}")
        if same:
            self.console.print("  and every probability above is again exactly what it was.")
        return same


def _weights_hash(model: Model, layer: int) -> str:
    data = host.w_out(model, layer).cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:32]


def _bare(token: str) -> str:
    """A token that is seen, without the space that belongs to it."""
    return show.visible(token).strip()


def _row(each: Asked, title: str) -> list[Text]:
    return [
        Text(title, style="dim"),
        Text(each.prompt),
        Text(each.wanted),
        Text(_bare(each.before)),
        Text(f"{_bare(each.after)} {'✓' if each.good else '✗'}", style="green" if each.good else "red"),
    ]


def _heatmap(trace: CausalTrace) -> Table:
    """The indirect effect of the block outputs; ``*`` marks the subject."""
    effect = trace.of("resid_post")
    shown = range(0, effect.shape[0], -(-effect.shape[0] // MAX_COLUMNS))
    table = Table.grid(padding=(0, 1))
    table.add_row("", *(Text(f"L{layer}", style="dim", justify="right") for layer in shown))
    start, end = trace.subject_span
    for position, token in enumerate(trace.str_tokens):
        mark = "*" if start <= position < end else " "
        cells = [_cell(float(effect[layer, position]), trace.total_effect) for layer in shown]
        table.add_row(Text(f"  {_bare(token)}{mark}"), *cells)
    return table


def _strongest(trace: CausalTrace) -> Table:
    """Per kind: the strongest indirect effect at the subject's last token, and anywhere."""
    table = Table(box=None, header_style="bold dim", pad_edge=False)
    for column in ("  restored", "at the subject's last token", "anywhere"):
        table.add_column(column)
    last = trace.subject_span[1] - 1
    for kind in trace.kinds:
        effect = trace.of(kind)
        layer, position = divmod(int(effect.argmax()), effect.shape[1])
        early = int(effect[:, last].argmax())
        table.add_row(
            f"  {KIND_WORDS[kind]}",
            f"{effect[early, last]:.3f} in layer {early}",
            Text(f"{effect[layer, position]:.3f} in layer {layer}, {_bare(trace.str_tokens[position])!r}"),
        )
    return table


def _cell(value: float, top: float) -> Text:
    share = max(0.0, min(1.0, value / top)) if top > 0 else 0.0
    dark = f"rgb({int(30 + 60 * share)},{int(30 + 40 * share)},{int(40 + 150 * share)})"
    return Text(f"{round(value, 2) + 0.0:5.2f}", style=Style(color="white" if share > 0.05 else "grey50", bgcolor=dark))


def _metrics(before: Evaluation, after: Evaluation) -> Table:
    table = Table(box=None, header_style="bold dim", pad_edge=False)
    for column in ("", "before", "after", ""):
        table.add_column(column)

    def percent(metric: Metric | None) -> str:
        return "–" if metric is None else f"{100 * metric.mean:.0f} %"

    rows = (
        ("efficacy", before.efficacy, after.efficacy, "the new object is likelier than the true one: the prompt"),
        ("paraphrase", before.paraphrase, after.paraphrase, "likewise: other wordings, held out from training"),
        ("neighborhood", before.neighborhood, after.neighborhood, "the true object stays likelier: other subjects"),
        ("other facts", before.other_facts, after.other_facts, "the subject's other facts are still the top answer"),
    )
    for name, old, new, meaning in rows:
        table.add_row(f"  {name}", percent(old), percent(new), Text(meaning, style="dim"))
    scores = [f"{100 * score.mean:.0f} %" if score is not None else "–" for score in (before.score, after.score)]
    table.add_row("  score S", *scores, Text("harmonic mean of the first three", style="dim"))
    return table
