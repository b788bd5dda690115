"""Conditions on PyTorch's compilers: trace, compile, export."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from attn3d.testing.subject import Subject, Violation, expect_close, expect_same_gradients, gradients_of

# For dynamic sizes: no size equals that of another axis, and none is halved to 1.
_SIZE = (6, 10, 9)
_OTHER_SIZE = (9, 7, 5)


def trace(subject: Subject) -> None:
    """`torch.jit.trace` gives a module that equals eager on other values."""
    module = subject.copy(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sizes read as numbers, and about TorchScript
        traced = torch.jit.trace(module, subject.input(dtype=torch.float32), check_trace=False)
    x = subject.input(dtype=torch.float32)
    expect_close(traced(x), module(x), "the traced output to be that of eager")


def compile_static(subject: Subject) -> None:
    """`torch.compile(fullgraph=True)` in evaluation, without gradients, equals eager."""
    x = subject.input(dtype=torch.float32)
    module = subject.copy(torch.float32)
    for backend in subject.backends:
        with torch.no_grad(), _compiled(module, backend) as compiled:
            expect_close(compiled(x), module(x), f"the output of {backend} to be that of eager")


def compile_dynamic(subject: Subject) -> None:
    """`torch.compile(fullgraph=True)` in training, with dynamic batch and sizes, equals eager at two shapes.

    One graph is used for both shapes. Outputs, gradients and buffers are compared.
    """
    for backend in subject.backends:
        module = subject.copy(torch.float32, training=True)
        twin = copy.deepcopy(module)
        with _compiled(module, backend) as compiled:
            _compare_training(subject, compiled, module, twin, backend)


def export(subject: Subject) -> None:
    """`torch.export` with a dynamic batch and dynamic space gives a program that equals eager at another shape."""
    module = subject.copy(torch.float32)
    dynamic = dict.fromkeys(_dynamic_axes(subject), torch.export.Dim.DYNAMIC)
    x = subject.input(_SIZE, dtype=torch.float32)
    program = torch.export.export(module, (x,), dynamic_shapes=(dynamic,))
    x = subject.input(_OTHER_SIZE, batch=3, dtype=torch.float32)
    expect_close(program.module()(x), module(x), "the exported output to be that of eager at another shape")


@contextlib.contextmanager
def _compiled(module: nn.Module, backend: str) -> Iterator[Callable[[Tensor], Tensor]]:
    torch.compiler.reset()  # copies share their code, and with it the limit of recompilations
    try:
        yield torch.compile(module, fullgraph=True, backend=backend)
    finally:
        torch.compiler.reset()


def _compare_training(
    subject: Subject, compiled: Callable[[Tensor], Tensor], module: nn.Module, twin: nn.Module, backend: str
) -> None:
    """Compares output, gradients and buffers of the compiled ``module`` and its eager ``twin`` at two shapes."""
    for size, batch, stance in ((_SIZE, 2, "default"), (_OTHER_SIZE, 3, "fail_on_recompile")):
        x = subject.input(size, batch=batch, dtype=torch.float32)
        for axis in _dynamic_axes(subject):
            torch._dynamo.mark_dynamic(x, axis)
        x.requires_grad_()
        try:
            with torch.compiler.set_stance(stance):
                found = compiled(x)
        except RuntimeError as error:
            if "fail_on_recompile" not in str(error):
                raise
            raise Violation("one graph for both shapes", "a graph that is valid for the first shape only") from error
        reference = twin(x)
        expect_close(found, reference, f"the output of {backend} to be that of eager")
        what = f"the gradients of {backend} to be those of eager"
        expect_same_gradients(gradients_of(module, x, found), gradients_of(twin, x, reference), what)
    for buffer, other in zip(module.buffers(), twin.buffers(), strict=True):
        expect_close(buffer.float(), other.float(), f"the buffers after {backend} to be those after eager")


def _dynamic_axes(subject: Subject) -> tuple[int, ...]:
    """Returns the axes of the batch and of space. The number of channels is fixed by the module."""
    return (0, *range(2, subject.spatial_dims + 2))
