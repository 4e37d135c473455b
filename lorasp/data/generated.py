"""Tiny invented data sets in the real layouts: seeded, balanced, learnable from single words."""

import functools
import random
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from lorasp.data.mmlu import SUBJECTS
from lorasp.errors import UsageError

Row = dict[str, Any]
Maker = Callable[[int, random.Random], Row]
Tables = dict[str, Dataset]

GLUE_ROWS = {"train": 64, "validation": 32}
TRANSLATION_ROWS = {"train": 64, "validation": 16, "test": 16}
ALPACA_ROWS = 48

NOUNS = ["cat", "river", "city", "house", "teacher", "summer", "bread", "flower", "bird", "table"]
VERBS = ["sees", "finds", "carries", "follows", "likes", "paints"]
GOOD = ["bright", "kind", "lovely", "clever"]
BAD = ["gloomy", "cruel", "boring", "clumsy"]
# Word for word, without grammar: the model has a mapping to learn, diacritics included.
ROMANIAN = {
    "the": "această",
    "cat": "pisică",
    "river": "râu",
    "city": "oraș",
    "house": "casă",
    "teacher": "învățător",
    "summer": "vară",
    "bread": "pâine",
    "flower": "floare",
    "bird": "pasăre",
    "table": "masă",
    "sees": "vede",
    "finds": "găsește",
    "carries": "cară",
    "follows": "urmează",
    "likes": "place",
    "paints": "pictează",
    "bright": "strălucitor",
    "kind": "bun",
    "lovely": "încântător",
    "clever": "deștept",
    "gloomy": "posomorât",
    "cruel": "crud",
    "boring": "plictisitor",
    "clumsy": "împiedicat",
}


def tables(task: str) -> Tables:
    """The splits of the generated data set for a task; equal on every machine."""
    return {
        split: Dataset.from_list([row(index, rng) for index in range(count)])
        for split, (row, count, rng) in _plan(task).items()
    }


def _plan(task: str) -> dict[str, tuple[Maker, int, random.Random]]:
    """The maker of rows, their number and their own stream of random numbers for each split."""
    makers: dict[str, Maker]
    if task == "mmlu":
        makers = {
            f"{subject}/{split}": functools.partial(_mmlu, subject)
            for subject in SUBJECTS
            for split in ("dev", "test")
        }
        counts = {split: 5 if split.endswith("dev") else 1 for split in makers}
    elif task == "wmt16-en-ro":
        counts = TRANSLATION_ROWS
        makers = dict.fromkeys(counts, _translation)
    elif task == "alpaca-mmlu":
        counts = {"train": ALPACA_ROWS}
        makers = {"train": _alpaca}
    elif task in GLUE:
        counts = GLUE_ROWS
        if task == "mnli":
            counts = {"train": 64, "validation_matched": 32, "validation_mismatched": 32}
        makers = dict.fromkeys(counts, GLUE[task])
    else:
        known = ", ".join(sorted([*GLUE, "wmt16-en-ro", "alpaca-mmlu", "mmlu"]))
        raise UsageError(f"no data can be generated for task {task!r}; they can for {known}")
    return {
        split: (makers[split], counts[split], random.Random(f"{task}/{split}")) for split in counts
    }


def _clause(rng: random.Random, adjectives: list[str]) -> str:
    """Six to twelve words, so that texts differ in length."""
    words = ["the", rng.choice(adjectives), rng.choice(NOUNS), rng.choice(VERBS), "the"]
    more = rng.choices(adjectives, k=rng.randrange(7))
    return " ".join([*words, *more, rng.choice(NOUNS)])


def _sst2(index: int, rng: random.Random) -> Row:
    label = index % 2
    return {"sentence": _clause(rng, GOOD if label else BAD), "label": label, "idx": index}


def _cola(index: int, rng: random.Random) -> Row:
    label = index % 2
    words = _clause(rng, GOOD + BAD).split()
    if not label:
        words.reverse()
    return {"sentence": " ".join(words), "label": label, "idx": index}


def _same_or_other(rng: random.Random, same: bool) -> tuple[str, str]:
    """Two clauses: about the same (kind words), or unlike (the second is all unkind words)."""
    first = _clause(rng, GOOD)
    return first, f"surely {first}" if same else _clause(rng, BAD)


def _pair(first_column: str, second_column: str, same_label: int) -> Maker:
    def make(index: int, rng: random.Random) -> Row:
        label = index % 2
        first, second = _same_or_other(rng, label == same_label)
        return {first_column: first, second_column: second, "label": label, "idx": index}

    return make


def _qnli(index: int, rng: random.Random) -> Row:
    label = index % 2
    answer, other = _same_or_other(rng, label == 0)
    return {"question": f"who {answer} ?", "sentence": other, "label": label, "idx": index}


def _mnli(index: int, rng: random.Random) -> Row:
    label = index % 3
    premise = _clause(rng, GOOD)
    hypothesis = [f"surely {premise}", f"maybe {_clause(rng, BAD)}", f"never {premise}"][label]
    return {"premise": premise, "hypothesis": hypothesis, "label": label, "idx": index}


def _stsb(index: int, rng: random.Random) -> Row:
    """The score, 0 to 5, is how many of the five content words are shared."""
    score = index % 6
    first = rng.sample(NOUNS[:5] + GOOD, 5)
    other = rng.sample(NOUNS[5:] + BAD, 5)
    sentences = {"sentence1": " ".join(first), "sentence2": " ".join(first[:score] + other[score:])}
    return {**sentences, "label": float(score), "idx": index}


GLUE: dict[str, Maker] = {
    "mnli": _mnli,
    "sst2": _sst2,
    "mrpc": _pair("sentence1", "sentence2", same_label=1),
    "cola": _cola,
    "qnli": _qnli,
    "qqp": _pair("question1", "question2", same_label=1),
    "rte": _pair("sentence1", "sentence2", same_label=0),
    "stsb": _stsb,
}


def _translation(index: int, rng: random.Random) -> Row:
    english = _clause(rng, GOOD + BAD)
    return {"en": english, "ro": " ".join(ROMANIAN[word] for word in english.split())}


def _alpaca(index: int, rng: random.Random) -> Row:
    """Every third row has no input, as many of Alpaca's do."""
    word = rng.choice(NOUNS)
    if index % 3 == 0:
        return {"instruction": f"Say {word} twice.", "input": "", "output": f"{word} {word}"}
    text = f"the {rng.choice(GOOD)} {word}"
    return {"instruction": "Give the noun.", "input": text, "output": word}


def _mmlu(subject: str, index: int, rng: random.Random) -> Row:
    """The answer is the one kind word; its place goes round."""
    choices = rng.sample(BAD, 3)
    answer = rng.randrange(4)
    choices.insert(answer, rng.choice(GOOD))
    question = f"Which word is kind to the {rng.choice(NOUNS)}?"
    return {"question": question, "subject": subject, "choices": choices, "answer": answer}
