# SPDX-License-Identifier: Apache-2.0
"""Hold files to 400 lines and functions to 60, so that each can be read in one sitting.

An exception needs a line in `ALLOWED` with its reason, and is dropped when it is no longer needed.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (
    "qam_ros",
    "qam_train",
    "sim",
    "tests",
    "benchmarks",
    "tools",
    "launch",
    "examples",
)
FILE_LINES = 400
FUNCTION_LINES = 60
ALLOWED: dict[str, str] = {}


def too_long(path: Path) -> dict[str, int]:
    """Return the parts of a file over budget: `file` or `file:function` and its lines."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    found = {}
    lines = len(text.splitlines())
    if lines > FILE_LINES:
        found[name] = lines
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                found[f"{name}:{node.name}"] = lines
    return found


def main() -> int:
    """Print what is over budget and not allowed, and what is allowed in vain."""
    found: dict[str, int] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(too_long(path))
    for name in sorted(found.keys() - ALLOWED.keys()):
        limit = FUNCTION_LINES if ":" in name else FILE_LINES
        print(f"{name}: {found[name]} lines, budget {limit}; split it", file=sys.stderr)
    for name in sorted(ALLOWED.keys() - found.keys()):
        print(f"{name}: fits its budget now; drop it from ALLOWED", file=sys.stderr)
    return 1 if found.keys() ^ ALLOWED.keys() else 0


if __name__ == "__main__":
    raise SystemExit(main())
