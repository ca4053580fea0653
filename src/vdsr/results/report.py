"""RESULTS.md and its pictures, from run records alone."""

import logging
import os
from pathlib import Path

from vdsr.results import markdown, runs
from vdsr.results.section import Section
from vdsr.results.sections import sections

log = logging.getLogger(__name__)


def write(records: Path, out: Path, pictures: Path) -> list[Section]:
    """Write `out` and the pictures it shows, from every record below `records`; returns the sections.

    The same records give the same bytes of `out`. Raises InputError before anything is written when a record is
    cut off, older or newer than this version reads.
    """
    made = sections(runs.read(records))
    here = out.parent
    text = markdown.render(made, os.path.relpath(records, here), os.path.relpath(pictures, here))
    here.mkdir(parents=True, exist_ok=True)
    drawn = [picture for section in made for part in section.parts for picture in part.pictures]
    for picture in drawn:
        picture.draw(pictures / picture.file)
    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    total = sum(len(section.runs) for section in made)
    log.info("%s: %d runs, %d pictures in %s", out, total, len(drawn), pictures)
    return made
