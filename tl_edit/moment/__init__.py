"""The second moment of the keys, ``C = E[k k^T]``: which directions the MLP's keys usually take.

``C`` is uncentred (never a covariance) and is taken over every real token of a text sample, a BOS included
(unless told otherwise): what an edit must not move is whatever the model computes there. ROME and MEMIT solve with
it and never invert it (Meng et al. 2022, eq. 2; the published program inverts in float32).

What the texts are is in `texts` (and `corpora`, by name), their sums in `gram` and `sample`, the pass over them in
`collect` (with `checkpoint` and `processes`), what comes out in `result` (with `files`, `fingerprint` and
`convergence`).
"""

from tl_edit.moment.collect import second_moment
from tl_edit.moment.convergence import Convergence
from tl_edit.moment.corpora import read_texts
from tl_edit.moment.mapping import SecondMoments
from tl_edit.moment.result import SecondMoment

__all__ = ["Convergence", "SecondMoment", "SecondMoments", "read_texts", "second_moment"]
