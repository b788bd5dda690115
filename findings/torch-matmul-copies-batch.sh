#!/usr/bin/env bash
# PyTorch: a matrix times a batch of volumes keeps a copy of all volumes for backward, and one times a single volume not.
#
# torch 2.13.0, on a CPU. torch.matmul(weight, x) of a weight (K, C) and features (B, C, N), one column for each voxel, is
# a score or projection of every voxel. One expects a batched product, which reads x in place: the result does not depend
# on how it is computed. But if the weight has a gradient, matmul folds the batch into the columns, which copies x, and
# autograd keeps the copy in addition to x. With a batch of 1 there is no copy. Nor is there one with a weight that is
# expanded to the batch first: weight.expand(B, K, C) @ x gives the same values. The project knows that gradients decide
# whether matmul folds (pytorch#166891); no thread about the kept copy was found.
#
# Seen (C = 16, N = 16^3; bytes saved for backward without x and the weight, in sizes of x):
#   batch                       1   2   4
#   torch.matmul(weight, x)     0   1   1
#   expanded weight @ x         0   0   0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'END'
import torch

weight = torch.randn(1, 16, requires_grad=True)


def kept(product, x):
    """Bytes of the saved tensors that are neither x nor the weight, as a multiple of x."""
    sizes = {}

    def save(saved):
        sizes[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved):
        y = product(x)
    for given in (x, weight):
        sizes.pop(given.untyped_storage().data_ptr(), None)
    return y.detach(), sum(sizes.values()) / x.untyped_storage().nbytes()


for batch, expected in ((1, 0), (2, 1), (4, 1)):
    x = torch.randn(batch, 16, 16**3, requires_grad=True)
    y, copies = kept(lambda x: torch.matmul(weight, x), x)
    same, copies_expanded = kept(lambda x: weight.expand(len(x), -1, -1) @ x, x)
    print(batch, copies, copies_expanded)
    assert torch.allclose(y, same, atol=1e-5)
    assert copies == expected and copies_expanded == 0, "the behaviour has changed"
END
