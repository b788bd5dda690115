"""Networks by name."""

import numpy as np
import pytest
import torch

import attn3d
from attn3d.segmentation import NETWORKS, create_network
from attn3d.segmentation.networks import narrowest, shape_multiple


def test_the_error_for_an_unknown_network_lists_the_names():
    with pytest.raises(ValueError, match="BasicUNet"):
        create_network("BasicUnet3D", 1, 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_maps_a_patch_to_classes(name):
    network = create_network(name, in_channels=1, out_channels=4, width=8).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 4, 32, 32, 32)


@pytest.mark.parametrize("width", [4, 16, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_narrowest_map_has_the_documented_width(name, width):
    network = create_network(name, 1, 64, width=width)  # with 64 classes, the last map is not the narrowest
    convolutions = [one for one in network.modules() if type(one) is torch.nn.Conv3d]
    assert min(one.out_channels for one in convolutions) == narrowest(name, width)


@pytest.mark.parametrize(("network", "multiple"), [("BasicUNet", 16), ("SegResNet", 8)])
def test_the_multiple_of_networks_with_fixed_strides(network, multiple):
    """Their strides do not follow the settings; the smallest patch is one multiple."""
    assert shape_multiple(network, [(1, 1, 1)]) == (multiple,) * 3
    net = create_network(network, 1, 2, width=4).eval()
    assert net(torch.zeros(1, 1, multiple, 2 * multiple, multiple)).shape == (1, 2, multiple, 2 * multiple, multiple)


@pytest.mark.parametrize(("supervised", "outputs"), [(True, (1, 3, 2, 32, 32, 32)), (False, (1, 2, 32, 32, 32))])
def test_deep_supervision_is_a_setting(supervised, outputs):
    network = create_network("ResidualDynUNet", 1, 2, width=4, strides=((2, 2, 2),) * 3, deep_supervision=supervised)
    assert network(torch.zeros(1, 1, 32, 32, 32)).shape == outputs


def test_strides_and_kernels_may_be_arrays():
    network = create_network("DynUNet", 1, 2, width=4, strides=np.full((2, 3), 2), kernels=np.full((3, 3), 3))
    assert network.eval()(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)


def test_an_unknown_mechanism_is_called_attention():
    with pytest.raises(ValueError, match="`attention` must be a registered mechanism, got 'CBAM'; did you mean 'cbam'"):
        create_network("UNet", 1, 2, attention="CBAM", at=("skip",))


def test_a_single_kind_of_site_may_be_a_name():
    network = create_network("UNet", 1, 2, width=4, attention="simam", at="skip")
    assert [call["spec"][0] for call in attn3d.inserted_attention(network)] == ["simam"]
