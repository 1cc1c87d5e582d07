import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session", autouse=True)
def one_thread_for_products():
    """The matrices are small, and scikit-learn's own tests run beside these."""
    with threadpool_limits(1):
        yield
