"""Segment a scan with a network that ``attn3d export RUN --format onnx --out EXPORTED`` wrote, without attn3d.

python -m pip install monai nibabel onnxruntime
python examples/onnx_runtime.py EXPORTED LABELS.nii.gz SCAN.nii.gz [FURTHER IMAGES OF THE SCAN]
"""

import json
import sys

import nibabel as nib
import onnxruntime
import torch
from monai.transforms import LoadImage

if len(sys.argv) < 4:
    sys.exit(__doc__)
exported, out, *images = sys.argv[1:]
sys.path.insert(0, exported)
from scripts.portable import Prepared, ToScan, WindowInferer  # noqa: E402

with open(f"{exported}/metadata.json", encoding="utf-8") as file:
    facts = json.load(file)
session = onnxruntime.InferenceSession(f"{exported}/model.onnx")


def network(windows: torch.Tensor) -> torch.Tensor:
    """The logits of windows (B, C, *S)."""
    return torch.from_numpy(session.run(None, {"image": torch.Tensor(windows).numpy()})[0])


scan = {"image": LoadImage(ensure_channel_first=True)(images)}
scan = Prepared("image", facts["spacing"], facts["windows"])(scan)
scan["pred"] = WindowInferer(facts["patch_size"], facts["multiple"])(scan["image"][None], network)[0]
labels = ToScan("pred", "image", facts["values"], facts["regions"])(scan)["pred"]
image = nib.Nifti1Image(labels[0].numpy(), None)
image.set_sform(labels.affine.numpy(), "scanner")
image.set_qform(labels.affine.numpy(), "scanner")
image.header.set_xyzt_units("mm")
nib.save(image, out)
