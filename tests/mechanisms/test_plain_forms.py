"""The plain forms equal the library: outputs, gradients of inputs and parameters, statistics of norms."""

import pytest
import torch

from tests.configurations import create
from tests.mechanisms.case import copy_parameters
from tests.mechanisms.cases import CASES


@pytest.mark.parametrize("train", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("shape", [(2, 16, 3, 4, 5), (1, 12, 5, 2, 7)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_plain_form_equals_the_mechanism(name, shape, train):
    torch.manual_seed(0)
    plain = CASES[name].plain(shape[1]).double().train(train)
    ours = create(name, spatial_dims=3, channels=shape[1]).double().train(train)
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # also those that start at 0 or 1
    copy_parameters(plain, ours)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    results = []
    for net in (plain, ours):
        y = net(x)
        gradients = torch.autograd.grad(y, [x, *net.parameters()], upstream)
        moments = [value for key, value in net.state_dict().items() if "running" in key]
        results.append([y, *gradients, *moments])
    assert len(results[0]) == len(results[1])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-8, atol=1e-10)
