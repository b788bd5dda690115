"""Parts of a module that backward computes again, so that their inputs are all that is kept for it."""

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn3d.capture import is_transformed


def recomputed(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> Tensor:
    """``function(module, *inputs)``, and again in backward, for which only the inputs are kept.

    Running statistics count a forward pass once: in backward the module has copies of them.

    Args:
        function: of the module and the inputs, such as a method of its class; without randomness.
        module: holds the parameters that the function uses.
        inputs: tensors, to which and to the parameters the gradients flow.
    """
    if is_transformed() or not torch.is_grad_enabled():
        return function(module, *inputs)
    passes = itertools.count()

    def run(*inputs: Tensor) -> Tensor:
        return function(module if next(passes) == 0 else _with_own_buffers(module), *inputs)

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)


def _with_own_buffers(module: nn.Module) -> nn.Module:
    """The module with its own parameters and copies of its buffers; it stays what it is for other threads."""
    own = copy.copy(module)
    own._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    own._modules = {name: None if child is None else _with_own_buffers(child) for name, child in own._modules.items()}
    return own
