#!/usr/bin/env bash
# torch: a pooling by sums becomes a pooling by means if it is exported to ONNX.
#
# torch 2.13.0, onnxscript 0.7.2, onnxruntime 1.32.0. avg_pool3d and avg_pool2d have a divisor of their own:
# divisor_override=1 gives the sum of each window, as a count of voxels or a sum of attention. ONNX's AveragePool has no
# such attribute. torch.onnx.export leaves it out without an error (the translation in onnxscript does not use the
# argument, and that of dynamo=False does not, either), so that the exported network has an eighth of the values in
# windows of 2 x 2 x 2. In pytorch#105349 of 2023, there was an error for it. A product of the mean and the number of
# voxels in a window is exported rightly. So a network is to be compared with its export.
#
# Seen (values of the exported network, relative to those of torch, with the default exporter and dynamo=False):
#   network                                       ratio
#   avg_pool3d(x, 2)                              1
#   avg_pool3d(x, 2, divisor_override=1)          0.125
#   avg_pool3d(x, (2, 2, 1), divisor_override=2)  0.5
#   avg_pool2d(x, 2, divisor_override=1)          0.25
#   avg_pool3d(x, 2) * 8                          1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END' 2> errors || { cat errors >&2; exit 1; }
import numpy as np
import onnxruntime
import torch
from torch.nn import functional


class Network(torch.nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        return self.pool(x)


volume = torch.rand(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
cases = {
    "mean": (lambda x: functional.avg_pool3d(x, 2), volume, 1),
    "sum": (lambda x: functional.avg_pool3d(x, 2, divisor_override=1), volume, 1 / 8),
    "two slices": (lambda x: functional.avg_pool3d(x, (2, 2, 1), divisor_override=2), volume, 1 / 2),
    "sum in a plane": (lambda x: functional.avg_pool2d(x, 2, divisor_override=1), volume[..., 0], 1 / 4),
    "product": (lambda x: functional.avg_pool3d(x, 2) * 8, volume, 1),
}
windows = volume.numpy().reshape(1, 2, 4, 2, 4, 2, 4, 2)
assert np.allclose(cases["sum"][0](volume), windows.sum((3, 5, 7)), atol=1e-4)
for name, (pool, example, ratio) in cases.items():
    network = Network(pool).eval()
    for dynamo in (True, False):
        torch.onnx.export(network, (example,), "network.onnx", verbose=False, dynamo=dynamo)
        session = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
        (seen,) = session.run(None, {session.get_inputs()[0].name: example.numpy()})
        relative = seen / network(example).numpy()
        print(name, "dynamo", dynamo, "ratio", relative.min(), relative.max())
        assert np.allclose(relative, ratio, atol=1e-4), "the behaviour has changed"
END
