"""Every network and kind of site with a changing mechanism and form; in the nightly run with every mechanism."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attn3d
from attn3d.factory import declares
from attn3d.insertion import (
    Site,
    attention_parameters,
    attention_sites,
    insert_attention,
    load_pretrained,
    remove_attention,
)
from attn3d.insertion.attach import containers
from attn3d.insertion.probe import probe
from attn3d.networks import KINDS
from tests.configurations import OF_ONE_MAP, OVER_VOXELS, of_form
from tests.marks import some
from tests.networks.combinations import LACKS, combinations, main
from tests.networks.comparing import anatomy, equal, randomise, saved_and_loaded
from tests.networks.every_way import maps
from tests.networks.zoo import CONFIGURATIONS, Configuration

pytestmark = pytest.mark.scorecard("insertion")

_GROUPS = (("skip",), ("encoder", "bottleneck"), ("decoder", "block", "residual"), ("conv",))  # skips first
_TURNS = itertools.cycle(itertools.product(("compact", "paper"), OF_ONE_MAP))


def _turns(configuration: Configuration) -> list[tuple[list[str], str, str]]:
    kinds = configuration.kinds.split()
    groups = [[kind for kind in group if kind in kinds] for group in _GROUPS]
    return [(group, *(("paper", "sk") if group == ["conv"] else next(_TURNS))) for group in groups if group]


COMBINATIONS = [(configuration, _turns(configuration)) for configuration in CONFIGURATIONS]
# The quick networks of the default run; all others are tested in the nightly run.
EVERY_MECHANISM = ("UNet-2", "SegResNet-2", "AttentionUnet-2")
EVERY_KIND = ("UNet-3", "AttentionUnet-3", "DynUNet-3", "SegResNet-3", "MedNeXt-3", "HighResNet-3", "DenseNet-3")
TWO_DECODERS = ("SegResNetDS2", "VISTA3D")  # each has its own gating signal at a skip
_PARAMETERS = [
    pytest.param(*each, id=each[0].id, marks=[] if each[0].id in EVERY_KIND else [pytest.mark.nightly])
    for each in COMBINATIONS
]


def changed(output: Any, other: Any) -> bool:
    assert all(tensor.is_meta or tensor.isfinite().all() for tensor in maps(other))
    return maps(output)[0].is_meta or not equal(output, other)


@pytest.mark.filterwarnings("ignore:no attention at", "ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize(("configuration", "turns"), _PARAMETERS)
def test_every_kind(
    configuration: Configuration, turns: list[tuple[list[str], str, str]], count_cases: Callable[..., None]
) -> None:
    net, x = configuration.make().eval(), configuration.image(batch=2)
    kinds = configuration.kinds.split()
    sites = attention_sites(net, x.shape)
    assert list(dict.fromkeys(site.kind for site in sites)) == [kind for kind in KINDS if kind in kinds]
    assert {len(site.shape) for site in sites} == {configuration.dims}
    for kind in set(KINDS) - set(kinds):
        with pytest.raises(ValueError, match=f"must be a kind of site of {type(net).__name__}: encoder.* got {kind!r}"):
            insert_attention(net, "se", at=kind)

    plain = run(configuration, net, x)
    before, checkpoint = anatomy(net), {key: value.clone() for key, value in net.state_dict().items()}

    last = plain
    for kinds, variant, name in turns:
        if kinds == ["skip"]:
            layer, before_skips = first_map(configuration, net, x, deepest(net, sites))
        most = {"max_voxels": 512} if name in OVER_VOXELS else {}
        assert insert_attention(net, name, at=kinds, input_shape=x.shape, **of_form(name, variant), **most) is net
        randomise(net)
        attended = run(configuration, net, x)
        assert changed(last, attended), f"{name} at {kinds} has no effect"
        last = attended
        if kinds == ["skip"]:
            _, after = first_map(configuration, net, x, [layer])
            assert equal(before_skips, after), "attention at a skip changed the bottleneck"

    runs = Counter()
    mechanisms = [mechanism for _, inserted in containers(net) for mechanism in inserted]
    handles = [mechanism.register_forward_hook(lambda module, *_: runs.update([module])) for mechanism in mechanisms]
    run(configuration, net, x)
    assert runs == Counter(mechanisms), "each must run once in a forward pass"
    for handle in handles:
        handle.remove()

    twin = copy.deepcopy(net)
    if configuration.pickles:
        assert equal(run(configuration, saved_and_loaded(net), x), last)
    nn.init.zeros_(attention_parameters(net)[-1])
    assert equal(run(configuration, twin, x), last), "a copy must not share a parameter"

    output = configuration.call(net.train(), x)
    sum(tensor.square().mean() for tensor in maps(output)).backward()
    assert all(parameter.grad is not None for parameter in attention_parameters(net))

    keys = list(net.state_dict())
    assert [key for key in keys if key in checkpoint] == list(checkpoint)
    assert sorted(load_pretrained(net, checkpoint)) == sorted(key for key in keys if key not in checkpoint)

    assert remove_attention(net.eval()) is net
    assert anatomy(net) == before
    assert equal(run(configuration, net, x), plain)
    count_cases(sum(len(kinds) for kinds, *_ in turns))


@pytest.mark.filterwarnings("ignore:no attention at", "ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize(
    "configuration",
    some(CONFIGURATIONS, lambda configuration: configuration.id not in EVERY_MECHANISM),
    ids=lambda configuration: configuration.id,
)
def test_every_mechanism(
    configuration: Configuration, monkeypatch: pytest.MonkeyPatch, count_cases: Callable[..., None]
) -> None:
    """A cheaper form of the test above for every combination, in double precision, which shows the smallest effects."""
    net, x = configuration.make().eval().double(), configuration.image(batch=2).double()
    found = probe(net, x.shape)
    monkeypatch.setattr("attn3d.insertion.sites.probe", lambda *_: found)  # attention keeps shapes: one probe is enough
    plain, before = run(configuration, net, x), anatomy(net)
    forms = itertools.cycle(("compact", "paper"))
    for each in combinations()[0]:
        if each.configuration is not configuration:
            continue
        most = {"max_voxels": 512} if each.mechanism in OVER_VOXELS else {}
        form = of_form(each.mechanism, next(forms))
        insert_attention(net, each.mechanism, at=each.kind, input_shape=x.shape, **form, **most)
        randomise(net)
        runs = Counter()
        mechanisms = [mechanism for _, inserted in containers(net) for mechanism in inserted]
        for mechanism in mechanisms:
            mechanism.register_forward_hook(lambda module, *_, runs=runs: runs.update([module]))
        assert changed(plain, run(configuration, net, x)), each
        decoders = 2 if each.configuration.name in TWO_DECODERS and declares(each.mechanism, "takes_signal") else 1
        assert runs == Counter(dict.fromkeys(mechanisms, decoders)), each
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sum(tensor.square().mean() for tensor in maps(configuration.call(net, x))).backward()
        assert all(parameter.grad is not None for parameter in attention_parameters(net)), each
        remove_attention(net).zero_grad()
        assert anatomy(net) == before, each
        assert equal(run(configuration, net, x), plain), each
        count_cases()


@pytest.mark.scorecard  # inserts nothing
def test_every_impossible_combination_has_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    possible, impossible = combinations()
    assert len(possible) + len(impossible) == len(CONFIGURATIONS) * len(KINDS) * len(attn3d.list_attention())
    assert all(each.reason for each in impossible)
    assert {name.split()[0] for name in LACKS} <= {each.name.split()[0] for each in CONFIGURATIONS}
    main()
    printed = capsys.readouterr().out
    assert printed.startswith(f"{len(possible)} combinations of ")
    assert f"\n{len(impossible)} cannot be:\n" in printed
    assert all(each.reason in printed for each in impossible)


def deepest(net: nn.Module, sites: list[Site]) -> list[str]:
    """The layers of the bottleneck, which attention at a skip must not reach."""
    [site] = [site for site in sites if site.kind == "bottleneck"]
    path = site.place.path
    return [
        f"{path}.{name}".rstrip(".") for name, part in net.get_submodule(path).named_modules() if not [*part.children()]
    ]


def first_map(configuration: Configuration, net: nn.Module, x: Tensor, layers: list[str]) -> tuple[str, Tensor]:
    """The first of the layers that runs, and its input."""
    seen: list[tuple[str, Tensor]] = []
    handles = [
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, name=name: seen.append((name, arguments[0].clone()))
        )
        for name in layers
    ]
    run(configuration, net, x)
    for handle in handles:
        handle.remove()
    return seen[0]


def run(configuration: Configuration, net: nn.Module, x: Tensor) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return configuration.call(net, x)
