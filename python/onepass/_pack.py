"""Many arrays as views of one."""

from __future__ import annotations

from typing import Any

import numpy as np

from onepass._memory import aligned_zeros
from onepass._typing import Array, Tree
from onepass.optim._tree import Leaves, Node, flatten


def pack(params: Tree) -> tuple[Array, Any]:
    r"""Move arrays into one flat vector, and return it and the same structure as views of it.

    An optimizer of the vector steps all of them at once: one native call, one loop, and no cost per
    array. Rules are elementwise, so the result is the same to the bit:
    :math:`\mathrm{step}(\mathrm{pack}(w)) = \mathrm{pack}(\mathrm{step}(w))`. (What is rounded at
    random is rounded by other bits, and blocks of 8 bits begin elsewhere.)

    Parameters
    ----------
    params : ndarray, sequence or mapping of them
        float32, float64, float16 or ``ml_dtypes.bfloat16``, all of one dtype; any shapes and
        strides. They are copied and not changed.

    Returns
    -------
    flat : ndarray, shape (total,)
        Begins on a cache line (64 bytes).
    views : like `params`
        Its pieces, in order, each of its array's shape, C-contiguous; sequences as lists.

    Raises
    ------
    TypeError, ValueError
        If there is no array, or one is not of such a dtype.

    Notes
    -----
    Differs from

    * PyTorch's ``parameters_to_vector``: that copies; here vector and pieces share their memory.
    * JAX's ``ravel_pytree``: the same, but its arrays are values.

    Examples
    --------
    >>> import numpy as np
    >>> import onepass as op
    >>> flat, params = op.pack({"w": np.ones((2, 2)), "b": np.zeros(2)})
    >>> flat_grad, grads = op.pack({"w": np.ones((2, 2)), "b": np.ones(2)})
    >>> opt = op.SGD(flat, lr=0.5, grads=flat_grad)
    >>> info = opt.step()
    >>> params["b"]
    array([-0.5, -0.5])
    """
    leaves = Leaves()
    shape = flatten(params, leaves)
    if not leaves.arrays:
        raise ValueError("params: expected at least one array, got none")
    arrays = [_checked(a, label) for a, label in zip(leaves.arrays, leaves.labels, strict=True)]
    dtype = arrays[0].dtype
    for array, label in zip(arrays, leaves.labels, strict=True):
        if array.dtype != dtype:
            raise TypeError(f"params{label}: expected dtype {dtype}, got {array.dtype}")
    flat = aligned_zeros(sum(array.size for array in arrays), dtype)
    views, begin = [], 0
    for array in arrays:
        view = flat[begin : begin + array.size].reshape(array.shape)
        view[...] = array
        views.append(view)
        begin += array.size
    return flat, _unflatten(shape, iter(views))


def _checked(array: Any, label: str) -> Array:
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"params{label}: expected a NumPy array, got {type(array).__name__}")
    is_usual = array.dtype in (np.float32, np.float64, np.float16)
    if not is_usual and array.dtype.name != "bfloat16":
        expected = "dtype float32, float64, float16 or bfloat16"
        raise TypeError(f"params{label}: expected {expected}, got {array.dtype}")
    return array


def _unflatten(shape: Node, views: Any) -> Any:
    if shape is None:
        return next(views)
    if isinstance(shape, dict):
        return {key: _unflatten(child, views) for key, child in shape.items()}
    return [_unflatten(child, views) for child in shape]
