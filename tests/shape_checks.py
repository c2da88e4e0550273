"""The shape checker of the test run: beartype, which prepares its checks of a function once.

A function within another is a new one at each call of the outer one, and to prepare its checks takes longer than most
calls of it. What is checked depends on nothing but parameters and annotations, which are the same each time.
"""

from collections.abc import Callable
from typing import Any

import beartype

_prepared: dict[Any, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype.beartype`, for the empty functions that jaxtyping gives the signatures of those to be checked."""
    signature = (
        function.__module__,
        function.__qualname__,
        function.__code__,
        tuple(function.__annotations__.items()),
        function.__defaults__,
        tuple((function.__kwdefaults__ or {}).items()),
    )
    try:
        if signature not in _prepared:
            _prepared[signature] = beartype.beartype(function)
        return _prepared[signature]
    except TypeError:  # It holds something that cannot be hashed.
        return beartype.beartype(function)
