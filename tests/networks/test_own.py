"""Built-in attention of networks: the weights that are reported are those that it applies."""

import math

import numpy as np
import pytest
import torch
from monai.networks.blocks import CrossAttentionBlock, SABlock, SpatialAttentionBlock
from monai.networks.nets import AttentionUnet, AutoencoderKL, DiffusionModelUNet, ViT, ViTAutoEnc
from monai.networks.nets.diffusion_model_unet import SpatialTransformer
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import nn

from attn3d.networks.own import own_attention
from attn3d.networks.own.monai import map_layout
from attn3d.networks.own.primus import eva_rows
from attn3d.networks.own.registry import LAYOUTS
from attn3d.networks.own.tokens import over_grid
from attn3d.networks.registry import run
from tests.networks import primus
from tests.references import own as reference


def swin(dims=3, **options):
    sizes = {"embed_dim": 4, "window_size": (4, 3, 5)[:dims], "patch_size": (2,) * dims}
    return SwinTransformer(1, depths=(2, 2, 1, 1), num_heads=(1, 2, 2, 2), spatial_dims=dims, **sizes, **options)


def vit(dims=3, **options):
    sizes = {"img_size": (8, 12, 8)[:dims], "patch_size": (4, 4, 2)[:dims]}
    return ViT(1, **sizes, hidden_size=8, mlp_dim=8, num_layers=2, num_heads=2, spatial_dims=dims, **options)


def vit_autoencoder():
    return ViTAutoEnc(1, (8, 12, 8), (4, 4, 4), hidden_size=8, mlp_dim=8, num_layers=1, num_heads=2)


def diffusion(**options):
    levels = {"channels": (4, 8), "attention_levels": (False, True), "num_head_channels": 4, "norm_num_groups": 2}
    return DiffusionModelUNet(3, 1, 1, num_res_blocks=1, **levels, **options)


def autoencoder():
    levels = {"channels": (4, 4), "attention_levels": (False, True), "num_res_blocks": 1}
    return AutoencoderKL(3, 1, 1, latent_channels=2, norm_num_groups=2, **levels)


def crossed():
    return nn.Sequential(nn.Conv3d(1, 4, 1), SpatialTransformer(3, 4, 2, 2, norm_num_groups=2))


def attention_unet(dims=3):
    return AttentionUnet(dims, 1, 2, channels=(4, 8, 8), strides=(2, 2))


class Around(nn.Module):
    """Applies a block to the tokens of a map with 4 channels, made from a single-channel image."""

    def __init__(self, block, dims=3):
        super().__init__()
        self.first = (nn.Conv2d if dims == 2 else nn.Conv3d)(1, 4, 1)
        self.inner = Inner(block)

    def forward(self, x):
        return self.inner(self.first(x))


class Inner(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x.flatten(2).mT).mT.reshape(x.shape)


LAYOUTS["tests.Inner"] = map_layout


def relative(*size):
    return Around(SABlock(4, 2, rel_pos_embedding="decomposed", input_size=size), len(size))


def one_layer_by_sdpa():
    return nn.Sequential(
        nn.Conv3d(1, 4, 1), SpatialAttentionBlock(3, 4, 2, 2, use_combined_linear=True, use_flash_attention=True)
    )


# Networks and the shapes of their images. In these, all keys lie on the grid:
WHOLE = {
    "AttentionUnet": (attention_unet, (8, 8, 12)),
    "AttentionUnet, 2-D": (lambda: attention_unet(2), (8, 12)),
    "windows": (swin, (16, 12, 20)),
    "ViT": (vit, (8, 12, 8)),
    "ViT, patches rearranged": (lambda: vit(proj_type="perceptron", qkv_bias=True), (8, 12, 8)),
    "ViTAutoEnc": (vit_autoencoder, (8, 12, 8)),
    "DiffusionModelUNet": (diffusion, (8, 4, 8)),
    "DiffusionModelUNet, context": (lambda: diffusion(with_conditioning=True, cross_attention_dim=3), (8, 4, 8)),
    "AutoencoderKL": (autoencoder, (8, 4, 8)),
    "crossed without a context": (crossed, (2, 3, 4)),
    "one layer by SDPA": (one_layer_by_sdpa, (2, 3, 4)),
    "relative positions": (lambda: relative(3, 4), (3, 4)),
    "causal": (lambda: Around(SABlock(4, 2, causal=True, sequence_length=24)), (2, 3, 4)),
    "causal, crossed": (lambda: Around(CrossAttentionBlock(4, 2, causal=True, sequence_length=24)), (2, 3, 4)),
    "Primus, stand-in": (lambda: primus.Primus(0), (8, 12, 4)),
}
# In these, some keys are padding, class tokens or registers:
PART = {
    "windows, padded": (swin, (14, 10, 8)),
    "windows by SDPA": (lambda: swin(use_flash_attention=True), (14, 10, 8)),
    "windows, 2-D": (lambda: swin(2), (18, 10)),
    "ViT, class token": (lambda: vit(2, classification=True, save_attn=True), (8, 12)),
    "Primus, stand-in with registers": (lambda: primus.Primus(3), (8, 12, 4)),
}
if primus.INSTALLED:
    WHOLE["Primus"] = (lambda: primus.real(0), (8, 12, 4))
    PART["Primus with registers"] = (lambda: primus.real(3), (8, 12, 4))
NETWORKS = WHOLE | PART


def made(name, dtype=torch.float64):
    """A network with random parameters and statistics, and a batch of two images."""
    build, shape = NETWORKS[name]
    net = build().to(dtype).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
        for key, buffer in net.named_buffers():
            if "running" in key:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return net, torch.randn(2, 1, *shape, dtype=dtype)


class Seen:
    """One call of an attention module: its inputs, those of the module around it, and its output."""

    def __init__(self, own):
        self.own, self.block, self.kind = own, own.module, type(own.module).__name__

    def watch(self):
        def host(_, args, named):
            self.tokens = self.own.tokens(*args, **named)
            self.map = args[0] if args else None

        def block(_, args, named, output):
            self.arguments, self.named, self.output = args, named, output
            self.x = args[0] if args else named["x"]

        yield self.own.host.register_forward_pre_hook(host, with_kwargs=True)
        yield self.block.register_forward_hook(block, with_kwargs=True)

    def weights(self):
        """The rows of all voxels."""
        everything = torch.arange(math.prod(self.tokens.shape))
        return self.own.weights(self.tokens, everything, *self.arguments, **self.named)


def seen_in(net, x):
    found = [Seen(own) for own in own_attention(net).values()]
    handles = [handle for seen in found for handle in seen.watch()]
    run(net, x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", WHOLE)
@torch.no_grad()
def test_weights_times_values_are_the_output_of_the_module(name):
    net, x = made(name)
    found = seen_in(net, x)
    assert found
    for seen in found:
        rebuilt, output = weighed(seen), seen.output
        if seen.kind == "WindowAttention":  # from windows to the grid
            output = torch.empty_like(rebuilt).index_copy(1, seen.tokens.voxels.flatten(), by_sample(seen, output))
        torch.testing.assert_close(rebuilt, output, rtol=1e-9, atol=1e-12)


def by_sample(seen, windows):
    return windows.unflatten(0, (-1, len(seen.tokens.voxels))).flatten(1, 2)


def weighed(seen):
    """Weights times values, passed through the module's last layer."""
    weights, block = seen.weights(), seen.block
    if seen.kind == "AttentionBlock":
        return seen.x * weights["spatial"]
    if seen.kind == "WindowAttention":
        v = by_sample(seen, block.qkv(seen.x).chunk(3, 2)[2])
        v = torch.empty_like(v).index_copy(1, seen.tokens.voxels.flatten(), v)
    elif seen.kind == "EvaAttention":
        v = block.v_proj(seen.x)
    elif seen.named.get("context") is not None:
        v = block.to_v(seen.named["context"])
    else:
        v = block.qkv(seen.x).chunk(3, 2)[2] if getattr(block, "use_combined_linear", False) else block.to_v(seen.x)
    rows = weights["context"] if "context" in weights else weights["query"].flatten(3)
    y = (rows @ v.unflatten(2, (block.num_heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
    return block.proj(getattr(block, "norm", nn.Identity())(y)) if hasattr(block, "proj") else block.out_proj(y)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_weights_equal_loops_over_the_tokens(name):
    net, x = made(name)
    found = seen_in(net, x)
    assert found
    for seen in found:
        weights = seen.weights()
        (key,) = weights
        if key == "spatial":
            g, x = (reference.array(part[1].flatten(1)) for part in seen.named.values())
            np.testing.assert_allclose(weights[key][1].flatten(), reference.gate(seen.block, g, x), rtol=1e-9)
            continue
        rows = weights[key][1].flatten(2)  # of the second sample
        for voxel in {0, rows.shape[1] // 2, rows.shape[1] - 1}:
            np.testing.assert_allclose(rows[:, voxel], looped(seen, voxel), rtol=1e-8, atol=1e-14)


def looped(seen, voxel):
    """The row of one voxel of the second sample, (H, voxels)."""
    if seen.kind == "WindowAttention":
        x = reference.array(seen.own.host.norm1(seen.map)[1])
        place = np.unravel_index(voxel, seen.tokens.shape)
        return reference.windows(seen.own.host, x, tuple(int(at) for at in place)).reshape(seen.block.num_heads, -1)
    x, more = reference.array(seen.x[1]), int((seen.tokens.voxels < 0).sum())
    if seen.kind == "EvaAttention":
        return reference.eva(seen.block, x, seen.named["rope"], voxel + more)[:, more:]
    added = 0.0
    if seen.block.causal:
        added = np.where(np.arange(len(x)) > voxel, -np.inf, 0.0)
    if seen.kind == "CrossAttentionBlock":
        context = x if seen.named.get("context") is None else reference.array(seen.named["context"][1])
        return reference.cross_attention(seen.block, x, context, voxel, added)
    if seen.block.rel_positional_embedding is not None:
        added = reference.relative_positions(seen.block, x, voxel)
    return reference.self_attention(seen.block, x, voxel + more, added)[:, more:]


def test_attention_over_tokens_at_unknown_places_is_left_out():
    assert own_attention(nn.Sequential(SABlock(4, 2), nn.Linear(4, 4))) == {}
    assert list(own_attention(nn.Sequential(Inner(SABlock(4, 2)), SABlock(4, 2)))) == ["0.block"]


@torch.no_grad()
def test_masked_keys_have_no_weight():
    [own] = own_attention(net := Around(SABlock(4, 2)).double()).values()
    x, mask = torch.randn(2, 6, 4, dtype=torch.float64), torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1]])
    weights = own.weights(over_grid((1, 2, 3), x.device), torch.arange(6), x, attn_mask=mask)["query"].flatten(3)
    assert (weights[mask[:, None, None].expand_as(weights) == 0] == 0).all()
    block = net.inner.block
    rows = (weights @ block.input_rearrange(block.qkv(x))[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(block.out_proj(rows), block(x, mask), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_scores_have_the_dtype_that_the_block_computes_them_in():
    net = Around(SABlock(4, 2, attention_dtype=torch.float32)).bfloat16()
    [own] = own_attention(net).values()
    x = torch.randn(2, 6, 4, dtype=torch.bfloat16)
    weights = own.weights(over_grid((1, 2, 3), x.device), torch.arange(6), x)["query"].flatten(3)
    q, k, _ = own.module.input_rearrange(own.module.qkv(x)).float()
    torch.testing.assert_close(weights, (q @ k.mT * own.module.scale).softmax(3), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_eva_without_rotary_positions():
    block = primus.EvaAttention(12, 2, 0).double()
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    weights = eva_rows(block, over_grid((1, 2, 3), x.device), torch.arange(6), x)["query"].flatten(3)
    q, k = (reference.linear(layer, reference.array(x[1])) for layer in (block.q_proj, block.k_proj))
    for token in range(6):
        expected = reference.all_pairs(q, k, block.num_heads, token, block.scale)
        np.testing.assert_allclose(weights[1, :, token], expected, rtol=1e-9)
