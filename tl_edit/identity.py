"""What tells one model from another, beyond its name."""

from typing import cast

from torch import nn

from tl_edit.digest import digest
from tl_edit.host import Model


def weights_digest(model: Model) -> str:
    """A hash of all parameters and buffers; a billion bytes take about a second."""
    module = cast(nn.Module, model)
    return digest([*module.parameters(), *module.buffers()])
