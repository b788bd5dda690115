"""Conditions on shapes: any size from 1, any batch size from 0, and errors for inputs of wrong shape."""

import torch

from attn3d.testing.subject import (
    SIZE,
    Subject,
    Violation,
    expect,
    expect_close,
    expect_finite,
    first_line,
    gradients_of,
    run,
)


def shape(subject: Subject) -> None:
    """The output has the shape of the input. Every parameter has at least one dimension, as FSDP requires."""
    module = subject.copy()
    run(module, subject.input())
    scalars = [name for name, parameter in module.named_parameters() if parameter.dim() == 0]
    expect(not scalars, "parameters with at least one dimension", f"scalars: {', '.join(scalars)}")


def sizes(subject: Subject) -> None:
    """The shape is kept for sizes of 1 and for even, odd and prime sizes, equal to the channels or not.

    The output does not depend on the sizes that ran before.
    """
    module = subject.copy()
    channels = subject.channels
    for size in [(1, 1, 1), (1, 6, 7), (6, 1, 7), (7, 6, 1), (2, 2, 2), (11, 2, 3), (channels, 3, 2)]:
        x = subject.input(size, requires_grad=True)
        y = run(module, x)
        gradients_of(module, x, y)
        expect_close(
            y, run(subject.copy(), x), f"the output for shape {tuple(x.shape)} not to depend on earlier shapes"
        )


def batches(subject: Subject) -> None:
    """Batches of 0, 1 and 2 samples run forward and backward, in training too, and leave finite buffers."""
    for training in (False, True):
        module = subject.copy(training=training)
        for batch in (0, 1, 2):
            x = subject.input(batch=batch, requires_grad=True)
            y = run(module, x)
            gradients_of(module, x, y)
            for name, buffer in module.named_buffers():
                expect_finite(buffer, f"the buffer {name} after a batch of {batch}")


def single_voxel_training(subject: Subject) -> None:
    """Training on one sample of one voxel runs forward and backward and stays finite."""
    module = subject.copy(training=True)
    x = subject.input((1, 1, 1), batch=1, requires_grad=True)
    y = run(module, x)
    expect_finite(y, "the output")
    for gradient in gradients_of(module, x, y):
        expect_finite(gradient, "the gradients")


def wrong_inputs(subject: Subject) -> None:
    """An axis or a channel too many, an axis too few and an axis without voxels raise ValueError."""
    module = subject.copy()
    x = subject.input()
    axes = subject.spatial_dims
    wrong = {
        "an axis too many": x.unsqueeze(-1),
        "an axis too few": x[..., 0],
        "a channel too many": torch.cat([x, x[:, :1]], 1),
        "no voxel along the first axis": subject.input((0, *SIZE[1:])),
        "no voxel along the last axis": subject.input((*SIZE[: axes - 1], 0)),
    }
    for what, tensor in wrong.items():
        try:
            module(tensor)
        except ValueError:
            continue
        except Exception as error:
            raise Violation(f"a ValueError for {what}", first_line(error)) from error
        expect(False, f"a ValueError for {what}", f"an output for shape {tuple(tensor.shape)}")
