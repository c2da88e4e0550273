"""Locate, read and edit facts in language models, beside your own TransformerLens hooks."""

from tl_edit.data import (
    EditRecord,
    KnownFact,
    KnownFacts,
    Malformed,
    Records,
    read_known_facts,
    read_records,
    write_records,
)
from tl_edit.edit import Edit, LowRank, applied_edits, forget_edits, undo_edits
from tl_edit.effects import DoseResponse, Interference, dose_response, interference
from tl_edit.evaluate import Comparison, Evaluation, Generation, TfIdf, compare, evaluate, generate_texts
from tl_edit.export import HuggingFaceExport, to_hugging_face
from tl_edit.hooks import capture, corrupt_subject, restore, shift
from tl_edit.keys import KeysValues, extract_keys_values
from tl_edit.memit import (
    AlphaEditConfig,
    EMMETConfig,
    KeyCache,
    MEMITConfig,
    PMETConfig,
    alpha_edit,
    alpha_update,
    emmet_edit,
    emmet_update,
    memit_edit,
    memit_update,
    pmet_edit,
)
from tl_edit.memory import KeyValueMemory, edit_memory, key_value_memory
from tl_edit.moment import Convergence, SecondMoment, SecondMoments, read_texts, second_moment
from tl_edit.prefixes import generate_prefixes
from tl_edit.request import EditRequest
from tl_edit.rome import ROMEConfig, rome_edit, rome_update
from tl_edit.sweep import LocateVsEdit, Sweep, locate_vs_edit, no_edit, random_direction, sweep
from tl_edit.tokens import tokenize_prompt
from tl_edit.trace import (
    AverageTrace,
    CausalTrace,
    Noise,
    TraceDifference,
    average_traces,
    causal_trace,
    embedding_std,
    trace_difference,
    trace_facts,
)
from tl_edit.values import OptimizedValue, ValueSearch, optimize_value, optimize_values

__version__ = "0.1.0"

__all__ = [
    "AlphaEditConfig",
    "AverageTrace",
    "CausalTrace",
    "Comparison",
    "Convergence",
    "DoseResponse",
    "EMMETConfig",
    "Edit",
    "EditRecord",
    "EditRequest",
    "Evaluation",
    "Generation",
    "HuggingFaceExport",
    "Interference",
    "KeyCache",
    "KeyValueMemory",
    "KeysValues",
    "KnownFact",
    "KnownFacts",
    "LocateVsEdit",
    "LowRank",
    "MEMITConfig",
    "Malformed",
    "Noise",
    "OptimizedValue",
    "PMETConfig",
    "ROMEConfig",
    "Records",
    "SecondMoment",
    "SecondMoments",
    "Sweep",
    "TfIdf",
    "TraceDifference",
    "ValueSearch",
    "alpha_edit",
    "alpha_update",
    "applied_edits",
    "average_traces",
    "capture",
    "causal_trace",
    "compare",
    "corrupt_subject",
    "dose_response",
    "edit_memory",
    "embedding_std",
    "emmet_edit",
    "emmet_update",
    "evaluate",
    "extract_keys_values",
    "forget_edits",
    "generate_prefixes",
    "generate_texts",
    "interference",
    "key_value_memory",
    "locate_vs_edit",
    "memit_edit",
    "memit_update",
    "no_edit",
    "optimize_value",
    "optimize_values",
    "pmet_edit",
    "random_direction",
    "read_known_facts",
    "read_records",
    "read_texts",
    "restore",
    "rome_edit",
    "rome_update",
    "second_moment",
    "shift",
    "sweep",
    "to_hugging_face",
    "tokenize_prompt",
    "trace_difference",
    "trace_facts",
    "undo_edits",
    "write_records",
]
