"""An edit and its life: on a model, as hooks, in a file, and what it moves elsewhere."""

from tl_edit.edit.base import Base
from tl_edit.edit.collateral import Collateral
from tl_edit.edit.edit import AS_HOOKS, Edit, applied_edits, edits_on, undo_edits, warn_of_twice
from tl_edit.edit.ledger import check_untouched, forget_edits
from tl_edit.edit.low_rank import LowRank, plus

__all__ = [
    "AS_HOOKS",
    "Base",
    "Collateral",
    "Edit",
    "LowRank",
    "applied_edits",
    "check_untouched",
    "edits_on",
    "forget_edits",
    "plus",
    "undo_edits",
    "warn_of_twice",
]
