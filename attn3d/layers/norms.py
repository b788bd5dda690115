"""Norms that are created from a spec and accept a single value per channel.

Small 3-D batches often have one value per channel: batch 1 at a 1 x 1 x 1 bottleneck, or a pooled vector. PyTorch's
batch and instance norms raise an error there. Here batch norm uses its running statistics, and instance and group norm
return their bias, in accordance with their formula. All norms are channels-first, for any number of axes including
zero.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attn3d.arguments import Spec, boolean, check_options, nearest, nonnegative_number, positive_integer, read_spec

NormSpec = Spec | None


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation (arXiv 1502.03167) over all axes but the channels.

    In training, a batch with at most one value per channel is normalised by the running statistics and does not update
    them. The class derives from PyTorch's batch norm, so that tools that search for batch norms find it.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        eps, affine = nonnegative_number("eps", eps), boolean("affine", affine)
        momentum = None if momentum is None else nonnegative_number("momentum", momentum)
        super().__init__(channels, eps=eps, momentum=momentum, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, ...)."""
        from_batch = False
        if self.training and x.numel() > x.shape[1]:  # an `if`, because comparing symbolic sizes gives no bool
            from_batch = True
        mean, variance, momentum = self.running_mean, self.running_var, self.momentum
        if from_batch and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None and mean is not None and variance is not None:
                # The cumulative mean, as in PyTorch. Its share is a tensor, because a compiled graph has no numbers.
                own_mean, own_variance = torch.zeros_like(mean), torch.zeros_like(variance)
                y = functional.batch_norm(x, own_mean, own_variance, self.weight, self.bias, True, 1.0, self.eps)
                share = 1.0 / self.num_batches_tracked.to(mean.dtype)
                mean.lerp_(own_mean, share)
                variance.lerp_(own_variance, share)
                return y
        momentum = 0.0 if momentum is None else momentum
        return functional.batch_norm(x, mean, variance, self.weight, self.bias, from_batch, momentum, self.eps)


class GroupNorm(nn.GroupNorm):
    """Group normalisation (arXiv 1803.08494), also of a single value per group."""

    def __init__(self, channels: int, *, num_groups: int, eps: float = 1e-5, affine: bool = True) -> None:
        if channels % positive_integer("num_groups", num_groups):
            fitting = [groups for groups in range(1, channels + 1) if channels % groups == 0]
            raise ValueError(f"`num_groups` must divide {channels} channels, got {num_groups}; {fitting} do")
        eps, affine = nonnegative_number("eps", eps), boolean("affine", affine)
        super().__init__(num_groups, channels, eps=eps, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, ...)."""
        # Not functional.group_norm, which raises for one value per group. Not channels-last, where PyTorch's CPU kernel
        # computes the variance as E[x^2] - E[x]^2, which has no correct digit if the mean is large, and has no `vmap`.
        return torch.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)


class InstanceNorm(GroupNorm):
    """Instance normalisation (arXiv 1607.08022): group norm with a group for every channel."""

    def __init__(self, channels: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, num_groups=channels, eps=eps, affine=affine)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (arXiv 1607.06450) over the channels of every voxel."""

    def __init__(self, channels: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        eps, affine = nonnegative_number("eps", eps), boolean("affine", affine)
        super().__init__(channels, eps=eps, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (B, C, ...)."""
        y = functional.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.movedim(-1, 1)


_NORMS: dict[str, Any] = {
    "batch": BatchNorm,
    "group": GroupNorm,
    "instance": InstanceNorm,
    "layer": LayerNorm,
}


def create_norm(spec: NormSpec, channels: int) -> nn.Module:
    """Creates a norm for (B, ``channels``, ...).

    Args:
        spec: "batch", "group", "instance" or "layer", or with options ("group", {"num_groups": 8}); None for the
            identity. Names are not case-sensitive, as in MONAI.
        channels: number of channels of the input.

    Raises:
        TypeError: if ``spec`` is not a spec, or an option is unknown or has the wrong type.
        ValueError: if the name is unknown, an option is out of range, or the groups do not divide the channels.
    """
    if spec is None:
        return nn.Identity()
    name, options = read_spec("norm", spec)
    if name.lower() not in _NORMS:
        raise ValueError(f"`norm` got {name!r}; {nearest(name, _NORMS)} or None")
    norm = _NORMS[name.lower()]
    check_options(f"`norm` {name.lower()!r}", norm, options, positional=1)
    return norm(channels, **options)


def is_instance_norm(module: nn.Module) -> bool:
    """Returns whether a module is an instance norm, including group norms with one channel per group."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups == module.num_channels
    return isinstance(module, nn.modules.instancenorm._InstanceNorm)
