"""PyTorch's fused kernel, `torch.nn.functional.scaled_dot_product_attention`, made eligible.

PyTorch falls back silently to a form that builds N x M where its kernels refuse. Here that form is forbidden, and
`refusal` says beforehand why a kernel cannot serve. What is special to the CPU's kernel is in this file alone.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula

from attn3d.attention.memory import needs_grad, register_scratch, result_bytes
from attn3d.attention.tiled import attention_flops, refuse_second_derivative
from attn3d.capture import is_captured

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
LARGEST_CUDA_GRID = 65_535  # what the CUDA kernels take of batch or heads
MOST_PARTS = 8  # into which a sequence is cut

# The CPU's kernel. Backward takes the output and the log-sum-exp: if they are those of a softmax over more keys than it
# is given, so are the gradients.
kernel_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def refusal(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None, dropout: float) -> str:
    """Why PyTorch's kernel cannot serve, or an empty string."""
    if dropout > 0.0:
        return "dropout on the weights"
    if needs_grad(bias):
        return "a bias that requires a gradient"
    if bias is not None and torch.promote_types(bias.dtype, q.dtype) != q.dtype:
        return "a bias of higher precision than the queries"
    if q.is_cuda:
        if max(q.shape[:2]) > LARGEST_CUDA_GRID:
            return f"a batch or heads of more than {LARGEST_CUDA_GRID}"
        if max(q.shape[-1], v.shape[-1]) > 256:
            return "head dimensions above 256"
        if (bias is not None or key_mask is not None) and q.shape[2] * k.shape[2] > 2**31:
            return "a bias or a mask over more than 2^31 pairs"
    return ""


def attend_fused(
    q: Tensor, k: Tensor, v: Tensor, scale: float, key_mask: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T + bias) v by PyTorch's kernel; arguments as `attn3d.attend`, which has checked them."""
    mask = None if bias is None else bias.detach().to(q.dtype)
    if key_mask is not None:
        visible = key_mask[:, None, None, :]
        mask = visible if mask is None else mask.masked_fill(~visible, float("-inf"))
    width = v.shape[3]
    q, k, v = equal_widths(q, k, v)
    if mask is None and _leaves_cores_idle(q, k, v):
        return attend_on_cores(q, k, v, scale)[..., :width]
    # What is forbidden is so for all threads of the process: not on a CPU, whose kernel serves what has come this far.
    with sdpa_kernel(KERNELS) if q.is_cuda else contextlib.nullcontext():
        return functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)[..., :width]


def equal_widths(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three with last stride 1 and one head dimension, with zeros behind the narrower: what the kernels ask for."""
    common = max(q.shape[-1], v.shape[-1])
    if q.is_cuda:
        common = (common + 7) // 8 * 8
    return _widen(q, common), _widen(k, common), _widen(v, common)


def _widen(x: Tensor, width: int) -> Tensor:
    if x.shape[-1] < width:
        return functional.pad(x, [0, width - x.shape[-1]])
    # Not `contiguous`, which leaves the stride of an axis of size 1 as it is.
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def fused_bytes(q: Tensor, k: Tensor, v: Tensor, training: bool) -> int:
    """What `attend_fused` takes beside q, k and v, with the copies that make them eligible and a margin."""
    width = max(q.shape[3], v.shape[3])
    copied = sum(
        x.shape[0] * x.shape[1] * x.shape[2] * width * x.element_size()
        for x in (q, k, v)
        if x.shape[3] < width or x.stride(3) != 1
    )
    scratch = 2 * kernel_bytes(q.shape[2], k.shape[2], width)
    if training:  # the gradients of parts of the queries
        copied, scratch = 2 * copied, scratch + 2 * q.element_size() * max(q.numel(), k.numel())
    return result_bytes(q, k, v, training) + copied + scratch


def kernel_bytes(queries: int, keys: int, width: int) -> int:
    """What the CPU's kernel takes while it runs: a tile of scores for every thread, and rows that go with it."""
    rows = 256 if queries >= 768 else 64 if queries >= 192 else 32
    return 4 * torch.get_num_threads() * (min(rows, queries) * min(512, keys) + rows * (width + 2))


@register_scratch(kernel_forward.default)
def _scratch(q: Tensor, k: Tensor, *_: object) -> int:
    return kernel_bytes(q.shape[2], k.shape[2], q.shape[3])


@register_scratch(kernel_backward.default)
def _scratch_backward(grad_out: Tensor, q: Tensor, k: Tensor, *_: object) -> int:
    # Two tiles for every thread; and the gradient of the output laid out anew, where there are several heads.
    return 2 * kernel_bytes(q.shape[2], k.shape[2], 0) + (q.shape[1] > 1) * q.numel() * q.element_size()


@register_flop_formula(kernel_forward)
def _flops(q: list[int], k: list[int], v: list[int], *_: Any, **__: Any) -> int:
    return attention_flops(q, k, v, products=2)


@register_flop_formula(kernel_backward)
def _flops_backward(grad_out: list[int], q: list[int], k: list[int], v: list[int], *_: Any, **__: Any) -> int:
    return attention_flops(q, k, v, products=5)


def parallel_parts(sequences: int) -> int:
    """Into how many parts each of so many sequences is cut to keep all cores busy."""
    return max(1, min(MOST_PARTS, torch.get_num_threads() // max(1, sequences)))


def _leaves_cores_idle(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel's backward would have fewer sequences than there are cores, and enough to do."""
    if q.device.type != "cpu" or is_captured() or not needs_grad(q, k, v):
        return False
    return q.shape[2] * k.shape[2] >= 2**20 and parallel_parts(q.shape[0] * q.shape[1]) > 1


def keys_at_a_time(keys: int, parts: int) -> int:
    """What all parts bring for a run of keys is then a quarter of the whole gradients, or less."""
    return max(256, -(-keys // (8 * parts)))


def attend_on_cores(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v by the CPU's kernel, with a backward that uses all cores."""
    return _OnCores.apply(q, k, v, scale)


class _OnCores(torch.autograd.Function):
    """The kernel's own backward runs in parallel over batch and heads: with one head it trains on one core.

    Given the rows' log-sum-exp, the gradients of a part of the queries over a part of the keys need no
    other part. So the queries are cut into as many parts as there are idle cores, and the keys are taken in runs, since
    every part brings gradients for all keys of a run.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out, logsumexp = kernel_forward(q, k, v, 0.0, False, scale=scale)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            refuse_second_derivative()
        q, k, v, out, logsumexp = ctx.saved_tensors
        parts = parallel_parts(q.shape[0] * q.shape[1])
        run = keys_at_a_time(k.shape[2], parts)
        grad_q, grad_k, grad_v = (x.new_zeros(list(x.shape)) for x in (q, k, v))
        even = q.shape[2] // parts * parts
        for queries, count in ((slice(0, even), parts), (slice(even, q.shape[2]), 1)):  # equal parts, and the rest
            if queries.start == queries.stop:
                continue
            # Every part is a batch entry with one head: the kernel then reads it as it lies in memory.
            rows = [x[:, :, queries] for x in (grad_out, q, out, logsumexp)]
            rows = [x.unflatten(2, (count, -1)).flatten(0, 2).unsqueeze(1) for x in rows]
            for start in range(0, k.shape[2], run):
                keys = slice(start, start + run)
                shared = [x[:, :, keys].unsqueeze(2).expand(-1, -1, count, -1, -1) for x in (k, v)]
                shared = [x.flatten(0, 2).unsqueeze(1) for x in shared]
                part_q, part_k, part_v = kernel_backward(*rows[:2], *shared, *rows[2:], 0.0, False, scale=ctx.scale)
                grad_q[:, :, queries] += part_q.view(*q.shape[:2], -1, q.shape[3])
                grad_k[:, :, keys] += part_k.view(*k.shape[:2], count, *part_k.shape[2:]).sum(2)
                grad_v[:, :, keys] += part_v.view(*v.shape[:2], count, *part_v.shape[2:]).sum(2)
                del part_q, part_k, part_v  # before the kernel allocates the next
        return grad_q, grad_k, grad_v, None
