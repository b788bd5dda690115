"""Maps, and comparisons of functions with the plain operators."""

import torch


def volume(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def assert_same(ours, theirs, inputs):
    """Compares outputs, and the gradients for a random output gradient."""
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    gradients = torch.autograd.grad(ours, inputs, weight), torch.autograd.grad(theirs, inputs, weight)
    torch.testing.assert_close(*gradients)


def saved(function, *inputs: torch.Tensor) -> set[int]:
    """The storages that autograd saves for backward."""
    found = set()

    def keep(tensor):
        found.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(*inputs)
    return found
