"""Put attention into a network that is trained already, and fine-tune it.

    python examples/pretrained.py

With ``identity=True`` the network gives what it gave, bit for bit, until training moves the learnt gate of each
mechanism. Attention has a learning rate of its own here; the host's weights could as well be frozen.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from monai.losses import DiceCELoss

import attn3d
from attn3d import segmentation

PATCH, SPACING = (48, 48, 48), (2.0, 2.0, 2.0)


def main(
    steps: Annotated[int, typer.Option(min=1, help="Of training; a quarter as many of fine-tuning.")] = 100,
    resolution: Annotated[int, typer.Option(min=1, help="Voxel size in mm.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for the scan and the checkpoints.")] = Path("pretrained"),
) -> None:
    """Train without, insert, compare, fine-tune."""
    torch.manual_seed(0)
    image_path, label_path = segmentation.write_mni152(out, resolution)
    image = segmentation.read_image(image_path)
    label = segmentation.read_label(label_path, image, values=[0, *segmentation.TISSUES])
    subject = segmentation.training_subject(image, label, SPACING, PATCH)
    patches = segmentation.patch_loader([subject], PATCH, batch_size=2)

    net = segmentation.create_network("UNet", in_channels=1, out_channels=4)
    segmentation.fit(net, patches, iterations=steps)
    torch.save(net.state_dict(), out / "before.pt")

    # Elsewhere, later: the same network, the old checkpoint, attention in it.
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
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    net.train()
    for _, batch in zip(range(max(1, steps // 4)), patches, strict=False):
        optimizer.zero_grad()
        loss(net(batch["image"]["data"]), batch["label"]["data"]).backward()
        optimizer.step()
    gates = [parameter.item() for parameter in attention if parameter.dim() == 0]
    print("gates, which began at 0:", [round(gate, 4) for gate in gates])

    # A checkpoint from after insertion is rebuilt from what `insertions` gives.
    torch.save({"weights": net.state_dict(), "insertions": attn3d.inserted_attention(net)}, out / "after.pt")
    print(f"{len(attention)} parameters of attention beside {len(host)} of the network, saved in {out / 'after.pt'}")


if __name__ == "__main__":
    typer.run(main)
