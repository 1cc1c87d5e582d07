"""Batch normalisation: the functions, the layer that holds what they need, and the reference."""

from onepass.batchnorm.functional import (
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_infer_backward,
    batch_norm_train,
)
from onepass.batchnorm.layer import BatchNorm

__all__ = [
    "BatchNorm",
    "batch_norm_backward",
    "batch_norm_infer",
    "batch_norm_infer_backward",
    "batch_norm_train",
]
