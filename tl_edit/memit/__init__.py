"""MEMIT and its relatives."""

from tl_edit.memit.algebra import alpha_update, emmet_update, memit_update

__all__ = ["alpha_update", "emmet_update", "memit_update"]
