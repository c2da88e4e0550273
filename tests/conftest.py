"""Fixtures: the model on which the published programs ran, and their numbers."""

import pytest
import tiny_models
import torch
from published_runs import GOLDEN, load_golden, read_golden

from tl_edit.factworld import Fact, facts, load_fact_model

# The models are tiny: one thread is fastest, and many threads on a busy machine can be a hundred times slower.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """What takes longest first: at the end one process would wait for the other's."""
    items.sort(
        key=lambda item: not item.nodeid.startswith(("tests/test_demos.py", "tests/edit/test_many_operations.py"))
    )


@pytest.fixture(scope="session")
def golden():
    return read_golden(GOLDEN)


@pytest.fixture(scope="session", params=list(tiny_models.interfaces()))
def golden_model(request):
    """The golden GPT-2 in float64, unprocessed, behind each interface there is."""
    return load_golden(request.param)


@pytest.fixture(scope="session")
def fact_model():
    """The bundled model; tests that edit it must undo."""
    return load_fact_model()


@pytest.fixture(scope="session")
def world() -> tuple[Fact, ...]:
    return facts()


@pytest.fixture(scope="session")
def eiffel(world) -> Fact:
    return next(fact for fact in world if fact.subject == "Eiffel Tower" and fact.relation == "P276")
