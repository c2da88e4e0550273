"""The shape checker of the test run forgets no function, and takes none for another."""

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import Float, TypeCheckError, config
from shape_checks import checked
from torch import Tensor

from tl_edit import corrupt_subject


@pytest.mark.skipif(config.jaxtyping_disable, reason="shapes are not checked in this run")
def test_a_function_within_another_is_checked_each_time():
    for _ in range(3):
        hook = corrupt_subject((0, 1))
        for wrong in (torch.ones(1, 2, 3).long(), torch.ones(2, 3), "a state"):
            with pytest.raises(TypeCheckError):
                hook(wrong)
        assert hook(torch.ones(1, 2, 3)).shape == (1, 2, 3)


def make(annotation, default=None):
    def function(value: annotation, other=default):
        return other

    return checked(function)


def test_each_signature_has_checks_of_its_own():
    right = {int: 1, str: "a", list[int]: [1], list[str]: ["a"], Float[Tensor, "a"]: torch.ones(1)}
    for annotation in [*right, *right]:
        for other, value in right.items():
            if other is annotation or other == annotation:
                make(annotation)(value)
            else:
                with pytest.raises(BeartypeCallHintParamViolation):
                    make(annotation)(value)


def test_alike_ones_are_prepared_once_if_they_can_be_told():
    assert make(int) is make(int)
    assert make(int) is not make(int, default=5)
    unhashable = make(int, default=[])
    assert unhashable is not make(int, default=[])
    with pytest.raises(BeartypeCallHintParamViolation):
        unhashable("a")
