"""The two ways in which a command of lorasp fails, each a sentence that a user can act on."""

# What CUDA, cuBLAS, cuDNN and NCCL say where torch has no exception of its own for it.
NO_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "HOST_ALLOCATION_FAILED")


class UsageError(ValueError):
    """The arguments or the configuration are wrong: exit code 2, nothing was started."""


class WorkError(RuntimeError):
    """The work itself failed (a download, a damaged file, a full disk): exit code 1."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory ran out, in torch's allocator or in a library beside it."""
    if not isinstance(error, RuntimeError) or isinstance(error, WorkError):
        return False
    named = type(error).__name__ == "OutOfMemoryError"  # torch is not imported for this
    return named or any(words in str(error) for words in NO_MEMORY)


def sentence_of(error: BaseException) -> str | None:
    """What the system says of a full disk, a missing right, a full GPU; None for anything else."""
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    # safetensors tells a full disk by an exception of its own
    if is_out_of_memory(error) or type(error).__name__ == "SafetensorError":
        return " ".join(str(error).split())
    return None
