"""PyTorch's CPU kernel with a backward that uses all cores, also for a single sequence.

The kernel's own backward runs in parallel over batch and heads alone, so that a non-local block, which has one
head, trains on one core. Given the rows' log-sum-exp, the gradients of a part of the queries over a part of the
keys need no other part. So the queries are cut into as many parts as there are idle cores, which stand in the
place of heads; and the keys are taken in runs, since every part brings gradients for all keys of the run.
"""

import torch
from torch import Tensor

from attn3d.attention.memory import parallel_parts
from attn3d.attention.operators import logsumexp_like, refuse_second_derivative

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@torch.library.custom_op("attn3d::attend_on_cores", mutates_args=())
def attend_on_cores(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v and the log-sum-exp of the rows, for contiguous inputs of equal head dimension."""
    out, logsumexp = _forward(q, k, v, 0.0, False, scale=scale)
    return out.contiguous(), logsumexp.contiguous()


@attend_on_cores.register_fake
def _(q, k, v, scale):
    return torch.empty_like(q), logsumexp_like(q)


@torch.library.custom_op("attn3d::attend_on_cores_backward", mutates_args=())
def _attend_on_cores_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    parts = parallel_parts(q.shape[0] * q.shape[1])
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    # The queries that cut into equal parts; then the rest, as one part.
    even = q.shape[2] // parts * parts
    cuts = [(slice(0, even), parts), (slice(even, None), 1)]
    for queries, count in cuts[even == 0 : 1 + (even < q.shape[2])]:
        # Every part is a batch entry with one head: the kernel then reads it as it lies in memory.
        of_rows = [x[:, :, queries] for x in (gradient, q, out, logsumexp)]
        of_rows = [x.unflatten(2, (count, -1)).flatten(0, 2).unsqueeze(1) for x in of_rows]
        for keys in _runs(k.shape[2], keys_at_a_time(k.shape[2], parts)):
            shared = [x[:, :, keys].unsqueeze(2).expand(-1, -1, count, -1, -1) for x in (k, v)]
            shared = [x.flatten(0, 2).unsqueeze(1) for x in shared]
            part_q, part_k, part_v = _backward(*of_rows[:2], *shared, *of_rows[2:], 0.0, False, scale=scale)
            grad_q[:, :, queries] += part_q.view(*q.shape[:2], -1, q.shape[3])
            grad_k[:, :, keys] += part_k.view(*k.shape[:2], count, *part_k.shape[2:]).sum(2)
            grad_v[:, :, keys] += part_v.view(*v.shape[:2], count, *part_v.shape[2:]).sum(2)
            del part_q, part_k, part_v  # before the kernel allocates the next
    return grad_q, grad_k, grad_v


def keys_at_a_time(keys: int, parts: int) -> int:
    """What all parts bring for a run is then a quarter of the whole gradients, or less."""
    return max(256, -(-keys // (8 * parts)))


def _runs(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


@_attend_on_cores_backward.register_fake
def _(gradient, q, k, v, *_):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, gradient, _):
    return *_attend_on_cores_backward(gradient, *ctx.saved_tensors, ctx.scale), None


attend_on_cores.register_autograd(_differentiate, setup_context=_save)
refuse_second_derivative(_attend_on_cores_backward)
