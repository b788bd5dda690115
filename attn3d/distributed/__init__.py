"""Context parallelism: attention over a volume that is split along its first spatial axis, one shard per rank."""

from attn3d.distributed.parallelize import parallelize_attention, sum_gradients

__all__ = ["parallelize_attention", "sum_gradients"]
