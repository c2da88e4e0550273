"""Causal tracing: where in layers and positions a model looks a fact up.

Three kinds of run, always of the same prompt (Meng et al. 2022, section 2.1):

- **clean**: as it is; the answer's probability is ``clean_prob``;
- **corrupted**: noise on the subject's token embeddings; the mean over draws is ``corrupted_prob``;
- **corrupted with restoration**: one state (a layer's block output, or the MLP or attention output of a
  window of layers) at one position put back to its clean value; ``restored_prob[kind, layer, pos]``.

Values are stored raw. The total effect is clean - corrupted; the indirect effect of a state is
restored - corrupted. Restoring everything gives the clean run, restoring nothing the corrupted one.

In this folder: `plan` says what is computed, `noise` how the subject is corrupted, `plain` and `wavefront` compute
it, `result` holds it, `run` ties them together, `average` does so over many facts, and `average_result` holds that.
"""

from tl_edit.trace.average import average_traces, trace_facts
from tl_edit.trace.average_result import ROLES, AverageTrace
from tl_edit.trace.noise import Noise, embedding_std
from tl_edit.trace.plan import KINDS, Kind, Measure, window_layers
from tl_edit.trace.result import CausalTrace, TraceDifference, trace_difference
from tl_edit.trace.run import causal_trace

__all__ = [
    "KINDS",
    "ROLES",
    "AverageTrace",
    "CausalTrace",
    "Kind",
    "Measure",
    "Noise",
    "TraceDifference",
    "average_traces",
    "causal_trace",
    "embedding_std",
    "trace_difference",
    "trace_facts",
    "window_layers",
]
