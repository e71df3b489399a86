"""Writes the generated parts of docs/planning.md in place; with --check it only tells whether they differ.

They are the keys of a plan, and what commands print: a line `<!-- plan: docs/plans/FILE.toml -->`
stands above the block that `aclserve plan run docs/plans/FILE.toml` prints.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from pathlib import Path

from aclserve_server.cli import main as aclserve
from aclserve_server.options import Option, options_of
from aclserve_server.plan.settings import NAMED, SECTIONS, Run

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "planning.md"

BLOCK = re.compile(r"(<!-- plan: (\S+) -->\n```text\n)(.*?)(```\n)", re.DOTALL)
_KEYS = re.compile(r"(<!-- keys: begin -->\n)(.*?)(<!-- keys: end -->\n)", re.DOTALL)


def keys_text() -> str:
    """The keys of all sections, as Markdown tables."""
    sections = {"": Run, **SECTIONS, **{f"{name}.NAME": kind for name, kind in NAMED.items()}}
    parts = []
    for name, kind in sections.items():
        head = f"`[{name}]`" if name else "At the top"
        about = (kind.__doc__ or "").strip()
        lines = [
            f"{head}: {about[0].lower()}{about[1:]}",
            "",
            "| Key | Default | Unit | Meaning |",
            "|---|---|---|---|",
        ]
        parts.append("\n".join([*lines, *map(_row, options_of(kind))]))
    return "\n" + "\n\n".join(parts) + "\n\n"


def _row(option: Option) -> str:
    default = option.show(option.default)
    meaning = option.help[0].upper() + option.help[1:]
    if option.choices:
        meaning += " (" + ", ".join(f"`{choice}`" for choice in option.choices) + ")"
    cells = (f"`{option.name}`", f"`{default}`" if default else "", option.unit, meaning)
    return "| " + " | ".join(cells) + " |"


def run(plan: str) -> str:
    """What `aclserve plan run` prints of a plan; RuntimeError where it fails."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = aclserve(["plan", "run", str(ROOT / plan)])
    if code:
        raise RuntimeError(f"aclserve plan run {plan} ended with {code}")
    return out.getvalue()


def renew(text: str) -> str:
    """The page with all its generated parts made anew."""
    text = _KEYS.sub(lambda found: found[1] + keys_text() + found[3], text)
    return BLOCK.sub(lambda found: found[1] + run(found[2]) + found[4], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a part differs")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    fresh = renew(text)
    if text != fresh and check:
        print("docs/planning.md does not fit its plans or plan/settings.py; run: make plan-docs", file=sys.stderr)
        return 1
    if text != fresh:
        PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
