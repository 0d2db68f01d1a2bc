"""Train a network on a source and write its weights, for recipes and probes that want a trained one.

    python benchmarks/backbone.py SOURCE FILE.safetensors [--size 64] [--network torchvision/resnet18] [--classes K]
        [--each N] [--epochs 12] [--rate 0.1]

SGD with momentum 0.9, weight decay 5e-4 and one cycle of the rate, on flipped and shifted images, N of each class. What
it is like on the test images is printed last, after the last epoch. The weights are kept with batch norm's statistics.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.transforms import v2

import atomhub
from atomhub.devices import find_device
from atomhub.training.nets import InputSpec
from atomhub.training.networks import find_network


def arrays(split, offsets, classes, each, normalise):
    """Return images, normalised, and labels of the first classes, some of each."""
    rows = torch.cat([torch.arange(offsets[k], offsets[k + 1])[:each] for k in range(classes)])
    images = torch.from_numpy(split.images[rows.numpy()]).float() / 255
    return normalise(images), torch.from_numpy(split.labels[rows.numpy()])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--network", default="torchvision/resnet18")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--each", type=int)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rate", type=float, default=0.1)
    o = parser.parse_args()
    real = atomhub.open_source(o.source, size=o.size)
    classes, device = o.classes or len(real.class_names), find_device("auto")
    normalise = v2.Normalize(real.mean, real.std)
    images, labels = arrays(real.train, real.train.offsets(len(real.class_names)), classes, o.each, normalise)
    size = images.shape[-1]
    torch.manual_seed(0)
    model = find_network(o.network, InputSpec(images.shape[1], classes, size)).build().to(device)
    optimizer = torch.optim.SGD(model.parameters(), o.rate, 0.9, weight_decay=5e-4, nesterov=True)
    batches = range(0, max(1, len(labels) - 127), 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, o.rate, total_steps=o.epochs * len(batches))
    moved = v2.Compose([*[v2.RandomHorizontalFlip()] * real.info.flip, v2.RandomCrop(size, size // 8)])
    for epoch in range(o.epochs):
        order, lost = torch.randperm(len(labels)), 0.0
        for start in batches:
            rows = order[start : start + 128]
            batch = torch.stack([moved(image) for image in images[rows]]).to(device)
            loss = F.cross_entropy(model(batch), labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            lost += loss.item() / len(batches)
        print(f"epoch {epoch + 1} of {o.epochs}: loss {lost:.3f}", flush=True)
    if real.test is not None:
        images, labels = arrays(real.test, real.test.offsets(len(real.class_names)), classes, None, normalise)
        model.eval()
        with torch.no_grad():
            found = torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in images.split(256)])
        share = 100 * float((found == labels).float().mean())
        print(f"{o.network} on {o.source}, {classes} classes: {share:.1f} % after the last epoch")
    save_file({name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}, o.file)


if __name__ == "__main__":
    main()
