"""Hooks on a model: attach ours and take off exactly these, and see those of others.

``model.hooks(...)`` of HookedTransformer also takes off, on exit, hooks that a user left on; so hooks are attached to
the hook points themselves.
"""

import difflib
import re
import reprlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

from torch import Tensor, nn

from tl_edit.host import HookFn, Model, NamedHook, hook_points, mlp_of, model_name, n_layers, roots_of, value_name


def foreign_hook(model: Model) -> str | None:
    """Where a hook is attached that is not TransformerLens' own; None where there is none."""
    return next((name for name, _ in foreign_hooks(model)), None)


def foreign_hooks(model: Model) -> Generator[tuple[str, int], None, None]:
    """Where hooks are attached that are not TransformerLens' own, and how many."""
    for root in roots_of(model):
        for name, module in cast(Iterable[tuple[str, nn.Module]], root.named_modules()):
            state = vars(module)
            temporary = [handle for handle in state.get("fwd_hooks", ()) if not handle.is_permanent]
            functions = [*state["_forward_hooks"].values(), *state["_forward_pre_hooks"].values()]
            found = max(len(temporary), sum(not _is_of_the_host(function) for function in functions))
            if found:
                # A bridge registers its hook points a second time, under paths that its `hook_dict` lacks.
                known = state.get("name") if "fwd_hooks" in state else None
                yield known or name or "the model itself", found


def _is_of_the_host(function: Any, seen: frozenset[int] = frozenset()) -> bool:
    """Whether a hook, and what it closes over, comes from TransformerLens or the libraries below it."""
    if id(function) in seen:  # a function that calls itself
        return True
    seen |= {id(function)}
    inner = getattr(function, "func", None) or getattr(function, "__func__", None)
    if inner is not None:
        return _is_of_the_host(inner, seen)
    # A function's globals tell where it was written, even where `functools.wraps` gave it another's name.
    written = getattr(function, "__globals__", {}).get("__name__")
    module = written or getattr(function, "__module__", None) or type(function).__module__
    if module.split(".")[0] not in ("transformer_lens", "transformers", "torch", "accelerate"):
        return False
    if isinstance(function, nn.Module | type):
        return True
    try:
        enclosed = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    except ValueError:  # A variable without a value yet: what will be in it is not known.
        return False
    return all(_is_of_the_host(value, seen) for value in enclosed if callable(value))


def as_hooks(hooks: object, operation: str) -> tuple[NamedHook, ...]:
    """Hooks as a tuple, checked before anything runs.

    Raises:
        ValueError: If they are no list, or hold something else than pairs of a name and a function.
    """
    expected = "expected (name, function) pairs; pass edit.hooks(model), or e.g. [('blocks.0.hook_mlp_out', function)]"
    if isinstance(hooks, str) or not isinstance(hooks, Sequence):
        raise ValueError(f"{operation}: hooks is of type {type(hooks).__name__}; {expected}.")
    for pair in cast(Sequence[object], hooks):
        parts = list(cast(Sequence[object], pair)) if isinstance(pair, tuple | list) else []
        if len(parts) != 2 or not isinstance(parts[0], str) or not callable(parts[1]):
            raise ValueError(f"{operation}: hooks holds {reprlib.repr(cast(object, pair))}; {expected}.")
    return tuple(cast(Sequence[NamedHook], hooks))


def functions_on(model: Model) -> Generator[Any, None, None]:
    """The functions of all hooks that are attached, and what they close over, as TransformerLens wraps each hook."""
    seen: set[int] = set()
    waiting: list[Any] = [
        function
        for root in roots_of(model)
        for module in root.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks")
        for function in cast(dict[int, Any], vars(module)[kind]).values()
    ]
    while waiting:
        function = waiting.pop()
        if id(function) in seen or not callable(function):
            continue
        seen.add(id(function))
        yield function
        waiting.extend([getattr(function, "func", None), *getattr(function, "args", ())])
        for cell in getattr(function, "__closure__", None) or ():
            with suppress(ValueError):  # A variable without a value yet.
                waiting.append(cell.cell_contents)


@contextmanager
def attached(
    model: Model, hooks: Iterable[NamedHook], points: Mapping[str, Any] | None = None
) -> Generator[None, None, None]:
    """Attach ``hooks`` for the duration of the block and remove exactly these, whatever happens.

    Nothing of the user's is touched. Hooks run after those already attached, in the order given. Whoever attaches often
    passes ``model.hook_dict``, which a bridge makes anew each time, as ``points``.

    Raises:
        ValueError: If a name is not a hook point of this model.
    """
    points = hook_points(model) if points is None else points
    with _taken_off_at_the_end() as added:
        for name, function in hooks:
            _attach(model, points, name, function, added)
        yield


@contextmanager
def before_forward(
    hooks: Iterable[tuple[nn.Module, Callable[..., Any]]], *, with_kwargs: bool = False
) -> Generator[None, None, None]:
    """Attach functions that see the arguments of modules, for the duration of the block; see `attached`."""
    with _taken_off_at_the_end() as added:
        for module, function in hooks:
            added.append(_Added(module, "_forward_pre_hooks"))
            module.register_forward_pre_hook(function, with_kwargs=with_kwargs)
            added[-1].done()
        yield


class _Added:
    """A hook of ours on a module, which can be taken off however far attaching it came; made before."""

    def __init__(self, module: nn.Module, kind: str) -> None:
        self._state, self._kind = vars(module), kind
        self._before = set(self._state[kind])
        self._own: set[int] | None = None

    def done(self) -> None:
        """It is attached; what comes now is not ours."""
        self._own = self._state[self._kind].keys() - self._before

    def take_off(self) -> None:
        """Take it off; again, if need be."""
        # Where attaching was interrupted, nobody else has attached anything since.
        own = self._state[self._kind].keys() - self._before if self._own is None else self._own
        points = self._state.get("fwd_hooks")
        if points is not None:
            points[:] = [handle for handle in points if handle.hook.id not in own]
        for kind in (self._kind, f"{self._kind}_with_kwargs", f"{self._kind}_always_called"):
            for number in own:
                self._state.get(kind, {}).pop(number, None)


@contextmanager
def _taken_off_at_the_end() -> Generator[list[_Added], None, None]:
    """A list of what is to be taken off."""
    added: list[_Added] = []
    with ExitStack() as stack:
        # Twice, since Ctrl-C may interrupt the first time; a second Ctrl-C is beyond us.
        for _ in range(2):
            stack.callback(_take_off, added)
        yield added


def _take_off(added: Sequence[_Added]) -> None:
    for each in added:
        each.take_off()


def _attach(model: Model, points: Mapping[str, Any], name: str, function: HookFn, added: list[_Added]) -> None:
    """Attach one hook, and note before that it is to be taken off."""
    point = points.get(name)
    if point is not None:
        added.append(_Added(point, "_forward_hooks"))
        point.add_hook(function)
        added[-1].done()
        return
    site = re.fullmatch(r"blocks\.(\d+)\.mlp", name)
    # The name that `value_name` gives where no hook point sees the value.
    if site and int(site[1]) < n_layers(model) and value_name(model, int(site[1])) == name:

        def forward_hook(_module: nn.Module, _inputs: object, output: Tensor) -> Any:
            return function(output, hook=None)

        mlp = mlp_of(model, int(site[1]))
        added.append(_Added(mlp, "_forward_hooks"))
        mlp.register_forward_hook(forward_hook)
        added[-1].done()
        return
    close = difflib.get_close_matches(name, list(points), n=3)
    raise ValueError(
        f"attaching a hook: {name!r} is not a hook point of {model_name(model)}; "
        f"expected one of model.hook_dict{', such as ' + ', '.join(close) if close else ''}."
    )
