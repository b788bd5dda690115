"""Every network with every kind of site and every mechanism: ``python -m tests.networks.combinations`` counts them."""

from typing import NamedTuple

import attn3d
from attn3d.factory import takes_signal
from attn3d.networks import KINDS
from tests.networks.zoo import CONFIGURATIONS, Configuration

ONE_RESOLUTION = "it keeps one resolution"
CLASSIFIER = "it only encodes"
PATHS = "between its stems is a space of searched cells, called past all hooks; attention goes into the stems"
ALL = set(KINDS)

# Why a network lacks a kind; by the first words of its name.
LACKS: dict[str, dict[str, str]] = {
    "HighResNet": dict.fromkeys(("bottleneck", "decoder", "skip"), ONE_RESOLUTION),
    "AutoEncoder": {"skip": "all it decodes has gone through the bottleneck"},
    "DiNTS": dict.fromkeys(ALL - {"encoder", "decoder"}, PATHS),
    "DenseNet": dict.fromkeys(("decoder", "skip"), CLASSIFIER)
    | {"residual": "its layers concatenate", "conv": "all its convolutions change the number of channels"},
    "EfficientNet": dict.fromkeys(("decoder", "skip"), CLASSIFIER)
    | {"conv": "its convolutions pad their input themselves, so that branches beside them would not meet"},
    **{name: dict.fromkeys(("decoder", "skip"), CLASSIFIER) for name in ("ResNet", "SENet", "Regressor")},
}
NO_SHORTCUT = "its blocks have no shortcut"
SKIPS_ALONE = "it takes what meets a skip as a gating signal: at skips alone"
KERNELS_ALONE = "beside a convolution go the branches of a selective kernel: sk alone"
# Where the plain network can be scripted and the one with attention at this kind cannot.
UNSCRIPTED = dict.fromkeys(
    [
        (name, "skip")
        for name in (
            *("SegResNet", "SegResNetVAE", "SegResNetDS", "SegResNetDS2", "VISTA3D"),
            *("MedNeXt", "RegUNet", "LocalNet", "AHNet"),
        )
    ],
    "the network adds its skips inline, which TorchScript does not let anything see",
)


class Combination(NamedTuple):
    """A network in 2-D or 3-D, a kind of its sites, a mechanism; and why not, where it cannot be."""

    configuration: Configuration
    kind: str
    mechanism: str
    reason: str = ""


def combinations() -> tuple[list[Combination], list[Combination]]:
    """What can be, and what cannot."""
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
    if kind != "skip" and takes_signal(mechanism):
        return SKIPS_ALONE
    return KERNELS_ALONE if kind == "conv" and mechanism != "sk" else ""


def main() -> None:
    """Prints the counts, and what cannot be with its reason."""
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
