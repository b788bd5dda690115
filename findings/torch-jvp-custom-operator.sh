#!/usr/bin/env bash
# PyTorch: forward-mode differentiation takes the result of a custom operator for a constant.
#
# torch 2.13.0, CPU. An operator of `torch.library.custom_op` with `register_autograd` has a gradient, but no rule for forward
# mode. One expects an error, as from an operator of PyTorch without such a rule. Instead the derivative is 0, without an error
# or a warning, if no input requires a gradient. In a network the paths around the operator remain, so the result looks
# plausible. Fused attention is often such an operator.
#
# Seen (derivatives at 0 in the direction 1):
#   sin(x), torch.autograd.grad        1.0
#   sin(x), torch.func.jvp             0.0
#   sin(x), torch.autograd.forward_ad  no tangent
#   x + sin(x), torch.func.jvp         1.0, and 2 is right
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import torch
from torch.autograd import forward_ad


@torch.library.custom_op("finding::sine", mutates_args=())
def sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


sine.register_autograd(lambda ctx, grad: grad * ctx.saved_tensors[0].cos(), setup_context=save)
zero, one = torch.tensor(0.0), torch.tensor(1.0)

x = zero.clone().requires_grad_()
(by_autograd,) = torch.autograd.grad(sine(x), x)
_, by_jvp = torch.func.jvp(sine, (zero,), (one,))
_, with_path_around = torch.func.jvp(lambda x: x + sine(x), (zero,), (one,))
with forward_ad.dual_level():
    tangent = forward_ad.unpack_dual(sine(forward_ad.make_dual(zero, one))).tangent

found = by_autograd.item(), by_jvp.item(), tangent, with_path_around.item()
print("sin(x) by autograd, jvp and forward_ad, and x + sin(x) by jvp:", found)
assert found == (1.0, 0.0, None, 1.0), "the behaviour has changed"
END
