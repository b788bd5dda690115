#!/usr/bin/env bash
# A Swin stage in ONNX with dynamic sizes gives wrong results for a volume with permuted sizes, without an error.
#
# monai 1.6.1, torch 2.13.0, onnxruntime 1.32.0. Shifted windows need a mask of the voxels that were neighbours before the
# shift. MONAI computes it in Python from the sizes. If the stage is exported with dynamic_shapes, the ONNX file has
# dynamic sizes, but the mask is a constant for the exported sizes. If the number of windows differs, ONNX Runtime raises
# an error. If it is the same, as for 8 x 16 x 8 and 16 x 8 x 8, the mask of the exported sizes is used without an error.
# torch.export guards the sizes, but the ONNX file does not contain these guards.
#
# This is one stage; a whole SwinUNETR raised an error at other sizes. Seen (largest difference to PyTorch, one seed):
#   8 x 16 x 8 (as exported)  0.0000005
#   16 x 8 x 8                0.32
#   8 x 8 x 16                0.19
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 monai==1.6.1 einops==0.8.2 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import onnxruntime
import torch
from monai.networks.nets.swin_unetr import BasicLayer

torch.manual_seed(0)
layer = BasicLayer(dim=8, depth=2, num_heads=2, window_size=(4, 4, 4), drop_path=[0.0, 0.0]).eval()
size = torch.export.Dim.DYNAMIC
shapes = ({2: size, 3: size, 4: size},)
inputs = (torch.randn(1, 8, 8, 16, 8),)
torch.onnx.export(layer, inputs, "layer.onnx", input_names=["x"], dynamo=True, dynamic_shapes=shapes, verbose=False)
session = onnxruntime.InferenceSession("layer.onnx", providers=["CPUExecutionProvider"])
print("torch", torch.__version__, "input", session.get_inputs()[0].shape)
for spatial, right in (((8, 16, 8), True), ((16, 8, 8), False), ((8, 8, 16), False)):
    x = torch.randn(1, 8, *spatial)
    with torch.no_grad():
        difference = (torch.from_numpy(session.run(None, {"x": x.numpy()})[0]) - layer(x)).abs().max().item()
    print(spatial, difference)
    assert difference < 1e-5 if right else difference > 0.05, "the behaviour has changed"
END
