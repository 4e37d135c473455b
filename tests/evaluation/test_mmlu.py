"""MMLU through lm-eval against a plain slow loop over the questions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from datasets import config as datasets_config
from transformers import PreTrainedTokenizerBase

from lorasp.config import Config, data_folder, resolve
from lorasp.errors import WorkError
from lorasp.evaluation import mmlu
from lorasp.models import load_tokenizer


def prompt_of(subject: str, dev: pandas.DataFrame, question: pandas.Series) -> str:
    """The published 5-shot prompt, written out."""
    about = f" about {subject.replace('_', ' ')}" if subject != "mixed" else ""
    text = f"The following are multiple choice questions (with answers){about}.\n\n"
    for _, shot in dev.iloc[:5].iterrows():
        text += with_choices(shot) + f" {'ABCD'[shot['answer']]}\n\n"
    return text + with_choices(question)


def with_choices(row: pandas.Series) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True)]
    return "\n".join([row["question"].strip(), *lines, "Answer:"])


def slow_reference(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, benchmark: Path
) -> dict[str, list[bool]]:
    """Right or wrong of each question: the letter whose whole text is the likeliest."""
    found: dict[str, list[bool]] = {}
    chosen = set()
    for folder in sorted(path for path in benchmark.iterdir() if path.is_dir()):
        dev, test = (
            pandas.read_parquet(folder / f"{split}-00000-of-00001.parquet")
            for split in ("dev", "test")
        )
        for _, question in test.iterrows():
            prompt, scores = prompt_of(folder.name, dev, question), []
            for letter in "ABCD":
                whole = tokenizer(f"{prompt} {letter}", return_tensors="pt").input_ids
                start = len(tokenizer(prompt).input_ids)
                with torch.no_grad():
                    logs = model(whole).logits.log_softmax(-1)[0, :-1]
                ids = whole[0, 1:]
                every = logs[torch.arange(len(ids)), ids]
                scores.append(float(every[start - 1 :].sum()))
            choice = int(np.argmax(scores))
            chosen.add(choice)
            found.setdefault(folder.name, []).append(choice == question["answer"])
    assert len(chosen) > 1, "a model that always says the same would prove little"
    return found


def test_accuracy_equals_a_plain_loop_in_all_57_subjects(config: Config, trained: Callable) -> None:
    cell, model = trained("llama-tiny", "alpaca-mmlu", "ft")
    benchmark = data_folder(config, "mmlu")
    tokenizer = load_tokenizer(data_folder(config, "models", "llama-tiny"))
    expected = slow_reference(model, tokenizer, benchmark)
    found = mmlu.evaluate(resolve(config, cell), model, tokenizer, benchmark, 16)
    assert len(found["subjects"]) == 57
    for subject, scores in found["subjects"].items():
        right = expected[subject]
        assert scores == {"n": len(right), "value": 100 * np.mean(right), "stderr": None}
    everything = [right for subject in expected.values() for right in subject]
    whole = found["splits"]["mmlu"]
    assert whole["n"] == len(everything)
    assert whole["metrics"]["accuracy"]["value"] == pytest.approx(100 * np.mean(everything))


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """A stock subject of 3 questions and a subject of one's own of 9."""
    rng = np.random.default_rng(0)
    for subject, sizes in {
        "anatomy": {"dev": 5, "test": 3},
        "mixed": {"dev": 6, "test": 9},
    }.items():
        folder = tmp_path / "benchmark" / subject
        folder.mkdir(parents=True)
        for split, size in sizes.items():
            rows = [
                {
                    "question": f" what is the number {index} of the cat {rng.integers(99)}?",
                    "subject": subject,
                    "choices": [str(n) for n in rng.integers(0, 99, 4)],
                    "answer": int(rng.integers(4)),
                }
                for index in range(size)
            ]
            pandas.DataFrame(rows).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return tmp_path / "benchmark"


def test_the_whole_is_weighted_by_size_with_lm_evals_errors(
    config: Config, trained: Callable, benchmark: Path
) -> None:
    cell, model = trained("llama-tiny", "alpaca-mmlu", "ft")
    tokenizer = load_tokenizer(data_folder(config, "models", "llama-tiny"))
    expected = slow_reference(model, tokenizer, benchmark)
    found = mmlu.evaluate(resolve(config, cell), model, tokenizer, benchmark, 4)
    assert {name: scores["n"] for name, scores in found["subjects"].items()} == {
        "anatomy": 3,
        "mixed": 9,
    }
    for subject, right in expected.items():
        scores = found["subjects"][subject]
        assert scores["value"] == pytest.approx(100 * np.mean(right))
        assert scores["stderr"] == pytest.approx(100 * np.std(right, ddof=1) / len(right) ** 0.5)
    whole = found["splits"]["mmlu"]
    every = [right for subject in expected.values() for right in subject]
    assert whole["n"] == 12
    assert whole["metrics"]["accuracy"]["value"] == pytest.approx(100 * np.mean(every))
    # pooled: the spread within the subjects, over all questions
    within = sum((len(right) - 1) * np.var(right, ddof=1) for right in expected.values())
    assert whole["metrics"]["accuracy"]["stderr"] == pytest.approx(
        100 * np.sqrt(within / (12 - 2) / 12)
    )


def test_requests_are_the_published_prompts_and_the_four_letters(benchmark: Path) -> None:
    for subject, task in mmlu.subject_tasks(benchmark).items():
        dev, test = (
            pandas.read_parquet(benchmark / subject / f"{split}-00000-of-00001.parquet")
            for split in ("dev", "test")
        )
        task.build_all_requests()
        asked = [request.args for request in task.instances]
        assert asked == [
            (prompt_of(subject, dev, question), f" {letter}")
            for _, question in test.iterrows()
            for letter in "ABCD"
        ]


def test_a_model_whose_outputs_are_no_numbers_has_no_score(
    config: Config, trained: Callable, benchmark: Path
) -> None:
    cell, model = trained("llama-tiny", "alpaca-mmlu", "lora")
    tokenizer = load_tokenizer(data_folder(config, "models", "llama-tiny"))
    broken = next(tensor for name, tensor in model.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        broken.fill_(float("nan"))
    found = mmlu.evaluate(resolve(config, cell), model, tokenizer, benchmark, 4)
    note = "the model's outputs are not finite"
    assert found["splits"]["mmlu"] == {
        "n": 12,
        "metrics": {"accuracy": {"value": None, "stderr": None, "note": note}},
    }
    assert {scores["value"] for scores in found["subjects"].values()} == {None}


def test_half_precision_is_handed_to_lm_eval(
    config: Config, trained: Callable, benchmark: Path
) -> None:
    cell, model = trained("llama-tiny", "alpaca-mmlu", "lora")
    resolved = resolve(config, cell)
    tokenizer = load_tokenizer(data_folder(config, "models", "llama-tiny"))
    seen = set()
    model.register_forward_hook(lambda *given: seen.add(given[2].logits.dtype))
    for precision in ("fp32", "bf16"):
        resolved["runtime"] = {**resolved["runtime"], "precision": precision}
        mmlu.evaluate(resolved, model, tokenizer, benchmark, 4)
    assert seen == {torch.float32, torch.bfloat16}


def test_nothing_is_written(config: Config, trained: Callable, benchmark: Path) -> None:
    cell, model = trained("llama-tiny", "alpaca-mmlu", "base")
    tokenizer = load_tokenizer(data_folder(config, "models", "llama-tiny"))
    places = (benchmark, Path.cwd(), Path(datasets_config.HF_DATASETS_CACHE))
    before = [sorted(place.rglob("*")) for place in places]
    mmlu.evaluate(resolve(config, cell), model, tokenizer, benchmark, 4)
    assert [sorted(place.rglob("*")) for place in places] == before


def test_a_benchmark_that_is_too_small_is_named(benchmark: Path, tmp_path: Path) -> None:
    file = benchmark / "mixed" / "dev-00000-of-00001.parquet"
    pandas.read_parquet(file).iloc[:4].to_parquet(file)
    with pytest.raises(WorkError, match="mixed: split dev has 4 questions and needs 5"):
        mmlu.subject_tasks(benchmark)
    file.unlink()
    with pytest.raises(WorkError, match="mixed: split dev has 0 questions and needs 5"):
        mmlu.subject_tasks(benchmark)
    with pytest.raises(WorkError, match="has no subject"):
        mmlu.subject_tasks(tmp_path / "empty")
