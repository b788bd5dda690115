"""Recomputes parts of a module in backward, so that only their inputs are saved."""

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn3d.capture import is_transformed


def recomputed(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> Tensor:
    """Computes ``function(module, *inputs)``, and again in backward. Only the inputs are saved.

    Running statistics are updated once: in backward, the module has copies of them.

    Args:
        function: a function of the module and the inputs, such as a method of its class. It must not be random.
        module: the module. Its parameters get gradients.
        inputs: tensors. They get gradients too.
    """
    if is_transformed() or not torch.is_grad_enabled():
        return function(module, *inputs)
    passes = itertools.count()

    def run(*inputs: Tensor) -> Tensor:
        return function(module if next(passes) == 0 else _with_own_buffers(module), *inputs)

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)


def _with_own_buffers(module: nn.Module) -> nn.Module:
    """Returns a module with the same parameters and copies of the buffers. ``module``, which other threads may use, is
    not changed."""
    own = copy.copy(module)
    own._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    own._modules = {name: None if child is None else _with_own_buffers(child) for name, child in own._modules.items()}
    return own
