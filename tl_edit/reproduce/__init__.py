"""The papers' tables, measured again: ours beside the published numbers, with the tolerance of the sample.

`published` has the papers' numbers, `compared` puts ours beside them; each table has a file of its own.
"""

from tl_edit.reproduce.compared import Cell, Reproduction, Row
from tl_edit.reproduce.memit_scaling import memit_scaling
from tl_edit.reproduce.published import PAPER_MODELS, PUBLISHED, PublishedRow, published_name, published_row
from tl_edit.reproduce.rome_counterfact import rome_counterfact
from tl_edit.reproduce.trace_averages import trace_averages

__all__ = [
    "PAPER_MODELS",
    "PUBLISHED",
    "Cell",
    "PublishedRow",
    "Reproduction",
    "Row",
    "memit_scaling",
    "published_name",
    "published_row",
    "rome_counterfact",
    "trace_averages",
]
