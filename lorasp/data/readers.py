"""Readers of pinned artefacts: from files that packages carry along to the tables of a task."""

import hashlib
import importlib.util
import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from lorasp.data.mmlu import NAMES
from lorasp.data.pypi import files_of, nested
from lorasp.errors import UsageError, WorkError
from lorasp.results import read_yaml

Archives = dict[str, Path]
Tables = dict[str, Dataset]
Row = dict[str, Any]


def _tenth(text: str) -> int:
    """A number from 0 to 9 that depends on the text alone, to split by: order and removals of other
    rows change nothing, and equal texts fall into the same split."""
    return hashlib.sha256(text.encode()).digest()[0] * 10 // 256


def _split(rows: list[Row], column: str, tenths: dict[str, range]) -> Tables:
    return {
        split: Dataset.from_list([row for row in rows if _tenth(row[column]) in share])
        for split, share in tenths.items()
    }


def hutto_reviews(archives: Archives, label: str) -> Tables:
    """Sentences of film reviews and people's mean rating of them, -4 to 4 (Hutto & Gilbert 2014).

    `label` is `sentiment` (the sign, 0 or 1, of ratings of at least 0.5 in absolute value) or
    `valence` (the rating). The file numbers sentences, not reviews, so a tenth of the sentences is
    held out; a sentence that occurs twice is taken once.
    """
    if label not in ("sentiment", "valence"):
        raise UsageError(f"options.label is {label!r}; allowed are sentiment, valence")
    (archive,) = archives.values()
    ((name, inner),) = files_of(archive, "*/hutto_ICWSM_2014.tar.gz")
    ((_, content),) = nested(inner, name, "*/movieReviewSnippets_GroundTruth.txt")
    ratings: dict[str, float] = {}
    for line in content.decode().splitlines():
        _, rating, sentence = line.split("\t")
        ratings.setdefault(sentence.strip(), float(rating))
    rows = [
        {"sentence": sentence, "label": rating if label == "valence" else int(rating > 0)}
        for sentence, rating in ratings.items()
        if label == "valence" or abs(rating) >= 0.5
    ]
    return _split(rows, "sentence", {"train": range(9), "validation": range(9, 10)})


def gettext_ro(
    archives: Archives, packages: Sequence[str], min_words: int = 1, without: Sequence[str] = ()
) -> Tables:
    """Pairs `en`, `ro` from the Romanian message catalogues of the named packages.

    Of a plural the first form is taken; pairs that are equal are left out, and an English text
    comes once. Texts that also occur in the packages of `without` are in no held-out split: a
    model trained on those has never seen what it is tested on.
    """
    for name in (*packages, *without):
        if name not in archives:
            raise UsageError(
                f"options names the package {name!r}; artefacts are {', '.join(archives)}"
            )
    known = {en for package in without for en, _ in _pairs(archives[package])}
    unique: dict[str, str] = {}
    for package in packages:
        for en, ro in _pairs(archives[package]):
            if en != ro and len(en.split()) >= min_words:
                unique.setdefault(en, ro)
    rows = [{"en": en, "ro": ro} for en, ro in unique.items()]
    tenths = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
    tables = _split(rows, "en", tenths)
    held_out = {
        split: tables[split].filter(lambda row: row["en"] not in known)
        for split in ("validation", "test")
    }
    return tables | held_out


# Older catalogues write ş and ţ with a cedilla; Romanian has them with a comma.
COMMA_BELOW = str.maketrans("şţŞŢ", "șțȘȚ")


def _pairs(archive: Path) -> Iterator[tuple[str, str]]:
    for name, content in files_of(archive, "*/locale/ro*/LC_MESSAGES/*.mo"):
        for message, translation in _messages(content, name):
            en = " ".join(message.split("\x04")[-1].split("\0")[0].split())
            ro = " ".join(translation.split("\0")[0].split()).translate(COMMA_BELOW)
            if en and ro:
                yield en, ro


def _messages(content: bytes, name: str) -> Iterator[tuple[str, str]]:
    """The entries of a compiled catalogue (GNU gettext manual, 'The Format of GNU MO Files')."""
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(content[:4])
    if order is None:
        raise WorkError(f"{name} is not a compiled gettext catalogue")
    count, originals, translations = struct.unpack_from(f"{order}3I", content, 8)
    for index in range(count):
        pair = []
        for table in (originals, translations):
            length, start = struct.unpack_from(f"{order}2I", content, table + 8 * index)
            pair.append(content[start : start + length].decode())
        yield pair[0], pair[1]


def evals_instructions(archives: Archives, per_folder: int = 40, max_words: int = 40) -> Tables:
    """`instruction`, `input`, `output` from the system, user and ideal texts of OpenAI's evals.

    Of each folder in `names.yaml` at most `per_folder` rows, drawn by its name; prompts
    of over 150 words, answers of over `max_words`, and lettered options are left out.
    """
    (archive,) = archives.values()
    rows = []
    for folder in read_yaml(NAMES)["instruction_folders"]:
        found = []
        for _, content in files_of(archive, f"evals/registry/data/{folder}/*.jsonl"):
            for line in content.decode().splitlines():
                if (row := _instruction(json.loads(line), max_words)) and row not in found:
                    found.append(row)
        random.Random(folder).shuffle(found)
        rows += found[:per_folder]
    return {"train": Dataset.from_list(rows)}


OPTIONS = re.compile(r"^\W*[A-D]\W+\S.*\n", re.MULTILINE)


def _instruction(sample: Row, max_words: int) -> Row | None:
    messages, ideal = sample.get("input"), sample.get("ideal")
    output = ideal[0] if isinstance(ideal, list) and ideal else ideal
    if not isinstance(messages, list) or [turn["role"] for turn in messages] != ["system", "user"]:
        return None
    system, user = (turn["content"].strip() for turn in messages)
    if not isinstance(output, str) or not 0 < len(output.split()) <= max_words:
        return None
    if len((system + " " + user).split()) > 150 or OPTIONS.search(user + "\n"):
        return None
    if re.fullmatch(r"You are a helpful assistant\W*", system):
        return {"instruction": user, "input": "", "output": output.strip()}
    return {"instruction": system, "input": user, "output": output.strip()}


def evals_mmlu(archives: Archives) -> Tables:
    """Questions of MMLU that OpenAI's evals carry, without their subjects: one subject, `mixed`.

    `test` is every distinct question there; `dev` five others, drawn from the few-shot examples
    that lm-eval carries.
    """
    (archive,) = archives.values()
    test: dict[str, Row] = {}
    for _, content in files_of(archive, "evals/registry/data/sandbagging/*.jsonl"):
        for line in content.decode().splitlines():
            sample = json.loads(line)
            if row := _question(QUESTION, sample["question"], sample["answer"]):
                test.setdefault(_plain(row["question"]), row)
    shots = [row for row in _few_shots() if _plain(row["question"]) not in test]
    dev = random.Random("mixed/dev").sample(shots, 5)
    return {
        "mixed/dev": Dataset.from_list(dev),
        "mixed/test": Dataset.from_list(list(test.values())),
    }


QUESTION = re.compile(r"(.+?)\s*\nA\. (.+)\nB\. (.+)\nC\. (.+)\nD\. (.+)\nAnswer:\s*", re.DOTALL)
SHOT = re.compile(r"(.+)\n\(A\) (.+) \(B\) (.+) \(C\) (.+) \(D\) (.+)", re.DOTALL)
ANSWER = re.compile(r"The answer is \(([ABCD])\)\.?\s*$")


def _few_shots() -> Iterator[Row]:
    """The worked examples of lm-eval's `flan_cot_fewshot`, reduced to question and answer."""
    package = importlib.util.find_spec("lm_eval")
    if package is None or package.origin is None:
        raise WorkError(
            "the few-shot examples come from the package lm_eval, which is not installed"
        )
    file = Path(package.origin).parent / "tasks" / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    for prompts in json.loads(file.read_text()).values():
        for example in prompts.split("\n\nQ: ")[1:]:
            text, _, reasoning = example.partition("\nA: ")
            letter = ANSWER.search(reasoning)
            if letter and (row := _question(SHOT, text, letter[1])):
                yield row


def _question(form: re.Pattern[str], text: str, letter: str) -> Row | None:
    match = form.fullmatch(text.strip())
    if match is None or letter not in "ABCD":
        return None
    question, *choices = (part.strip() for part in match.groups())
    answer = "ABCD".index(letter)
    return {"question": question, "subject": "mixed", "choices": choices, "answer": answer}


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


READERS: dict[str, Callable[..., Tables]] = {
    "hutto-reviews": hutto_reviews,
    "gettext-ro": gettext_ro,
    "evals-instructions": evals_instructions,
    "evals-mmlu": evals_mmlu,
}
