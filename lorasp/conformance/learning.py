"""Checks of a method while it trains: what moves, what stays, and at which numbers."""

import copy

import torch

from lorasp.recompute import recompute_activations

from .subject import (
    MORE,
    STEPS,
    Batch,
    Failed,
    NotApplicable,
    Subject,
    differing,
    trainable,
    whole_state,
)

SHORTEST_FALL = 0.01  # of the loss
SIZES = ((1, 2), (1, 7), (3, 13))  # rows and tokens
NEAR = 1e-4  # gradients, of the largest entry


def leaves_the_base(subject: Subject) -> str:
    """No frozen weight and no weight of the base moves by a bit, under weight decay."""
    if subject.method["family"] == "full":
        raise NotApplicable("every weight is trained")
    start, now = subject.trained.states[0], whole_state(subject.trained.model)
    kept = subject.method.get("keeps_base", True)
    before = subject.base_state if kept else subject.of_base(start)
    moved = differing(before, subject.of_base(now))
    frozen = [n for n, w in subject.trained.model.named_parameters() if not w.requires_grad]
    moved += [name for name in frozen if not torch.equal(start[name], now[name])]
    if moved:
        raise Failed(
            f"expected the base and all that is frozen to stay as it was, bit for bit, found "
            f"{len(moved)} tensors changed, such as {moved[0]}; write to no weight in place, and "
            "train none of the base"
        )
    return f"{len(frozen)} frozen tensors are bit for bit as before"


def trains_all(subject: Subject) -> str:
    """Every trained tensor gets a gradient and moves."""
    start, model = subject.trained.states[0], subject.trained.model
    idle = sorted(set(trainable(model)) - subject.trained.learned)
    if idle:
        raise Failed(
            f"expected a gradient for every trained tensor, found none for {len(idle)}, such as "
            f"{idle[0]}; make a buffer of what is not trained, and let no two factors start at zero"
        )
    still = sorted(name for name, w in trainable(model).items() if torch.equal(w, start[name]))
    if still:
        raise Failed(
            f"expected every trained tensor to move, found {len(still)} where they were, such as "
            f"{still[0]}; see that the forward pass uses it"
        )
    return f"{len(trainable(model))} tensors are trained, and all of them move"


def lowers_the_loss(subject: Subject) -> str:
    """The loss of one batch falls."""
    before, after = subject.trained.losses
    steps, fall = STEPS, (before - after) / before
    if not fall >= SHORTEST_FALL:
        slow = subject.built()
        for _ in subject.steps(slow, MORE):
            pass
        after = subject.loss(slow)
        steps, fall = MORE, (before - after) / before
    if not fall >= SHORTEST_FALL:
        raise Failed(
            f"expected the loss of one batch to fall by {SHORTEST_FALL:.0%} or more in {steps} "
            f"steps, found {before:.4f} before and {after:.4f} after; see that the output depends "
            "on what is trained, with the right sign"
        )
    return f"the loss of one batch falls from {before:.3f} to {after:.3f} in {steps} steps"


def works_in_bf16(subject: Subject) -> str:
    """Three steps under autocast to bfloat16 have finite losses, gradients and weights."""
    model = subject.built()
    if not trainable(model):
        raise NotApplicable("nothing is trained")
    with torch.autocast("cpu", torch.bfloat16):
        for loss in subject.steps(model, 3):
            _check_finite("under autocast to bfloat16", loss, model)
    _check_finite("after three steps under autocast to bfloat16", torch.zeros(()), model)
    return "losses, gradients and weights are finite under autocast"


def takes_any_batch(subject: Subject) -> str:
    """A batch of one row, and other lengths, give finite losses and gradients."""
    model = subject.fresh
    for rows, length in SIZES:
        batch: Batch = subject.batch(rows, length)
        loss = model.train()(**batch).loss
        if trainable(model):
            loss.backward()
        _check_finite(f"for {rows} rows of {length} tokens", loss.detach(), model)
        model.zero_grad()
    return ", ".join(f"{rows} × {length}" for rows, length in SIZES) + " tokens are all finite"


def recomputes(subject: Subject) -> str:
    """Gradients are the same where activations are computed again in the backward pass."""
    # copies both: a copy is without the hooks that PEFT's OSF has on gradients
    plain, again = (copy.deepcopy(subject.trained.model) for _ in range(2))
    recompute_activations(again, subject.resolved(recompute="full"))
    found = []
    for model in (plain, again):
        torch.manual_seed(1)
        model.zero_grad()
        model.train()(**subject.batch()).loss.backward()
        found.append({name: w.grad for name, w in trainable(model).items()})
    for name, gradient in found[0].items():
        other = found[1][name]
        near = gradient is None or (
            other is not None
            and bool((gradient - other).abs().max() <= NEAR * gradient.abs().max())
        )
        if not near:
            raise Failed(
                f"expected the same gradient of {name} with gradient checkpointing, found another; "
                "let the forward pass depend on nothing that a first call changes"
            )
    return "gradients are the same with gradient checkpointing"


def _check_finite(where: str, loss: torch.Tensor, model: torch.nn.Module) -> None:
    if not bool(loss.isfinite()):
        raise Failed(f"expected a finite loss {where}, found {float(loss)}; see what overflows")
    for name, weight in trainable(model).items():
        gradient = weight.grad
        if gradient is not None and not bool(gradient.isfinite().all()):
            raise Failed(
                f"expected finite gradients {where}, found inf or nan in that of {name}; see what "
                "is divided by zero, or overflows"
            )
        if not bool(weight.isfinite().all()):
            raise Failed(f"expected finite weights {where}, found inf or nan in {name}")
