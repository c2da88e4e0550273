"""MEMIT and its relatives: many facts at once, by changes of ``W_out`` in several layers.

All find a value for each request (`tl_edit.values`) and then, layer by layer, move what ``W_out`` answers to the
requests' keys toward it. They differ in what the change shall cost (`algebra`), where the values are sought, and how
the distance is divided among layers:

- **MEMIT** weighs the requests against typical keys; **EMMET** meets every value exactly;
- **AlphaEdit** changes only directions that keys hardly take, and remembers earlier edits (`KeyCache`);
- **PMET** seeks the output of the MLP together with that of attention, and writes the MLP's part.

Files: `algebra` (tensors only), `settings`, `requests` (what is asked for, contradictions, the keys' prompts), `loop`
(what all have in common), `run` (`memit_edit`), `relatives` and `cache` (the others).
"""

from tl_edit.memit.algebra import alpha_update, emmet_update, memit_update, null_space, rarity
from tl_edit.memit.cache import KeyCache
from tl_edit.memit.relatives import alpha_edit, emmet_edit, pmet_edit
from tl_edit.memit.run import memit_edit
from tl_edit.memit.settings import AlphaEditConfig, EMMETConfig, MEMITConfig, PMETConfig

__all__ = [
    "AlphaEditConfig",
    "EMMETConfig",
    "KeyCache",
    "MEMITConfig",
    "PMETConfig",
    "alpha_edit",
    "alpha_update",
    "emmet_edit",
    "emmet_update",
    "memit_edit",
    "memit_update",
    "null_space",
    "pmet_edit",
    "rarity",
]
