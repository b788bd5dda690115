"""PyTorch's fused kernel, `torch.nn.functional.scaled_dot_product_attention`, with inputs that it accepts.

If its kernels do not support the inputs, PyTorch silently falls back to a form that builds N x M. That form is disabled
here, and `refusal` returns beforehand why a kernel cannot be used. All code for the CPU kernel is in this file.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from attn3d.attention.memory import needs_grad, register_scratch, result_bytes
from attn3d.attention.tiled import check_gradient
from attn3d.capture import is_eager

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
LARGEST_CUDA_GRID = 65_535  # the CUDA kernels' limit for batch and heads
MOST_PARTS = 8  # of a sequence, for parallel backward

# The CPU kernel. Its backward takes the output and the log-sum-exp. These may be those of a softmax over more keys than
# are passed: the gradients are then those of that softmax.
kernel_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def refusal(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, bias: Tensor | None, dropout: float) -> str:
    """Returns what PyTorch's kernel does not support of these arguments, or an empty string."""
    if dropout > 0.0:
        return "dropout on the weights"
    if needs_grad(bias):
        return "a bias that requires a gradient"
    if bias is not None and torch.promote_types(bias.dtype, q.dtype) != q.dtype:
        return "a bias of higher precision than the queries"
    if (
        bias is not None
        and key_mask is not None
        and bias.shape[2] > 1
        and (bias.shape[0] < key_mask.shape[0] or bias.shape[3] < key_mask.shape[1])
    ):
        return "a key mask with a bias per query that samples or keys share"  # their sum would be larger
    if q.is_cuda:
        if q.dtype == torch.float64:
            return "double precision on this device"
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
    """Computes softmax(scale q k^T + bias) v by PyTorch's kernel; arguments as in `attn3d.attend`, already checked."""
    mask = None if bias is None else bias.detach().to(q.dtype)
    if key_mask is not None:
        visible = key_mask[:, None, None, :]
        mask = visible if mask is None else mask.masked_fill(~visible, float("-inf"))
    width = v.shape[3]
    q, k, v = equal_widths(q, k, v)
    if mask is None and _leaves_cores_idle(q, k, v):
        return attend_on_cores(q, k, v, scale)[..., :width]
    # `sdpa_kernel` affects all threads of the process. It is not needed on a CPU, whose kernel supports all that
    # `refusal` lets through.
    with sdpa_kernel(KERNELS) if q.is_cuda else contextlib.nullcontext():
        return functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)[..., :width]


def equal_widths(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pads q, k and v with zeros to one head dimension, with a last stride of 1, as the kernels require."""
    common = max(q.shape[-1], v.shape[-1])
    if q.is_cuda:
        common = (common + 7) // 8 * 8
    return _widen(q, common), _widen(k, common), _widen(v, common)


def _widen(x: Tensor, width: int) -> Tensor:
    if x.shape[-1] < width:
        return functional.pad(x, [0, width - x.shape[-1]])
    # Not `contiguous`, which does not change the stride of an axis of size 1.
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def fused_bytes(
    q: Tensor, k: Tensor, v: Tensor, training: bool, key_mask: Tensor | None = None, bias: Tensor | None = None
) -> int:
    """Returns the bytes that `attend_fused` uses in addition to its arguments, with copies and a margin."""
    width = max(q.shape[3], v.shape[3])
    copied = sum(
        x.shape[0] * x.shape[1] * x.shape[2] * width * x.element_size()
        for x in (q, k, v)
        if x.shape[3] < width or x.stride(3) != 1
    )
    scratch = 2 * kernel_bytes(q.shape[2], k.shape[2], width, q.dtype)
    if bias is not None and bias.dtype != q.dtype:
        scratch += bias.numel() * q.element_size()
    if key_mask is not None:  # added to the bias, or converted by PyTorch
        pairs = 1 if bias is None else bias.shape[1] * bias.shape[2]
        scratch += key_mask.numel() * (2 + pairs * q.element_size())
    if q.element_size() < 4:  # some processors multiply in half precision, from another layout of keys and values
        copied += k.element_size() * (k.numel() + v.numel())
    if training:  # gradients of the parts in `_OnCores`
        copied, scratch = 2 * copied, scratch + 2 * q.element_size() * max(q.numel(), k.numel())
    return result_bytes(q, k, v, training) + copied + scratch


def kernel_bytes(queries: int, keys: int, width: int, dtype: torch.dtype) -> int:
    """Returns the temporary bytes of the CPU kernel: a tile of scores per thread, and its rows.

    In half precision the tile has a copy, and a run of keys and values is converted.
    """
    rows, run = 256 if queries >= 768 else 64 if queries >= 192 else 32, min(512, keys)
    numbers = min(rows, queries) * run + rows * (width + 2)
    if dtype.itemsize < 4:
        numbers += 2 * run * width
    return (4 if dtype == torch.float32 else 8) * torch.get_num_threads() * numbers


@register_scratch(kernel_forward.default)
def _scratch(q: Tensor, k: Tensor, *_: object) -> int:
    return kernel_bytes(q.shape[2], k.shape[2], q.shape[3], q.dtype)


@register_scratch(kernel_backward.default)
def _scratch_backward(grad_out: Tensor, q: Tensor, k: Tensor, *_: object) -> int:
    # Two tiles per thread and, with several heads, a copy of the gradient of the output in another layout.
    return 2 * kernel_bytes(q.shape[2], k.shape[2], 0, q.dtype) + (q.shape[1] > 1) * q.numel() * q.element_size()


register_flop_formula(kernel_forward)(lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v))
register_flop_formula(kernel_backward)(lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]))


def parallel_parts(sequences: int) -> int:
    """Returns into how many parts to split each of the given number of sequences, to use all cores."""
    return max(1, min(MOST_PARTS, torch.get_num_threads() // max(1, sequences)))


def _leaves_cores_idle(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Returns whether the kernel's backward would leave cores idle on a large problem."""
    if q.device.type != "cpu" or not is_eager() or not needs_grad(q, k, v):
        return False
    return q.shape[2] * k.shape[2] >= 2**20 and parallel_parts(q.shape[0] * q.shape[1]) > 1


def keys_at_a_time(keys: int, parts: int) -> int:
    """Returns a number of keys for which the gradients of all parts are at most a quarter of the whole gradients."""
    return max(256, -(-keys // (8 * parts)))


def attend_on_cores(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Computes softmax(scale q k^T) v by the CPU kernel, with a backward that uses all cores."""
    return _OnCores.apply(q, k, v, scale)


class _OnCores(torch.autograd.Function):
    """Attention with a parallel backward.

    The kernel's own backward is parallel over batch and heads only: with one head it uses one core. Given the
    log-sum-exp of the rows, the gradients of part of the queries and part of the keys are independent of other parts.
    So the queries are split into as many parts as there are idle cores. The keys are processed in runs, because every
    part has gradients for all keys of a run.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out, logsumexp = kernel_forward(q, k, v, 0.0, False, scale=scale)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        check_gradient(grad_out)
        q, k, v, out, logsumexp = ctx.saved_tensors
        parts = parallel_parts(q.shape[0] * q.shape[1])
        run = keys_at_a_time(k.shape[2], parts)
        grad_q, grad_k, grad_v = (x.new_zeros(list(x.shape)) for x in (q, k, v))
        even = q.shape[2] // parts * parts
        for queries, count in ((slice(0, even), parts), (slice(even, q.shape[2]), 1)):  # equal parts, and the rest
            if queries.start == queries.stop:
                continue
            # Every part is a batch entry with one head, which the kernel reads without a copy.
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
