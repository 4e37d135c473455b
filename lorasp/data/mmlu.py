"""The layout of MMLU on disk: one configuration a subject, readable by `datasets` and lm-eval."""

from pathlib import Path

import yaml

# The names of the 57 configurations of cais/mmlu.
SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology
college_chemistry college_computer_science college_mathematics college_medicine college_physics
computer_security conceptual_physics econometrics electrical_engineering elementary_mathematics
formal_logic global_facts high_school_biology high_school_chemistry high_school_computer_science
high_school_european_history high_school_geography high_school_government_and_politics
high_school_macroeconomics high_school_mathematics high_school_microeconomics high_school_physics
high_school_psychology high_school_statistics high_school_us_history high_school_world_history
human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning
management marketing medical_genetics miscellaneous moral_disputes moral_scenarios nutrition
philosophy prehistory professional_accounting professional_law professional_medicine
professional_psychology public_relations security_studies sociology us_foreign_policy virology
world_religions
""".split()
SPLITS = ("dev", "validation", "test")


def file_name(table: str) -> str:
    """`subject/split` as a file: the name that `datasets` gives to a table of one shard."""
    return f"{table}-00000-of-00001.parquet"


def write_card(folder: Path, tables: list[str]) -> None:
    """README.md with the list of configurations by which `datasets.load_dataset(folder, subject)` works."""
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
