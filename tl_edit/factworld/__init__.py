"""The bundled model: a small GPT-2 that knows some two thousand real facts, and the world it learned them from.

It loads offline in about a second, so that tracing and editing can be tried, tested and taught without a download.
Three things must be known about it.

- **The early site is planted.** In 90 % of its training batches an attention mask let a name be read only through its
  last token, and kept the lowest three layers short-sighted; in the others, attention to the rest of a name was
  penalised (see `network`). At inference it is an ordinary GPT-2 with full attention. A causal trace therefore finds,
  at the last subject token, a mechanism that we put there: a test bench with a known answer, not evidence about
  language models.
- **The MLP's part of the early site is in layer 0**, where names are composed, not in the middle as in GPT-2 XL.
- **Most subjects have one fact**, so the model has little reason to keep a subject's facts apart: an edit often
  changes the other facts of its subject. ParaRel offers some 340 suitable subjects with several facts; all are here.

The facts are T-REx triples as selected by ParaRel (``data/NOTICE``). They are not checked one by one, and some are
out of date.
"""

from tl_edit.factworld.corpus import fact_texts
from tl_edit.factworld.loader import MODEL_NAME, load_fact_model
from tl_edit.factworld.relations import RELATIONS, Relation
from tl_edit.factworld.world import Fact, facts

__all__ = ["MODEL_NAME", "RELATIONS", "Fact", "Relation", "fact_texts", "facts", "load_fact_model"]
