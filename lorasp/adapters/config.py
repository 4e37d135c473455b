"""What our low-rank methods add to PEFT's LoraConfig, and LoRA-SP's own settings."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from peft import LoraConfig

from lorasp.errors import UsageError

# LoraConfig's options that put something other than A and B into the layer, or need both dense.
UNSUPPORTED = (
    "ensure_weight_tying",
    "eva_config",
    "corda_config",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "target_parameters",
    "use_qalora",
)


def setting(default: Any, help: str, allowed: tuple[str, ...] = ()) -> Any:
    """A field of a configuration, one of `allowed` where that is not empty."""
    return field(default=default, metadata={"help": help, "allowed": allowed})


@dataclass
class LowRankConfig(LoraConfig):
    """PEFT's `LoraConfig` for a method that draws its own initial values, from `selection_seed`.

    Variants that need the dense A and B of PEFT's LoRA are refused with a UsageError.
    """

    key: ClassVar[str]  # the PEFT type
    method: ClassVar[str]  # as people call it

    selection_seed: int = setting(0, "Seed of all that is drawn: masks, initial and frozen values.")

    def __post_init__(self) -> None:
        self.check_values()
        super().__post_init__()
        self.peft_type = self.key  # type: ignore[assignment]  # PEFT's tables take any string

    def check_values(self) -> None:
        """Raise UsageError where a value is not allowed, or two values do not go together."""
        for entry in fields(self):
            allowed = entry.metadata.get("allowed")
            value = getattr(self, entry.name)
            if allowed and value not in allowed:
                raise UsageError(f"{entry.name} is {value!r}; allowed: {', '.join(allowed)}.")
        if not is_integer(self.selection_seed):
            raise UsageError(f"selection_seed is {self.selection_seed!r}; allowed: an integer.")
        for name, rank in {"r": self.r, **_pattern("rank_pattern", self.rank_pattern)}.items():
            if not is_integer(rank) or rank < 1:
                raise UsageError(f"{name} is {rank!r}; allowed: a positive integer.")
        # what stays is divided by one minus the rate, which is rounded to a multiple of 2^-16
        if not is_number(self.lora_dropout) or not 0 <= self.lora_dropout <= 0.999:
            raise UsageError(
                f"lora_dropout is {self.lora_dropout!r}; allowed: a number in [0, 0.999]."
            )
        if not isinstance(self.init_lora_weights, bool):
            raise UsageError(
                f"init_lora_weights is {self.init_lora_weights!r}; allowed: True (B starts at "
                f"zero) or False (B is random), since {self.method} draws its own initial values."
            )
        variants = [f.name for f in fields(LoraConfig) if f.metadata.get("is_lora_variant")]
        for name in (*UNSUPPORTED, *variants):
            if getattr(self, name, None):
                raise UsageError(
                    f"{name} does not work with {self.method}: leave it at its default."
                )


@dataclass
class LoraSpConfig(LowRankConfig):
    """Settings of LoRA-SP, randomized half-selective LoRA (arXiv 2403.08822, section 3).

    An adapted weight W (out x in) becomes W + (lora_alpha / r) * B A, with A (r x in) and
    B (out x r) of which a share `density` is selected and trained, and the rest is never moved.
    All fields of PEFT's `LoraConfig` are accepted, except variants that need dense A and B.

    Args:
        density: the share of selected entries, in (0, 1].
        selection: what is selected or not as a whole.
            'element': single entries, spread evenly over rows and columns.
            'rank': rank components, that is rows of A with the same columns of B.
            'matrix': A or B of a module. The unselected one is random and the trained one starts
            at zero, else nothing could learn; only `unselected='init'` makes sense.
            'depth': whole adapters; the other layers get none. Targets outside the numbered layers
            are always adapted.
        unselected: 'zero': unselected entries contribute nothing (Eq. 2); 'init': they stay at
            their initial value (the paper's prose).
        resample: when the selection is drawn again: 'never', or each 'epoch' or 'step', by whoever
            trains (`LoraSpModel.resample_selection`), with `protect_unselected` on the optimizer.
            Any entry may then be selected some day, so that A and B, their gradients and their
            moments are stored in full: nothing is saved over LoRA.
        selection_seed: the seed of masks and of initial values.
        depth: for 'depth': adapt the 'upper' layers, or a 'random' choice of layers.
        matrix_side: for 'matrix': which is trained: 'A', 'B' (A is frozen: LoRA-FA,
            arXiv 2308.03303 v1), or 'balanced': drawn for each module so that the trained total is
            as near `density` of LoRA's as whole matrices allow.

    Raises:
        UsageError: a value is not allowed, or two values do not go together.
    """

    key: ClassVar[str] = "LORA_SP"
    method: ClassVar[str] = "LoRA-SP"

    density: float = setting(0.5, "Share of selected entries, in (0, 1].")
    selection: str = setting(
        "element", "What is selected as a whole.", ("element", "rank", "matrix", "depth")
    )
    unselected: str = setting("zero", "What unselected entries are.", ("zero", "init"))
    resample: str = setting(
        "never", "When the selection is drawn again.", ("never", "epoch", "step")
    )
    depth: str = setting("upper", "Which layers selection='depth' adapts.", ("upper", "random"))
    matrix_side: str = setting(
        "balanced", "Which matrix selection='matrix' trains.", ("balanced", "A", "B")
    )

    @property
    def selects_smaller_rank(self) -> bool:
        """Whether this is LoRA of a smaller rank: unselected components never contribute."""
        return (self.selection, self.unselected, self.resample) == ("rank", "zero", "never")

    def check_values(self) -> None:
        super().check_values()
        if not is_number(self.density) or not 0 < self.density <= 1:
            raise UsageError(f"density is {self.density!r}; allowed: a number in (0, 1].")
        if self.selection == "matrix" and self.unselected == "zero":
            raise UsageError(
                "selection='matrix' with unselected='zero' makes every product B A zero and "
                "nothing could learn: set unselected='init'."
            )
        if self.selection in ("matrix", "depth") and self.resample != "never":
            raise UsageError(
                f"resample={self.resample!r} is defined for selection='element' and 'rank', not "
                f"for {self.selection!r}: set resample='never'."
            )


def _pattern(name: str, pattern: dict[str, int] | None) -> dict[str, int]:
    return {f"{name}[{key!r}]": rank for key, rank in (pattern or {}).items()}


def is_integer(value: object) -> bool:
    """Whether a setting's value is a whole number, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a setting's value is a number, and not a truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)
