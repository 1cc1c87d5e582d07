"""Numbers in JSON, which has neither infinity nor NaN."""

import json
import math
from pathlib import Path
from typing import Any

from onepass._files import write_text


def finite(number: float | None) -> float | None:
    """Return a number that JSON can hold, or None."""
    return number if number is not None and math.isfinite(number) else None


def write_json(path: Path, thing: Any) -> None:
    """Write a file atomically."""
    write_text(path, json.dumps(thing, indent=2, allow_nan=False) + "\n")
