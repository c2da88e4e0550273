"""What tells one model from another, beyond its name."""

from typing import cast

from torch import nn

from tl_edit.digest import digest
from tl_edit.host import Model

_SENTENCE = "Zürich, 1905: “naïve” questions (北京)\n\tdon't end; e=mc^2."


def weights_digest(model: Model) -> str:
    """A hash of all parameters and buffers; a billion bytes take about a second."""
    module = cast(nn.Module, model)
    return digest([*module.parameters(), *module.buffers()])


def tokenizer_digest(model: Model) -> str:
    """A hash of the tokens of one sentence, with what tokenizers differ in; "none" for a model without a tokenizer."""
    if model.tokenizer is None:
        return "none"
    return digest([model.to_tokens(_SENTENCE, prepend_bos=False, truncate=False).long()], size=8)
