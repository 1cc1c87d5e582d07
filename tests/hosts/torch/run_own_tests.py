"""PyTorch's own tests of its optimizers, with our classes in the place of its.

    python run_own_tests.py theirs|ours path/to/pytorch/test/test_optim.py [pytest's options]

The table `optim_db` says which classes the tests run. It comes with PyTorch; the tests themselves
stand in its source alone. `theirs` runs PyTorch's classes, but those alone that we have too.
"""

import sys
from pathlib import Path

import pytest
from torch.testing._internal import common_optimizers
from torch.testing._internal.common_optimizers import optim_db

import onepass.torch


def main(whose: str, path: str, *options: str) -> int:
    ours = [info for info in optim_db if hasattr(onepass.torch, info.optim_cls.__name__)]
    assert len(ours) >= 13, "optim_db: expected PyTorch's classes in it"
    if whose == "ours":
        for info in ours:
            info.optim_cls = getattr(onepass.torch, info.optim_cls.__name__)
    optim_db[:] = ours
    # The tests import it under this name.
    assert common_optimizers.optim_db is optim_db
    sys.path.insert(0, str(Path(path).parent))
    return pytest.main([path, "-q", "-p", "no:cacheprovider", "-W", "ignore", *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
