"""Faults, made on purpose, on a real node between a real sender and a real archive.

`python -m tests.faults` runs them and prints one table; `docs/reliability.md` says what it proves.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The helpers of the integration tests import each other by their bare names.
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
