# SPDX-License-Identifier: Apache-2.0
"""Keep the file tree of the README: one line a file, the first line of its docstring.

python tools/file_tree.py          # rewrite the tree between the two markers of README.md
python tools/file_tree.py --check  # exit code 1 when it is out of date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- files: tools/file_tree.py -->", "<!-- end of files -->"
PACKAGES = ("qam_ros", "qam_train", "sim")
WIDTH = 24


def first_line(path: Path) -> str:
    """First line of a module's docstring, without the full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".")


def tree() -> str:
    """The tree as a code block: a line a folder, below it a line a file."""
    lines = ["```"]
    for package in PACKAGES:
        folders = sorted({path.parent for path in (ROOT / package).rglob("*.py")})
        for folder in folders:
            files = sorted(folder.glob("*.py"))
            files = [path for path in files if path.name != "__init__.py"]
            if files:
                lines.append(f"{folder.relative_to(ROOT).as_posix()}/")
                lines += [
                    f"    {path.name:{WIDTH}}{first_line(path)}" for path in files
                ]
    return "\n".join([*lines, "```"])


def main(arguments: list[str]) -> int:
    """Rewrite or check the tree; returns the exit code."""
    text = README.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"README.md: expected the markers {BEGIN} and {END}; put them back")
        return 1
    wanted = f"{before}{BEGIN}\n{tree()}\n{END}{after}"
    if wanted == text:
        return 0
    if "--check" in arguments:
        print(
            "README.md: the file tree is out of date; run python tools/file_tree.py (or make fmt)"
        )
        return 1
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
