#!/usr/bin/env bash
# PyTorch: watching a linear layer with a dispatch mode, or with fake tensors, makes it allocate its output twice.
#
# torch 2.13.0. For tokens that are a view of a channels-first map, functional.linear multiplies and then adds the bias in
# place. Under any TorchDispatchMode, and therefore under FakeTensorMode too, it adds the bias out of place. Tools that
# estimate peak memory in this way count one output too many: a third or more for the projection of q, k and v.
#
# Seen (the addition, and the operator):
#   profiler aten::add_
#   dispatch mode aten.add.Tensor
#   fake tensors aten.add.Tensor
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
from contextlib import nullcontext

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


class Additions(TorchDispatchMode):
    """Lists the additions."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if "add" in str(operator):
            self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


def project():
    tokens = torch.empty(1, 8, 100).transpose(1, 2)
    functional.linear(tokens, torch.empty(24, 8), torch.empty(24))


with profile(activities=[ProfilerActivity.CPU]) as profiler:
    project()
found = {"profiler": [event.name for event in profiler.events() if "add" in event.name]}
for name, mode in (("dispatch mode", nullcontext()), ("fake tensors", FakeTensorMode())):
    with mode, Additions() as additions:
        project()
    found[name] = additions.names
for name, names in found.items():
    print(name, *names)
expected = {"profiler": ["aten::add_"], "dispatch mode": ["aten.add.Tensor"], "fake tensors": ["aten.add.Tensor"]}
assert found == expected, "the behaviour has changed"
END
