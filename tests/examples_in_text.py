"""Running the examples on a page."""

import re
from typing import Any

EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.M | re.S)


def run_examples(text: str, capsys: Any) -> None:
    """Run the Python blocks of a page one after the other; each prints the text block below it."""
    scope: dict[str, object] = {}
    for code, printed in EXAMPLE.findall(text):
        exec(compile(code, "example", "exec"), scope)
        assert capsys.readouterr().out == printed
