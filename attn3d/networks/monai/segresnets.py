"""SegResNet and SegResNetVAE, SegResNetDS and SegResNetDS2, VISTA3D."""

from typing import cast

from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.segresnet_ds import SegResNetDS, SegResNetDS2
from monai.networks.nets.vista3d import VISTA3D

from attn3d.capture import unwrapped
from attn3d.networks.places import summed
from attn3d.networks.registry import StagesByKind, register_sites


@register_sites(SegResNet)
def segresnet(network: SegResNet) -> StagesByKind:
    """Returns the sites. The skips are added inline."""
    stages = [f"down_layers.{stage}" for stage in range(len(network.down_layers))]
    used = stages[len(stages) - 1 - len(network.up_layers) :]
    return {
        "encoder": stages[:-1],
        "bottleneck": stages[-1:],
        "decoder": [f"up_layers.{stage}" for stage in range(len(network.up_layers))],
        "skip": [summed(stage) for stage in used[:-1]],
    }


@register_sites(SegResNetDS)
def segresnet_ds(network: SegResNetDS, prefix: str = "") -> StagesByKind:
    """Returns the sites. The encoder returns a list of its stages; SegResNetDS2 has two decoders."""
    depth = len(network.encoder.layers) - 1
    stages = [f"{prefix}encoder.layers.{stage}.blocks" for stage in range(depth + 1)]
    decoders = ["up_layers", "up_layers_auto"] if isinstance(network, SegResNetDS2) else ["up_layers"]
    return {
        "encoder": stages[:-1],
        "bottleneck": stages[-1:],
        "decoder": [[f"{prefix}{decoder}.{stage}.blocks" for decoder in decoders] for stage in range(depth)],
        "skip": [summed(f"{prefix}encoder", stage) for stage in range(depth)],
    }


@register_sites(VISTA3D, run=lambda network, x: network.image_encoder(x))
def vista3d(network: VISTA3D) -> StagesByKind:
    """Returns the sites of both decoders; a forward pass runs the decoder of the given prompt."""
    return segresnet_ds(cast(SegResNetDS, unwrapped(network.image_encoder)), "image_encoder.")
