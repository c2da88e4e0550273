"""Records to edit and judge: what they are, and where they come from."""

from tl_edit.data.listed import KnownFacts, Malformed, Records
from tl_edit.data.own import write_records
from tl_edit.data.read import read_known_facts, read_records
from tl_edit.data.record import EditRecord, KnownFact, as_records

__all__ = [
    "EditRecord",
    "KnownFact",
    "KnownFacts",
    "Malformed",
    "Records",
    "as_records",
    "read_known_facts",
    "read_records",
    "write_records",
]
