"""Where half precision is not enough: softmax, Gram matrices and sums over all voxels."""

import torch
from torch import Tensor


def at_least_single(x: Tensor) -> Tensor:
    """``x`` in single precision, or in its own where that is higher."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
