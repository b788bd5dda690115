"""AutoEncoder, DiffusionModelUNet, ControlNet, DiNTS."""

from typing import Any

import torch
from monai.networks.nets.autoencoder import AutoEncoder
from monai.networks.nets.controlnet import ControlNet
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet, DiffusionUNetTransformerBlock
from monai.networks.nets.dints import DiNTS
from torch import Tensor

from attn3d.networks.places import concatenated
from attn3d.networks.registry import StagesByKind, register_sites


@register_sites(AutoEncoder)
def autoencoder(network: AutoEncoder) -> StagesByKind:
    """Returns the sites. The last decoder layer is not a site, since its output is the image."""
    depth = len(network.channels)
    return {
        "encoder": [f"encode.encode_{stage}" for stage in range(depth)],
        "bottleneck": ["intermediate"],
        "decoder": [f"decode.decode_{stage}" for stage in range(depth - 1)],
    }


def _denoise(network: DiffusionModelUNet | ControlNet, x: Tensor, *condition: Tensor) -> Any:
    """Runs at time 0, with class 0 and a zero context if the network takes them."""
    more: dict[str, Tensor] = {}
    if network.num_class_embeds is not None:
        more["class_labels"] = torch.zeros(len(x), dtype=torch.long, device=x.device)
    for module in network.modules():
        if network.with_conditioning and isinstance(module, DiffusionUNetTransformerBlock):
            more["context"] = x.new_zeros(len(x), 1, module.attn2.to_k.in_features)
    return network(x, x.new_zeros(len(x)), *condition, **more)


def _last(name: str, block: Any) -> str:
    """Returns the path of the last block or attention of a down block."""
    blocks = "attentions" if hasattr(block, "attentions") else "resnets"
    return f"{name}.{blocks}.{len(block.resnets) - 1}"


@register_sites(DiffusionModelUNet, run=_denoise)
def diffusion(network: DiffusionModelUNet) -> StagesByKind:
    """Returns the sites. A down block returns a tuple; its site is its last block or attention, before downsampling."""
    blocks: Any = network.up_blocks
    return {
        "encoder": [_last(f"down_blocks.{stage}", block) for stage, block in enumerate(network.down_blocks)],
        "bottleneck": ["middle_block"],
        "decoder": [f"up_blocks.{stage}" for stage in range(len(blocks))],
        "skip": [
            [concatenated(f"up_blocks.{stage}.resnets.{index}") for index in range(len(block.resnets))]
            for stage, block in reversed([*enumerate(blocks)])
        ],
    }


def _condition(network: ControlNet, x: Tensor) -> Any:
    """Runs on a condition of zeros, of the size whose embedding has the size of the image."""
    embedding: Any = network.controlnet_cond_embedding
    scale = 2 ** (len(embedding.blocks) // 2)
    condition = x.new_zeros(len(x), embedding.conv_in.conv.in_channels, *(size * scale for size in x.shape[2:]))
    return _denoise(network, x, condition)


@register_sites(ControlNet, run=_condition)
def controlnet(network: ControlNet) -> StagesByKind:
    """Returns the sites of the encoder; its outputs are added to the skips of a DiffusionModelUNet."""
    return {
        "encoder": [_last(f"down_blocks.{stage}", block) for stage, block in enumerate(network.down_blocks)],
        "bottleneck": ["middle_block"],
    }


@register_sites(DiNTS)
def dints(network: DiNTS) -> StagesByKind:
    """Returns the sequences in the stems. Stems and cells are called by `forward`, which bypasses hooks.

    There are no skips, because all paths through the cells between the stems are searched.
    """
    return {
        "encoder": [f"stem_down.{stage}.mod" for stage in range(network.num_depths)],
        "decoder": [f"stem_up.{stage}.mod" for stage in reversed(range(network.num_depths))],
    }
