"""Records to edit and judge: what they are, and where they come from."""

from tl_edit.data.record import EditRecord, KnownFact, as_records

__all__ = ["EditRecord", "KnownFact", "as_records"]
