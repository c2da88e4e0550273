"""Sweeps: many records, several methods and their controls, kept as they come."""

from tl_edit.sweep.locate import LocateVsEdit, locate_vs_edit
from tl_edit.sweep.methods import Method, Switchable, no_edit, random_direction
from tl_edit.sweep.result import Outcome, Sweep
from tl_edit.sweep.run import sweep

__all__ = [
    "LocateVsEdit",
    "Method",
    "Outcome",
    "Sweep",
    "Switchable",
    "locate_vs_edit",
    "no_edit",
    "random_direction",
    "sweep",
]
