"""All rows, in the order in which a round does them."""

from __future__ import annotations

from benchlib import row, rows_content, rows_names

ROWS = row.ROWS
MODULES = (rows_content, rows_names)
"""They register their rows when they are imported, and in this order."""
