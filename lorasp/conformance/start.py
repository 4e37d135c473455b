"""Checks of a method before its first step: what it builds, draws, counts and costs."""

import copy
from typing import Any

import torch

from lorasp.adapters.delta import DeltaLayer
from lorasp.adapters.registry import count_parameters
from lorasp.errors import UsageError
from lorasp.profiling.simulate import VALUES_WANTED, simulate
from lorasp.sweeps import resized

from .subject import (
    PAUSE,
    Failed,
    NotApplicable,
    State,
    Subject,
    differing,
    distance,
    trainable,
    whole_state,
)

# AdamW's first moment, and LoRA-FA's, which knows pairs of A and B.
MOMENTS = ("exp_avg", "exp_avg_B")
NOWHERE = "no_such_setting"
# Of rounding: the same product in another order of sums.
NEAR = 1e-5


def builds(subject: Subject) -> str:
    """The method can be put into the model, and has something to train."""
    found = count_parameters(subject.fresh)
    if not found["trainable"] and subject.method["family"] != "base":
        raise Failed(
            "expected something to train, found no parameter that requires a gradient; make what "
            "is to be trained an nn.Parameter"
        )
    return f"{found['trainable']:,} of {found['total']:,} parameters are trained"


def runs(subject: Subject) -> str:
    """A forward and a backward pass work, and a delta gives the same weight from call to call."""
    model = copy.deepcopy(subject.fresh).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainable(model).values():  # zeros would hide what they are multiplied with
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
        for layer in model.modules():
            for delta in layer.delta_weight.values() if isinstance(layer, DeltaLayer) else ():
                _check_repeats(delta, layer.out_features, layer.in_features)
    loss = model(**subject.batch()).loss
    if not trainable(model):
        return "a forward pass works"
    loss.backward()
    return "a forward and a backward pass work"


def _check_repeats(delta: torch.nn.Module, rows: int, columns: int) -> None:
    """The backward pass computes the weight once more: the call must not show in it."""
    weight = torch.randn(rows, columns)
    found = delta(weight.clone())
    if not isinstance(found, torch.Tensor):
        what = "None" if found is None else f"a {type(found).__name__}"
        raise Failed(
            f"expected a tensor from forward, found {what}; return the adapted weight from it"
        )
    if found.shape != weight.shape:
        raise Failed(
            f"expected an adapted weight of the shape {rows} x {columns}, as the base weight has, "
            f"found {' x '.join(map(str, found.shape))}; return (out, in) from forward"
        )
    one, other = delta(weight.clone()), delta(weight.clone())
    if not torch.allclose(one, other, rtol=0, atol=0, equal_nan=True):
        raise Failed(
            "expected the same adapted weight from two calls of forward, found others, and the "
            "backward pass calls it again; draw in the constructor, from its generator, and let "
            "forward draw nothing and change nothing"
        )


def refuses_unknown(subject: Subject) -> str:
    """A setting that the method does not have is refused by name."""
    try:
        subject.built(**{NOWHERE: 1})
    except UsageError as error:
        if NOWHERE in str(error):
            return "a setting that it lacks is refused by name"
        raise Failed(
            f"expected the unknown setting {NOWHERE} to be named, found: {error}; name it in the "
            "error"
        ) from error
    raise Failed(
        f"expected the unknown setting {NOWHERE} to be refused, found that it is accepted and "
        "changes nothing; take no **kwargs in the constructor"
    )


def starts_at_base(subject: Subject) -> str:
    """Before training the adapted model computes what the base does."""
    if not subject.method.get("starts_at_base", True):
        raise NotApplicable("the entry says starts_at_base: false")
    off = distance(subject.logits(subject.fresh), subject.base_logits)
    if not off <= NEAR:  # nan is not
        raise Failed(
            f"expected the base's logits before training, found logits {off:.2g} away (of the "
            f"largest, allowed {NEAR:g}); let the change of the weight start at zero, or say "
            "starts_at_base: false"
        )
    return "before training its logits are the base's"


def is_seeded(subject: Subject) -> str:
    """The same seed gives the same numbers through two steps, and another seed gives others."""
    states, again, other = subject.trained.states, _early(subject, 0), _early(subject, 1)
    if different := differing(states[0], again[0]):
        raise Failed(
            f"expected the same numbers from the same seed, found others in {_some(different)}; "
            "draw from the generator that the constructor is given, and from nothing else"
        )
    if different := differing(states[PAUSE], again[PAUSE]):
        raise Failed(
            f"expected two runs of one seed to be the same after {PAUSE} steps, found others in "
            f"{_some(different)}; draw nothing in the forward pass but by torch's own generator"
        )
    others = [name for step in other for name in differing(states[step], other[step])]
    if not subject.method.get("seeded", True):
        if others:
            raise Failed(
                f"the entry says seeded: false, found that {_some(others)} differ from seed to "
                "seed; leave the key out"
            )
        return "nothing is drawn at random"
    if not others:
        raise Failed(
            "expected another seed to draw other numbers, found the same; draw from the generator "
            "that the constructor is given, or say seeded: false"
        )
    return "one seed, the same numbers; another seed, others"


def counts(subject: Subject) -> str:
    """The number of trained parameters is what the optimizer holds moments for."""
    model, optimizer = subject.trained.model, subject.trained.optimizer
    said, whole = count_parameters(model)["trainable"], count_parameters(subject.base())["total"]
    held = sum(
        tensor.numel()
        for state in optimizer.state.values()
        for name, tensor in state.items()
        if name in MOMENTS
    )
    if held != said:
        raise Failed(
            f"expected moments for the {said:,} parameters that are counted as trained, found "
            f"moments for {held:,}; make no parameter that the forward pass does not use"
        )
    if said > whole:
        raise Failed(
            f"expected at most the {whole:,} parameters of full fine-tuning, found {said:,}; "
            "a smaller size (such as rank) is needed"
        )
    return f"{said:,} trained parameters, {said / whole:.1%} of full fine-tuning's"


def grows(subject: Subject) -> str:
    """The setting that `size` names scales the number of trained parameters."""
    if "size" not in subject.method:
        raise NotApplicable("the entry names no size")
    size = subject.method["size"]
    start, settings = _setting(subject, size), subject.method["settings"]
    if isinstance(start, bool) or not isinstance(start, int | float):
        raise Failed(
            f"expected size to name a setting that is a number, found {size}, which is {start!r}; "
            "name another setting, or leave size out"
        )
    real, share = count_parameters(subject.fresh)["trainable"], isinstance(start, float)
    others = (start / 2, start * 2) if share else (start * 2, start // 2)
    for other in others:
        try:
            changed = subject.built(**resized(settings, {size: other}))
        except UsageError:  # more than a matrix holds, or a number that divides no side of it
            continue
        found = count_parameters(changed)["trainable"]
        if found != real:
            break
    else:
        raise Failed(
            f"expected another number of trained parameters with another {size}, found {real:,} "
            f"with {start:g}, and {' and '.join(f'{other:g}' for other in others)} refused or the "
            "same; let size name the setting that scales them, or leave it out"
        )
    if (found > real) != (other > start):
        raise Failed(
            f"expected more trained parameters with a larger {size}, found {real:,} with "
            f"{start:g} and {found:,} with {other:g}; let size name the setting that scales them, "
            "or leave it out"
        )
    return f"{size} {start:g} has {real:,} trained parameters, {size} {other:g} has {found:,}"


def _setting(subject: Subject, name: str) -> Any:
    """A setting as the entry says it, else as PEFT's configuration has it; None without one."""
    settings = subject.method["settings"]
    config = getattr(subject.fresh, "peft_config", {}).get("default")
    return settings.get(name, getattr(config, name, None))


def has_costs(subject: Subject) -> str:
    """The simulator counts the memory and the operations of a step."""
    resolved = subject.resolved() | {"profile": {"batch": 4, "length": 8}}
    if subject.method["family"] == "base":
        raise NotApplicable("nothing is trained")
    try:
        found = simulate(resolved, subject.folder)
    except UsageError as error:
        if not isinstance(error.__cause__, VALUES_WANTED):
            raise
        raise NotApplicable("it looks at values of weights, and the simulator has none") from error
    model = subject.built()
    subject.optimizer(model)  # LoRA-FA's freezes A
    real = count_parameters(model)["trainable"]
    if found["parameters"]["trainable"] != real:
        raise Failed(
            f"expected {real:,} trained parameters in the simulated step, found "
            f"{found['parameters']['trainable']:,}; let shapes not depend on values"
        )
    return f"peak {found['peak_bytes'] / 2**20:.2f} MiB, {found['flops'] / 1e6:.2f} MFLOP a step"


def _early(subject: Subject, seed: int) -> dict[int, State]:
    """The states of a run of that seed before its first steps and after PAUSE of them."""
    model = subject.built(seed)
    states = {0: whole_state(model)}
    for _ in subject.steps(model, PAUSE):
        pass
    return states | {PAUSE: whole_state(model)}


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:2])
    return shown if len(names) <= 2 else f"{shown} and {len(names) - 2} more"
