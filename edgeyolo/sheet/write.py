"""Write a sheet as one HTML or PNG file."""

from __future__ import annotations

import os
from pathlib import Path

from edgeyolo.errors import InputError
from edgeyolo.output import check_free_file, write_file
from edgeyolo.plots import require_matplotlib
from edgeyolo.sheet.contact import contact_sheet
from edgeyolo.sheet.content import Sheet
from edgeyolo.sheet.page import html_page

SUFFIXES = (".html", ".png")


def check_sheet(target: Path, *, force: bool, curves: bool) -> None:
    """Find out before the work what would be wrong after it.

    Args:
        target: the file to write.
        force: an existing file is replaced.
        curves: the sheet will have plots.

    Raises:
        InputError: unknown suffix, the file exists, its folder cannot be written, or matplotlib is missing.
    """
    if target.suffix.lower() not in SUFFIXES:
        allowed = " or ".join(SUFFIXES)
        raise InputError("a sheet is an HTML or a PNG file", where="--sheet", got=str(target), allowed=allowed)
    if os.path.lexists(target) and (target.is_dir() or not force):
        hint = "choose another name" if target.is_dir() else "choose another name, or add --force"
        raise InputError("the sheet's file exists", where=target, hint=hint)
    check_free_file(target, force=force)
    if curves:
        require_matplotlib("the sheet's curves")


def write_sheet(target: Path, sheet: Sheet, *, force: bool = False) -> None:
    """Write ``sheet`` whole or not at all; the suffix decides the format. Raises InputError as ``check_sheet`` does."""
    check_sheet(target, force=force, curves=False)
    page = target.suffix.lower() == ".html"
    write_file(target, html_page(sheet).encode() if page else contact_sheet(sheet), force=force)
