"""Hooks are attached and taken off exactly, whatever hooks the user has on the model."""

import contextlib
import functools

import pytest
import torch
from interrupts import Interrupts
from tiny_models import Case, available_cases, build, interfaces
from torch import nn

from tl_edit import attach, forward, host, tokens
from tl_edit.attach import attached
from tl_edit.blocks.base import OrdinaryPass

LAYER = 1
TOKENS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(0))
EMBED, RESID = host.EMBED, host.resid_post_name(LAYER)

each_interface = pytest.mark.parametrize("interface", interfaces())
each_kind = pytest.mark.parametrize("case", available_cases(("gpt2", "llama", "gemma2", "phi")), ids=str)


@functools.cache
def shared(case):
    """A model that no test changes."""
    return build(case)


@torch.no_grad()
def log_probs(model, hooks=()):
    with attached(model, hooks):
        return model(TOKENS).double().log_softmax(-1)


def all_hooks(model):
    """How many hooks hang on every hook point and every module."""
    points = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    roots = [model, *([model.original_model] if hasattr(model, "original_model") else [])]
    return points, {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks)
        for root in roots
        for name, module in root.named_modules()
    }


class Counter:
    """A hook of the user's, that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, act, hook):
        self.calls += 1


def leave_permanent(model, hook, stack):
    model.add_perma_hook(RESID, hook)


def leave_added(model, hook, stack):
    model.hook_dict[RESID].add_hook(hook)


def leave_behind(model, hook, stack):
    model.run_with_hooks(TOKENS, fwd_hooks=[(RESID, hook)], reset_hooks_end=False)


def leave_in_context(model, hook, stack):
    stack.enter_context(model.hooks(fwd_hooks=[(RESID, hook)]))


class Interrupted(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("case", available_cases(), ids=str)
def test_only_hooks_that_are_not_the_hosts_own_are_foreign(case):
    """TransformerLens hangs hooks of its own on modules, some of them in the first run."""
    model = shared(case)
    with torch.no_grad():
        model.run_with_cache(TOKENS)
    assert attach.foreign_hook(model) is None
    with attached(model, [(RESID, Counter())]):
        # A bridge has a name of its own for the hook point.
        assert attach.foreign_hook(model) in (RESID, RESID.replace("hook_resid_post", "hook_out"))
    handle = model.blocks[0].register_forward_hook(lambda module, inputs, output: None)
    assert attach.foreign_hook(model) == "blocks.0"
    handle.remove()
    handle = model.register_forward_pre_hook(lambda module, inputs: None)
    assert attach.foreign_hook(model) == "the model itself"
    handle.remove()
    assert attach.foreign_hook(model) is None


@pytest.mark.parametrize("ends", [None, Interrupted, KeyboardInterrupt])
@pytest.mark.parametrize("leave", [leave_permanent, leave_added, leave_behind, leave_in_context])
@each_interface
def test_hooks_of_the_user_survive_ours(interface, leave, ends):
    model, counter, ours = build("gemma2", interface), Counter(), Counter()
    model(TOKENS)  # TransformerLens 4 hangs hooks of its own on the modules in the first run
    with contextlib.ExitStack() as stack:
        leave(model, counter, stack)
        before, counter.calls = all_hooks(model), 0
        sites = [RESID, host.value_name(model, LAYER), EMBED]
        with contextlib.suppress(Interrupted, KeyboardInterrupt), attached(model, [(name, ours) for name in sites]):
            model(TOKENS)
            assert (counter.calls, ours.calls) == (1, 3)
            if ends is not None:
                raise ends
        assert all_hooks(model) == before
        model(TOKENS)
        assert (counter.calls, ours.calls) == (2, 3)


@each_kind
def test_nothing_is_left_on_the_model(case):
    model = shared(case)
    before = all_hooks(model)
    names = [EMBED, host.key_name(LAYER), host.value_name(model, LAYER), RESID]
    with attached(model, [(name, Counter()) for name in names]):
        assert all_hooks(model) != before
    assert all_hooks(model) == before


@each_interface
def test_hooks_run_after_those_of_the_user_in_the_order_given(interface):
    model, order = build("gpt2", interface), []
    model.hook_dict[RESID].add_hook(lambda act, hook: order.append("user"))
    with attached(
        model, [(RESID, lambda act, hook: order.append("first")), (RESID, lambda act, hook: order.append("second"))]
    ):
        model(TOKENS)
    assert order == ["user", "first", "second"]


@pytest.mark.parametrize("case", available_cases(["gpt2", "gemma2"]), ids=str)
def test_nested_blocks_remove_their_own_hooks_only(case):
    model, outer, inner = shared(case), Counter(), Counter()
    name = host.value_name(model, LAYER)
    with attached(model, [(name, outer)]):
        with attached(model, [(name, inner), (name, inner)]):
            model(TOKENS)
        model(TOKENS)
    model(TOKENS)
    assert (outer.calls, inner.calls) == (2, 2)


@each_interface
def test_ours_and_the_users_contexts_nest_either_way(interface):
    model, user, ours = build("gpt2", interface), Counter(), Counter()
    model(TOKENS)
    before = all_hooks(model)
    with attached(model, [(RESID, ours)]), model.hooks(fwd_hooks=[(RESID, user)]):
        model(TOKENS)
    with model.hooks(fwd_hooks=[(RESID, user)]), attached(model, [(RESID, ours)]):
        model(TOKENS)
        model.run_with_hooks(TOKENS, fwd_hooks=[(EMBED, user)])
    assert (user.calls, ours.calls) == (4, 3)
    assert all_hooks(model) == before


@each_interface
def test_a_reset_inside_the_block_does_no_harm(interface):
    model, ours = build("gpt2", interface), Counter()
    with attached(model, [(RESID, ours)]):
        model.reset_hooks()
        kept = Counter()
        model.hook_dict[RESID].add_hook(kept)
    model(TOKENS)
    assert (ours.calls, kept.calls) == (0, 1)


@pytest.mark.parametrize("case", available_cases(["gpt2", "gemma2"]), ids=str)
def test_what_a_hook_returns_replaces_the_activation_and_none_leaves_it(case):
    model = shared(case)
    name, before = host.value_name(model, LAYER), log_probs(model)
    assert torch.equal(log_probs(model, [(name, lambda act, hook=None: None)]), before)
    assert (log_probs(model, [(name, lambda act, hook=None: torch.zeros_like(act))]) - before).abs().max() > 0.05


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("blocks.1.hook_resid_pots", "blocks.1.hook_resid_post"),
        ("hook_embedd", "hook_embed"),
        ("blocks.1.mlp.hook_posts", "blocks.1.mlp.hook_post"),
        ("blocks.99.mlp", "blocks"),
        ("blocks.1.mlp", "blocks.1"),
        ("", "expected one of model.hook_dict"),
    ],
)
@each_interface
def test_unknown_names_are_refused_with_close_ones_and_leave_nothing(interface, name, close):
    model = shared(Case("gpt2", interface, False))
    before = all_hooks(model)
    entered = False
    with (
        pytest.raises(ValueError, match=rf"attaching a hook: '{name}' is not a hook point of tiny-gpt2.*{close}"),
        attached(model, [(RESID, Counter()), (name, Counter())]),
    ):
        entered = True
    assert not entered
    assert all_hooks(model) == before


def attach_some(model):
    with attached(model, [(name, Counter()) for name in (EMBED, host.value_name(model, LAYER), RESID)]):
        pass


def read_some_logits(model):
    forward.logits_at(model, tokens.pad(model, [TOKENS[0]]), torch.tensor([2, 3]))


def record_a_pass(model):
    OrdinaryPass.of(model, tokens.pad(model, [TOKENS[0]]))


ATTACHES = [
    (attach_some, "_forward_hooks"),
    (read_some_logits, "_forward_pre_hooks"),
    (record_a_pass, "_forward_pre_hooks"),
]


def all_dictionaries(model):
    """What torch keeps of hooks, by module: also what goes with them."""
    return {
        (name, kind): list(kept)
        for name, module in model.named_modules()
        for kind, kept in vars(module).items()
        if "_hooks" in kind and isinstance(kept, dict)
    }


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("attach_ours", "kind"), ATTACHES)
@pytest.mark.parametrize("case", available_cases(["gpt2", "gemma2"]), ids=str)
def test_an_interrupt_while_a_hook_is_attached_leaves_none(case, attach_ours, kind, when, monkeypatch):
    """Ctrl-C comes before or after the n-th hook is in torch's dictionary, and before anybody has its handle."""
    model = shared(case)
    model(TOKENS)
    name = "register" + kind[:-1]
    register = getattr(nn.Module, name)
    user = model.blocks[0].register_forward_pre_hook(lambda module, inputs: None)
    before, n, happened = all_dictionaries(model), 0, True
    while happened:
        happened, left = False, n

        def interrupted(*arguments, **options):
            nonlocal happened, left
            handle = register(*arguments, **options) if when == "after" or left else None
            left -= 1
            if left < 0 and not happened:
                happened = True
                raise KeyboardInterrupt
            return handle or register(*arguments, **options)

        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr(nn.Module, name, interrupted)
            attach_ours(model)
        assert all_dictionaries(model) == before, n
        n += 1
    user.remove()
    assert n > (1 if attach_ours is read_some_logits else 3)


WHILE = ("_attach", "__init__", "done", "take_off", "_take_off")


class WhileAttaching(Interrupts):
    """At the n-th line of what attaches hooks and takes them off."""

    def __call__(self, frame, event, arg):
        return super().__call__(frame, event, arg) if frame.f_code.co_name in WHILE else None


@each_interface
def test_an_interrupt_at_any_line_leaves_no_hook(interface):
    model = shared(Case("gpt2", interface, False))
    model(TOKENS)
    before, n, happened = (all_hooks(model), all_dictionaries(model)), 0, True
    while happened:
        with contextlib.suppress(KeyboardInterrupt), WhileAttaching(n, "tl_edit/attach.py") as interrupts:
            attach_some(model)
        assert (all_hooks(model), all_dictionaries(model)) == before, n
        happened, n = interrupts.raised, n + 1
    assert n > 20


def test_a_hook_point_of_another_family_is_refused():
    for name in interfaces():
        with (
            pytest.raises(ValueError, match="not a hook point"),
            attached(shared(Case("attn_only", name, False)), [(host.key_name(0), Counter())]),
        ):
            pass


def test_a_hook_whose_variables_have_no_value_yet_counts_as_the_users():
    model = shared(available_cases(["gpt2"])[0])

    def hook(module, inputs, output):
        return later

    hook.__module__ = "torch"
    handle = model.blocks[0].register_forward_hook(hook)
    found = attach.foreign_hook(model)
    handle.remove()
    later = None
    assert found == "blocks.0"


class Sparse(nn.Module):
    """Like a sparse autoencoder's."""

    def forward(self, act, hook=None):
        return act


@functools.wraps(torch.clamp)
def disguised(act, hook):
    return act


@pytest.mark.parametrize(
    "hook",
    [
        Sparse(),
        Sparse().forward,
        disguised,
        functools.partial(disguised),
        Counter(),
        torch.no_grad()(torch.no_grad()(torch.no_grad()(torch.no_grad()(disguised)))),
    ],
    ids=["module", "method", "wraps", "partial", "object", "decorated"],
)
@each_interface
def test_permanent_hooks_of_every_make_are_found(interface, hook):
    model = build("gpt2", interface)
    assert attach.foreign_hook(model) is None
    model.hook_dict[RESID].add_hook(hook, is_permanent=True)
    assert attach.foreign_hook(model) is not None
