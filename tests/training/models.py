"""Networks of a user, as tests of training need them."""

import torch


def tiny():
    """A user's own model."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 10))


class Recorder(torch.nn.Module):
    """Keeps the batches it was given, and answers with its bias."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(10))
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, images):
        self.batches.append(images.detach().clone())
        return self.bias.expand(len(images), 10) * self.weight
