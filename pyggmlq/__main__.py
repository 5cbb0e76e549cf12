# SPDX-License-Identifier: MIT
"""``python -m pyggmlq``."""

from .cli import app

app(prog_name="pyggmlq")
