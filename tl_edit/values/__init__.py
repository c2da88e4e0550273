"""The search for the value that makes the model say the new object: ROME's v*, MEMIT's z*, PMET's pair.

A vector ``delta`` is added at the subject's last token, in the prompt behind several prefixes and in one more prompt,
``"{subject} is a"``: to the output of ``W_out`` (v*) or to the block output (z*). Adam minimises (Meng et al. 2022, eq.
4; 2023, eq. 16, as the published programs compute it)::

    mean over prefixes of  -(1/m) sum_i log p(target token i)
    + kl_factor * KL(P_delta || P_0)            at the subject's last token of "{subject} is a"
    + v_weight_decay * |delta| / |v0|^2

and after each step ``delta`` is pulled back to length ``clamp_norm_factor * |v0|``. ``v0`` is what the bare prompt has
there, and ``v* = v0 + delta``. Where the papers differ: they describe the KL term at the end of "{subject} is a" and a
squared ``delta``; ROME's appendix gives other weights.

The weights are not touched and receive no gradients. Files: what is asked for (`settings`, `asked`, `rows`), how delta
moves (`search`), how a loss is computed (`engine`, `plain`; `tail` computes only what can differ); `run` puts
it together, `folder` keeps what was found.
"""

from tl_edit.values.result import OptimizedValue
from tl_edit.values.run import optimize_value, optimize_values
from tl_edit.values.settings import Site, ValueSearch

__all__ = ["OptimizedValue", "Site", "ValueSearch", "optimize_value", "optimize_values"]
