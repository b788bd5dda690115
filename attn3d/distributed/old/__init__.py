"""Attention over a volume that is cut along its first spatial axis, a shard for every rank of a process group."""

from attn3d.attention.sharded.ranks import SHARINGS, Ranks

__all__ = ["SHARINGS", "Ranks"]
