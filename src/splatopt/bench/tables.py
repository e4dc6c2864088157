"""Tables, and how they are written: Markdown, LaTeX, CSV, HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from splatopt.core.checks import shown
from splatopt.report.page import escape


@dataclass(frozen=True)
class Number:
    """What stands in a place of a table.

    Attributes:
        mean: The number; None where no seed has one.
        form: How it is written.
        sd: Its standard deviation, if there is one.
        count: Values that it is the mean of.
        asked: Values that there could be; None where that is all.
        best: Whether it is the best of its column.
    """

    mean: float | None
    form: str
    sd: float | None = None
    count: int = 1
    asked: int | None = None
    best: bool = False

    @property
    def text(self) -> str:
        """The number in words: mean ± deviation where there is any, and how many of how many where some miss."""
        if self.mean is None:
            return f"not reached (0 of {self.asked})"
        text = format(self.mean, self.form)
        if self.sd:
            text += f" ± {format(self.sd, self.form.replace('+', ''))}"
        missing = self.asked is not None and self.count < self.asked
        return f"{text} ({self.count} of {self.asked})" if missing else text


Row = tuple[str, list[Number | None]]


@dataclass(frozen=True)
class Table:
    """Numbers in rows and columns.

    Attributes:
        title: What it shows.
        note: How the numbers came about.
        head: Heading of the rows' names.
        columns: Headings.
        rows: Name and numbers of each.
    """

    title: str
    note: str
    head: str
    columns: Sequence[str]
    rows: Sequence[Row]

    @property
    def texts(self) -> list[list[str]]:
        """Every place in words, rows of strings."""
        return [[name, *("–" if one is None else one.text for one in numbers)] for name, numbers in self.rows]


def bold_best(rows: Sequence[Row], better: Sequence[int]) -> None:
    """Mark the best numbers of each column in place; all that read the same as the best are marked.

    Args:
        rows: As in a table; numbers that not all seeds reached are never the best.
        better: For each column 1 where higher is better, -1 where lower is, 0 where neither.
    """
    if len(rows) < 2:
        return
    for column, sign in enumerate(better):
        there = [numbers[column] for _, numbers in rows]
        whole = [one for one in there if one and one.mean is not None and one.asked in (None, one.count)]
        if not sign or len({format(one.mean, one.form) for one in whole}) < 2:
            continue
        best = max(whole, key=lambda one: sign * (one.mean or 0.0))
        shown = format(best.mean, best.form)
        for _, numbers in rows:
            one = numbers[column]
            if one is not None and one in whole and format(one.mean, one.form) == shown:
                numbers[column] = replace(one, best=True)


def _is_best(number: Number | None) -> bool:
    return number is not None and number.best


def to_markdown(table: Table, level: int = 3) -> str:
    """Write a table as Markdown under a heading of ``level``; without one where it is 0."""
    lines = [f"{'#' * level} {as_markdown(table.title)}", ""] if level else []
    lines.append("| " + " | ".join(as_markdown(one) for one in (table.head, *table.columns)) + " |")
    lines.append("|---" + "|---:" * len(table.columns) + "|")
    for (name, numbers), texts in zip(table.rows, table.texts, strict=True):
        parts = [f"**{text}**" if _is_best(one) else text for one, text in zip(numbers, texts[1:], strict=True)]
        lines.append("| " + " | ".join([as_markdown(name), *parts]) + " |")
    return "\n".join([*lines, "", as_markdown(table.note), ""])


def as_markdown(text: str) -> str:
    """A text that Markdown shows as it stands."""
    return re.sub(r"([\\`*\[\]|#<>]|(?<!\w)_|_(?!\w))", r"\\\1", shown(" ".join(text.split())))


def to_latex(table: Table) -> str:
    """Write a table as LaTeX, with booktabs' rules."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.title)}. {_latex(table.note)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(_latex(one) for one in (table.head, *table.columns)) + r" \\",
        r"\midrule",
    ]
    for (name, numbers), texts in zip(table.rows, table.texts, strict=True):
        parts = [
            rf"\textbf{{{_latex(text)}}}" if _is_best(one) else _latex(text)
            for one, text in zip(numbers, texts[1:], strict=True)
        ]
        lines.append(" & ".join([_latex(name), *parts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def _latex(text: str) -> str:
    """A text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(letter, letter) for letter in shown(" ".join(text.split())))


def to_csv(tables: Sequence[Table]) -> str:
    """Write tables as one CSV, a line for each number: table, row, column, mean, deviation, count, best."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["table", "row", "column", "mean", "sd", "count", "of", "best"])
    for table in tables:
        for name, numbers in table.rows:
            for column, one in zip(table.columns, numbers, strict=True):
                if one is not None:
                    asked = one.count if one.asked is None else one.asked
                    texts = [_cell(text) for text in (table.title, name, column)]
                    writer.writerow([*texts, _written(one.mean), _written(one.sd), one.count, asked, int(one.best)])
    return stream.getvalue()


def _cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return shown(f"'{text}" if text[:1] in "=+-@\t\r" and text else text)


def _written(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def to_html(table: Table) -> str:
    """Write a table as HTML, everything in it escaped."""
    head = "".join(f"<th scope=col>{escape(one)}</th>" for one in (table.head, *table.columns))
    body = []
    for (name, numbers), texts in zip(table.rows, table.texts, strict=True):
        parts = [
            f"<td><b>{escape(text)}</b></td>" if _is_best(one) else f"<td>{escape(text)}</td>"
            for one, text in zip(numbers, texts[1:], strict=True)
        ]
        body.append(f"<tr><th scope=row>{escape(name)}</th>{''.join(parts)}</tr>")
    return (
        f'<div class="card scroll"><table class="numbers-table"><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="quiet small">{escape(table.note)}</p>'
    )
