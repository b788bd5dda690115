"""Conditions on inputs and outputs: their memory format, their class, and that inputs are not changed."""

import torch
from torch import Tensor

from attn3d.testing.subject import (
    Subject,
    expect,
    expect_close,
    expect_equal,
    expect_same_gradients,
    gradients_of,
)


def memory_format(subject: Subject) -> None:
    """A contiguous input gives a contiguous output, a channels-last input a channels-last output of equal values."""
    for training in (False, True):
        x = subject.input(dtype=torch.float32)
        module = subject.copy(torch.float32, training=training)
        reference = module(x)
        expect(reference.is_contiguous(), "a contiguous output for a contiguous input", _strides(reference))
        if subject.spatial_dims > 1:  # PyTorch has no such format with one axis
            module = subject.copy(torch.float32, training=training)
            y = module(_channels_last(x))
            expect_close(y, reference, "the output for a channels-last input to be that for a contiguous one")
            last = y.movedim(1, -1).is_contiguous()
            expect(last, "a channels-last output for a channels-last input", _strides(y))


def strided_inputs(subject: Subject) -> None:
    """Permuted, sliced, cropped, expanded and channels-last inputs give the results of a contiguous one."""
    x = subject.input()
    reverse = list(reversed(range(x.dim())))
    axes = subject.spatial_dims
    views = {
        "permuted": x.permute(reverse).contiguous().permute(reverse),
        "channels-last": _channels_last(x),
        "sliced": subject.input((8, 10, 6))[:, :, *[slice(None, None, 2)] * axes],
        "cropped": subject.input((6, 7, 5))[:, :, *[slice(1, -1)] * axes],
        "batch-first of a larger tensor": subject.input(batch=4)[::2],
        "expanded over the samples": x[:1].expand_as(x),
        "expanded over the voxels": x[:, :, *[slice(0, 1)] * axes].expand_as(x),
    }
    for what, view in views.items():
        found = subject.copy()
        reference = subject.copy()
        y = found(view)
        expect_close(y, reference(view.contiguous()), f"the output for a {what} input to be that for a plain one")
        leaf = view.detach().requires_grad_()
        expect_same_gradients(
            gradients_of(found, leaf),
            gradients_of(reference, view.detach().clone(memory_format=torch.contiguous_format).requires_grad_()),
            f"the gradients for a {what} input to be those for a plain one",
        )


def inputs_unchanged(subject: Subject) -> None:
    """Forward and backward never change the input, including leaves, expanded and inference tensors.

    The module and its parts keep their mode.
    """
    x = subject.input()
    for training in (False, True):
        module = subject.copy(training=training)
        for what, tensor in {
            "an input": x.clone(),
            "a leaf": x.clone().requires_grad_(),
            "an expanded input": x[:1].clone().expand_as(x),
        }.items():
            before, version, asked = tensor.detach().clone(), tensor._version, tensor.requires_grad
            y = module(tensor)
            if y.requires_grad:
                gradients_of(module, tensor, y)
            expect_equal(tensor.detach(), before, f"{what} to keep its values")
            expect(tensor._version == version, f"{what} not to be written to", "an in-place operation on it")
            expect(tensor.requires_grad == asked and tensor.grad is None, f"{what} to keep requires_grad", "a change")
        changed = sorted(name or "the module" for name, part in module.named_modules() if part.training != training)
        expect(not changed, "the module and its parts to keep their mode", f"another mode of {', '.join(changed)}")
    with torch.inference_mode():
        frozen = x.clone()
        subject.copy()(frozen)
        expect_equal(frozen, x, "an inference tensor to keep its values")


def inplace_host(subject: Subject) -> None:
    """A following in-place operation, such as relu_, gives correct gradients and does not change the input."""
    for training in (False, True):
        x = subject.input(requires_grad=True)
        module = subject.copy(training=training)
        reference = gradients_of(module, x, torch.relu(module(x)))
        before = x.detach().clone()
        found = gradients_of(module, x, module(x).relu_())
        expect_equal(x.detach(), before, "an output that can be written to without changing the input")
        expect_same_gradients(found, reference, "the same gradients with relu_ after the module as with relu")


def meta_tensor(subject: Subject) -> None:
    """A MONAI MetaTensor gives a MetaTensor with the same affine and the values of a plain tensor, in eager mode."""
    from monai.data import MetaTensor

    x = subject.input()
    affine = torch.diag(torch.tensor([0.5, 0.7, 5.0, 1.0], dtype=torch.float64))
    for training in (False, True):
        reference = subject.copy(training=training)(x)
        y = subject.copy(training=training)(MetaTensor(x, affine=affine))
        expect(isinstance(y, MetaTensor), "a MetaTensor for a MetaTensor", type(y).__name__)
        expect(y.affine.shape == (4, 4) and torch.equal(y.affine, affine), "the affine to be kept", y.affine.tolist())
        expect_close(y.as_tensor(), reference, "the values of a plain tensor")


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _strides(y: Tensor) -> str:
    return f"strides {y.stride()} for shape {tuple(y.shape)}"
