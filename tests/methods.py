"""Settings for every scoring method there is, for the tests that go through all of them."""

from typing import Any

import pytest

from resval_lens.analyses.circuits.methods import METHODS

each_method = pytest.mark.parametrize("method", METHODS)


def settings_of(method: str, threshold: float = 1e6) -> dict[str, Any]:
    """What ``score_edges`` is to be given.

    By default a threshold above which no edge comes: that takes the fewest runs, and what dropping
    each edge did is its score all the same.
    """
    return {"threshold": threshold} if METHODS[method].by_threshold else {}
