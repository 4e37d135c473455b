"""Which modules of a model get which matrices: the part of the selection that spans modules."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .config import LoraSpConfig
from .masks import random_order, raw_words, selected_count


@dataclass(frozen=True)
class ModulePlan:
    """What one adapted module gets.

    Args:
        name: the module's path in the base model, which keys its masks and initial values.
        in_features, out_features: of the base layer, whose weight is out x in.
        rank, alpha: r and lora_alpha, after PEFT's rank_pattern and alpha_pattern.
        side: which matrices are trained: 'AB', or with selection='matrix' either 'A' or 'B'.
    """

    name: str
    in_features: int
    out_features: int
    rank: int
    alpha: float
    side: str = "AB"


def layer_of(name: str) -> str | None:
    """The layer that a module path lies in: up to its first integer, as 'encoder.block.3'."""
    match = re.match(r"(?:.*?\.)??\d+(?=\.|$)", name)
    return match.group() if match else None


def adapted_names(names: Sequence[str], config: LoraSpConfig) -> list[str]:
    """The target modules that get an adapter: all of them, or with 'depth' those of some layers.

    Layers are counted in the order of `names`; a model's decoder stands above its encoder. Of n
    layers, round(density * n) are adapted, at least one. Modules outside the layers are kept.
    """
    if config.selection != "depth":
        return list(names)
    layers = list(dict.fromkeys(layer for name in names if (layer := layer_of(name))))
    if config.depth == "random":
        layers = [layers[i] for i in random_order(len(layers), "layers", config.selection_seed)]
    chosen = set(layers[-selected_count(len(layers), config.density) :])
    return [name for name in names if (layer := layer_of(name)) is None or layer in chosen]


def trained_sides(sizes: dict[str, tuple[int, int]], config: LoraSpConfig) -> dict[str, str]:
    """Which matrix of each module is trained with selection='matrix'.

    'balanced' goes through the modules in a random order and each time takes the matrix that keeps
    the running number of trained entries nearest to `density` of the running total; a tie, as with
    square weights, is decided by the seed.

    Args:
        sizes: module name to (entries of A, entries of B).
    """
    if config.matrix_side != "balanced":
        return dict.fromkeys(sizes, config.matrix_side)
    names, seed = list(sizes), config.selection_seed
    coins = raw_words(len(names), "side", seed)
    sides, trained, total = {}, 0, 0
    for index in random_order(len(names), "modules", seed):
        a, b = sizes[names[index]]
        total += a + b
        distance_a, distance_b = (abs(trained + n - config.density * total) for n in (a, b))
        takes_a = bool(coins[index] & 1) if distance_a == distance_b else distance_a < distance_b
        sides[names[index]] = "A" if takes_a else "B"
        trained += a if takes_a else b
    return sides
