"""Picture sheets: what one or two models find, side by side, with their curves, in one file that opens anywhere."""

from edgeyolo.sheet.content import Sheet, Side, Subject
from edgeyolo.sheet.write import SUFFIXES, check_sheet, write_sheet

__all__ = ["SUFFIXES", "Sheet", "Side", "Subject", "check_sheet", "write_sheet"]
