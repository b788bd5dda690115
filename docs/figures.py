"""Draws attention maps: ``python docs/figures.py [NAME ..]`` writes docs/figures/NAME.png, in a few minutes.

A name is a mechanism, inserted into a small U-Net, or one of the networks with their own attention. Each network is
trained for some steps to segment the tissues of the MNI152 T1 template, on patches of this volume at 3 mm. The figures
show real weights of trained networks. They are no evidence that attention helps.
"""

import io
import sys
from collections.abc import Callable

import torch
from monai.data import MetaTensor
from monai.networks.nets import AttentionUnet, SwinUNETR, UNet
from monai.transforms import ResizeWithPadOrCrop
from nilearn import datasets
from PIL import Image
from report_figures import write

import attn3d

SIZE, PATCH = (64, 96, 64), (64, 32, 32)  # SwinUNETR needs multiples of 32
VOXEL = (20, 38, 36)  # in the left hemisphere
# A function that builds the network, the steps, the learning rate, and the sites to draw; None draws all.
NETWORKS = {
    "own_gates": (lambda: AttentionUnet(3, 1, 4, channels=(8, 16, 32, 64), strides=(2, 2, 2)), 60, 0.01, None),
    "own_windows": (
        lambda: SwinUNETR(1, 4, feature_size=12),
        40,
        0.003,
        [f"own:swinViT.layers{stage}.0.blocks.{block}.attn" for stage, block in ((1, 0), (1, 1), (2, 0))],
    ),
}
SITE = "skip:model.1.submodule.1"  # the coarser of the two skips


def with_mechanism(name: str) -> torch.nn.Module:
    """A U-Net of three levels with a mechanism at its coarser skip."""
    return attn3d.insert_attention(UNet(3, 1, 4, (8, 16, 32), (2, 2)), name, at=SITE)


def scan() -> tuple[MetaTensor, torch.Tensor]:
    """The normalised T1, (1, *S), and its tissues (0 none, 1 CSF, 2 grey, 3 white), (*S)."""
    template = datasets.load_mni152_template(resolution=3)
    maps = [datasets.load_mni152_gm_template(resolution=3), datasets.load_mni152_wm_template(resolution=3)]
    volumes = [template, datasets.load_mni152_brain_mask(resolution=3), *maps]
    fit = ResizeWithPadOrCrop(SIZE)
    image, brain, grey, white = (
        fit(MetaTensor(torch.tensor(volume.get_fdata(), dtype=torch.float32)[None], affine=template.affine))
        for volume in volumes
    )
    tissues = torch.where(brain > 0, 1 + torch.cat([1 - grey - white, grey, white]).argmax(0, keepdim=True), 0)
    return (image - image.mean()) / image.std(), tissues.as_tensor()[0]


def trained(
    build: Callable[[], torch.nn.Module], steps: int, rate: float, image: torch.Tensor, tissues: torch.Tensor
) -> torch.nn.Module:
    """Builds a network and trains it for some steps of AdamW on patches of the volume."""
    torch.manual_seed(0)
    net = build()
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate)
    for _ in range(steps):
        start = [int(torch.randint(size - length + 1, ())) for size, length in zip(SIZE, PATCH, strict=True)]
        patch = (..., *[slice(at, at + length) for at, length in zip(start, PATCH, strict=True)])
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(image[patch]), tissues[patch][None])
        loss.backward()
        optimiser.step()
    print(f"{type(net).__name__}, step {steps}: cross-entropy {loss:.3f}", flush=True)
    return net


def draw(name: str, image: MetaTensor, tissues: torch.Tensor) -> None:
    """Trains a network and draws its attention maps."""
    own = (lambda: with_mechanism(name), 40, 0.01, SITE)
    build, steps, rate, site = NETWORKS.get(name, own)
    net = trained(build, steps, rate, image.as_tensor()[None], tissues)
    maps = attn3d.attention_maps(net, image[None], voxels=[VOXEL], site=site)
    planes, title = ("axial",), f"{name}, at a skip of a U-Net"
    if name in NETWORKS:
        planes = ("axial", "coronal")
        title = f"{type(net).__name__}, trained for {steps} steps on patches of this volume"
    figure = attn3d.plot_attention_maps(image, maps, voxels=[VOXEL], planes=planes, title=title)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    write(Image.open(drawn), f"{name}.png")


if __name__ == "__main__":
    volume = scan()
    for wanted in sys.argv[1:] or [*attn3d.list_attention(), *NETWORKS]:
        draw(wanted, *volume)
