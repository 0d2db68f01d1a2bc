"""A GPU that is pretended: its tensors have shapes and a place, and no values."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from atomhub.core import whitening

GPU = torch.device("cuda", 0)


class Copies(TorchDispatchMode):
    """Counts what goes from one device to another."""

    found = ()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function.overloadpacket._qualified_op_name
        if name in ("aten::_to_copy", "aten::copy_"):
            source = arguments[name == "aten::copy_"]
            self.found += ((source.device, result.device),) * (source.device != result.device)
        return result


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Tensors on a GPU without values: shapes and devices are checked, and whatever needs a value raises."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (70 << 30, 80 << 30))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    # torch's own needs a driver
    monkeypatch.setattr(
        torch.autograd, "grad",
        lambda outputs, inputs, given=None, **_: [
            torch.empty_like(x) for x in ([inputs] if isinstance(inputs, torch.Tensor) else inputs)
        ],
    )  # fmt: skip
    with FakeTensorMode(allow_non_fake_inputs=True):
        try:
            torch.empty(2, device=GPU).uniform_()
        except RuntimeError:
            pytest.skip("torch 2.8 asks for a driver even where nothing is computed")
        yield
    whitening._like.cache_clear()  # it holds tensors without values now
