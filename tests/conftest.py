import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """So that sums run in one order, whatever the machine, and a forked process needs no threads of its parent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
