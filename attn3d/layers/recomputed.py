"""Recomputes parts of a module in backward, so that only their inputs are saved."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attn3d.capture import is_eager


def recomputed(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> Tensor:
    """Computes ``function(module, *inputs)``, and again in backward. Only the inputs are saved.

    Backward uses a snapshot of the module at the time of forward, so that running statistics are updated once.

    Args:
        function: a function of the module and the inputs, such as a method of its class. It must not be random.
        module: the module. Its parameters get gradients.
        inputs: tensors. They get gradients too.
    """
    if not (is_eager() and torch.is_grad_enabled()):  # `torch.func` supports no hooks on saved tensors
        return function(module, *inputs)
    passes, kept = itertools.count(), _snapshot(module)

    def run(*inputs: Tensor) -> Tensor:
        return function(module if next(passes) == 0 else kept, *inputs)

    return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)


def _snapshot(module: nn.Module) -> nn.Module:
    """Returns the module as it is now: its mode, its parameters, and copies of its buffers.

    By the time of the backward pass, the parameters may be others (`torch.func.functional_call`) and the mode too.
    `copy.copy` refuses modules with parametrizations.
    """
    own = object.__new__(type(module))
    own.__dict__.update(module.__dict__)
    own._parameters = dict(module._parameters)
    own._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    own._modules = {name: None if child is None else _snapshot(child) for name, child in module._modules.items()}
    return own
