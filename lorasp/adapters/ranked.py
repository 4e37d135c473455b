"""The matrices of Dynamic LoRA, which gain and lose components, and the spread of inputs."""

from typing import Any

import torch
from torch import nn

from .masks import decode, draw_codes
from .weights import LowRankMatrix

ROWS = 128  # of a module's inputs, at most, from which their spread is taken


class RankedWeight(LowRankMatrix):
    """A or B of Dynamic LoRA: the components that its module has at present.

    A loaded state may have another number of them, which then is the matrix's.

    Args:
        shape: (out, in) of the matrix at the start.
        side: 'A', whose rows are components, or 'B', whose columns are.
        name: the matrix's name, from which it draws.
        bound: initial values lie in (-bound, bound).
        device: where to allocate; on 'meta' nothing is ever drawn.
    """

    importance: torch.Tensor
    spread: torch.Tensor

    def __init__(
        self, shape: tuple[int, int], side: str, name: str, bound: float, device: torch.device
    ) -> None:
        super().__init__()
        self.dim, self.name, self.bound = "AB".index(side), name, bound
        self.seen: list[torch.Tensor] = []  # the spreads of inputs since the last step
        self.values = nn.Parameter(torch.zeros(shape, device=device))
        self.register_buffer("bits", None, persistent=False)
        if side == "A":  # of the module, but a layer of PEFT's has no place of its own
            for mean in ("importance", "spread"):
                self.register_buffer(mean, torch.zeros((), device=device), persistent=False)

    @property
    def shape(self) -> torch.Size:
        """(out, in) of the matrix at present."""
        return self.values.shape

    @property
    def rank(self) -> int:
        """The number of components at present."""
        return self.values.shape[self.dim]

    @property
    def weight(self) -> torch.Tensor:
        return self.values

    def expanded(self, values: Any) -> torch.Tensor:
        return values.detach()

    def chosen(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient

    def draw(self, rank: int, seed: int, *key: object) -> torch.Tensor:
        """Initial values of `rank` components, float32, on the CPU."""
        size = self.values.shape[1 - self.dim]
        shape = (rank, size) if self.dim == 0 else (size, rank)
        name = ".".join(map(str, (self.name, *key)))
        return decode(draw_codes(shape, seed, name), self.bound)

    def norms(self) -> torch.Tensor:
        """Of each component, the norm of its row of A or column of B."""
        return self.values.detach().float().norm(dim=1 - self.dim)

    @torch.no_grad()
    def reform(self, kept: torch.Tensor, gained: torch.Tensor, states: dict[str, Any]) -> None:
        """Keep some components and gain others; what the optimizer has of a new one is zero.

        Args:
            kept: the places of those to keep, in order.
            gained: the values of new ones, which come last.
            states: the optimizer's of `values`, of which tensors of that shape change.
        """
        old = self.values.shape

        def formed(tensor: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            rest = tensor.index_select(self.dim, kept.to(tensor.device))
            return torch.cat([rest, new.to(rest)], dim=self.dim)

        for name, state in states.items():
            if torch.is_tensor(state) and state.shape == old:
                states[name] = formed(state, torch.zeros_like(gained))
        self.values.grad = None
        self._hold(formed(self.values.data, gained))

    def _hold(self, tensor: torch.Tensor) -> None:
        # a graph that is still alive has the old shape, and is asked for it by the next one, unless
        # the number format has changed in between
        other = torch.float16 if tensor.dtype != torch.float16 else torch.float32
        self.values.data = tensor.new_empty(0, dtype=other)
        self.values.data = tensor

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        saved = state_dict.get(f"{prefix}values")
        if saved is not None and saved.shape != self.values.shape:
            self._hold(self.values.data.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]}"


@torch.no_grad()
def spread_of(inputs: torch.Tensor) -> torch.Tensor:
    """The spread over tokens of inputs (..., in), a scalar in [0, 1], from `ROWS` rows at most."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    rows = rows[:: -(-len(rows) // ROWS)].float()
    common = rows.mean(dim=0).square().sum() / rows.square().sum() * len(rows)
    return (1 - common).clamp(min=0).sqrt()
