"""Batch normalisation: the functions, the layer that holds what they need, and the reference."""

from onepass.batchnorm.context import Context
from onepass.batchnorm.functional import (
    batch_norm_backward,
    batch_norm_infer,
    batch_norm_infer_backward,
    batch_norm_train,
)
from onepass.batchnorm.layer import BatchNorm
from onepass.batchnorm.pieces import (
    GradientSums,
    Moments,
    batch_norm_gradient_sums,
    batch_norm_input_gradient,
    batch_norm_merge,
    batch_norm_moments,
    batch_norm_normalize,
)
from onepass.batchnorm.update import update_bn

__all__ = [
    "BatchNorm",
    "Context",
    "GradientSums",
    "Moments",
    "batch_norm_backward",
    "batch_norm_gradient_sums",
    "batch_norm_infer",
    "batch_norm_infer_backward",
    "batch_norm_input_gradient",
    "batch_norm_merge",
    "batch_norm_moments",
    "batch_norm_normalize",
    "batch_norm_train",
    "update_bn",
]
