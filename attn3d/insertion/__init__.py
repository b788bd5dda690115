"""Inserts attention into a network at named sites, and removes it."""

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from attn3d.arguments import positive_integer
from attn3d.capture import unwrapped
from attn3d.factory import AttentionSpec, create_attention, declares, plain_spec
from attn3d.insertion.attach import container_at, containers, detach, inserted_by_network
from attn3d.insertion.checkpoints import load_pretrained
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

# By name, since importing FSDP takes long. Most of them miss parameters that are added later.
_PARALLEL = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def attention_sites(net: nn.Module, input_shape: Sequence[int] | None = None) -> Sites:
    """Lists the sites of ``net`` where attention can be inserted.

    Args:
        net: a MONAI network, or any module.
        input_shape: (B, C, *S) of an image, which determines the shapes in the table; guessed by default.

    Returns:
        a list of `Site` that prints as a table: the encoder, decoder, bottleneck, skip, block, residual and conv sites
        of a network whose class is registered; of another network, every module that returns a map, and the block,
        residual and conv sites.

    Raises:
        TypeError: if ``net`` is not a module.
        ValueError: if the network does not run on ``input_shape``, or on any guess.

    Examples:
        >>> attention_sites(UNet(3, 1, 2, (8, 16, 32), (2, 2)))
        kind        stage  path                         channels  shape
        encoder     0      model.0                      8         32 x 32 x 32
        encoder     1      model.1.submodule.0          16        16 x 16 x 16
        ...
    """
    return Survey(unwrapped(net), input_shape).everything()


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
    """Inserts a mechanism at each of the sites given by ``at``, in place.

    Insert attention before you create an optimizer, which would miss the new parameters.

    The class of the network, its state dict keys and its hooks are kept; the mechanisms are added as new child modules.
    At a site that already has a mechanism, the new one is applied after it.

    Args:
        net: a MONAI network, or any module.
        spec: the mechanism, as in `create_attention`.
        at: a kind of site such as "encoder", a site by name such as "encoder:down_1", or a list of these. The path in
            a name may be a glob, in which * does not match dots, or a regular expression; "path:<path>" selects any
            module.
        stages: which stages of each kind to use; negative numbers count from the last. All by default.
        identity: whether the network keeps its output until training, by a gate that is learnt from 0. Mechanisms that
            start as the identity already have such a gate.
        max_voxels: sites with a larger map are skipped with a warning. Requires ``input_shape``.
        input_shape: (B, C, *S) of the images; by default a guess, from which only the channels are used.
        options: options of the mechanism.

    Returns:
        ``net``.

    Raises:
        TypeError: if an argument has the wrong type, or an option is unknown.
        ValueError: if there is no such site, or it cannot be used, or ``spec`` does not declare that its module takes a
            gating signal; the message gives the reason and the alternatives. The network is then unchanged.

    Examples:
        >>> net = UNet(3, 1, 2, (8, 16, 32), (2, 2))
        >>> net = insert_attention(net, "cbam", at=("encoder", "skip"), stages=(-2, -1), reduction=8)
    """
    inner = unwrapped(net)
    _check_open(inner)
    if name := next((name for name in ("spatial_dims", "channels") if name in options), None):
        raise TypeError(f"`{name}` follows from the site, got {options[name]!r}; leave it out")
    survey = Survey(inner, input_shape)
    sites, left_out = survey.select(at, stages)
    if max_voxels is not None:
        if input_shape is None:
            raise ValueError("`input_shape` (B, C, *S) must be given with `max_voxels`")
        most = positive_integer("max_voxels", max_voxels)
        for site in sites:
            if site.voxels > most:
                left_out[site.name] = f"has {site.voxels} voxels, more than `max_voxels`"
        sites = Sites(site for site in sites if site.voxels <= most)
    if not sites:
        raise ValueError(f"`max_voxels` must leave at least one site, got {max_voxels}: " + _sentence(left_out))

    if declares(spec, "takes_signal"):
        _check_signals(survey, sites, spec)
    made = [_make(inner, site, spec, identity, options) for site in sites]
    if left_out:
        warnings.warn("no attention at " + _sentence(left_out), stacklevel=2)
    if declares(spec, "averages_space"):
        _warn_of_norms(survey, sites, spec)
    earlier = (record.order[0] for _, container in containers(inner) for record in container.records)
    call = 1 + max(earlier, default=-1)
    named, plain_options = plain_spec(spec, options)
    shape = None if input_shape is None else tuple(input_shape)
    for index, (site, attention) in enumerate(zip(sites, made, strict=True)):
        container = container_at(inner, site.place, site.channels, site.reader)
        container.append(attention)
        container.records.append(Record((call, index), site.name, named, plain_options, identity, shape))
    _forget_compiled()
    return net


def remove_attention(net: Network) -> Network:
    """Removes everything that `insert_attention` inserted, and restores keys, types, hooks and outputs.

    Args:
        net: a network, with or without inserted attention.

    Returns:
        ``net``.
    """
    detach(unwrapped(net))
    _forget_compiled()
    return net


def inserted_attention(net: nn.Module) -> list[dict[str, Any]]:
    """Returns the arguments of all calls of `insert_attention` on ``net``, one dictionary for each call.

    Store them with a checkpoint and call ``insert_attention(net, **item)`` for each to rebuild the network. They are
    plain data, which can be written as JSON, unless a mechanism is a class or function that is not registered.

    The names of sites are relative to the module that was passed to `insert_attention`, such as the network inside a
    LightningModule: rebuild this module.

    Args:
        net: a network, with or without inserted attention, or a module that contains one.

    Returns:
        dictionaries with "spec", "at", "identity" and "input_shape".

    Raises:
        ValueError: if attention was inserted into several modules; the message gives their paths.
    """
    found = inserted_by_network(unwrapped(net))
    if len(found) > 1:
        named = {"": "`net` itself", None: "a module around it"}
        paths = ", ".join(named.get(path, repr(path)) for path in found)
        raise ValueError(
            f"`net` must have attention that was inserted into one module, got {paths}: pass one of the parts, or"
            " insert all into one module, where at='path:<path>' selects any site"
        )
    records = [record for inserted in found.values() for record, _ in inserted]
    calls: dict[int, dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: record.order):
        item = {
            "spec": [record.spec, dict(record.options)],
            "at": [],
            "identity": record.identity,
            "input_shape": None if record.input_shape is None else list(record.input_shape),
        }
        calls.setdefault(record.order[0], item)["at"].append(record.site)
    return list(calls.values())


def attention_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of all inserted attention, for example to train only these or with another learning rate.

    Args:
        net: a network, with or without inserted attention.

    Returns:
        a list with each parameter once. Of attention in PEFT's `modules_to_save`, these are the parameters of the copy,
        which runs.

    Examples:
        >>> net = insert_attention(UNet(3, 1, 2, (8, 16, 32), (2, 2)), "se", at="encoder").requires_grad_(False)
        >>> for parameter in attention_parameters(net):
        ...     parameter.requires_grad = True
    """
    inserted = [container for _, container in containers(unwrapped(net))]
    return list(dict.fromkeys(parameter for container in inserted for parameter in container.parameters()))


def _check_signals(survey: Survey, sites: Sites, spec: AttentionSpec) -> None:
    without = [site.name for site in sites if site.gating_channels is None]
    if without:
        names = ", ".join(site.name for site in survey.everything() if site.gating_channels is not None)
        alternatives = f"these sites have one: {names}" if names else "no site of this network has one"
        raise ValueError(
            f"`at` must name sites with a gating signal (the decoder's map at a skip) for {spec!r}, got"
            f" {', '.join(without)}; {alternatives}"
        )


def _warn_of_norms(survey: Survey, sites: Sites, spec: AttentionSpec) -> None:
    """Warns of mechanisms that take a mean over space of an instance norm's output: with equal weights, its bias."""
    found = {site.name: survey.behind_activation(site) for site in sites}
    constant = {name: behind for name, behind in found.items() if behind is not None}
    if constant:
        instead = [repr(behind) for behind in constant.values() if behind]
        warnings.warn(
            f"{spec!r} takes a mean over space, which at {', '.join(constant)} is the bias of the preceding instance"
            " norm for every image (with 'gc', nearly): insert it after the activation"
            + (f", at {', '.join(instead)}" if instead else ""),
            stacklevel=3,
        )


def _make(net: nn.Module, site: Site, spec: AttentionSpec, identity: bool, options: Mapping[str, Any]) -> nn.Module:
    takes_signal = declares(spec, "takes_signal")
    if takes_signal:
        options = {"gating_channels": site.gating_channels} | dict(options)
    try:
        attention: Any = create_attention(spec, spatial_dims=len(site.shape), channels=site.channels, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error} (at {site.name} with {site.channels} channels)") from error
    if takes_signal != bool(getattr(attention, "takes_signal", False)):
        raise ValueError(
            f"`spec` must have the attribute `takes_signal` = {not takes_signal}, like the module that it creates, got"
            f" {spec!r}"
        )
    gated = identity and not getattr(attention, "identity_at_start", False)
    if site.place.hook == "kernel":
        if not isinstance(attention, SelectiveKernel):
            raise ValueError(f"`at` {site.name!r} supports only 'sk', got {spec!r}; 'block' and 'residual' support any")
        attention = BesideConvolution(attention)
        attention = BesideConvolutionIdentityAtStart(attention) if gated else attention
    elif gated:
        start = IdentityAtStartWithSignal if takes_signal else IdentityAtStart
        attention = start(attention)
    if takes_signal:
        attention.attn3d_signal = True  # read by the containers; TorchScript does not see attributes of the class
    host = unwrapped(net.get_submodule(site.place.path))
    floating = (p for p in (*host.parameters(), *net.parameters()) if p.is_floating_point())
    like = next(floating, torch.empty(0))
    return attention.to(like.device, like.dtype).train(host.training)


def _check_open(net: nn.Module) -> None:
    if isinstance(net, torch.jit.ScriptModule):
        raise ValueError("`net` must not be scripted or traced: insert attention first")
    classes = {cls.__name__ for module in net.modules() for cls in type(module).__mro__}
    if wrapped := sorted(_PARALLEL & classes):
        raise ValueError(
            f"`net` must not be in {wrapped[0]}: insert attention into the network before it is wrapped or sharded"
        )


def _forget_compiled() -> None:
    """Discards compiled code, which does not check for added or removed hooks."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _sentence(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}, which {reason}" for name, reason in reasons.items())
