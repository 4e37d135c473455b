"""Text and tables in other forms than HTML: Markdown, CSV, and LaTeX with booktabs rules."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from markupsafe import escape

from lorasp.report.tables import NOT_PLANNED, TIMES
from lorasp.results import atomic

# What pdfLaTeX does not read as it stands.
LATEX = {
    "±": r"$\pm$",
    TIMES: r"$\times$",
    NOT_PLANNED: r"$\cdot$",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{LEFT SINGLE QUOTATION MARK}": "`",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "\N{NO-BREAK SPACE}": "~",
    "…": r"\ldots{}",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "→": r"$\to$",
    "⊙": r"$\odot$",
    "Δ": r"$\Delta$",
    "δ": r"$\delta$",
    "ᵀ": "$^T$",
    "²": "$^2$",
    "†": r"$\dagger$",
    "½": r"$\frac12$",
}
ESCAPES = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ESCAPED = str.maketrans(ESCAPES | {sign: f"\\{sign}" for sign in "&%$#_{}"})
# After = and @ spreadsheets compute; after a sign too, where a call or a program follows.
FORMULA = re.compile(r"\s*[=@]|[\t\r]|\s*[+-].*([A-Za-z.]\(|[|!])", re.DOTALL)
PROSE = {"Where": 2.4, "Printed": 3.0, "Because": 6.0, "Found": 6.0, "Claim": 3.4}  # widths in cm


def plain(text: object) -> str:
    """Text for Markdown: HTML and links in a name stay text, and a pipe ends no table cell."""
    shown = str(escape(str(text))).replace("&#39;", "'").replace("&#34;", '"').replace("|", "\\|")
    return " ".join(re.sub(r"\](?=[(\[:])", r"]\\", shown).split())


def markdown(frame: pd.DataFrame, nothing: str = "no runs planned") -> str:
    """A frame of text as a Markdown table."""
    if frame.empty:
        return f"_{nothing}_"
    rows = [frame.columns, ["---"] * frame.shape[1], *frame.itertuples(index=False, name=None)]
    return "\n".join(f"| {' | '.join(plain(value) for value in row)} |" for row in rows)


def filled(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame of text without its column 'Missing' where nothing is."""
    return frame.drop(columns="Missing") if set(frame.get("Missing", "?")) == {""} else frame


def latex(frame: pd.DataFrame, prose: bool = False) -> str:
    """A frame of text as a LaTeX table; `prose` breaks long texts into lines and over pages."""
    columns = "lll" + "r" * (frame.shape[1] - 3)
    if prose:
        columns = "".join(
            rf"p{{{PROSE[name]}cm}}" if name in PROSE else "l" for name in frame.columns
        )
    text = str(frame.to_latex(index=False, escape=True, column_format=columns, longtable=prose))
    return _typeset(text)


def _typeset(text: str) -> str:
    for sign, command in LATEX.items():
        text = text.replace(sign, command)
    return text


def as_csv(frame: pd.DataFrame) -> str:
    """A frame as CSV in which no text is a formula to a spreadsheet: a quote before it tells."""
    return frame.map(lambda value: f"'{value}" if _is_formula(value) else value).to_csv(index=False)


def _is_formula(value: object) -> bool:
    """Whether a spreadsheet would compute a text; signed numbers with their spread are no risk."""
    return isinstance(value, str) and bool(FORMULA.match(value))


def write_frame(
    folder: Path, name: str, frame: pd.DataFrame, tex: str, notes: Sequence[str] = ()
) -> None:
    """One table as CSV, Markdown and LaTeX; notes stand below it, in CSV as rows of their own."""
    rows = pd.DataFrame({frame.columns[0]: list(notes)}) if notes else None
    noted = frame if rows is None else pd.concat([frame, rows], ignore_index=True).fillna("")
    write(folder / f"{name}.csv", as_csv(noted))
    write(folder / f"{name}.md", "\n\n".join([markdown(frame), *map(plain, notes)]) + "\n")
    below = [rf"\par\footnotesize {_typeset(note.translate(ESCAPED))}" + "\n" for note in notes]
    write(folder / f"{name}.tex", tex + "".join(below))


def write(path: Path, text: str) -> None:
    """Write a text through a temporary name."""
    with atomic(path) as temporary:
        temporary.write_text(text)
