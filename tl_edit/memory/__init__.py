"""MLPs as memories: what triggers a key, and what its value says (Geva et al. 2021, arXiv 2012.14913).

A memory is a neuron, or a factor of an edit, which is one that was written. Keys are found in `top`, by one pass over
texts with the engine of the second moments; values are read by `tl_edit.readout`; `read` does both, `run` checks what
is asked for, and `result` shows it, with `pictures`.
"""

from tl_edit.memory.result import KeyValueMemory, Trigger
from tl_edit.memory.run import edit_memory, key_value_memory

__all__ = ["KeyValueMemory", "Trigger", "edit_memory", "key_value_memory"]
