"""A model folder that carries code or pickles: neither is taken, loaded or run."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lorasp.adapters.registry import restore_model
from lorasp.data.load import check_folder
from lorasp.data.prepare import prepare_model
from lorasp.errors import WorkError
from lorasp.models import load_model, load_tokenizer

RESOLVED = {
    "model": {"architecture": "encoder", "targets": ["query", "value"]},
    "method": {"name": "ft", "family": "full", "settings": {}},
    "runtime": {"device": "cpu", "precision": "fp32"},
    "recipe": {},
    "cell": {"seed": 0},
}


class Bomb:
    """Unpickled, it makes the file `ran`."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran").resolve(),)


@pytest.fixture
def armed(config: dict[str, Any]) -> Path:
    """A sound model folder to which code and pickles were added that leave the file `ran`."""
    folder = Path("armed")
    shutil.copytree(prepare_model(config, "roberta-tiny").parent, folder)
    code = f"import pathlib; pathlib.Path({str(Path('ran').resolve())!r}).touch()\n"
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py"):
        (folder / name).write_text(code)
    for name in ("pytorch_model.bin", "adapter_model.bin", "tokenizer.pkl", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    config["models"]["mine"] = {"source": {"kind": "local", "path": "armed"}}
    return folder


def point_to_code(folder: Path, model_type: str) -> None:
    """Let the configuration and the tokenizer's name the classes in the scripts."""
    for name, classes in {
        "config.json": {
            "AutoConfig": "configuration_evil.EvilConfig",
            "AutoModelForSequenceClassification": "modeling_evil.EvilModel",
            "AutoModelForCausalLM": "someone/else--modeling_evil.EvilModel",
        },
        "tokenizer_config.json": {"AutoTokenizer": ["tokenization_evil.Evil", None]},
    }.items():
        found = json.loads((folder / name).read_text())
        if name == "config.json":
            found["model_type"] = model_type
        (folder / name).write_text(json.dumps(found | {"auto_map": classes}))


def test_the_bomb_goes_off(config: dict[str, Any]) -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("ran").exists()


def test_code_is_neither_copied_nor_run(config: dict[str, Any], armed: Path) -> None:
    point_to_code(armed, "roberta")
    folder = prepare_model(config, "mine").parent
    taken = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(check_folder(folder)["files"]) == taken
    # even where the scripts are there, as in the folder itself, transformers' own class is built
    for place in (folder, armed):
        assert type(load_model(RESOLVED, place)).__module__.startswith("transformers.")
        assert type(load_tokenizer(place)).__module__.startswith("transformers.")
    assert not Path("ran").exists()


def test_a_model_that_only_its_own_code_can_build_is_refused(
    config: dict[str, Any], armed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any) -> str:
        raise AssertionError("nobody is asked whether to run it")

    monkeypatch.setattr("builtins.input", ask)
    point_to_code(armed, "evil")
    folder = prepare_model(config, "mine").parent
    for place in (folder, armed):
        with pytest.raises(WorkError, match="cannot load a model for encoder from"):
            load_model(RESOLVED, place)
    assert not Path("ran").exists()


def test_weights_in_a_pickle_are_refused(
    config: dict[str, Any], armed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", None)  # nobody even opens them
    (armed / "model.safetensors").unlink()
    with pytest.raises(
        WorkError, match=r"armed is no model: it has no weights \(model.safetensors"
    ):
        prepare_model(config, "mine")
    with pytest.raises(WorkError, match="cannot load a model for encoder from armed"):
        load_model(RESOLVED, armed)
    assert not Path("ran").exists()


@pytest.mark.parametrize("family", ["full", "LORA"])
def test_an_adapter_in_a_pickle_is_refused(
    config: dict[str, Any], armed: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run's folder would hold after somebody swapped its adapter."""
    from peft import LoraConfig

    settings = {"rank": 2, "targets": ["query"]}
    method = {"method": {"name": "m", "family": family, "settings": settings}}
    run = Path("run", "adapter")
    run.mkdir(parents=True)
    shutil.copy(armed / "config.json", run)
    for name in ("adapter_model.bin", "pytorch_model.bin"):
        shutil.copy(armed / name, run)
    LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS").save_pretrained(str(run))
    model = prepare_model(config, "roberta-tiny").parent
    monkeypatch.setattr(torch, "load", None)  # nobody even opens them
    with pytest.raises(WorkError, match=r"no .*model.safetensors|cannot load a model"):
        restore_model(RESOLVED | method, model, run.parent)
    assert not Path("ran").exists()
