"""The table of methods: what is shipped is valid, `like` starts from another, a config wins."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lorasp.config import load_config
from lorasp.errors import UsageError
from lorasp.methods import GROUPS, METHODS, merge, table

ROOT = Path(__file__).parents[1]
SHIPPED = table()


def as_written() -> dict[str, Any]:
    files = [yaml.safe_load(file.read_text()) for file in sorted(METHODS.glob("*.yaml"))]
    names = [name for file in files for name in file]
    assert len(names) == len(set(names))
    return {name: entry for file in files for name, entry in file.items()}


def test_every_entry_of_every_file_is_in_the_table() -> None:
    assert set(as_written()) <= set(SHIPPED)
    assert len(SHIPPED) >= 45


def test_the_table_is_valid_by_the_schema_of_a_configuration() -> None:
    config = load_config(ROOT / "config" / "smoke.yaml")
    assert set(SHIPPED) <= set(config["methods"])
    assert all(entry["group"] in GROUPS for entry in SHIPPED.values())


def test_labels_tell_methods_apart() -> None:
    labels = [entry["label"] for entry in SHIPPED.values()]
    assert len(labels) == len(set(labels))


def test_a_size_is_a_setting_that_the_entry_has() -> None:
    sized = {name: entry for name, entry in SHIPPED.items() if "size" in entry}
    # SpaRTA's share follows from its sparsity where none is given
    lacking = {name for name, entry in sized.items() if entry["size"] not in entry["settings"]}
    assert lacking <= {"sparta", "adamss"} and len(sized) > 30


def test_like_takes_over_what_is_not_said_anew() -> None:
    one = SHIPPED["lora-sp-rank-init"]
    assert one["family"] == "LORA_SP" and one["label"] == "LoRA-SP, ranks (init)"
    assert one["settings"] == {
        **SHIPPED["lora-sp"]["settings"],
        "selection": "rank",
        "unselected": "init",
    }
    assert "like" not in one
    assert SHIPPED["lora-sp"] == as_written()["lora-sp"]


def test_what_a_configuration_says_of_a_method_holds_for_those_like_it() -> None:
    found = table({"lora-sp": {"settings": {"rank": 4}}, "mine": {"like": "lora-sp-d25"}})
    for name in ("lora-sp", "lora-sp-rank-init", "lora-sp-d25", "mine"):
        assert found[name]["settings"]["rank"] == 4
    assert found["mine"]["settings"]["density"] == 0.25
    assert (found["mine"]["group"], found["mine"]["label"]) == ("own", "mine")
    assert table() == SHIPPED  # and nothing of it stays


def test_no_entry_shares_its_settings_with_another() -> None:
    found = table({"mine": {"like": "lora-sp"}})
    found["lora-sp"]["settings"]["rank"] = 99
    assert found["mine"]["settings"]["rank"] == 16


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"a": {"like": "lora-pro"}}, r"methods\.a\.like is 'lora-pro'; allowed is the name"),
        ({"a": {"like": 3}}, r"methods\.a\.like is 3"),
        ({"a": {"like": "a"}}, r"methods\.a is like a and so itself"),
        ({"a": {"like": "b"}, "b": {"like": "a"}}, r"is like (a|b) and so itself"),
        ({"lora-sp": {"like": "lora-sp-rank"}}, r"and so itself"),
    ],
)
def test_like_that_leads_nowhere_is_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        table(own)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"like": "lora", "applies_to": ["encoder"]}, "because"),
        ({"like": "lora", "because": "so"}, "applies_to"),
        ({"like": "lora", "applies_to": ["decoder"]}, "applies_to"),
        ({"like": "lora", "match": {"trainable": "lora", "time": "lora"}}, "match"),
        ({"like": "lora", "match": {"trainable": "lora-pro"}}, "lora-pro"),
        ({"like": "lora", "settings": {"optimizer": {"kind": "sgd"}}}, "optimizer"),
        ({"like": "lora", "settings": {"optimizer": {}}}, "optimizer"),
        ({"like": "lora", "colour": "red"}, "colour"),
        ({"family": "LORA"}, "source"),
        (7, "mine"),
    ],
)
def test_a_configuration_with_a_wrong_entry_is_refused(
    entry: Any, message: str, tmp_path: Path
) -> None:
    (tmp_path / "smoke.yaml").write_text((ROOT / "config" / "smoke.yaml").read_text())
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"extends": "smoke.yaml", "methods": {"mine": entry}}))
    with pytest.raises(UsageError, match=message):
        load_config(path)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("1: {like: lora}", "methods: 1 is not of type 'string'"),
        ("on: {like: lora}", "methods: True is not of type 'string'"),
        ("1: {}\n  mine: {like: nothing}", "methods.mine.like is 'nothing'; allowed is the name"),
        ("1: {}\n  mine: {like: 1}", "methods.mine.like is 1; allowed is the name"),
    ],
)
def test_a_name_that_yaml_reads_as_no_text_is_refused(
    methods: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "smoke.yaml").write_text((ROOT / "config" / "smoke.yaml").read_text())
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: smoke.yaml\nmethods:\n  {methods}\n")
    with pytest.raises(UsageError) as error:
        load_config(path)
    assert message in str(error.value)


def test_merge_changes_neither_side() -> None:
    under, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(under, over) == {"a": {"b": 3, "c": 2}}
    assert (under, over) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})
