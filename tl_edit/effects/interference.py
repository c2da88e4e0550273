"""Interference: whether edits that were computed alone disturb each other, and whether one could have known.

An edit adds ``key @ left @ right`` to the answer of ``W_out`` at every key, so also at the keys of others. Of edits
of one layer that is all they do to each other there: what is known from the keys alone is exact for the answers of this
layer's MLP, and says nothing of how the layers above make a word of them.

Of ROME's edits of the bundled model the overlap is 0.02 to 0.09 in the median, and of the order of 1 among edits of
one subject. In the six sets of edits of ``tests/benchmarks/interference.py`` it goes with the size of what happens to a
fact (rank correlation 0.48 to 0.67), and hardly with its sign (-0.08 to 0.25): edits help each other, too. With ``C =
I`` instead of the second moment the median is 0.36 to 0.54, and the first of ten edits of ten subjects keeps a
probability of 0.08 to 0.60 after the other nine, where with the second moment it keeps 0.85 to 0.97.

Changes of weights are added, and sums do not depend on the order (up to rounding, if they are written one by one); what
depends on the order is who is how old, and how many others there are by then.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_edit import forward, host, show, tokens
from tl_edit.data import EditRecord
from tl_edit.edit import Edit
from tl_edit.effects.checked import check_edit, check_integer, checked_edits, checked_records, common_bos
from tl_edit.effects.switched import ABOUT, About, asking, measured
from tl_edit.evaluate.ranks import spearman
from tl_edit.host import Model, Provenance
from tl_edit.keys import extract_keys_values


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Interference:
    """Edits alone, in pairs, and one after another; tensors on the CPU, in float64.

    Probabilities are of a record's object after its request's prompt: the geometric mean over the object's tokens, as
    in `evaluate`.
    """

    edits: tuple[str, ...]
    records: tuple[EditRecord, ...]
    """Record i judges edit i."""
    before: Float[Tensor, " edit"]
    """Probability of the new object with no edit on."""
    before_true: Float[Tensor, " edit"]
    """The same of the true object; NaN where the request does not name it."""
    together: Float[Tensor, "edit edit"]
    """``[i, j]``: probability of record i's new object with edits i and j on, whichever came first. On the diagonal:
    with edit i alone."""
    together_true: Float[Tensor, "edit edit"]
    """The same of record i's true object; NaN where the request does not name it."""
    inner: Float[Tensor, "edit edit"]
    """``[i, j]``: length of ``key_i @ left_j``, how strongly key i calls edit j, summed over the layers of edit j. Of
    ROME ``left`` is a unit vector, and this is the absolute value of the inner product."""
    overlap: Float[Tensor, "edit edit"]
    """``[i, j]``: how far edit j moves the MLP's answer at key i, over how far edit i itself does; lengths summed over
    layers. 1 on the diagonal; a row of NaN where edit i does nothing at its own key. Keys are those of the unedited
    model at the subject's last token."""
    orders: Int[Tensor, "order edit"]
    """The random orders in which the edits were switched on."""
    retained: Float[Tensor, "order age"]
    """How well an edit holds after ``age`` others came. In an order ``e_0, e_1, ..`` let ``p(s, t)`` be the probability
    of the new object of ``e_s`` once ``e_0`` to ``e_t`` are on; then ``retained[order, age]`` is the mean of
    ``p(t - age, t)`` over the steps ``t`` from ``age`` to the last. At age 0 these are the edits just made, n of them;
    at the last age it is the first edit alone. Older edits are looked at when more are on."""
    n_orders: int
    seed: int
    provenance: Provenance

    @property
    def alone(self) -> Float[Tensor, " edit"]:
        """Probability of record i's new object with edit i alone."""
        return self.together.diagonal()

    @property
    def success(self) -> Float[Tensor, "edit edit"]:
        """``[i, j]``: 1 where edits i and j together make record i's new object likelier than its true one, else 0."""
        return _likelier(self.together, self.together_true)

    @property
    def success_before(self) -> Float[Tensor, " edit"]:
        """The same with no edit on."""
        return _likelier(self.before, self.before_true)

    @property
    def loss(self) -> Float[Tensor, "edit edit"]:
        """``[i, j]``: how much probability edit j takes from record i's new object, ``alone[i] - together[i, j]``."""
        return self.alone[:, None] - self.together

    @property
    def forgetting(self) -> Float[Tensor, " age"]:
        """``retained``, mean over orders."""
        return self.retained.mean(0)

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, between ``overlap[i, j]`` and ``loss[i, j]`` over all i and j that differ.

        None for two edits, and if one of them is the same for all, or not a number.
        """
        return spearman(_pairs(self.overlap), _pairs(self.loss))

    @property
    def size_correlation(self) -> float | None:
        """The same between ``overlap`` and the size of the loss, whatever its sign: edits help each other, too."""
        return spearman(_pairs(self.overlap), _pairs(self.loss.abs()))

    def to_dataframe(self) -> Any:
        """A pandas frame: one row for each ordered pair of edits; ``edit == other`` is the edit alone.

        Raises:
            ImportError: If pandas is not installed.
        """
        n = len(self.edits)
        frame = show.frame(
            "Interference.to_dataframe",
            {"edit": range(n), "other": range(n)},
            {
                "before": self.before[:, None].expand(n, n),
                "alone": self.alone[:, None].expand(n, n),
                "together": self.together,
                "loss": self.loss,
                "success": self.success,
                "inner": self.inner,
                "overlap": self.overlap,
            },
        )
        for place, name in ((1, "edit"), (3, "other")):
            labels = [self.records[int(i)].request.subject for i in frame[name]]
            frame.insert(place, f"{name}_subject", labels)
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Every ordered pair of edits as a point: the loss of probability over the overlap.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        found = self.rank_correlation
        note = "" if found is None else f" ({len(_pairs(self.overlap))}), rank correlation {found:+.2f}"
        return show.plot_points(
            _pairs(self.overlap),
            _pairs(self.loss),
            ax,
            xlabel="overlap: shift by the other edit / by its own",
            ylabel="loss of the new object's probability",
            title=f"{len(self.edits)} edits in pairs{note}",
        )

    def __repr__(self) -> str:
        found = [self.rank_correlation, self.size_correlation]
        shown = ["undefined" if value is None else f"{value:+.2f}" for value in found]
        before, alone, pair = (float(each.mean()) for each in (self.before, self.alone, _pairs(self.together)))
        return (
            f"Interference({len(self.edits)} edits: mean p(new) {before:.3f} before, {alone:.3f} alone, {pair:.3f} "
            f"with one other, {float(self.forgetting[-1]):.3f} after all others; rank correlation over "
            f"{len(_pairs(self.overlap))} pairs of overlap and loss {shown[0]}, of overlap and size of the loss "
            f"{shown[1]})"
        )

    def _repr_html_(self) -> str:
        rows = [f"{i}: {record.request.subject} → {record.request.target_new}" for i, record in enumerate(self.records)]
        numbers = [str(i) for i in range(len(rows))]
        change = show.heatmaps_html(
            [-self.loss],
            titles=["together minus alone"],
            rows=rows,
            columns=numbers,
            heading=repr(self),
            unit="change of the row's p(new) by the column's edit",
        )
        overlap = show.heatmaps_html(
            [self.overlap.nan_to_num()],
            titles=["overlap"],
            rows=rows,
            columns=numbers,
            heading="",
            unit="shift at the row's key by the column's edit, over that by its own",
        )
        return change + overlap


def _pairs(table: Float[Tensor, "edit edit"]) -> Float[Tensor, " pair"]:
    """All entries off the diagonal."""
    return table[~torch.eye(len(table), dtype=torch.bool)]


def _likelier(new: Tensor, true: Tensor) -> Tensor:
    """1 where the new object is likelier than the true one, 0 where not, NaN where that is not known."""
    return torch.where(true.isnan(), math.nan, (new > true).double())


def interference(
    model: Model,
    edits: Sequence[Edit],
    records: Sequence[EditRecord],
    *,
    n_orders: int = 20,
    seed: int = 0,
    prepend_bos: bool | None = None,
    batch_size: int = 64,
    allow_mismatch: bool = False,
    progress: bool = True,
) -> Interference:
    """Do edits that were computed alone disturb each other? By hooks, no weight is written.

    Every edit is measured alone, with every other one, and in random orders in which they come one after another.
    Several edits together are their sum, as in the weights.

    Args:
        model: The model that the edits were computed on, without them. Others that are applied stay on.
        edits: Two or more, e.g. of ``rome_edit(..., apply=False)``.
        records: One for each edit, in their order: its request says what is asked, and at which subject the key is
            read.
        n_orders: Random orders of all edits. What the edits do in sets that several orders share is measured once.
        seed: Seed of the orders.
        prepend_bos: Whether prompts begin with a BOS; None for what the edits were computed with.
        batch_size: Rows per forward pass.
        allow_mismatch: Whether the model may have other weights than the edits were computed on.
        progress: Whether to show a progress bar.

    Returns:
        `Interference`: ``together`` ``[edit edit]`` (probabilities), ``overlap`` and ``inner`` ``[edit edit]`` (from
        keys alone), ``retained`` ``[order age]`` (probabilities). It takes some ``n_orders n^2 / 2 + 2 n^2`` rows for n
        edits; fewer orders are faster.

    Warns:
        UserWarning: If a record is about none of its edit's subjects, or an edit of the same facts is on.

    Raises:
        ValueError: For fewer than two edits, the same one twice, another number of records; edits that are applied or
            were computed on other weights, or with and without a BOS; targets that cannot be tokenised; active dropout.
    """
    operation = "interference"
    listed = checked_edits(edits, operation)
    asked = checked_records(records, listed, operation)
    check_integer("n_orders", n_orders, operation, least=1, default=20)
    check_integer("seed", seed, operation, least=0, default=0)
    tokens.check_rows(batch_size, operation, default=64)
    host.check_ready(model, operation)
    for edit in listed:
        check_edit(model, edit, operation, "edits are switched by hooks", allow_mismatch=allow_mismatch)
    bos = common_bos(model, listed, prepend_bos, operation)
    n = len(listed)
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(n_orders)])
    listed_orders = cast(list[list[int]], orders.tolist())
    wanted = {asking(on, i, about) for i in range(n) for about in ABOUT for on in [(), *((i, j) for j in range(n))]}
    wanted |= {asking(order[: t + 1], i, "new") for order in listed_orders for t in range(n) for i in order[: t + 1]}
    with forward.memory_advice(operation, "batch_size", batch_size):
        found = measured(model, listed, asked, wanted, bos, batch_size, progress=progress)

    def probability(on: Iterable[int], i: int, about: About = "new") -> float:
        return found[asking(on, i, about)]

    def alone_and_paired(about: About) -> Float[Tensor, "edit edit"]:
        rows = [[probability((i, j), i, about) for j in range(n)] for i in range(n)]
        return torch.tensor(rows, dtype=torch.float64)

    def by_age(order: Sequence[int]) -> list[float]:
        held = [[probability(order[: t + 1], order[t - age]) for t in range(age, n)] for age in range(n)]
        return [sum(values) / len(values) for values in held]

    inner, overlap = _from_keys(model, listed, asked, bos, batch_size)
    return Interference(
        edits=tuple(map(repr, listed)),
        records=asked,
        before=torch.tensor([probability((), i) for i in range(n)], dtype=torch.float64),
        before_true=torch.tensor([probability((), i, "true") for i in range(n)], dtype=torch.float64),
        together=alone_and_paired("new"),
        together_true=alone_and_paired("true"),
        inner=inner,
        overlap=overlap,
        orders=orders,
        retained=torch.tensor([by_age(order) for order in listed_orders], dtype=torch.float64),
        n_orders=n_orders,
        seed=seed,
        provenance=host.provenance(model, prepend_bos=bos, seed=seed),
    )


def _from_keys(
    model: Model, edits: Sequence[Edit], records: Sequence[EditRecord], prepend_bos: bool, batch_size: int
) -> tuple[Float[Tensor, "edit edit"], Float[Tensor, "edit edit"]]:
    """``inner`` and ``overlap``; see `Interference`."""
    layers = sorted({layer for edit in edits for layer in edit.deltas})
    requests = [record.request for record in records]
    read = extract_keys_values(model, requests, layers, prepend_bos=prepend_bos, batch_size=batch_size)
    inner = torch.zeros(len(edits), len(edits), dtype=torch.float64)
    shift = torch.zeros_like(inner)
    for j, edit in enumerate(edits):
        for layer, delta in edit.deltas.items():
            called = read.keys[layer].double() @ delta.left
            inner[:, j] += forward.lengths(called)
            shift[:, j] += forward.lengths(called @ delta.right)
    own = shift.diagonal()
    norms = torch.tensor([sum(edit.norms.values()) for edit in edits], dtype=torch.float64)
    lengths = sum(forward.lengths(read.keys[layer].double()) for layer in layers)
    nothing = own <= 1e-12 * (1 + norms * lengths)
    return inner, torch.where(nothing[:, None], math.nan, shift / own[:, None])
