"""Writes the generated parts of README.md in place; with --check it only tells whether they differ.

They stand between marks: the options (from config.py) and what the emulated device does not do (from the docstring of
the emulator package, without its first paragraph).
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

from aclserve_server.config import options_table

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
EMULATOR = ROOT / "service" / "aclserve_server" / "emulator" / "__init__.py"


def emulator_text() -> str:
    """What the emulated device does and does not do, as its package says it."""
    text = ast.get_docstring(ast.parse(EMULATOR.read_text(encoding="utf-8"))) or ""
    return text.partition("\n\n")[2].strip() + "\n"


def replace_part(text: str, name: str, content: str) -> str:
    """The text with new content between the marks of a part; ValueError without the marks."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, begin_found, rest = text.partition(begin)
    _, end_found, after = rest.partition(end)
    if not begin_found or not end_found:
        raise ValueError(f"README.md needs the lines {begin.strip()} and {end.strip()}")
    return before + begin + "\n" + content + "\n" + end + after


def renew(text: str) -> str:
    """README.md with all its generated parts made anew."""
    return replace_part(replace_part(text, "options", options_table()), "emulator", emulator_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a part differs")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    fresh = renew(text)
    if text != fresh and check:
        print("README.md does not fit config.py or the emulator's docstring; run: make fix", file=sys.stderr)
        return 1
    if text != fresh:
        README.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
