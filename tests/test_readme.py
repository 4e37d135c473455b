"""What README.md and docs/ tell a reader to type works, or is named with the test that runs it."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import RobertaConfig, RobertaForSequenceClassification

from lorasp import LoraSpConfig
from lorasp.adapters.registry import peft_config
from lorasp.arguments import parser
from lorasp.config import cells, load_config, resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "console" for line in text.splitlines()]

OWN_METHOD = "tests/conformance/test_own_method.py writes, installs and checks such a package"
# Too dear to run here a second time.
RUN_ELSEWHERE = {
    "pip install .": "test_packaging.py builds the wheel and checks what it holds and needs",
    ".venv/bin/lorasp report --config config/smoke.yaml --compare results/smoke results/smoke": (
        "test_compare.py compares folders of results"
    ),
    ".venv/bin/lorasp bench step": "tests/bench/ runs the command, and each bench at a small size",
    ".venv/bin/lorasp plan --scale paper --gpu h100-80gb": (
        "tests/planning/test_plan.py makes this plan"
    ),
    ".venv/bin/lorasp methods check lora-sp": "tests/conformance/ checks every method",
    (
        ".venv/bin/lorasp budget --config config/smoke.yaml --model roberta-tiny "
        "--method sparta-equal"
    ): "tests/test_budgets.py fits methods; here there may be no prepared model",
    ".venv/bin/lorasp methods new my-method": OWN_METHOD,
    ".venv/bin/python -m pip install --no-build-isolation --no-deps -e my-method": OWN_METHOD,
    ".venv/bin/lorasp methods check my-method": OWN_METHOD,
}
PARSED = ("train", "evaluate")  # the tests of the workflow run them


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCKS if found == kind]


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_only_kinds_of_blocks_that_are_tested() -> None:
    assert {kind for kind, _ in BLOCKS} == {"console", "python", "yaml"}


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    """Cheap commands run; make and snakemake run dry; a new kind of command must be added here."""
    if command in RUN_ELSEWHERE:
        return
    program, *arguments = shlex.split(command)
    if program == "make":
        assert run(["make", "--dry-run", *arguments])
    elif program == ".venv/bin/snakemake":
        plan = run([sys.executable, "-m", "snakemake", "--dry-run", *arguments])
        assert "Job stats" in plan or "Nothing to be done" in plan
    elif program == ".venv/bin/lorasp" and arguments[0] in PARSED:
        parser().parse_args(arguments)
        names = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        config = load_config(ROOT / names["--config"])
        wanted = {names[f"--{key}"] for key in ("model", "task", "method", "recipe", "seed")}
        assert any(wanted == set(str(run).replace("seed-", "").split()) for run in cells(config))
    elif program == ".venv/bin/lorasp":
        assert run([sys.executable, "-m", "lorasp", *arguments])
    else:
        pytest.fail(f"README.md has a command that no test covers: {command}")


def test_every_exception_is_in_the_readme() -> None:
    assert set(RUN_ELSEWHERE) <= set(COMMANDS)


def tiny_model() -> RobertaForSequenceClassification:
    shape = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return RobertaForSequenceClassification(
        RobertaConfig(vocab_size=64, num_hidden_layers=2, **shape)
    )


def test_python() -> None:
    scope = {"model": tiny_model()}
    (code,) = blocks("python")
    exec(code, scope)
    trainable, _ = scope["model"].get_nb_trainable_parameters()
    # two layers, query and value, A and B of 16 by 32, half of their entries
    assert trainable == 2 * 2 * 2 * 16 * 32 // 2


def test_python_of_the_method_page() -> None:
    """The selection of the last step is in force, and weight decay moved no other entry."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/method.md").read_text(), re.DOTALL)
    config = LoraSpConfig(r=4, target_modules=["query"], unselected="init", resample="step")
    model = get_peft_model(tiny_model(), config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    matrix = next(module for name, module in model.named_modules() if name.endswith("A.default"))
    before = matrix.weight.detach().clone()
    exec(code, {"model": model, "optimizer": optimizer, "steps": 3})
    assert int(matrix.draw) == 2
    matrix.values.grad = torch.ones_like(matrix.values)
    optimizer.step()
    assert torch.equal(matrix.weight != before, matrix.mask)


@pytest.mark.parametrize("text", blocks("yaml"), ids=["model", "data set", "method"])
def test_configuration(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config/mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("config/mine.yaml"))
    runs = cells(config)
    assert len(runs) >= 6 and {run.scale for run in runs} == {"mine"}
    for run in runs:
        rank = 8 if run.method == "dora-8" else 16
        assert peft_config(resolve(config, run)).r == rank


def test_links_and_places_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        name, _, part = target.partition("#")
        assert target.startswith("https://") or (ROOT / name).exists(), target
        if part and not target.startswith("https://"):
            headings = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(), re.MULTILINE)
            assert part in {heading.lower().replace(" ", "-") for heading in headings}, target
    for place in ("config", "workflow", "lorasp/tasks", "config/tasks", "envs", "containers"):
        assert place in README and (ROOT / place).is_dir()
