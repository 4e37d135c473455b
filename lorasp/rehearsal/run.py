"""Run a command with the stand-in for the hub at its side: `lorasp rehearse -- snakemake …`."""

import os
import sys
import tempfile

import datasets
import transformers

from lorasp.config import Config
from lorasp.rehearsal.hub import TOKEN, Fault, Hub, serve
from lorasp.rehearsal.repositories import repositories
from lorasp.serve import run_to_its_end

# the clients' switches, tokens and caches: each beats HF_HOME
THEIRS = ("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_")


def weather() -> list[Fault]:
    """A day on the network: each of these is got over, and the run does not notice."""
    return [
        Fault("/datasets/nyu-mll/glue/tree", 503),
        Fault("/google-t5/t5-base/resolve", 429, headers={"Retry-After": "1"}),
        Fault("/huggyllama/llama-7b/model-00001", "cut", times=2),
        Fault("/huggyllama/llama-13b/model-00002", "corrupt"),
    ]


def rehearse(command: list[str], config: Config) -> int:
    """Run `command` in an environment in which the stand-in is the hub; its exit code.

    The clients' cache is a folder of this run, and their token one that the stand-in knows.
    """
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="lorasp-") as home, serve(repositories(config)) as hub:
        hub.faults += weather()
        print(f"a stand-in for the Hugging Face hub listens at {hub.endpoint}", file=sys.stderr)
        try:
            return run_to_its_end(command, environment(hub, home))
        except FileNotFoundError:
            print(f"error: there is no command {command[0]!r}", file=sys.stderr)
            return 2
        finally:
            told = f"{len(hub.log)} requests, {len(hub.asked('.bin'))} of them for pickled weights"
            print(f"the stand-in has answered {told}", file=sys.stderr)


def environment(hub: Hub, home: str, token: str = TOKEN) -> dict[str, str]:
    """The environment whose clients ask the stand-in, and keep their cache in `home`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(THEIRS)}
    here = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": home, "HF_TOKEN": token}
    direct = "127.0.0.1,localhost"  # no proxy reaches this machine's own loopback
    return kept | here | {"NO_PROXY": direct, "no_proxy": direct}
