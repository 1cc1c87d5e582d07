"""A plugin for pytest that runs PyTorch's tests of its optimizers with our classes instead.

    WHOSE=ours PYTHONPATH=tests/hosts/torch python -m pytest -p our_classes_in_pytorch -W ignore \
        path/to/pytorch/test/test_optim.py

The table `optim_db` says which classes the tests run. It comes with PyTorch; the tests themselves
stand in its source alone. `WHOSE=theirs` runs PyTorch's classes, but those alone that we have too.
"""

import os

import torch
from torch.testing._internal.common_optimizers import optim_db

import onepass.torch

optim_db[:] = [info for info in optim_db if info.optim_cls.__name__ in onepass.torch.__all__]
assert len(optim_db) == 13, "optim_db: expected all of PyTorch's classes in it that we have too"
if os.environ["WHOSE"] == "ours":
    for each in optim_db:
        each.optim_cls = getattr(onepass.torch, each.optim_cls.__name__)
        # The tests of schedulers and averages make theirs by these names.
        setattr(torch.optim, each.optim_cls.__name__, each.optim_cls)
