"""The public names of `attn3d`, which imports this file on first access to one of them."""

from attn3d.attention import Axial, Global, Grid, Neighborhood, PooledKeys, Window, attend
from attn3d.distributed import parallelize_attention, sum_gradients
from attn3d.factory import create_attention
from attn3d.gates import constant_gates
from attn3d.insertion import (
    attention_parameters,
    attention_sites,
    insert_attention,
    inserted_attention,
    load_pretrained,
    remove_attention,
)
from attn3d.maps import attention_maps
from attn3d.mechanisms import *  # noqa: F403  the public classes of its files
from attn3d.mechanisms import __all__ as _mechanisms
from attn3d.mechanisms.registry import list_attention, register_attention
from attn3d.planning import estimate_cost, estimate_memory
from attn3d.plotting import plot_attention_maps

__all__ = [
    *_mechanisms,
    "Axial",
    "Global",
    "Grid",
    "Neighborhood",
    "PooledKeys",
    "Window",
    "attend",
    "attention_maps",
    "attention_parameters",
    "attention_sites",
    "constant_gates",
    "create_attention",
    "estimate_cost",
    "estimate_memory",
    "insert_attention",
    "inserted_attention",
    "list_attention",
    "load_pretrained",
    "parallelize_attention",
    "plot_attention_maps",
    "register_attention",
    "remove_attention",
    "sum_gradients",
]
