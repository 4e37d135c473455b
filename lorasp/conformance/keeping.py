"""Checks of what is left of a method's training: its files, and the model with and without it."""

from pathlib import Path

import torch
from peft import PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer

from lorasp.adapters.registry import quantize_of, restore_model, save_adapter

from .subject import (
    PAUSE,
    Failed,
    NotApplicable,
    Subject,
    differing,
    distance,
    put_back,
    scratch_folder,
    trainable,
    whole_state,
)

NEAR = 1e-3  # of the largest logit, merged
QUANTIZED = 0.3  # the same where merged weights are rounded again
ROUNDING = 1e-6
# Beside the numbers: safetensors' header tells name, shape and place of each tensor.
SLACK, SLACK_A_TENSOR = 1024, 256
SAVED = {".safetensors", ".json", ".md"}
# PEFT, when it merges, asks a head of several layers for the weight of one.
HEADLESS = "ClassificationHead' object has no attribute 'weight'"


def saves_and_loads(subject: Subject) -> str:
    """What is saved gives the same logits again, and no file of it is a pickle."""
    model = subject.trained.model
    expected = subject.logits(model)
    with scratch_folder() as cell:
        save_adapter(model, cell / "adapter")
        written = [file for file in (cell / "adapter").rglob("*") if file.is_file()]
        if others := sorted(file.name for file in written if file.suffix not in SAVED):
            raise Failed(f"expected safetensors and JSON alone, found {', '.join(others)}")
        restored = [restore_model(subject.resolved(), subject.folder, cell)]
        residual = quantize_of(subject.resolved()).endswith("-residual")
        if isinstance(model, PeftModel) and not residual:  # whose base is no longer the plain one
            torch.manual_seed(99)  # what is drawn again may depend on the adapter's seed alone
            base = subject.base()
            restored.append(PeftModel.from_pretrained(base, str(cell / "adapter")))
    off = max(distance(subject.logits(loaded), expected) for loaded in restored)
    # PEFT's AdaLoRA leaves ranks out that it has set to zero: its sums are shorter
    if not off <= (ROUNDING if is_of_peft(subject) else 0):
        raise Failed(
            f"expected the same logits from the saved adapter, bit for bit, found them {off:.2g} "
            "of the largest away; train nothing that is not a parameter of the adapter, and draw "
            "what is not saved from the seed alone"
        )
    return f"loaded from its files it computes the same{'' if off else ', bit for bit'}"


def is_compact(subject: Subject) -> str:
    """The saved file is as large as what was trained, but for its header."""
    weights = trainable(subject.trained.model)
    needed = sum(weight.numel() * weight.element_size() for weight in weights.values())
    allowed = needed + SLACK + SLACK_A_TENSOR * len(weights)
    with scratch_folder() as folder:
        found = save_adapter(subject.trained.model, folder)
    if found > allowed and is_of_peft(subject):
        raise NotApplicable(f"PEFT saves {found - needed:,} bytes beside what is trained")
    if found > allowed:
        raise Failed(
            f"expected at most {allowed:,} bytes in the saved adapter ({needed:,} of what is "
            f"trained, and its header), found {found:,}; draw masks and frozen values again from "
            "the seed, and register them as buffers with persistent=False"
        )
    return f"{found:,} bytes are saved, {needed:,} of them trained numbers"


def disables(subject: Subject) -> str:
    """With the adapter disabled the model computes what the base does, bit for bit."""
    model = subject.adapted()
    if not subject.method.get("keeps_base", True):
        raise NotApplicable("the entry says keeps_base: false")
    with model.disable_adapter():
        found = subject.logits(model)
    off = distance(found, subject.base_logits)
    if not off <= 0:
        raise Failed(
            f"expected the base's logits with the adapter disabled, found them {off:.2g} of the "
            "largest away; change nothing in the base layer"
        )
    return "disabled, it computes what the base does, bit for bit"


def merges(subject: Subject) -> str:
    """Merged into the base it computes the same, and no layer of it is left."""
    if not subject.method.get("merges", True):
        raise NotApplicable("the entry says merges: false")
    model = subject.adapted()
    expected = subject.logits(model)
    left: list[str] = []
    try:
        merged = model.merge_and_unload()
        left = [name for name, m in merged.named_modules() if isinstance(m, BaseTunerLayer)]
    except AttributeError as error:
        if HEADLESS not in str(error):
            raise
        merged = subject.adapted()
        merged.merge_adapter()
    if left:
        raise Failed(
            f"expected plain layers after merging, found the adapter's in {left[0]}; see that "
            "unloading gives back the base layers"
        )
    off = distance(subject.logits(merged), expected)
    allowed = NEAR if quantize_of(subject.resolved()) == "none" else QUANTIZED
    if not off <= allowed:
        raise Failed(
            f"expected the same logits after merging, found them {off:.2g} of the largest away "
            f"(allowed {allowed:g}); see that the merged weight is the one that the forward pass "
            "uses, or say merges: false"
        )
    return f"merged, its logits are the same to {off:.1g}"


def resumes(subject: Subject) -> str:
    """Training that goes on from saved weights and optimizer takes the same steps, bit for bit."""
    states, folder = subject.trained.states, Path(subject.scratch.name)
    model = subject.built()
    optimizer = subject.optimizer(model)
    put_back(model, optimizer, folder)
    for _ in subject.steps(model, 2 * PAUSE, optimizer, done=PAUSE):
        pass
    if different := differing(states[2 * PAUSE], whole_state(model)):
        raise Failed(
            f"expected a run that goes on from a checkpoint to take the same steps, found others "
            f"in {len(different)} tensors, such as {different[0]}; keep what a step changes in "
            "parameters and buffers"
        )
    return "from a checkpoint on, the steps are the same, bit for bit"


def is_of_peft(subject: Subject) -> bool:
    """Whether the files are of PEFT's own making: what they hold cannot be mended here."""
    return subject.method["family"] in list(PeftType)
