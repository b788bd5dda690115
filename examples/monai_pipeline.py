"""Add attention to a plain MONAI training loop with one line.

python examples/monai_pipeline.py
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandCropByPosNegLabeld,
)
from rich.progress import track

import attn3d
from attn3d.segmentation import TISSUES, write_mni152

PATCH = (48, 48, 48)
KEYS = ("image", "label")


def main(
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 200,
    resolution: Annotated[int, typer.Option(min=1, help="Voxel size in mm.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the scan.")] = Path("monai_pipeline"),
) -> None:
    """Segment the tissues of the MNI152 brain. The test is on the training scan and only shows that training works."""
    torch.manual_seed(0)
    files = [dict(zip(KEYS, write_mni152(out, resolution), strict=True))]
    load = [LoadImaged(KEYS), EnsureChannelFirstd(KEYS), NormalizeIntensityd("image", nonzero=True)]
    crop = RandCropByPosNegLabeld(KEYS, "label", PATCH, pos=3, neg=1, num_samples=2)
    patches = DataLoader(Dataset(files * steps, Compose([*load, crop])), batch_size=1)

    net = UNet(3, 1, 1 + len(TISSUES), channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2)
    attn3d.insert_attention(net, "cbam", at=("encoder", "skip"))  # the one line

    loss, optimizer = DiceCELoss(to_onehot_y=True, softmax=True), torch.optim.AdamW(net.parameters(), 3e-3)
    for batch in track(patches, "training", total=steps):
        optimizer.zero_grad()
        loss(net(batch["image"]), batch["label"]).backward()
        optimizer.step()

    net.eval()
    scan = Compose(load)(files[0])
    with torch.inference_mode():
        logits = SlidingWindowInferer(PATCH, sw_batch_size=2)(scan["image"][None], net)
    classes = 1 + len(TISSUES)
    metric = DiceMetric(include_background=False, reduction="mean_batch")
    found = [AsDiscrete(argmax=True, to_onehot=classes)(one) for one in decollate_batch(logits)]
    metric(found, [AsDiscrete(to_onehot=classes)(scan["label"])])
    print({name: round(value, 3) for name, value in zip(TISSUES.values(), metric.aggregate().tolist(), strict=True)})


if __name__ == "__main__":
    typer.run(main)
