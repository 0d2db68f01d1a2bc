"""Matchers that are compiled: they agree with those that are not, and what cannot be compiled works as it is."""

from functools import partial

import pytest
import torch
from engines import engine_of
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from atomhub.errors import AtomhubWarning


class Small(nn.Module):
    """Two stages that compile soon."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        return self.head(F.relu(self.second(x)).mean((2, 3)))


GRADIENTS = {"gradient": 2.0, "spatial": 0, "channel": 0, "feature": 0}


@pytest.mark.parametrize(
    ("matched", "precision", "backend", "near"),
    [
        ({}, "float32", "inductor", 1e-3), ({}, "bfloat16", "aot_eager", 0.2),
        (GRADIENTS, "float32", "aot_eager", 1e-3), (GRADIENTS, "bfloat16", "aot_eager", 0.2),
    ],
    ids=str,
)  # fmt: skip
def test_compiled_work_agrees_with_eager_work(matched, precision, backend, near, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    slow, fast = (
        engine_of(Small, **matched),
        engine_of(Small, dtype=torch.float32, precision=precision, options={"compiled": True}, **matched),
    )
    for iteration in (0, 1):  # compiled with the weights of one, run with those of another
        assert fast.gradient(iteration).item() == pytest.approx(slow.gradient(iteration).item(), rel=near)
        assert (fast.gradients - slow.gradients).norm() < near * slow.gradients.norm()
    assert fast.compiler.works


class Deciding(Small):
    def forward(self, x):
        return super().forward(-x if x.mean() > 0 else x)


class Detaching(Small):
    def forward(self, x):
        return super().forward(x * x.detach())


def _broken(graph, inputs):
    raise RuntimeError("no compiler for this")


@pytest.mark.parametrize(
    ("build", "backend", "reason"),
    [
        (Deciding, "aot_eager", ""),
        (Detaching, "aot_eager", "the network treats gradients in a way of its own"),
        (Small, aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=_broken), "raised"),
    ],
    ids=["decides", "detaches", "has no backward"],
)
def test_a_network_that_cannot_be_compiled_works_as_it_is(build, backend, reason, monkeypatch):
    if reason == "raised" and not hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
        pytest.skip("this PyTorch compiles what is behind a gradient only when that is asked for")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    slow, fast = (engine_of(build, dtype=torch.float32, options={"compiled": c}) for c in (False, True))
    with pytest.warns(AtomhubWarning, match=f"torch.compile failed, so the work goes on uncompiled.*{reason}"):
        loss = fast.gradient(0)
    assert loss.item() == pytest.approx(slow.gradient(0).item(), rel=1e-5)
    assert (fast.gradients - slow.gradients).norm() < 1e-5 * slow.gradients.norm()
    assert not fast.compiler.works


@pytest.mark.parametrize(("iterations", "long"), [(10**3, False), (10**9, True)])
def test_networks_are_compiled_where_the_run_is_long_enough(iterations, long):
    assert engine_of(Small, dtype=torch.float32, iterations=iterations).compiler.works == long
