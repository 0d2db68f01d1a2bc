"""The ConvNet: sizes of the literature, feature taps, weights drawn afresh in place."""

import math

import pytest
import torch

from atomhub.core.convnet import ConvNet


def test_convnet3_has_the_size_of_the_literature():
    parameters = sum(p.numel() for p in ConvNet(3, 10, 32).parameters())
    assert parameters == 320_010  # 3 convolutions with biases, affine norms, and a head from 128 * 4 * 4


@pytest.mark.parametrize(("size", "depth"), [(16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_depth_follows_the_resolution(size, depth):
    network = ConvNet(1, 10, size, width=4)
    assert network.depth == depth
    assert network(torch.randn(2, 1, size, size)).shape == (2, 10)
    assert network.head.in_features == 4 * 4 * 4


def test_taps_come_before_pooling_and_pooled_maps_after():
    network = ConvNet(3, 10, 32, width=8)
    shapes = [(tuple(a.shape), tuple(p.shape)) for a, p in network.blocks(torch.randn(2, 3, 32, 32))]
    assert shapes == [((2, 8, s, s), (2, 8, s // 2, s // 2)) for s in (32, 16, 8)]


def test_reinitialising_draws_what_pytorch_draws_by_default():
    network = ConvNet(3, 10, 32, width=64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7)
    places = [p.data_ptr() for p in network.parameters()]
    network.reinitialise(torch.Generator().manual_seed(0))
    assert places == [p.data_ptr() for p in network.parameters()]
    torch.manual_seed(0)
    fresh = ConvNet(3, 10, 32, width=64)
    for module, usual in zip(network.modules(), fresh.modules(), strict=True):
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())  # uniform within it
            for m in (module, usual):
                assert m.weight.abs().max() <= bound
                assert m.bias.abs().max() <= bound
                assert m.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        elif isinstance(module, torch.nn.GroupNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize(("norm", "module"), [("layer", torch.nn.LayerNorm), ("group", torch.nn.GroupNorm)])
def test_other_norms_activations_and_poolings_of_the_search_space(norm, module):
    network = ConvNet(3, 10, 16, width=8, depth=2, norm=norm, activation="sigmoid", pooling="none")
    assert isinstance(network.norms[0], module)
    shapes = [(tuple(a.shape), tuple(p.shape)) for a, p in network.blocks(torch.randn(2, 3, 16, 16))]
    assert shapes == [((2, 8, 16, 16), (2, 8, 16, 16))] * 2
    activation, _ = next(network.blocks(torch.randn(2, 3, 16, 16)))
    assert 0 < activation.min() < activation.max() < 1
