"""Follow an edit through a model: what it says by token and by layer, where heads look, and who carries the change."""

from tl_edit.follow.attention import AttentionChange, HeadChange, attention_change
from tl_edit.follow.circuit import Component, EditCircuit, edit_circuit
from tl_edit.follow.lens import LogitLens, logit_lens
from tl_edit.follow.next_tokens import NextTokens, next_tokens

__all__ = [
    "AttentionChange",
    "Component",
    "EditCircuit",
    "HeadChange",
    "LogitLens",
    "NextTokens",
    "attention_change",
    "edit_circuit",
    "logit_lens",
    "next_tokens",
]
