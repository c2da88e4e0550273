"""Locate, read and edit facts in language models, beside your own TransformerLens hooks.

Locate: `causal_trace` and `trace_facts` find the states that carry a fact; `corrupt_subject`, `restore`, `shift` and
`capture` are the hooks behind it, for studies of your own.

Read: `extract_keys_values` gives the key and the value at the subject, `second_moment` the keys there are at all,
`optimize_value` the value that would make the model say something else; `key_value_memory` shows neurons as memories.

Write: `rome_edit` one fact, `memit_edit`, `emmet_edit`, `alpha_edit` and `pmet_edit` many. Each returns an `Edit`,
which can be applied, undone bit for bit, switched on for a block or as hooks, scaled, added, saved, exported.

Judge: `evaluate` one edit, `sweep` methods over records, `compare` them; `locate_vs_edit`, `dose_response`,
`interference` and `Edit.collateral` ask further.

Follow: `next_tokens`, `logit_lens`, `attention_change` and `edit_circuit` show an edit on its way through the model,
and `edit_memory` what it answers to.

See: results show themselves in a notebook, draw themselves with ``plot``, and go into one page with `save_html`.

Data: `read_records`, `read_known_facts`, `read_texts`; `tl_edit.factworld` is a small model that knows real facts.
"""

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
from tl_edit.follow import (
    AttentionChange,
    EditCircuit,
    LogitLens,
    NextTokens,
    attention_change,
    edit_circuit,
    logit_lens,
    next_tokens,
)
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
from tl_edit.show import View, save_html
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
    "AttentionChange",
    "AverageTrace",
    "CausalTrace",
    "Comparison",
    "Convergence",
    "DoseResponse",
    "EMMETConfig",
    "Edit",
    "EditCircuit",
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
    "LogitLens",
    "LowRank",
    "MEMITConfig",
    "Malformed",
    "NextTokens",
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
    "View",
    "alpha_edit",
    "alpha_update",
    "applied_edits",
    "attention_change",
    "average_traces",
    "capture",
    "causal_trace",
    "compare",
    "corrupt_subject",
    "dose_response",
    "edit_circuit",
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
    "logit_lens",
    "memit_edit",
    "memit_update",
    "next_tokens",
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
    "save_html",
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
