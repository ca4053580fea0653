"""Sections as Markdown: RESULTS.md."""

import re
from collections.abc import Iterable, Sequence

from vdsr.results.runs import Run
from vdsr.results.section import NOTHING, Section, Table, Verdict, percent

HEAD = """# Results

Generated from the run records in `{records}` by `python src/report.py`; nothing here is typed by hand. The paper is
Kim, Lee & Lee, CVPR 2016 (arXiv 1511.04587). PSNR in dB and SSIM on luma. Beside ours stand the paper's figure and the
difference in brackets; mean ± standard deviation where there are three seeds or more. The paper's schedule draws
637,440 patches (9,960 steps of 64); what was trained with less or more says so in its row. Weights are those of a
run's last step, never the best on a benchmark.
"""
EMPTY = "\nNo run has been recorded yet.\n"


def render(sections: Sequence[Section], records: str, pictures: str) -> str:
    """The whole document. records, pictures: their folders, as seen from the document."""
    text = HEAD.format(records=records)
    if not sections:
        return text + EMPTY
    claims = [
        [verdict.claim, _said(verdict), verdict.by, ": ".join(filter(None, (section.title, part.title)))]
        for section in sections
        for part in section.parts
        for verdict in part.verdicts
    ]
    if claims:
        text += "\n## Claims\n\n" + table(Table(["claim", "verdict", "by", "from"], claims))
    return text + "".join(_section(section, pictures) for section in sections)


def table(content: Table) -> str:
    """A GitHub table; every cell's text is escaped."""
    rows = [content.header, ["---"] * len(content.header), *content.rows]
    lines = ["| " + " | ".join(cell if row is rows[1] else escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Any text as Markdown that shows it as it is; newlines become line breaks."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text).replace("\n", "<br>")


def _section(section: Section, pictures: str) -> str:
    text = f"\n## {section.title}\n" + (f"\n{section.question}\n" if section.question else "")
    for part in section.parts:
        text += f"\n### {escape(part.title)}\n" if part.title else ""
        text += "".join(f"\n{table(content)}" for content in part.tables)
        text += "".join(f"\n![{picture.text}]({pictures}/{picture.file})\n" for picture in part.pictures)
        text += "\n" if part.verdicts else ""
        text += "".join(f"- {escape(v.claim)}: **{_said(v)}** ({escape(v.by)})\n" for v in part.verdicts)
    if section.runs:
        text += f"\n<details><summary>Every run: {len(section.runs)}</summary>\n\n{_runs(section.runs)}\n</details>\n"
    return text


def _said(verdict: Verdict) -> str:
    return {True: "holds", False: "does not hold", None: "not shown yet"}[verdict.holds]


def _runs(runs: Iterable[Run]) -> str:
    """A row a run: what it cost and what repeats it. The command goes in as code, which escapes itself."""
    header = ["outcome", "trained with", "data", "seed", "precision", "hardware", "seconds", "patches/s", "commit"]
    lines = table(Table(header, [_row(run) for run in runs])).splitlines()
    commands = ["repeat at that commit with", "---", *(_code(run.command) for run in runs)]
    return "\n".join(f"{line} {command} |" for line, command in zip(lines, commands, strict=True)) + "\n"


def _row(run: Run) -> list[str]:
    done = int(run.record["steps"])
    share = f"{percent(run.share * done / run.planned)} of the paper's patches" if run.planned else NOTHING
    rate = run.patches_per_second
    commit = str(run.record.get("commit") or NOTHING)
    return [
        run.outcome,
        f"{done:,} steps × {run.batch}: {share}",
        f"{run.data} {run.checksum[:8]}",
        str(run.seed),
        run.arithmetic,
        run.hardware or NOTHING,
        f"{run.record['seconds']:,.0f}",
        f"{rate:,.0f}" if rate else NOTHING,
        commit[:8] + ("-modified" if commit.endswith("-modified") else ""),
    ]


def _code(text: str) -> str:
    """Text as code; in a table a bar is escaped even there."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|").replace("\n", " ")
