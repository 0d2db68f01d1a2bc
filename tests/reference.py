"""The objective of attention matching, slowly and obviously: per class, per image, in float64, from the formulas.

Shares nothing with the engine but the numbers chance gave it. Sources: ATOM section 3, DataDAM, DM, DSA.
"""

import itertools
import math

import torch
from torch.nn import functional as F


def objective(network, real, synthetic, u, recipe, trained=None):
    """Return the loss.

    Args:
        network: State dict of a ConvNet.
        real: K lists of normalised (C, H, W) float64 images.
        synthetic: The same.
        u: (K, 12) uniform numbers behind the augmentation.
        recipe: Weights, power, scale, norm, augmentation.
        trained: State dict of the ConvNet that calibrates.
    """
    synthetic = [views(images, recipe.formation) for images in synthetic]
    means = []  # of each side, of each class: what is matched
    moments = None  # batch norm's, of every layer: first those of the real images
    for side in (real, synthetic):
        augmented = [[augment_all(image, u[k], recipe) for image in side[k]] for k in range(len(side))]
        shared = moments if recipe.statistics == "real" else None
        flat, moments = embed(network, [image for images in augmented for image in images], recipe, shared)
        by_class = []
        for images in augmented:
            own, flat = flat[: len(images)], flat[len(images) :]
            by_class.append(
                [torch.stack(values).mean(0) for values in zip(*own, strict=True)]
            )  # normalise, then average
        means.append(by_class)
    depth = sum(name.startswith("convolutions") for name in network) // 2
    weights = [recipe.spatial, recipe.channel] * (depth - 1) + [recipe.feature]
    total = torch.zeros((), dtype=torch.float64)
    for k in range(len(real)):
        for weight, a, b in zip(weights, means[0][k], means[1][k], strict=True):
            total = total + weight * ((a - b) ** 2).sum()
    if recipe.calibration:
        augmented = [[augment_all(image, u[k], recipe) for image in side] for k, side in enumerate(synthetic)]
        flat, _ = embed(trained, [image for images in augmented for image in images], recipe)
        for k, images in enumerate(augmented):
            own, flat = flat[: len(images)], flat[len(images) :]
            for *_, features in own:
                logits = trained["head.weight"] @ features + trained["head.bias"]
                total = total - recipe.calibration * torch.log_softmax(logits, 0)[k] / len(images)
    return recipe.loss_scale * total


def views(images, formation):
    """Take every image apart and enlarge the parts, bilinearly, clamped at their edges."""
    if formation == 1:
        return images
    side = images[0].shape[-1]
    small, found = side // formation, []
    weights = torch.zeros(side, small, dtype=torch.float64)
    for i in range(side):
        place = min(max((i + 0.5) / formation - 0.5, 0), small - 1)
        low = int(place)
        weights[i, low] += 1 - (place - low)
        weights[i, min(low + 1, small - 1)] += place - low
    for row in range(formation):
        for column in range(formation):
            for image in images:
                part = image[:, row * small : (row + 1) * small, column * small : (column + 1) * small]
                found.append(torch.einsum("ir,krc,jc->kij", weights, part, weights))
    return found


def embed(network, images, recipe, moments=None):
    """Return for each image its [spatial, channel] attention of every layer but the last, then its features.

    And the mean and variance of every channel of every layer over the batch, which norm images if none are given.
    """
    depth = sum(name.startswith("convolutions") for name in network) // 2
    out, seen = [[] for _ in images], []
    for layer in range(depth):
        weight, bias = network[f"convolutions.{layer}.weight"], network[f"convolutions.{layer}.bias"]
        images = [F.conv2d(x[None], weight, bias, padding=1)[0] for x in images]
        together = torch.stack(images).transpose(0, 1).flatten(1)
        mean = together.mean(1, keepdim=True)
        variance = ((together - mean) ** 2).mean(1, keepdim=True)
        seen.append((mean[..., None], variance[..., None]))
        images = normalise(images, recipe.norm, *(moments or seen)[layer])
        images = [x.clamp_min(0) for x in images]
        for x, found in zip(images, out, strict=True):
            if layer < depth - 1:
                power = x.abs() ** recipe.power
                for attention in (power.sum(0).flatten(), power.sum((1, 2))):
                    found.append(attention / torch.sqrt((attention**2).sum()))
        images = [F.avg_pool2d(x[None], 2)[0] for x in images]
    return [[*found, x.flatten()] for found, x in zip(out, images, strict=True)], seen


def normalise(images, norm, mean, variance):
    """Norm layers at their initial affine map: scale 1, shift 0; the statistics (C, 1, 1) are for batch norm."""
    if norm == "none":
        return images
    if norm == "batch":
        return [(x - mean) / torch.sqrt(variance + 1e-5) for x in images]
    return [torch.stack([(c - c.mean()) / torch.sqrt(((c - c.mean()) ** 2).mean() + 1e-5) for c in x]) for x in images]


def augment_all(image, u, recipe):
    """Return an image after the recipe's augmentation: one of the operations, or all of them in their order."""
    if recipe.augmentation_draw == "one":
        return augment(image, u, recipe.augmentation)
    for name in recipe.augmentation:
        image = augment(image, u, [name])
    return image


def augment(image, u, operations):
    """Return one augmented (C, H, W) image; DSA, with the operation and its parameters read off ``u``."""
    if not operations:
        return image
    name = operations[int(u[0] * len(operations))]
    side = image.shape[-1]
    if name == "color":
        image = image + (u[1] - 0.5)
        grey = image.mean(0)
        image = grey + (image - grey) * (2 * u[2])
        return image.mean() + (image - image.mean()) * (u[3] + 0.5)
    if name == "crop":
        reach = int(side / 8 + 0.5)
        dx, dy = (int(v * (2 * reach + 1)) - reach for v in (u[4], u[5]))
        padded = F.pad(image, (reach, reach, reach, reach))
        return padded[:, reach - dy : reach - dy + side, reach - dx : reach - dx + side]
    if name == "cutout":
        hole = side // 2
        x0, y0 = (int(v * (side + 1 - hole % 2)) - hole // 2 for v in (u[6], u[7]))
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        inside = (rows >= y0) & (rows < y0 + hole) & (columns >= x0) & (columns < x0 + hole)
        return torch.where(inside, 0.0, image)
    if name == "flip":
        return image.flip(-1) if u[8] < 0.5 else image
    if name == "scale":
        sx, sy = (1 / 1.2 + float(v) * (1.2 - 1 / 1.2) for v in (u[9], u[10]))
        return sample(image, lambda x, y: (sx * x, sy * y))
    if name == "shuffle":
        half = side // 2
        quarters = [image[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
        order = list(itertools.permutations(range(4)))[int(u[11] * 24)]
        rows = [torch.cat([quarters[i] for i in order[j : j + 2]], 2) for j in (0, 2)]
        return torch.cat(rows, 1)
    if name == "resize":
        area, ratio = 0.5 + 0.5 * float(u[9]), math.exp((2 * float(u[10]) - 1) * math.log(4 / 3))
        w, h = (min(1.0, math.sqrt(a)) for a in (area * ratio, area / ratio))
        left, top = ((side - share * side) * float(v) for share, v in ((w, u[4]), (h, u[5])))
        # the middle of a pixel of the result lies there, and beyond the edge the image goes on as it ends
        return sample(image, lambda x, y: (  # from the centre
            min(max(left + (x + side / 2) * w - side / 2, (1 - side) / 2), (side - 1) / 2),
            min(max(top + (y + side / 2) * h - side / 2, (1 - side) / 2), (side - 1) / 2),
        ))  # fmt: skip
    angle = math.radians((2 * float(u[11]) - 1) * 15)
    c, s = math.cos(angle), math.sin(angle)
    return sample(image, lambda x, y: (c * x - s * y, s * x + c * y))


def sample(image, source):
    """Resample bilinearly about the centre; ``source`` maps output to input places; zeros outside."""
    side = image.shape[-1]
    weights = torch.zeros(side, side, side, side, dtype=torch.float64)
    for i in range(side):
        for j in range(side):
            x, y = source(j - (side - 1) / 2, i - (side - 1) / 2)
            x, y = x + (side - 1) / 2, y + (side - 1) / 2
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < side and 0 <= column < side:
                        weights[i, j, row, column] = (1 - abs(y - row)) * (1 - abs(x - column))
    return torch.einsum("ijrc,krc->kij", weights, image)
