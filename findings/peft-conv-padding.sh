#!/usr/bin/env bash
# PEFT: LoRA of a convolution that pads by reflection is another network after it is merged.
#
# peft 0.21.2, torch 2.13.0. One expects that merge_and_unload() does not change the output: it adds the two small
# convolutions of the adapter to the weight. For a convolution with a padding_mode other than "zeros", as used for CT,
# where 0 is water and not air, the adapter pads with zeros in training; the merged convolution does not. The first
# and last slices and the borders change, the interior does not. There is no warning. With DoRA it is the same.
# Kernels of 1 x 1 x 1 cannot be merged in 3-D: a RuntimeError about shapes; in 2-D they can.
#
# Seen (a volume of 8 x 12 x 12 of air, -1 after scaling; largest change by merging at the border and in the interior):
#              LoRA    DoRA
#   zeros      0    0  0     0
#   reflect    3.2  0  0.52  0
#   replicate  3.2  0  0.52  0
#   circular   3.2  0  0.52  0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import copy

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import conv3d

volume = torch.full((1, 1, 8, 12, 12), -1.0)
inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))


def adapted(network, **options):
    torch.manual_seed(0)
    model = get_peft_model(network, LoraConfig(r=2, target_modules=["0"], **options))
    for name, parameter in model.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@torch.no_grad()
def change(mode, **options):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1, padding_mode=mode))
    model = adapted(copy.deepcopy(network), **options)
    trained = model(volume)
    if not options:
        layer = model.base_model.model[0]
        adapter = conv3d(volume, layer.lora_A.default.weight, padding=1)
        adapter = conv3d(adapter, layer.lora_B.default.weight) * layer.scaling["default"]
        assert torch.allclose(trained, network(volume) + adapter, atol=1e-5), "the behaviour has changed"
    difference = (model.merge_and_unload()(volume) - trained).abs()
    return difference.max().item(), difference[inner].max().item()


for mode in ("zeros", "reflect", "replicate", "circular"):
    lora, dora = change(mode), change(mode, use_dora=True)
    print(mode, *(f"{number:.2g}" for number in (*lora, *dora)))
    for border, interior in (lora, dora):
        assert interior < 1e-4
        assert border < 1e-4 if mode == "zeros" else border > 0.1, "the behaviour has changed"
adapted(nn.Sequential(nn.Conv2d(4, 4, 1))).merge_and_unload()
try:
    adapted(nn.Sequential(nn.Conv3d(4, 4, 1))).merge_and_unload()
except RuntimeError as error:
    print("1 x 1 x 1:", error)
else:
    raise AssertionError("the behaviour has changed")
END
