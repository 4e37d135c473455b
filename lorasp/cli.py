"""The command line, one thin command a stage: `lorasp --help`.

Exit codes: 0 done; 1 the work failed; 2 the arguments or the configuration are wrong.
"""

import argparse
import os
import signal
import sys
import traceback

from lorasp import gpus, serve
from lorasp.arguments import parser
from lorasp.errors import UsageError, WorkError, sentence_of
from lorasp.redaction import redact_logs, redacted

ALONE = ("doctor", "methods", "bench", "rehearse", "serve")  # what no server runs
ON_GPUS = ("train", "evaluate", "profile", "plan")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # bitsandbytes compiles functions at import that no command here uses, and takes a second for it
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # an exception, so that whatever is half-written is removed on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options = parser().parse_args(arguments)
        if _forwarded(options) and (code := serve.forward(arguments)) is not None:
            return code
        # a job of a server ends before this import
        from lorasp.commands import COMMANDS

        redact_logs()

        return COMMANDS[options.stage](options) or 0
    except UsageError as error:
        return _fail(2, str(error))
    except WorkError as error:
        return _fail(1, str(error))
    except BrokenPipeError:  # whoever reads our output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:  # argparse: --help, or a usage error that it has already told
        return int(error.code or 0)
    except Exception as error:
        if (sentence := sentence_of(error)) is not None:
            return _fail(1, sentence)
        print(redacted(traceback.format_exc()), end="", file=sys.stderr)
        return _fail(1, "this is a defect of lorasp; please report it with the lines above")


def _fail(code: int, sentence: str) -> int:
    print(f"error: {redacted(sentence)}", file=sys.stderr)
    return code


def _forwarded(options: argparse.Namespace) -> bool:
    """Whether a server may run the command: it has the hub's clients and GPUs switched off."""
    if options.stage == "prepare" and not options.task:
        from lorasp.commands import needs_hub

        return not needs_hub(options)
    if options.stage in ON_GPUS and gpus.count():
        from lorasp.commands import needs_gpu

        return not needs_gpu(options)
    return options.stage not in ALONE
