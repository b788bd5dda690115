"""What captures a module by its operators, and so must be given plain ones."""

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary


def needs_plain_operators() -> bool:
    """Whether a trace or an ONNX export is being taken.

    Neither keeps an operator of Python's, such as an `torch.autograd.Function`, and a size that is asked for
    is frozen into a trace. Scripting is a question of its own: TorchScript answers `torch.jit.is_scripting`
    while it compiles, and leaves out the branch that is not taken.
    """
    return torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def takes_python_operators(x: Tensor) -> bool:
    """Whether an `torch.autograd.Function` may stand in for plain operators on ``x``.

    A compiler fuses plain operators itself and decides what is kept for backward. What a function gives for a subclass
    such as MetaTensor is a view, on which nothing may work in place.
    """
    return not (needs_plain_operators() or torch.compiler.is_compiling() or has_torch_function_unary(x))
