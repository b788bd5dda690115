"""MONAI's DynUNet in a plain training loop on Task04 Hippocampus: the cases and the time of a run of `attn3d train`.

    attn3d train --data Task04_Hippocampus --minutes 30 --out run
    python -m examples.benchmarks.task04_dynunet Task04_Hippocampus run --minutes 30 --out dynunet
    attn3d evaluate dynunet run/validation/references --labels run --out dynunet_scores

What most people write first: MONAI's transforms, DiceCE loss, AdamW, and a learning rate that falls to zero over the
given time.
"""

import json
import math
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Annotated

import nibabel as nib
import torch
import typer
from monai.data import CacheDataset, DataLoader, set_track_meta
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandAffined,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    SpatialPadd,
    Transform,
)
from torch import Tensor, nn

PATCH = (40, 56, 40)
RATE = 1e-3
BOTH = ("image", "label")
AUGMENT = [
    SpatialPadd(BOTH, PATCH),
    RandSpatialCropd(BOTH, PATCH, random_size=False),
    RandAffined(
        BOTH,
        prob=0.5,
        rotate_range=[math.radians(15)] * 3,
        scale_range=[0.15] * 3,
        mode=("bilinear", "nearest"),
        padding_mode=("border", "zeros"),
    ),
    RandGaussianNoised("image", prob=0.15),
    RandScaleIntensityd("image", 0.25, prob=0.3),
    RandShiftIntensityd("image", 0.1, prob=0.3),
]


def main(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Task04_Hippocampus.")],
    run: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A run of attn3d train, whose split is used.")
    ],
    minutes: Annotated[float, typer.Option(min=0, help="Of training.")] = 30.0,
    out: Annotated[Path, typer.Option(help="A folder for the predictions.")] = Path("dynunet"),
) -> None:
    """Train, then predict the held-out cases."""
    torch.manual_seed(0)
    set_track_meta(False)
    split = json.loads((run / "split.json").read_text())
    training = [{key: data / f"{key}sTr" / f"{case}.nii.gz" for key in BOTH} for case in split["training"]]
    loader = DataLoader(CacheDataset(training, Compose(read(BOTH) + AUGMENT)), batch_size=2, shuffle=True)
    network = DynUNet(3, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[32, 64, 128, 256])
    train(network, loader, minutes)

    out.mkdir(exist_ok=True)
    start = time.perf_counter()
    for case in split["validation"]:
        path = data / "imagesTr" / f"{case}.nii.gz"
        labels = predict(network.eval(), Compose(read(["image"]))({"image": path})["image"])
        nib.save(nib.Nifti1Image(labels.numpy(), nib.load(path).affine), out / path.name)
    print(f"{(time.perf_counter() - start) / len(split['validation']):.2f} seconds a case to predict")


def read(keys: Sequence[str]) -> list[Transform]:
    """Transforms that read a case and normalise its image."""
    return [LoadImaged(keys), EnsureChannelFirstd(keys, channel_dim="no_channel"), NormalizeIntensityd("image")]


def train(network: nn.Module, loader: DataLoader, minutes: float) -> None:
    """Trains for some time, with a polynomial decay of the learning rate over it."""
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    start = time.monotonic()
    step = 0
    for epoch in count(1):
        for batch in loader:
            used = (time.monotonic() - start) / (60 * minutes)
            if used >= 1:
                print(f"{step} steps")
                return
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - used) ** 0.9
            optimizer.zero_grad()
            loss = loss_function(network(batch["image"]), batch["label"])
            loss.backward()
            optimizer.step()
            step += 1
        print(f"epoch {epoch}, {60 * minutes * used:.0f} seconds, loss {loss.item():.3f}", flush=True)


@torch.inference_mode()
def predict(network: nn.Module, image: Tensor) -> Tensor:
    """Returns the labels (*S) of an image (1, *S)."""
    return sliding_window_inference(image[None], PATCH, 1, network)[0].argmax(0).byte()


if __name__ == "__main__":
    typer.run(main)
