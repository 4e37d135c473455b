"""Methods of which something is this suite's own reading: a mark on the name, and the sentence."""

from typing import Any

import pandas as pd

from lorasp.config import Config

MARK = "†"


def marked(config: Config) -> Config:
    """The configuration with the mark on the label of every method that has an `interpretation`."""
    methods = {
        name: entry | {"label": f"{entry['label']} {MARK}"} if "interpretation" in entry else entry
        for name, entry in config["methods"].items()
    }
    return config | {"methods": methods}


def footnotes(config: Config, used: set[str]) -> list[dict[str, Any]]:
    """{label, text} of each marked method among those used."""
    return [
        {"label": entry["label"], "text": entry["interpretation"]}
        for name, entry in config["methods"].items()
        if name in used and "interpretation" in entry
    ]


def named_in(readings: list[dict[str, Any]], *shown: pd.DataFrame) -> list[dict[str, Any]]:
    """Those of the marked methods that one of these tables names."""
    return [
        reading
        for reading in readings
        if any(frame[c].eq(reading["label"]).any() for frame in shown for c in frame)
    ]


def told_in(readings: list[dict[str, Any]], sentences: list[str]) -> list[dict[str, Any]]:
    """Those of the marked methods that one of these sentences names."""
    return [r for r in readings if any(r["label"] in sentence for sentence in sentences)]


def notes_of(frame: pd.DataFrame, readings: list[dict[str, Any]]) -> list[str]:
    """The sentences of the marked methods that a table names."""
    return [f"{reading['label']}: {reading['text']}" for reading in named_in(readings, frame)]
