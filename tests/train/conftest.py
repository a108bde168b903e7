import pytest


@pytest.fixture(scope="module", autouse=True)
def _alone(one_thread):
    """Every test of training."""
