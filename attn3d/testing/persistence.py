"""Conditions on copies: deep copies, pickling, state dicts and the meta device."""

import copy
import io
import pickle

import torch
from torch import nn

from attn3d.testing.subject import Subject, expect, expect_equal, expect_shape


def deepcopies(subject: Subject) -> None:
    """A deep copy made after a forward pass gives the same output and shares no parameter and no buffer."""
    module = _run_once(subject)
    twin = copy.deepcopy(module)
    _expect_same_output(subject, twin, module, "a deep copy")
    for name, value in twin.state_dict(keep_vars=True).items():
        shared = value is module.state_dict(keep_vars=True)[name]
        expect(not shared, f"a deep copy with {name} of its own", "the same tensor")


def pickles(subject: Subject) -> None:
    """The module gives the same output after pickling and unpickling it after a forward pass."""
    module = _run_once(subject)
    _expect_same_output(subject, pickle.loads(pickle.dumps(module)), module, "the unpickled module")


def state_dict(subject: Subject) -> None:
    """The state dict, saved and loaded with `weights_only`, loads strictly and gives another copy the same output."""
    module = _run_once(subject)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin = subject.copy(torch.float32, seed=1)
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    _expect_same_output(subject, twin, module, "a module with the same state dict")


def meta_device(subject: Subject) -> None:
    """On the meta device the module runs and keeps the shape."""
    x = subject.input(dtype=torch.float32).to("meta")
    for training in (False, True):
        y = subject.copy(torch.float32, training=training).to("meta")(x)
        expect_shape(y, x)
        expect(y.device.type == "meta", "an output on the meta device", y.device)


def _expect_same_output(subject: Subject, twin: nn.Module, module: nn.Module, what: str) -> None:
    """Checks that ``twin`` and ``module`` give bitwise equal outputs in evaluation, with the same random numbers."""
    x = subject.input(dtype=torch.float32)
    with subject.random_state_kept():
        y = twin.eval()(x.clone())
    with subject.random_state_kept():
        expect_equal(y, module.eval()(x.clone()), f"{what} to give the same output")


def _run_once(subject: Subject) -> nn.Module:
    """Returns a copy after a forward pass in training. What the pass stores in the module must not prevent copies."""
    module = subject.copy(torch.float32, training=True)
    module(subject.input(dtype=torch.float32))
    return module
