"""Five thousand random operations for each interface, on several models at once; after each all weights are compared.

What the weights must be is known from a plain list beside each model: its base, and the edits that are on. It is a
process of its own, because the shape checks of the test run would take ten times as long; to see the counts:
``python tests/many_operations.py``.
"""

import contextlib
import copy
import io
import json
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from some_edits import make_edit, weights

from tl_edit import Edit, applied_edits, host

EXAMPLES, LENGTH = 100 * len(tiny_models.interfaces()), 50
LAYERS = ((0,), (1,), (0, 2), (0, 1, 2))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass
class Twin:
    """A model, and what must be in it."""

    model: object
    base: list = field(default_factory=list)
    on: list = field(default_factory=list)
    expected: list = field(default_factory=list)
    snapshot: tuple = ()
    stale: bool = False
    """Whether the model was cast with edits on, and not written since: no state that the ledger would know again."""

    def __post_init__(self):
        self.base = self.base or weights(self.model)
        self.expected = self.expected or self.base

    def wrote(self):
        """After a write every edited layer is the base plus the edits in their order."""
        self.stale, self.expected = False, list(self.base)
        for edit in self.on:
            for layer, delta in edit.deltas.items():
                total = self.expected[layer].double() + delta.left @ delta.right
                self.expected[layer] = total.to(self.base[layer].dtype)

    def check(self):
        found = weights(self.model)
        for layer, weight in enumerate(self.expected):
            assert found[layer].dtype == weight.dtype
            assert torch.equal(found[layer], weight), layer


class RefusedError(Exception):
    """Ours, raised in a block."""


def apply(twin, edit):
    if any(other.fingerprint == edit.fingerprint for other in twin.on):
        with pytest.raises(ValueError, match="already"):
            edit.apply(twin.model, allow_mismatch=True)
    else:
        edit.apply(twin.model, allow_mismatch=True)
        twin.on.append(edit)
        twin.wrote()


def undo(twin, i):
    if not twin.on:
        with pytest.raises(ValueError, match="not applied"):
            make_edit(twin.model, seed=i).undo(twin.model)
    else:
        twin.on.pop(i % len(twin.on)).undo(twin.model)
        twin.wrote()


def block(twin, edit):
    """Switched on, something else applied or undone within, then an exception."""
    if any(other.fingerprint == edit.fingerprint for other in twin.on):
        return
    try:
        with edit.on(twin.model, allow_mismatch=True):
            twin.on.append(edit)
            twin.wrote()
            twin.check()
            raise RefusedError
    except RefusedError:
        twin.on.pop()
        twin.wrote()


def fail(twin, edit):
    """A write that breaks halfway."""
    if any(other.fingerprint == edit.fingerprint for other in twin.on):
        return
    write, calls = host.write_w_out, []

    def failing(model, layer, new):
        calls.append(layer)
        write(model, layer, new)
        if len(calls) == 1:
            raise RefusedError

    host.write_w_out = failing
    try:
        with pytest.raises(RefusedError):
            edit.apply(twin.model, allow_mismatch=True)
    finally:
        host.write_w_out = write


def cast(twin, dtype):
    # TransformerLens also makes the state dict anew for each of its entries and writes that into it, to no effect; for
    # bridges this would take most of the time here.
    with mock.patch.object(type(twin.model), "state_dict", dict):
        twin.model.to(dtype)
    twin.base = [weight.to(dtype) for weight in twin.base]
    twin.expected = [weight.to(dtype) for weight in twin.expected]
    twin.stale = bool(twin.on)


def snapshot(twin):
    """Keep the state; or load it, if what is on now began with it."""
    dtype = twin.base[0].dtype
    if twin.stale:
        return
    if not twin.snapshot:
        state = {name: value.clone() for name, value in twin.model.state_dict().items()}
        twin.snapshot = (state, list(twin.on), dtype, list(twin.expected), list(twin.base))
        return
    state, on, then, expected, base = twin.snapshot
    same_base = all(torch.equal(a, b) for a, b in zip(base, twin.base, strict=True))
    if then == dtype and same_base and twin.on[: len(on)] == on:
        twin.model.load_state_dict(state)
        twin.on, twin.expected = list(on), list(expected)
    elif then == dtype and same_base:
        # Other edits were in it: they are recognised, or refused; never believed off while they are in the weights.
        now = twin.expected
        twin.model.load_state_dict(state)
        try:
            listed = applied_edits(twin.model)
        except ValueError:
            pass
        else:
            other = Twin(twin.model, base=twin.base, on=listed, expected=twin.base)
            other.wrote()
            other.check()
        for layer, weight in enumerate(now):
            host.write_w_out(twin.model, layer, weight)
    twin.snapshot = ()


def meddle(twin):
    """Somebody changes an edited layer: everything is refused until it is put back."""
    if not twin.on:
        return
    edit = twin.on[-1]
    layer = next(iter(edit.deltas))
    host.write_w_out(twin.model, layer, twin.expected[layer] * 2 + 1)
    for attempt in (edit.undo, edit.is_applied, applied_edits):
        with pytest.raises(ValueError, match="changed from outside"):
            attempt(twin.model)
    host.write_w_out(twin.model, layer, twin.expected[layer])


OPERATION = st.tuples(
    st.sampled_from(
        (
            "apply",
            "apply",
            "apply",
            "undo",
            "undo",
            "scale",
            "add",
            "negate",
            "layers",
            "truncate",
            "save and load",
            "exception",
            "failing write",
            "cast",
            "copy",
            "state",
            "meddle",
        )
    ),
    st.integers(0, 1),
    st.integers(0, 7),
)


def main():
    """Run them all and print how many of each there were."""
    families = ("gpt2", "gemma2")
    originals = [tiny_models.build(family, interface) for interface in tiny_models.interfaces() for family in families]
    path, counted = Path(tempfile.mkdtemp()) / "edit", Counter()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, len(originals) - 1), st.lists(OPERATION, min_size=LENGTH, max_size=LENGTH))
    def run(which, operations):
        chosen = (originals[which], originals[(which + 1) % len(originals)])
        twins = [Twin(copy.deepcopy(model)) for model in chosen]
        pool = [make_edit(chosen[0], LAYERS[i % 4], seed=i, rank=1 + i % 2, scale=0.2) for i in range(8)]
        for name, m, i in operations:
            twin = twins[m]
            if name == "apply":
                apply(twin, pool[i])
            elif name == "undo":
                undo(twin, i)
            elif name == "scale":
                pool[i] = pool[(i + 1) % 8] * (0.25 * i - 0.7)
            elif name == "add":
                pool[i] = pool[(i + 1) % 8] + pool[(i + 3) % 8]
                if max(pool[i].norms.values()) > 100:  # half precision would overflow in the end
                    pool[i] = pool[i] * 0.01
            elif name == "negate":
                pool[i] = -pool[i]
            elif name == "layers":
                pool[i] = pool[i].layers([next(iter(pool[i].deltas))])
            elif name == "truncate":
                pool[i] = pool[i].truncate(1)
            elif name == "save and load":
                pool[i].save(path)
                loaded = Edit.load(path)
                assert loaded.fingerprint == pool[i].fingerprint
                pool[i] = loaded
            elif name == "exception":
                block(twin, pool[i])
            elif name == "failing write":
                fail(twin, pool[i])
            elif name == "cast":
                cast(twin, DTYPES[i % 4])
            elif name == "copy":
                twin.model = copy.deepcopy(twin.model)
            elif name == "state":
                snapshot(twin)
            else:
                meddle(twin)
            counted[name] += 1
            for each in twins:
                each.check()
            listed = [edit.fingerprint for edit in applied_edits(twin.model)]
            assert listed == [edit.fingerprint for edit in twin.on]
        for twin in twins:
            while twin.on:
                undo(twin, 0)
            twin.check()
            assert all(torch.equal(a, b) for a, b in zip(weights(twin.model), twin.base, strict=True))

    with contextlib.redirect_stdout(io.StringIO()):  # TransformerLens tells of every cast
        run()
    shutil.rmtree(path.parent)
    print(json.dumps(counted))  # noqa: T201


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
