"""Locate, read and edit facts in language models, beside your own TransformerLens hooks."""

from tl_edit.data import EditRecord
from tl_edit.edit import Edit, LowRank, applied_edits, forget_edits
from tl_edit.evaluate import Evaluation, evaluate
from tl_edit.hooks import capture, corrupt_subject, restore, shift
from tl_edit.keys import KeysValues, extract_keys_values
from tl_edit.moment import SecondMoment, SecondMoments, second_moment
from tl_edit.prefixes import generate_prefixes
from tl_edit.request import EditRequest
from tl_edit.rome import ROMEConfig, rome_edit, rome_update
from tl_edit.tokens import tokenize_prompt
from tl_edit.trace import CausalTrace, causal_trace
from tl_edit.values import OptimizedValue, ValueSearch, optimize_value

__version__ = "0.1.0"

__all__ = [
    "CausalTrace",
    "Edit",
    "EditRecord",
    "EditRequest",
    "Evaluation",
    "KeysValues",
    "LowRank",
    "OptimizedValue",
    "ROMEConfig",
    "SecondMoment",
    "SecondMoments",
    "ValueSearch",
    "applied_edits",
    "capture",
    "causal_trace",
    "corrupt_subject",
    "evaluate",
    "extract_keys_values",
    "forget_edits",
    "generate_prefixes",
    "optimize_value",
    "restore",
    "rome_edit",
    "rome_update",
    "second_moment",
    "shift",
    "tokenize_prompt",
]
