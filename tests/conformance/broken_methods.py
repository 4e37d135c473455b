"""Methods with one defect each, for the checks to find."""

import random

import torch
from torch import nn

from lorasp import Delta
from lorasp.profiling.fake import Fake


class Sound(Delta):
    """W + M R, of a frozen random R (rank x in) and a trained M (out x rank)."""

    def __init__(self, out_features, in_features, generator, rank=4):
        super().__init__(out_features, in_features, generator)
        rows = torch.randn(rank, in_features, generator=generator) / in_features**0.5
        self.register_buffer("rows", rows, persistent=False)
        self.mix = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, weight):
        return weight + self.mix @ self.rows


class TrainsNothing(Delta):
    def __init__(self, out_features, in_features, generator):
        super().__init__(out_features, in_features, generator)

    def forward(self, weight):
        return weight


class TakesAnything(Sound):
    def __init__(self, out_features, in_features, generator, **settings):
        super().__init__(out_features, in_features, generator)


class StartsElsewhere(Sound):
    def __init__(self, out_features, in_features, generator):
        super().__init__(out_features, in_features, generator)
        self.mix.data.fill_(0.1)


class DrawsByChance(Sound):
    """The scale is saved, so that nothing but the seed's promise is broken."""

    def __init__(self, out_features, in_features, generator):
        super().__init__(out_features, in_features, generator)
        self.register_buffer("scale", torch.tensor(1 + random.SystemRandom().random()))

    def forward(self, weight):
        return weight + self.mix @ self.rows * self.scale


class IgnoresTheSeed(Sound):
    def __init__(self, out_features, in_features, generator):
        super().__init__(out_features, in_features, torch.Generator().manual_seed(3))


class DrawsFromTorch(Sound):
    """The same after the same seed, and another after what a later process has drawn."""

    def __init__(self, out_features, in_features, generator):
        super().__init__(out_features, in_features, None)


class MovesTheBase(Sound):
    def forward(self, weight):
        weight.data.mul_(1 + 1e-4)
        return weight + self.mix @ self.rows


class NeverLearns(Delta):
    """Of two factors that both start at zero, neither has a gradient."""

    seeded = False

    def __init__(self, out_features, in_features, generator):
        super().__init__(out_features, in_features, generator)
        self.left = nn.Parameter(torch.zeros(out_features, 1))
        self.right = nn.Parameter(torch.zeros(1, in_features))

    def forward(self, weight):
        return weight + self.left @ self.right


class HasASpare(Sound):
    def __init__(self, out_features, in_features, generator):
        super().__init__(out_features, in_features, generator)
        self.spare = nn.Parameter(torch.zeros(3))


class GoesUphill(Sound):
    def forward(self, weight):
        change = self.mix @ self.rows
        return weight - change + 2 * change.detach()


class SavesTheFrozen(Sound):
    def __init__(self, out_features, in_features, generator):
        super().__init__(out_features, in_features, generator)
        self.register_buffer("rows", self.rows)


class CountsItsCalls(Sound):
    calls = 0

    def forward(self, weight):
        self.calls += self.training
        change = self.mix @ self.rows
        return weight + change * (1 + 0.1 * self.calls * self.training)


class DrawsInForward(Sound):
    """At the start, where M is zero, nothing is to be seen of it."""

    def forward(self, weight):
        return weight + self.mix @ self.rows * torch.rand(())


class MissesItsOwn(Sound):
    def forward(self, weight):
        return weight + self.mixx @ self.rows


class GivesNothing(Sound):
    def forward(self, weight):
        super().forward(weight)


class GivesTwo(Sound):
    def forward(self, weight):
        return super().forward(weight), self.mix


class GivesARow(Sound):
    """A shape that the product would stretch in silence."""

    def forward(self, weight):
        return super().forward(weight)[:1]


class HasNoForward(Delta):
    def __init__(self, out_features, in_features, generator):
        super().__init__(out_features, in_features, generator)
        self.mix = nn.Parameter(torch.zeros(out_features, in_features))


class Swapped(Sound):
    """Inputs and outputs in each other's place: in a square matrix it is sound."""

    def __init__(self, out_features, in_features, generator):
        super().__init__(in_features, out_features, generator)


class MovesItOnce(Sound):
    """What is done to the base before the first step is not there to be seen in the steps."""

    moved = False

    def forward(self, weight):
        if not self.moved:
            weight.data.mul_(1 + 1e-4)
        self.moved = True
        return super().forward(weight)


class IsNotANumber(Sound):
    def forward(self, weight):
        return super().forward(weight) * float("nan")


class IsNotSized(Sound):
    """Its size scales nothing: the rank is another setting."""

    size = "strength"

    def __init__(self, out_features, in_features, generator, rank=4, strength=1.0):
        super().__init__(out_features, in_features, generator, rank)


class Shrinks(Sound):
    size = "rank"

    def __init__(self, out_features, in_features, generator, rank=4):
        super().__init__(out_features, in_features, generator, 64 // rank)


class LooksAtValues(Sound):
    def forward(self, weight):
        if float(weight.sum()) > 0:
            return super().forward(weight)
        return super().forward(weight)


class CannotBeSimulated(Sound):
    """It works on numbers alone, and its error is one of its own."""

    def forward(self, weight):
        if isinstance(weight, Fake):
            raise KeyError("of its own making")
        return super().forward(weight)


class FailsOnceTrained(Sound):
    def forward(self, weight):
        if not self.training and self.mix.detach().any():
            raise RuntimeError("no evaluation here")
        return super().forward(weight)
