"""Train a network with attention on patches from torchio's queue.

python examples/torchio_pipeline.py
"""

from pathlib import Path
from typing import Annotated

import torch
import torchio as tio
import typer
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from rich.progress import track

import attn3d
from attn3d.segmentation import TISSUES, write_mni152

PATCH = 48


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the queue.")] = 2,
    patches: Annotated[int, typer.Option(min=1, help="Patches per pass.")] = 40,
    resolution: Annotated[int, typer.Option(min=1, help="Voxel size in mm.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the scan and its segmentation.")] = Path("torchio_pipeline"),
) -> None:
    """Segment the tissues of the MNI152 brain. The test is on the training scan and only shows that training works."""
    torch.manual_seed(0)
    image, label = write_mni152(out, resolution)
    normalise = tio.ZNormalization(masking_method=tio.ZNormalization.mean)
    subject = tio.Subject(image=tio.ScalarImage(image), label=tio.LabelMap(label))
    augment = tio.Compose([tio.RandomFlip(axes="LR"), tio.RandomBiasField(p=0.3), normalise, tio.RandomNoise(p=0.3)])
    queue = tio.Queue(
        tio.SubjectsDataset([subject], transform=augment),
        max_length=patches,
        samples_per_volume=patches,
        sampler=tio.UniformSampler(PATCH),
    )
    loader = tio.SubjectsLoader(queue, batch_size=2)

    net = BasicUNet(3, 1, 1 + len(TISSUES), features=(8, 16, 32, 64, 64, 8))
    attn3d.insert_attention(net, "eca", at="encoder")
    attn3d.insert_attention(net, "mhsa", at="bottleneck", identity=True)

    loss, optimizer = DiceCELoss(to_onehot_y=True, softmax=True), torch.optim.AdamW(net.parameters(), 3e-3)
    for epoch in range(epochs):
        for batch in track(loader, f"epoch {epoch + 1}"):
            optimizer.zero_grad()
            loss(net(batch["image"][tio.DATA]), batch["label"][tio.DATA]).backward()
            optimizer.step()

    net.eval()
    sampler = tio.GridSampler(normalise(subject), PATCH, patch_overlap=8)
    # The network predicts at the resolution of the scan: at a lower one, the aggregator leaves gaps between the patches
    # (findings/torchio-downsampled-patches.sh).
    aggregator = tio.GridAggregator(sampler, overlap_mode="hann")
    with torch.inference_mode():
        for batch in track(tio.SubjectsLoader(sampler, batch_size=2), "segmenting"):
            aggregator.add_batch(net(batch["image"][tio.DATA]), batch[tio.LOCATION])
    classes = aggregator.get_output_tensor().argmax(0, keepdim=True).to(torch.uint8)
    found = tio.LabelMap(tensor=classes, affine=subject["image"].affine)
    found.save(out / "segmentation.nii.gz")
    right = (classes == subject["label"].data)[subject["label"].data > 0].float().mean()
    print(f"{right:.0%} of the brain's voxels have their tissue; {out / 'segmentation.nii.gz'}")


if __name__ == "__main__":
    typer.run(main)
