"""Distillation under any network: the same iteration as :mod:`atomhub.core.engine`, with autograd for the gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from atomhub.core import augment, mixer
from atomhub.core.bank import Bank
from atomhub.core.blocks import Kind, Moments
from atomhub.core.graphs import Targets
from atomhub.core.iterations import Iterations
from atomhub.core.known import Known
from atomhub.core.matcher import Build, Matcher, Weights, flops
from atomhub.core.passes import Compiler
from atomhub.core.plan import Piece, Plan, cut, length, too_small, worth_compiling
from atomhub.core.sampling import Draw

_PIXELS, _FEWEST, _MOST = 2**22, 64, 256
"""Pixels, and least and most, of the real images that batch norm's statistics are taken of."""
_TOGETHER = 128
"""Most images of a piece on a CPU: its caches hold no more."""
_COPIES = 5
"""Of a network's weights at once: as drawn, those of the next draw and of the trained network, and by name."""
_LARGE = 2**30
"""Bytes of the largest tensor of a piece on a GPU, which is busy with less."""


class AnyEngine(Iterations):
    """Distillation of one set under networks of any kind.

    Batch norm takes its statistics, for both sides, from some of the real images of the iteration, spread over the
    classes: about 256 of them, of more than 128x128 pixels fewer; unless they are to be those that came with weights.

    Args:
        given: As for :class:`Iterations`. Of the recipe, width, depth and norm are those of ConvNets.
        build: Makes a network with fresh weights.
        named: As for :class:`Iterations`.

    Raises:
        UsageError: there is nothing in the network to match.
        AtomhubError: the memory is too small.
    """

    def __init__(self, *given: Any, build: Build, **named: Any) -> None:
        self.build = build
        super().__init__(*given, **named)

    def _networks(
        self, shape: tuple[int, int, int], compute: torch.dtype, compiled: bool | None, bank: Bank | None
    ) -> Matcher:
        kind = Kind("none", self.recipe.power, bool(self.recipe.spatial), bool(self.recipe.channel))
        half = compute == torch.bfloat16
        recipe = self.recipe
        running, head = recipe.statistics == "running", bool(recipe.linear)
        # given weights differ in the last layer alone, which is behind the features, but not behind gradients
        fixed = bool(recipe.weights) and bank is None and not recipe.gradient
        self.matcher = Matcher(
            self.build, kind, shape, self.device, self.dtype, half, bank, running, head, fixed, recipe.bank_reach
        )
        if recipe.gradient:
            self.matcher.check_slope(shape, bool(recipe.bank))
        if compiled is None:
            compiled = worth_compiling(recipe, self.classes, self.ipc, flops(self.build, shape), self.device)
        # elsewhere: what is compiled on a GPU would have to be seen there; where processes share what classes there are
        # at an iteration, every number of them is a shape to compile
        possible = self.device.type == "cpu" and not (self.team.size > 1 and recipe.classes_per_iteration)
        self.compiler = Compiler(compiled and possible and self.dtype == torch.float32)
        self.matcher.compile(self.compiler)
        self.most = min(max(_PIXELS // (shape[1] * shape[2]), _FEWEST), _MOST)
        self.known = Known(self.real, self.matcher.look.features, self.dtype, self.device)
        return self.matcher

    def _planned(self, count: int, itemsize: int, limit: int) -> Plan:
        if count == 0:  # other processes have the classes of an iteration
            return Plan([], [], frozenset(), 0, False, [[]])
        matcher, each = self.matcher, self.recipe.real_batch
        look = matcher.look
        scale = max(itemsize, 4) / 4  # layers that need float32 make it of half precision
        forward, both = (int(scale * n) for n in (6 * look.largest, 2 * look.total))
        real = forward
        numbers = sum(shape.numel() for _, shape in matcher.parameters)
        held = 4 * numbers * _COPIES + 4 * look.vectors * (2 * count + 2 * count * self.views)
        if self.recipe.linear:
            held += 4 * look.features * (count * each + _COPIES * look.classes)
        if self.recipe.layer:
            everyones = self.classes if self.team.size > 1 else count
            held += 4 * _COPIES * everyones * ((each + self.views) * look.features + each * look.classes)
            every = self.together * self.views
            smaller = min(every, look.features)
            held += 4 * (3 * every * smaller + mixer.STATES * smaller * self.classes)
            fixed = matcher.fixed is not None and not matcher.norms
            if not self._plans and fixed:  # decided for most classes, which come first
                self.known.keep(limit // 2 - held, self.together * each, self.team.rank == 0)
            held += self.known.held
        if self.recipe.gradient:
            held += 4 * look.numbers * (count + _COPIES)
            real, both = both, 2 * both  # the backward pass has one of its own
        least = held + max(both, self._statistics()[2] * forward)
        if least > limit:
            what = "one synthetic image" + ", or those that give batch norm its statistics," * bool(matcher.norms)
            if not self.recipe.gradient:
                raise too_small(what, least, limit, self.memory, "Or a smaller real_batch." * bool(self.recipe.layer))
            what += f" and the gradients of {count} classes"
            raise too_small(what, least, limit, self.memory, "Or fewer classes_per_iteration." * (count > 1))
        free = limit - held
        most = _TOGETHER if self.device.type == "cpu" else max(1, _LARGE // look.largest)
        one = bool(self.recipe.gradient)  # class in a piece
        parts = cut(count, each, max(1, min(most, free // real, each if one else most)))
        pieces = cut(count, self.views, max(1, min(most, free // both, self.views if one else most)))
        if not self._plans:
            self.known.limit(max(map(length, parts)))
        return Plan(parts, parts, frozenset(), 0, False, [pieces])

    def _statistics(self) -> tuple[int, int, int]:
        """Return of which classes batch norm's statistics are taken (every so many), of how many images each; and all.

        They are none where the network has no batch norm, or its statistics come with it.
        """
        if not self.matcher.norms:
            return 1, 0, 0
        step = -(-self.together // self.most)
        each = max(1, min(self.most // self.together, self.recipe.real_batch))
        return step, each, -(-self.together // step) * each

    def _sample(self, draw: Draw) -> Tensor:
        """Return the real images that batch norm's statistics are taken of, the same in all processes; collective."""
        step, each, _ = self._statistics()
        owned = self.owned if draw.classes is None else self.owned[draw.classes.cpu().numpy()]
        rows = torch.from_numpy(np.flatnonzero(owned % step == 0))
        pixels = self.real[draw.indices[rows.to(draw.indices.device), :each]]
        images = pixels  # of none, where others own the classes of an iteration
        if len(rows):
            images = augment.augment(pixels, draw.augmentation[rows.to(self.device)], self.recipe.stages)
        numbers = torch.from_numpy(owned)[rows].to(self.device)
        return self.team.of_all(images, numbers, self.classes)[0].flatten(0, 1)

    @torch.no_grad()
    def real_side(self, draw: Draw) -> Targets:
        """Return what is to be matched of the real images of a draw, and what its networks' batch norms found.

        Behind the class means come, for a layer, the features (m, D) of all processes' images as they are, and
        their class numbers (m,); for linear gradients a random linear layer and its gradient, (K, D) each; and the
        gradients of the weights for every class, (k, n).
        """
        weights = self.matcher.weights(draw.weights)
        moments, calibrating = [], []
        if self.matcher.norms:
            sample = self._sample(draw)
            moments = self.matcher.moments(weights, sample)
            if draw.trained is not None:
                calibrating = self.matcher.moments(self.matcher.weights(draw.trained), sample)
        means, recipe, look = list[Tensor](), self.recipe, self.matcher.look
        zeros = partial(torch.zeros, dtype=self.dtype, device=self.device)
        features = zeros(*draw.indices.shape, look.features) if recipe.linear else None
        slopes = zeros(len(draw.indices), look.numbers if recipe.gradient else 0)
        for k, m in self.plan(len(draw.indices)).real if self._siamese or recipe.gradient else []:
            pixels = self.real[draw.indices[k, m]]
            views = augment.augment(pixels, draw.augmentation[k], self.recipe.stages).flatten(0, 1)
            if self.recipe.gradient:
                own = self.matcher.slope(weights, moments, views, self._labels(draw, (k, m)))
                slopes[k] += own / draw.indices.shape[1]
            if not self._siamese:
                continue
            found, _ = self.matcher.see(weights, moments, views)
            if features is not None:
                features[k, m] = found[-1].view(k.stop - k.start, m.stop - m.start, -1)
            share = (m.stop - m.start) / draw.indices.shape[1]
            for j, own in enumerate(self._means(found, k.stop - k.start)):
                if len(means) <= j:
                    means.append(own.new_zeros(len(draw.indices), own.shape[1]))
                means[j][k] += own * share
        if recipe.layer:
            own = self.known.take(
                draw.indices, self.plan(len(draw.indices)).real, lambda x: self.matcher.see(weights, moments, x)[0][-1]
            )
            everyones, numbers = self.team.of_all(own, self._numbers(draw), self.classes)
            means += [everyones.flatten(0, 1), numbers.repeat_interleave(recipe.real_batch)]
        if features is not None:
            means += self._linear(draw, features)
        means += [slopes] * bool(self.recipe.gradient)
        self._give_back(1 / 2)
        return means, [*moments, *calibrating]

    @torch.no_grad()
    def _gradient(self, draw: Draw, targets: Targets) -> Tensor:
        recipe, matcher = self.recipe, self.matcher
        self.gradients.zero_()
        pieces = self.plan(len(draw.indices)).groups[0]
        (*means,), moments = targets
        given, calibrating = moments[: matcher.norms], moments[matcher.norms :]
        weights, total = matcher.weights(draw.weights), torch.zeros((), dtype=self.dtype, device=self.device)
        if recipe.gradient:
            total += self._slopes(draw, weights, given, means.pop(), pieces)
        if self._vectors and pieces:
            total += self._matched(draw, weights, given, means, pieces)
        elif recipe.linear or recipe.layer:  # the others add up theirs
            if recipe.linear:
                there = self.team.add(torch.zeros_like(means[-1]))
                total += self._apart(there, means[-1]) / self.team.size
            if recipe.layer:
                total += self._layer(draw, [], [], means)[0]
        if draw.trained is not None:
            trained = matcher.weights(draw.trained)
            for k, m in pieces:
                with torch.enable_grad():
                    seen = self._seen(draw, k).requires_grad_()
                    _, logits = matcher.see(trained, calibrating, self._views(seen, m, draw.augmentation[k]))
                    lost = F.cross_entropy(logits, self._labels(draw, (k, m)), reduction="sum") / self.views
                    lost = recipe.loss_scale * recipe.calibration * lost
                self.gradients[draw.rows(k)] += torch.autograd.grad(lost, seen)[0]
                total += lost.detach()
        self._give_back(1 / 2)
        return total

    def _matched(
        self, draw: Draw, weights: Weights, given: list[Moments], means: list[Tensor], pieces: list[Piece]
    ) -> Tensor:  # fmt: skip
        """Add the gradient of what is matched of attention, features and linear layers; return the loss of them."""
        recipe, matcher = self.recipe, self.matcher
        alone = len(pieces) == 1

        def forward(part: Piece) -> tuple[Tensor, list[Tensor]]:
            seen = self._seen(draw, part[0]).requires_grad_()
            return seen, matcher.see(weights, given, self._views(seen, part[1], draw.augmentation[part[0]]))[0]

        with torch.set_grad_enabled(alone):
            first = [forward(part) for part in pieces]
        with torch.enable_grad():
            leaves = [torch.cat(parts).detach().requires_grad_() for parts in zip(*(v for _, v in first), strict=True)]
            seen_means = self._means(leaves, len(draw.indices))
            value = torch.zeros((), dtype=self.dtype, device=self.device)
            if self._siamese:
                value = mixer.loss(means[: len(seen_means)], seen_means, recipe, len(matcher.look.taps) + 1)
        total = value.detach().clone()
        if recipe.linear:
            head, wanted = means[-2:]
            labels = torch.cat([self._labels(draw, part) for part in pieces])
            with torch.enable_grad():
                here = mixer.head_gradient(head, leaves[-1], labels) / (self.together * self.views)
                there = self.team.add(here.detach()).requires_grad_()
                term = self._apart(there, wanted)
                (slope,) = torch.autograd.grad(term, there)
                value = value + (slope * here).sum()  # whose gradient is that of the term
            total += term.detach() / self.team.size  # as all processes' losses are added up
        if recipe.layer:
            lost, by_features = self._layer(draw, leaves[-1].split([length(part) for part in pieces]), pieces, means)
            with torch.enable_grad():
                value = value + (by_features * leaves[-1]).sum()  # whose gradient is that of the term
            total += lost
        gradients = [g.split([length(part) for part in pieces]) for g in torch.autograd.grad(value, leaves)]
        for i, part in enumerate(pieces):
            with torch.enable_grad():
                seen, vectors = first[i] if alone else forward(part)
            (own,) = torch.autograd.grad(vectors, seen, [g[i] for g in gradients])
            self.gradients[draw.rows(part[0])] += own
        return total

    def _slopes(
        self, draw: Draw, weights: Weights, given: list[Moments], wanted: Tensor, pieces: list[Piece]
    ) -> Tensor:  # fmt: skip
        """Add the gradient of the gradient matching term, of one class after the other; return its loss.

        Args:
            draw: Of the iteration.
            weights: Of its network.
            given: What its batch norms take.
            wanted: (k, n) gradients by its weights of the mean cross-entropy of every class's real images.
            pieces: Of the synthetic images, each of one class.
        """
        factor = self.recipe.loss_scale * self.recipe.gradient
        total, matcher = torch.zeros((), dtype=self.dtype, device=self.device), self.matcher
        for k, target in enumerate(wanted):
            own, apart = [part for part in pieces if part[0].start == k], -self.views * target
            alone = len(own) == 1
            for part in own[: 0 if alone else None]:
                views = self._views(self._seen(draw, part[0]), part[1], draw.augmentation[part[0]])
                apart += matcher.slope(weights, given, views, self._labels(draw, part))
            for part in own:
                with torch.enable_grad():
                    seen = self._seen(draw, part[0]).requires_grad_()
                    views = self._views(seen, part[1], draw.augmentation[part[0]])
                labels = self._labels(draw, part)
                apart, pulled = matcher.pull(
                    weights, given, views.detach(), labels, apart, apart.new_full((), float(alone))
                )
                pulled = 2 * factor / self.views**2 * pulled
                self.gradients[draw.rows(part[0])] += torch.autograd.grad(views, seen, pulled)[0]
            total += factor * (apart / self.views).square().sum()
        return total

    @property
    def _vectors(self) -> bool:
        """Whether attention, features or linear layers are matched."""
        return self._siamese or bool(self.recipe.layer)

    @property
    def _siamese(self) -> bool:
        """Whether real images are augmented for it as the synthetic ones are."""
        recipe = self.recipe
        return bool(recipe.spatial or recipe.channel or recipe.feature or recipe.linear)

    def _linear(self, draw: Draw, features: Tensor) -> list[Tensor]:
        """Return a random linear layer for features (k, n, D) of real images, and the gradient of its loss; collective.

        Its logits are about 1 wide: its numbers are divided by the root mean square length of the features.
        """
        head = self.matcher.head(draw.weights)
        count = self.together * self.recipe.real_batch
        head = head / (self.team.add(features.square().sum()) / count).sqrt().clamp(min=1e-12)
        numbers = self._numbers(draw).repeat_interleave(self.recipe.real_batch)
        return [head, self.team.add(mixer.head_gradient(head, features.flatten(0, 1), numbers)) / count]

    def _apart(self, there: Tensor, wanted: Tensor) -> Tensor:
        """Return the linear gradient term for the gradients of all processes' synthetic images and real ones."""
        return self.recipe.loss_scale * self.recipe.linear * mixer.apart(there, wanted)

    def _layer(
        self, draw: Draw, features: Sequence[Tensor], pieces: list[Piece], means: list[Tensor]
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return this process's part of the layer's term, and the term's gradient by its images' features; collective.

        Args:
            draw: Of the iteration.
            features: (n, D) of the images of every piece.
            pieces: Of the synthetic images.
            means: As :meth:`real_side` returns them.
        """
        recipe, own = self.recipe, self._numbers(draw)
        real, labels = means[-4:-2] if recipe.linear else means[-2:]
        found = real.new_zeros(len(own), self.views, real.shape[1])
        for (k, m), part in zip(pieces, features, strict=True):
            found[k, m] = part.detach().view(k.stop - k.start, m.stop - m.start, -1)
        everyones, numbers = self.team.of_all(found, own, self.classes)
        with torch.enable_grad():
            everyones.requires_grad_()
            whose = numbers.repeat_interleave(self.views)
            lost = mixer.layer_loss(everyones.flatten(0, 1), whose, real, labels, self.all_counts)
            (slope,) = torch.autograd.grad(recipe.loss_scale * recipe.layer * lost, everyones)
        here = slope[(numbers == own[:, None]).nonzero()[:, 1]]
        parts = [here[k, m].flatten(0, 1) for k, m in pieces]
        return recipe.loss_scale * recipe.layer * lost.detach() / self.team.size, torch.cat(parts) if parts else here

    @property
    def together(self) -> int:
        """Classes of an iteration, of all processes."""
        return min(self.recipe.classes_per_iteration or self.classes, self.classes)

    def _numbers(self, draw: Draw) -> Tensor:
        """Return the class numbers of a draw that this process owns, (k,)."""
        return self.numbers[draw.rows(slice(0, len(draw.indices)))]

    def _labels(self, draw: Draw, part: Piece) -> Tensor:
        """Return the class numbers of a piece's images."""
        k, m = part
        return self.numbers[draw.rows(k)].repeat_interleave(m.stop - m.start)

    @staticmethod
    def _means(vectors: list[Tensor], classes: int) -> list[Tensor]:
        return [mixer.means(v, classes, j + 1 < len(vectors)) for j, v in enumerate(vectors)]
