"""What every test runs under: one thread, checked annotations, errors for warnings, no network."""

import os
import sys
from collections.abc import Iterator

import jaxtyping
import pytest
import torch

import tests.typechecking  # noqa: F401  # looked up by name below

torch.set_num_threads(1)

# Every call into the package checks its annotations, shapes included. The hook reaches only
# modules imported after it, so it stands here, before a test module imports the package.
jaxtyping.install_import_hook(["resval_lens"], "tests.typechecking.checked")

UNAVOIDABLE_WARNINGS = [
    "ignore:HookedTransformer is deprecated:DeprecationWarning",  # of the stock models in tests
]


def pytest_configure(config: pytest.Config) -> None:
    for warning in UNAVOIDABLE_WARNINGS:
        config.addinivalue_line("filterwarnings", warning)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("RESVAL_NETWORK") == "1":
        return
    online = [item for item in items if item.get_closest_marker("network")]
    if online:
        config.hook.pytest_deselected(items=online)
        items[:] = [item for item in items if item not in online]


@pytest.fixture(autouse=True)
def figures_of_its_own() -> Iterator[None]:
    """What a test leaves open is not found open by one that looks whether the package did."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def unchecked_annotations() -> Iterator[None]:
    """For tests that hand in wrong types on purpose: the package's own refusal is what they see."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
