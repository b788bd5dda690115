"""The context-parallel form of batch normalisation."""

import torch
from torch import Tensor
from torch.nn import functional

from attn3d.capture import at_least_single
from attn3d.distributed.collectives import all_reduce, sum_of
from attn3d.distributed.context import ContextParallel


class ShardedBatchNorm(ContextParallel):
    """`BatchNorm` with the mean and variance of the whole volume. `torch.nn.SyncBatchNorm` supports only CUDA."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    weight: Tensor | None
    bias: Tensor
    momentum: float | None
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalises a shard (B, C, ...)."""
        if not self.training:
            return super().forward(x)
        count = sum_of(x.numel() // x.shape[1], x, self.process_group)
        if count < 2:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        wide = at_least_single(x).movedim(1, -1)
        others = tuple(range(x.dim() - 1))
        mean = all_reduce(wide.sum(others), self.process_group) / count
        centred = wide - mean
        variance = all_reduce(centred.square().sum(others), self.process_group) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            dtype = self.running_mean.dtype
            share = (1.0 / self.num_batches_tracked).to(dtype) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(dtype), share)
            self.running_var.lerp_((variance * count / (count - 1)).to(dtype), share)
        y = centred * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            y = y * self.weight + self.bias
        return y.movedim(-1, 1).to(x.dtype)
