#!/usr/bin/env bash
# rotary-embedding-torch: in bfloat16, 4096 tokens have 769 positions, and so they have in later calls in float32.
#
# rotary-embedding-torch 0.9.1, torch 2.13.0. rotate_queries_or_keys rotates the token at position m by angles m * f.
# One expects that the precision of the queries limits that of the result: an error of a percent. But the positions
# are made in the dtype of the queries, which is bfloat16 under autocast. bfloat16 has all integers to 256 only: after
# that, 2, then 4, 8 and 16 neighbours have the same position, and angles are wrong by up to 8 radians. In float16,
# this starts at 2048. The angles are cached without the dtype, so that one call in bfloat16, as in a training step,
# also makes the following ones in float32 wrong. After a call in float32 with as many tokens, which fills the cache,
# bfloat16 is right. The cache does not know the offsets of get_axial_freqs either: the offset of a patch along the
# first axis is used for all axes, and none is used after a call without offsets. No thread about these was found;
# lucidrains/rotary-embedding-torch 11 was about offsets of rotate_queries_or_keys, and was mended in 2023.
#
# Seen (a volume of 16 x 16 x 16 tokens, queries of length 1, 32 channels; in brackets, with a cache from float32):
#             different positions  largest error   then in float32
#   float32   4096                 0.0001          0.0001
#   float16   3073 (4096)          0.60 (0.0003)   0.60
#   bfloat16   769 (4096)          1.28 (0.0026)   1.28
#   positions by get_axial_freqs(8, 8, 8, offsets=(4, 0, 0)) of the first token: 4, 4, 4; after another call: 0, 0, 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 einops==0.8.2 rotary-embedding-torch==0.9.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch
from rotary_embedding_torch import RotaryEmbedding

tokens, channels = 16**3, 32
torch.manual_seed(0)
queries = torch.nn.functional.normalize(torch.randn(1, 1, tokens, channels), dim=-1)
alike = queries[:, :, :1].expand_as(queries)  # the same query at each position


def expected(x):
    frequencies = 10000 ** -(torch.arange(0, channels, 2, dtype=torch.float64) / channels)
    angles = torch.arange(tokens, dtype=torch.float64)[:, None] * frequencies
    a, b = x.double().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), -1).flatten(-2)


def error(rotary, x):
    return (rotary.rotate_queries_or_keys(x) - expected(x)).norm(dim=-1).max().item()


def positions(rotary):
    return len(rotary(torch.zeros(tokens), seq_len=tokens).unique(dim=0))  # as they are in the cache


results = []
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    rotary, warm = RotaryEmbedding(channels), RotaryEmbedding(channels)
    warm.rotate_queries_or_keys(queries)
    x = queries.to(dtype)
    row = error(rotary, x), positions(rotary), error(warm, x), positions(warm), error(rotary, queries)
    print(dtype, "error {:.4f}, positions {}; warm {:.4f}, {}; then in float32 {:.4f}".format(*row))
    results.append(row)
(full, half, brain) = results
assert full[0] < 1e-3 and full[1] == 4096, "the behaviour has changed"
for seen, different, largest in ((half, 3073, 0.5), (brain, 769, 1)):
    assert seen[1] == different and seen[0] > largest and seen[4] > largest, "the behaviour has changed"
    assert seen[2] < 0.02 and seen[3] == 4096, "the behaviour has changed"
with torch.autocast("cpu", torch.bfloat16):
    layer = torch.nn.Linear(channels, channels, bias=False)
    rotated = RotaryEmbedding(channels).rotate_queries_or_keys(layer(alike))
print("autocast:", rotated.dtype, "tokens 3000 and 3001 alike:", torch.equal(rotated[:, :, 3000], rotated[:, :, 3001]))
assert torch.equal(rotated[:, :, 3000], rotated[:, :, 3001]), "the behaviour has changed"


def first(rotary, *offsets):
    return rotary.get_axial_freqs(8, 8, 8, offsets=offsets or None)[0, 0, 0, :: channels].tolist()


fresh, used = RotaryEmbedding(channels), RotaryEmbedding(channels)
first(used)
seen = first(fresh, 4, 0, 0), first(used, 4, 0, 0)
print("axial positions of the first token:", *seen, "instead of [4, 0, 0]")
assert seen == ([4, 4, 4], [0, 0, 0]), "the behaviour has changed"
assert first(RotaryEmbedding(channels, cache_if_possible=False), 4, 0, 0) == [4, 0, 0]
END
