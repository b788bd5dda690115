"""Every network with every kind of site and every mechanism: ``python -m tests.networks.combinations`` counts them."""

from typing import NamedTuple

import attn3d
from attn3d.factory import declares
from attn3d.networks import KINDS
from tests.networks.zoo import CONFIGURATIONS, Configuration

ONE_RESOLUTION = "it keeps one resolution"
CLASSIFIER = "it only encodes"
PATHS = "its searched cells are called without their hooks; only its stems can have attention"
ALL = set(KINDS)

# Why a network lacks a kind of site, by the first word of its name.
LACKS: dict[str, dict[str, str]] = {
    "HighResNet": dict.fromkeys(("bottleneck", "decoder", "skip"), ONE_RESOLUTION),
    "AutoEncoder": {"skip": "it has no skip connections"},
    "DiNTS": dict.fromkeys(ALL - {"encoder", "decoder"}, PATHS),
    "DenseNet": dict.fromkeys(("decoder", "skip"), CLASSIFIER)
    | {"residual": "its layers concatenate", "conv": "all its convolutions change the number of channels"},
    "EfficientNet": dict.fromkeys(("decoder", "skip"), CLASSIFIER)
    | {"conv": "its convolutions pad their input themselves, so that branches beside them would have another size"},
    **{name: dict.fromkeys(("decoder", "skip"), CLASSIFIER) for name in ("ResNet", "SENet", "Regressor")},
}
NO_SHORTCUT = "its blocks have no shortcut"
SKIPS_ALONE = "its gating signal is the decoder's map at a skip, which other sites do not have"
KERNELS_ALONE = "only sk adds branches beside a convolution"
# Networks that can be scripted, but not with attention at this kind of site.
UNSCRIPTED = dict.fromkeys(
    [
        (name, "skip")
        for name in (
            *("SegResNet", "SegResNetVAE", "SegResNetDS", "SegResNetDS2", "VISTA3D"),
            *("MedNeXt", "RegUNet", "LocalNet", "AHNet"),
        )
    ],
    "the network adds its skips inline, where TorchScript allows no attention",
)


class Combination(NamedTuple):
    """A network in 2-D or 3-D, a kind of site and a mechanism; with a reason if this is impossible."""

    configuration: Configuration
    kind: str
    mechanism: str
    reason: str = ""


def combinations() -> tuple[list[Combination], list[Combination]]:
    """The possible and the impossible combinations."""
    possible, impossible = [], []
    for configuration in CONFIGURATIONS:
        for kind in KINDS:
            for mechanism in attn3d.list_attention():
                reason = why_not(configuration, kind, mechanism)
                (impossible if reason else possible).append(Combination(configuration, kind, mechanism, reason))
    return possible, impossible


def why_not(configuration: Configuration, kind: str, mechanism: str) -> str:
    if kind not in configuration.kinds.split():
        lacks = LACKS.get(configuration.name.split()[0], {})
        return lacks.get(kind) or {"residual": NO_SHORTCUT}[kind]
    if kind != "skip" and declares(mechanism, "takes_signal"):
        return SKIPS_ALONE
    return KERNELS_ALONE if kind == "conv" and mechanism != "sk" else ""


def main() -> None:
    """Prints the counts, and the impossible combinations with their reasons."""
    possible, impossible = combinations()
    networks = {configuration.name for configuration in CONFIGURATIONS}
    mechanisms = len(attn3d.list_attention())
    print(f"{len(possible)} combinations of {len(networks)} networks, {mechanisms} mechanisms, 2-D and 3-D")
    reasons: dict[tuple[str, str], list[str]] = {}
    for combination in impossible:
        reasons.setdefault((combination.kind, combination.reason), []).append(combination.configuration.name)
    print(f"{len(impossible)} cannot be:")
    for (kind, reason), where in reasons.items():
        names = "every network" if reason in (KERNELS_ALONE, SKIPS_ALONE) else ", ".join(dict.fromkeys(where))
        print(f"  {len(where)} with {kind}, as {reason}: {names}")
    print("Not scripted, where the plain network is:")
    for (name, kind), reason in UNSCRIPTED.items():
        print(f"  {kind} of {name}: {reason}")


if __name__ == "__main__":
    main()
