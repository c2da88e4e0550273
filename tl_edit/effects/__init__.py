"""What edits do beyond the facts they write: by their strength, and to each other; by hooks, no weight is written."""

from tl_edit.effects.dose import DoseResponse, dose_response
from tl_edit.effects.interference import Interference, interference

__all__ = ["DoseResponse", "Interference", "dose_response", "interference"]
