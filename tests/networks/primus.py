"""nnU-Net's Primus, or a stand-in if it or timm is not installed.

The stand-in copies what the library reads: the names of classes and modules, EvaAttention's projections, prefix
tokens and rotary positions, registers before the patches, and a decoder whose strides give the size of a patch.
"""

import importlib.util

import torch
from torch import Tensor, nn

from tests.adapters import stand_in

stand_in.install()  # for the sites of dynamic_network_architectures
INSTALLED = importlib.util.find_spec("timm") is not None  # only Primus needs timm


def real(registers: int) -> nn.Module:
    from dynamic_network_architectures.architectures.primus import Primus

    sizes = {"eva_depth": 2, "eva_numheads": 2, "input_shape": (8, 12, 4), "num_register_tokens": registers}
    return Primus(1, 48, (2, 4, 2), 2, **sizes)


class EvaAttention(nn.Module):
    __module__ = "timm.models.eva"

    def __init__(self, dim: int, num_heads: int, num_prefix_tokens: int):
        super().__init__()
        self.num_heads, self.num_prefix_tokens = num_heads, num_prefix_tokens
        self.scale = (dim // num_heads) ** -0.5
        self.q_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.q_norm, self.k_norm, self.norm = nn.Identity(), nn.Identity(), nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        parts = (part(x).unflatten(2, (self.num_heads, -1)) for part in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.transpose(1, 2) for part in parts)
        sin, cos = rope.chunk(2, -1)

        def turned(y: Tensor) -> Tensor:
            first, rest = y.tensor_split([self.num_prefix_tokens], 2)
            turn = torch.complex(cos[:, ::2], sin[:, ::2])
            pairs = torch.view_as_complex(rest.unflatten(3, (-1, 2)).contiguous()) * turn
            return torch.cat([first, torch.view_as_real(pairs).flatten(3)], 2)

        y = nn.functional.scaled_dot_product_attention(turned(q), turned(k), v)
        return self.proj(self.norm(y.transpose(1, 2).flatten(2)))


class Decoder(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        last = nn.ConvTranspose3d(dim, 2, 2, 2)
        self.decode = nn.Sequential(nn.ConvTranspose3d(dim, dim, (1, 2, 1), (1, 2, 1)), nn.GELU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(x)


class Primus(nn.Module):
    __module__ = "dynamic_network_architectures.architectures.primus"

    def __init__(self, registers: int, dim: int = 12):
        super().__init__()
        self.down_projection = nn.Conv3d(1, dim, (2, 4, 2), (2, 4, 2))
        self.blocks = nn.ModuleList(EvaAttention(dim, 2, registers) for _ in range(2))
        self.up_projection = Decoder(dim)
        self.register_tokens = nn.Parameter(torch.randn(1, registers, dim)) if registers else None
        angles = torch.rand(4 * 3 * 2, dim // 4).repeat_interleave(2, 1)
        self.register_buffer("rope", torch.cat([angles.sin(), angles.cos()], 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.down_projection(x)
        tokens = y.flatten(2).mT
        count = 0
        if self.register_tokens is not None:
            count = self.register_tokens.shape[1]
            tokens = torch.cat([self.register_tokens.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = tokens + block(tokens, rope=self.rope)
        return self.up_projection(tokens[:, count:].mT.unflatten(2, y.shape[2:]))
