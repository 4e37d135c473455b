"""Load a prepared model for a run: architecture, head, number format and device."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)
from transformers.distributed import DistributedConfig
from transformers.utils import is_flash_attn_2_available

from lorasp.adapters.base_layers import keep_unpacked
from lorasp.adapters.residual import HEADS
from lorasp.errors import UsageError, WorkError

# A new classification head is no news here, and a bar for each file of weights is none either.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
# PEFT asks for a property by its former name
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

CLASSES = {
    "encoder": AutoModelForSequenceClassification,
    "seq2seq": AutoModelForSeq2SeqLM,
    "causal": AutoModelForCausalLM,
}
# A model's own code is never run: where transformers has no class for it, loading it fails.
SAFELY = {"trust_remote_code": False}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ATTENTION = {"sdpa": "_supports_sdpa", "flash_attention_2": "_supports_flash_attn"}
# What FSDP2 gathers at a time where transformers names nothing for an architecture: T5's blocks.
BLOCKS = {"seq2seq": dict.fromkeys(("encoder.block.*", "decoder.block.*"), "free_full_weight")}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a prepared model; padding falls back to the end token, as LLaMA needs."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **SAFELY)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def device_of(resolved: dict[str, Any]) -> torch.device:
    """The device of a run; UsageError where the config wants CUDA and there is none."""
    device = torch.device(resolved["runtime"]["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "runtime.device is cuda, but torch finds no CUDA device here; "
            "use a machine with a GPU, or set runtime.device to cpu"
        )
    return device


def autocast(resolved: dict[str, Any]) -> AbstractContextManager[Any]:
    """Mixed precision for the forward pass, as `runtime.precision` says; nothing for fp32."""
    precision = resolved["runtime"]["precision"]
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_of(resolved).type, DTYPES[precision])


def compute_dtype(resolved: dict[str, Any]) -> torch.dtype:
    """The number format in which layers multiply: autocast's, without it that of the weights."""
    precision = resolved["runtime"]["precision"]
    return weights_dtype(resolved) if precision == "fp32" else DTYPES[precision]


def head_labels(resolved: dict[str, Any]) -> int:
    """Outputs of an encoder's classification head; two where the run has no task."""
    task = resolved.get("task", {})
    return 1 if task.get("family") == "regression" else len(task.get("labels", (0, 1)))


def weights_dtype(resolved: dict[str, Any]) -> torch.dtype:
    """The number format of the base weights: `runtime.weights`, but fp32 if autocast trains all."""
    runtime = resolved["runtime"]
    # In bf16 an AdamW update of 1e-5 is lost in the rounding of most weights.
    if resolved["method"]["family"] == "full" and runtime["precision"] != "fp32":
        return torch.float32
    return DTYPES[runtime.get("weights", "fp32")]


def quantization_config(resolved: dict[str, Any]) -> BitsAndBytesConfig | None:
    """How transformers holds the linear layers: NF4 (quantised twice, as QLoRA does) or int8."""
    quantize = resolved["method"].get("settings", {}).get("quantize", "none")
    if quantize == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=list(HEADS),
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype(resolved),
        )
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(HEADS))
    return None


def load_model(resolved: dict[str, Any], folder: Path, shards: int = 1) -> torch.nn.Module:
    """The model in `folder`, on the run's device, in the format of `weights_dtype`.

    A classification head is drawn from the run's seed. The method's `quantize` loads the linear
    layers in NF4 or int8; the `-residual` formats are quantised later, by the method itself. With
    `shards` each of so many processes reads and holds its part of every weight, by FSDP2, and
    gathers a layer at a time: in bf16 where that is the run's precision, else as it is held.
    Raises WorkError where the folder holds no such model, UsageError for a `runtime.attention` that
    the model or this environment lacks.
    """
    device = device_of(resolved)
    on_cuda = device.type == "cuda"
    set_tf32(resolved)
    arguments: dict[str, Any] = {"dtype": weights_dtype(resolved), "use_safetensors": True}
    arguments |= SAFELY
    architecture = resolved["model"]["architecture"]
    if attention := resolved["runtime"].get("attention"):
        _check_attention(attention, architecture, folder)
        arguments["attn_implementation"] = attention
    if architecture == "encoder":
        arguments["num_labels"] = head_labels(resolved)
    if (quantization := quantization_config(resolved)) is not None:
        arguments["quantization_config"] = quantization
        # a name without a number would be the first device for each process of a run
        arguments["device_map"] = {"": torch.cuda.current_device() if on_cuda else "cpu"}
    elif shards > 1:
        arguments["distributed_config"] = DistributedConfig(
            fsdp_size=shards,
            fsdp_plan=BLOCKS.get(architecture),
            fsdp_mixed_precision=resolved["runtime"]["precision"] == "bf16",
        )
    torch.manual_seed(resolved.get("cell", {}).get("seed", 0))
    try:
        model: torch.nn.Module = CLASSES[architecture].from_pretrained(folder, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise WorkError(
            f"cannot load a model for {architecture} from {folder}: {reason}"
        ) from error
    keep_unpacked(model)
    placed = arguments.keys() & {"device_map", "distributed_config"}
    return model if placed else model.to(device)


def set_tf32(resolved: dict[str, Any]) -> None:
    """Let a CUDA device multiply fp32 numbers in TF32, or keep it from it: `runtime.tf32`."""
    if resolved["runtime"]["device"] == "cuda":
        chosen = "high" if resolved["runtime"].get("tf32") else "highest"
        torch.set_float32_matmul_precision(chosen)
        torch.backends.cudnn.allow_tf32 = chosen == "high"


def _check_attention(attention: str, architecture: str, folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder, **SAFELY)
    model_class = CLASSES[architecture]._model_mapping[type(config)]  # type: ignore[index]
    allowed = ["eager", *(n for n, flag in ATTENTION.items() if getattr(model_class, flag, False))]
    if attention not in allowed:
        raise UsageError(
            f"runtime.attention is {attention}, which {model_class.__name__} does not have; "
            f"allowed are {', '.join(allowed)}"
        )
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise UsageError(
            "runtime.attention is flash_attention_2, for which the package flash-attn and a CUDA "
            "device are needed; sdpa and eager need neither"
        )


def attention_of(model: torch.nn.Module) -> str:
    """The attention implementation that a loaded model uses, such as sdpa."""
    config: Any = model.config
    return str(config._attn_implementation)
