"""The layout of MMLU on disk: one configuration a subject, readable by `datasets` and lm-eval."""

from pathlib import Path

import yaml

from lorasp.results import read_yaml

NAMES = Path(__file__).parent / "names.yaml"
SUBJECTS: list[str] = read_yaml(NAMES)["mmlu_subjects"]
SPLITS = ("dev", "validation", "test")


def file_name(table: str) -> str:
    """`subject/split` as a file: the name that `datasets` gives to a table of one shard."""
    return f"{table}-00000-of-00001.parquet"


def write_card(folder: Path, tables: list[str]) -> None:
    """README.md with the list by which `datasets.load_dataset(folder, subject)` finds its files."""
    subjects: dict[str, list[str]] = {}
    for table in tables:
        subject, split = table.split("/")
        subjects.setdefault(subject, []).append(split)
    configs = [
        {
            "config_name": subject,
            "data_files": [
                {"split": split, "path": file_name(f"{subject}/{split}")} for split in splits
            ],
        }
        for subject, splits in sorted(subjects.items())
    ]
    card = yaml.safe_dump({"configs": configs}, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{card}---\n")
