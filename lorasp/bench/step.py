"""One training step of LoRA-SP beside PEFT's LoRA and the frozen model's limit.

lorasp bench step
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import RobertaConfig, RobertaModel

from lorasp.adapters import LoraSpConfig
from lorasp.adapters.dropout import draw_kept, kept_scale
from lorasp.adapters.layer import LoraSpLayer
from lorasp.bench.measure import in_turn, quartiles, ratios, result

ROUNDS = 12
RANK = 16
VOCABULARY = 1000
ALL_LINEAR, QUERY_VALUE = ["query", "key", "value", "dense"], ["query", "value"]
CASES: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": ALL_LINEAR},
    "all-linear-dropout": {"target_modules": ALL_LINEAR, "lora_dropout": 0.1},
    "query-value": {"target_modules": QUERY_VALUE},
    "depth": {"target_modules": ALL_LINEAR, "selection": "depth"},
}
LIMIT, PEFT, OURS = "frozen model", "PEFT LoRA", "LoRA-SP"
GOALS = {
    "step.all-linear.peft": (OURS, PEFT, "all-linear"),
    "step.all-linear.limit": (OURS, LIMIT, "all-linear"),
    "step.all-linear-dropout.peft": (OURS, PEFT, "all-linear-dropout"),
    "step.query-value.limit": (OURS, LIMIT, "query-value"),
    "step.depth.limit": (OURS, LIMIT, "depth"),
}


def bench(
    rounds: int, cores: int, layers: int = 4, hidden: int = 768, shape: tuple[int, int] = (16, 128)
) -> dict[str, Any]:
    """Time forward, backward and AdamW of a RoBERTa encoder; the contestants of a case in turn.

    The limit is the same model with its first LayerNorm alone trained: a gradient flows through
    all of it, and no adapter is there. Nothing else of the model drops out.
    """
    torch.set_num_threads(cores)
    ids = torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))
    build = partial(encoder, layers, hidden, shape[1])
    # case by case: what is compared lies within seconds, and so suffers the same from the machine
    seconds = {case: in_turn(contestants(build, ids, case), rounds) for case in CASES}
    cases = [
        {
            "case": case,
            "unit": "ms",
            "peer": PEFT if PEFT in times else LIMIT,
            "values": {who: quartiles([1e3 * s for s in taken]) for who, taken in times.items()},
        }
        for case, times in seconds.items()
    ]
    return result(
        "step",
        f"one training step, RoBERTa-shaped, {layers} layers of hidden size {hidden}, batch "
        f"{shape[0]} x {shape[1]}, float32, rank {RANK}, {rounds} rounds on {cores} threads",
        cases,
        {
            goal: ratios(seconds[case][ours], seconds[case][theirs])
            for goal, (ours, theirs, case) in GOALS.items()
        },
        [same_gradients(build, ids, case) for case in CASES],
    )


def contestants(
    build: Callable[[], nn.Module], ids: torch.Tensor, case: str
) -> dict[str, Callable[[], None]]:
    """A step of each: the limit, PEFT's LoRA where it knows the settings, and LoRA-SP."""
    settings = CASES[case]
    steps = {LIMIT: step(first_norm_alone(build()), ids)}
    if "selection" not in settings:
        steps[PEFT] = step(get_peft_model(build(), LoraConfig(r=RANK, **settings)), ids)
    return steps | {OURS: step(get_peft_model(build(), LoraSpConfig(r=RANK, **settings)), ids)}


def encoder(layers: int, hidden: int, length: int) -> nn.Module:
    """A RoBERTa encoder in training mode without dropout, the same weights each time."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        max_position_embeddings=length + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return RobertaModel(config, add_pooling_layer=False).train()


def first_norm_alone(model: Any) -> nn.Module:
    """The model, frozen but for the LayerNorm under its first layer."""
    model.requires_grad_(False)
    model.embeddings.LayerNorm.requires_grad_(True)
    trained: nn.Module = model
    return trained


def step(model: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    """A function that takes one training step of the model."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def take() -> None:
        loss_of(model, ids).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return take


def loss_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient at the last layer's output is a constant that differs everywhere."""
    output: torch.Tensor = model(input_ids=ids).last_hidden_state
    weights = torch.arange(output.numel()).cos().view_as(output)
    return (output * weights).mean()


def same_gradients(build: Callable[[], nn.Module], ids: torch.Tensor, case: str) -> dict[str, Any]:
    """Check the fused layers: the same adapter by PEFT's own forward has the same gradients.

    PEFT's forward is given a dropout that draws the same masks, by which the layers leave their own
    function.
    """
    config = LoraSpConfig(r=RANK, init_lora_weights=False, **CASES[case])
    model = get_peft_model(build(), config)
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraSpLayer)]
    found, fused = [], []
    for by_peft in (False, True):
        for layer in layers if by_peft else ():
            layer.lora_dropout["default"] = SameMasks(config.lora_dropout)
        fused.append({layer._only_adapter() is not None for layer in layers})
        torch.manual_seed(1)
        loss_of(model, ids).backward()  # type: ignore[no-untyped-call]
        found.append([p.grad for p in model.parameters() if p.requires_grad])
        model.zero_grad()
    distances = [float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True)]
    return {
        "what": f"{case}: gradients of a step, of the fused layers and of PEFT's forward",
        "found": f"greatest relative distance of a matrix {max(distances):.1e}",
        "allowed": "1e-4",
        "met": fused == [{True}, {False}] and all(d <= 1e-4 for d in distances),
    }


class SameMasks(nn.Module):
    """Dropout by the masks that a fused layer would draw at this place of the random stream."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.rate:
            return x
        kept = draw_kept(x.shape, self.rate, x.device)
        return x * kept_scale(kept, x.shape, self.rate, x.dtype)
