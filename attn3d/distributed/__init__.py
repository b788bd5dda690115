"""Attention over a volume that is cut along its first spatial axis, a shard for every rank of a process group."""

from attn3d.distributed.parallelize import parallelize_attention, sum_gradients

__all__ = ["parallelize_attention", "sum_gradients"]
