import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """So that no test reads or fills the user's cache; not one for each test, since fixtures of modules run things."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARTSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """So that sums run in one order, whatever the machine, and a forked process needs no threads of its parent."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
