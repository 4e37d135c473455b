"""The tables of measured costs, on made-up profiles."""

from pathlib import Path

import pytest
from fakes import smoke, write_profile

from lorasp.config import Config
from lorasp.report.collect import collect
from lorasp.report.costs import peaks_frame, profile_frame
from lorasp.report.tables import TIMES


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return smoke()


def test_peaks_stand_by_phase_beside_the_simulated_one(config: Config) -> None:
    write_profile(config, "roberta-tiny", "lora", 0.01, 4_000)
    memory = peaks_frame(config, collect(config)).set_index(["Model", "Method"])
    assert memory.loc[("roberta-tiny", "LoRA")].to_dict() == {
        f"Batch {TIMES} length": f"8 {TIMES} 32",
        "Forward, MiB": "4",
        "Backward, MiB": "5",
        "Optimizer, MiB": "3",
        "Peak, MiB": "5",
        "Simulated, MiB": "4.94",
        "Difference": "\N{MINUS SIGN}1.2 %",
    }
    assert set(memory.loc[("roberta-tiny", "FT")][1:]) == {"not run"}


def test_energy_has_a_column_where_a_device_reported_it(config: Config) -> None:
    write_profile(config, "roberta-tiny", "lora", 0.01, 4_000)
    assert "Energy a step" not in profile_frame(config, collect(config)).columns
    write_profile(config, "roberta-tiny", "lora-half", 0.01, 4_000, joules=2.5)
    write_profile(config, "t5-tiny", "lora", 0.01, 4_000, joules=2.0)
    write_profile(config, "t5-tiny", "lora-sp", 0.01, 4_000, joules=3.0)
    energy = profile_frame(config, collect(config)).set_index(["Model", "Method"])["Energy a step"]
    assert energy["roberta-tiny", "LoRA"] == "not counted"
    assert energy["roberta-tiny", "LoRA, r/2"] == "2.5 J"  # LoRA has none to compare with
    assert energy["t5-tiny", "LoRA-SP"] == f"3 J ({TIMES}1.50)"
    assert energy["t5-tiny", "FT"] == "not run"
