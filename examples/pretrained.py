"""Insert attention into a trained network, and fine-tune it.

    python examples/pretrained.py

With ``identity=True`` the output of the network is exactly unchanged until training changes the learnt gate of each
mechanism. Here attention has its own learning rate; the other weights could be frozen instead.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer
from monai.losses import DiceCELoss
from monai.transforms import Compose, LoadImaged, NormalizeIntensityd, RandSpatialCropd, SpatialPadd
from torch import Tensor, nn

import attn3d
from attn3d import segmentation

PATCH = (48, 48, 48)
KEYS = ("image", "label")


def main(
    steps: Annotated[int, typer.Option(min=1, help="Training steps; fine-tuning takes a quarter of them.")] = 100,
    resolution: Annotated[int, typer.Option(min=1, help="Voxel size in mm.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the scan and the checkpoints.")] = Path("pretrained"),
) -> None:
    """Train a network without attention, insert attention, compare the outputs, and fine-tune."""
    torch.manual_seed(0)
    batches = patches(*segmentation.write_mni152(out, resolution))

    net = segmentation.create_network("UNet", in_channels=1, out_channels=4)
    fit(net, torch.optim.AdamW(net.parameters(), lr=6e-3), batches, steps)
    torch.save(net.state_dict(), out / "before.pt")

    # Later, in another program: load the checkpoint, and insert attention.
    net = segmentation.create_network("UNet", in_channels=1, out_channels=4)
    net.load_state_dict(torch.load(out / "before.pt", weights_only=True))
    net.eval()
    x = torch.randn(1, 1, *PATCH)
    with torch.no_grad():
        before = net(x)
    attn3d.insert_attention(net, "cbam", at=("encoder", "skip"), identity=True)
    with torch.no_grad():
        print("the same output as before:", torch.equal(net(x), before))

    attention = list(attn3d.attention_parameters(net))
    mine = {id(parameter) for parameter in attention}
    host = [parameter for parameter in net.parameters() if id(parameter) not in mine]
    optimizer = torch.optim.AdamW([{"params": host, "lr": 1e-4}, {"params": attention, "lr": 3e-3}])
    fit(net, optimizer, batches, max(1, steps // 4))
    gates = [value.item() for name, value in net.named_parameters() if name.endswith(".gate") and id(value) in mine]
    print("gates, initially 0:", [round(gate, 4) for gate in gates])

    # A network with attention is rebuilt from the result of `inserted_attention`.
    torch.save({"weights": net.state_dict(), "insertions": attn3d.inserted_attention(net)}, out / "after.pt")
    print(f"{len(attention)} parameters of attention and {len(host)} of the network, saved in {out / 'after.pt'}")


def patches(image: Path, label: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields batches of two random patches of the scan, endlessly."""
    load = Compose(
        [
            LoadImaged(KEYS, ensure_channel_first=True),
            NormalizeIntensityd("image", nonzero=True),
            SpatialPadd(KEYS, PATCH, mode="edge"),
        ]
    )
    crop = RandSpatialCropd(KEYS, PATCH, random_size=False).set_random_state(0)
    scan = load({"image": image, "label": label})
    while True:
        drawn = [crop(scan), crop(scan)]
        yield tuple(torch.stack([one[key].as_tensor() for one in drawn]) for key in KEYS)


def fit(net: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    """Runs a plain training loop."""
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    net.train()
    for _ in range(steps):
        image, label = next(batches)
        optimizer.zero_grad()
        loss(net(image), label).backward()
        optimizer.step()


if __name__ == "__main__":
    typer.run(main)
