"""Attention into a network and out of it, at sites known by name."""

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from attn3d.factory import AttentionSpec, create_attention, find, takes_signal
from attn3d.insertion.attach import container_at, containers, detach
from attn3d.insertion.containers import (
    BesideConvolution,
    BesideConvolutionIdentityAtStart,
    IdentityAtStart,
    IdentityAtStartWithSignal,
    Record,
)
from attn3d.insertion.sites import Site, Sites, Survey
from attn3d.mechanisms import SelectiveKernel

__all__ = [
    "Site",
    "Sites",
    "attention_parameters",
    "attention_sites",
    "insert_attention",
    "inserted_attention",
    "load_pretrained",
    "remove_attention",
]

Network = TypeVar("Network", bound=nn.Module)


def attention_sites(net: nn.Module, input_shape: Sequence[int] | None = None) -> Sites:
    """Where attention can go in ``net``.

    Args:
        net: a MONAI network, or any module.
        input_shape: (B, C, *S) of an image; by default a guess, which decides the shapes in the table.

    Returns:
        a list of `Site` that prints as a table. For a network whose class is registered, its encoder, decoder,
        bottleneck, skip, block, residual and conv sites; for any other, every module that gives a map.

    Raises:
        ValueError: when the network does not run on ``input_shape``, or on no guess.

    Examples:
        >>> attention_sites(UNet(3, 1, 2, (8, 16, 32), (2, 2)))
        kind        stage  path                         channels  shape
        encoder     0      model.0                      8         32 x 32 x 32
        encoder     1      model.1.submodule.0          16        16 x 16 x 16
        ...
    """
    return Survey(_inner(net), input_shape).everything()


def insert_attention(
    net: Network,
    spec: AttentionSpec,
    at: str | Iterable[str],
    stages: int | Iterable[int] | None = None,
    *,
    identity: bool = False,
    max_voxels: int | None = None,
    input_shape: Sequence[int] | None = None,
    **options: Any,
) -> Network:
    """Puts a mechanism at each of the sites that ``at`` names.

    The network stays what it was: its class, the keys of its state, its hooks; the mechanisms come as children of
    their own. At a site that has one already, the new mechanism comes after it.

    Args:
        net: a MONAI network, or any module.
        spec: the mechanism, as `create_attention` takes it.
        at: kinds of sites, "encoder", or sites by name, "encoder:down_1", where the path may be a glob (a * stays
            between two dots) or a regular expression; "path:<path>" reaches any module; or a list of these.
        stages: those of each kind to take; negative ones count from the last. By default all.
        identity: the network computes what it did until training opens a gate that is learnt from 0. Mechanisms
            that start as the identity have such a gate of their own.
        max_voxels: leaves out, with a warning, sites whose map is larger.
        input_shape: (B, C, *S) of the images to come; by default a guess, from which only channels are taken.
        options: of the mechanism.

    Returns:
        ``net``.

    Raises:
        TypeError: when an argument is of the wrong type, or the mechanism has no such option.
        ValueError: when there is no such site, or it cannot be used; the message says why and what can. Nothing
            has been inserted then.

    Examples:
        >>> net = UNet(3, 1, 2, (8, 16, 32), (2, 2))
        >>> net = insert_attention(net, "cbam", at=("encoder", "skip"), stages=(-2, -1), reduction=8)
    """
    _check_open(net)
    inner = _inner(net)
    survey = Survey(inner, input_shape)
    sites = survey.select(at, stages)
    left_out = dict(survey.refused)
    if max_voxels is not None:
        if input_shape is None:
            raise ValueError("`max_voxels` counts the voxels of maps: `input_shape` (B, C, *S) must be given with it")
        left_out |= {
            site.name: f"has {site.voxels} voxels, more than `max_voxels`" for site in sites if site.voxels > max_voxels
        }
        sites = Sites(site for site in sites if site.voxels <= max_voxels)
    if not sites:
        raise ValueError("`max_voxels` leaves no site: " + _sentence(left_out))

    _, spec_options = find(spec)
    if takes_signal(spec):
        _check_signals(survey, sites, spec)
    made = [_make(inner, site, spec, identity, options) for site in sites]
    if left_out:
        warnings.warn("no attention at " + _sentence(left_out), stacklevel=2)
    if getattr(find(spec)[0], "averages_space", False):
        _warn_of_norms(survey, sites, spec)
    call = 1 + max((record.call[0] for record in _records(inner)), default=-1)
    named = spec if isinstance(spec, str) or callable(spec) else spec[0]
    shape = None if input_shape is None else tuple(input_shape)
    for index, (site, attention) in enumerate(zip(sites, made, strict=True)):
        container = container_at(inner, site.place, site.channels, site.reader)
        container.append(attention)
        container.records.append(Record((call, index), site.name, named, spec_options | options, identity, shape))
    _forget_compiled()
    return net


def remove_attention(net: Network) -> Network:
    """Takes out all that `insert_attention` put in: keys, types, hooks and outputs are what they were.

    Args:
        net: a network, with or without attention in it.

    Returns:
        ``net``.
    """
    detach(net)
    _forget_compiled()
    return net


def inserted_attention(net: nn.Module) -> list[dict[str, Any]]:
    """What is in ``net``, as plain data: arguments of `insert_attention`, one dictionary for each call.

    It is JSON where specs are names and options are numbers and strings, and may lie in a checkpoint. In another
    process, ``for item in items: insert_attention(net, **item)`` makes the network again.

    Args:
        net: a network, with or without attention in it.

    Returns:
        dictionaries with "spec", "at", "identity" and "input_shape".
    """
    calls: dict[int, dict[str, Any]] = {}
    for record in sorted(_records(net), key=lambda record: record.call):
        item = {
            "spec": [record.spec, dict(record.options)],
            "at": [],
            "identity": record.identity,
            "input_shape": None if record.input_shape is None else list(record.input_shape),
        }
        calls.setdefault(record.call[0], item)["at"].append(record.site)
    return list(calls.values())


def attention_parameters(net: nn.Module) -> list[nn.Parameter]:
    """The parameters of all that was inserted, to train them alone or at a rate of their own.

    Args:
        net: a network, with or without attention in it.

    Returns:
        each parameter once.

    Examples:
        >>> net = insert_attention(UNet(3, 1, 2, (8, 16, 32), (2, 2)), "se", at="encoder").requires_grad_(False)
        >>> for parameter in attention_parameters(net):
        ...     parameter.requires_grad = True
    """
    return list(dict.fromkeys(parameter for _, inserted in containers(net) for parameter in inserted.parameters()))


def load_pretrained(net: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Loads a checkpoint that was saved before attention was inserted, or after.

    Args:
        net: a network with attention in it.
        state_dict: of the same network without attention, with the same attention, or with some of it.

    Returns:
        the keys that are new: those of mechanisms the checkpoint does not have, which stay as they are.

    Raises:
        ValueError: when other keys are missing, or unknown, or of another shape, naming them. Nothing has been
            loaded then.
    """
    own = net.state_dict()
    mechanisms = [
        f"{path}.{name}." for path, container in containers(net, aliases=True) for name, _ in container.named_children()
    ]
    missing = [key for key in own if key not in state_dict]
    new = [
        key
        for mechanism in mechanisms
        if not any(given.startswith(mechanism) for given in state_dict)
        for key in missing
        if key.startswith(mechanism)
    ]
    faults = {
        "missing": [key for key in missing if key not in new],
        "unknown": [key for key in state_dict if key not in own],
        "of another shape": [key for key in state_dict if key in own and state_dict[key].shape != own[key].shape],
    }
    if any(faults.values()):
        named = "; ".join(f"{fault}: {', '.join(keys)}" for fault, keys in faults.items() if keys)
        raise ValueError(f"`state_dict` is of another network than `net`. Keys {named}")
    net.load_state_dict(state_dict, strict=False)
    return new


def _check_signals(survey: Survey, sites: Sites, spec: AttentionSpec) -> None:
    without = [site.name for site in sites if site.gating_channels is None]
    if without:
        there = ", ".join(site.name for site in survey.everything() if site.gating_channels is not None)
        raise ValueError(
            f"`at`: {spec!r} takes a gating signal, the decoder's map that meets a skip, and {', '.join(without)} has"
            f" none; {f'these sites have one: {there}' if there else 'no site of this network has one'}"
        )


def _warn_of_norms(survey: Survey, sites: Sites, spec: AttentionSpec) -> None:
    """The mean over space of what an instance norm gives is the norm's bias, whatever the image."""
    for site in sites:
        behind = survey.behind_activation(site)
        if behind is not None:
            warnings.warn(
                f"{spec!r} takes a mean over space, and at {site.name} that is the bias of the instance norm in front,"
                f" whatever the image: insert it behind the activation{f', at {behind!r}' if behind else ''}",
                stacklevel=3,
            )


def _make(net: nn.Module, site: Site, spec: AttentionSpec, identity: bool, options: Mapping[str, Any]) -> nn.Module:
    if takes_signal(spec):
        options = {"gating_channels": site.gating_channels} | dict(options)
    try:
        attention = create_attention(spec, spatial_dims=len(site.shape), channels=site.channels, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} (at {site.name} with {site.channels} channels)") from error
    gated = identity and not getattr(attention, "identity_at_start", False)
    if site.place.hook == "kernel":
        if not isinstance(attention, SelectiveKernel):
            raise ValueError(f"`at` {site.name!r} takes 'sk' alone, got {spec!r}; 'block' and 'residual' take any")
        attention = BesideConvolution(attention)
        attention = BesideConvolutionIdentityAtStart(attention) if gated else attention
    elif gated:
        start = IdentityAtStartWithSignal if takes_signal(spec) else IdentityAtStart
        attention = start(attention)
    host = net.get_submodule(site.place.path)
    floating = (p for p in (*host.parameters(), *net.parameters()) if p.is_floating_point())
    like = next(floating, torch.empty(0))
    return attention.to(like.device, like.dtype).train(host.training)


def _records(net: nn.Module) -> list[Record]:
    return [record for _, container in containers(net) for record in container.records]


def _inner(net: nn.Module) -> nn.Module:
    """The network in what `torch.compile` returned, or ``net``."""
    return getattr(net, "_orig_mod", net)


def _check_open(net: nn.Module) -> None:
    if isinstance(net, (DataParallel, DistributedDataParallel)):
        raise ValueError(
            f"`net` is in {type(net).__name__}, which would miss the new parameters: insert before wrapping"
        )
    if isinstance(net, torch.jit.ScriptModule):
        raise ValueError("`net` is scripted or traced: insert before that")
    if not isinstance(net, nn.Module):
        raise TypeError(f"`net` must be a torch.nn.Module, got {type(net).__name__}")


def _forget_compiled() -> None:
    """Compiled code does not watch for hooks that come and go."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _sentence(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}, which {reason}" for name, reason in reasons.items())
