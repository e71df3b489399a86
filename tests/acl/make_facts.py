"""Write facts.json: the part of the AscendCL facts (abi.json) that the driver's table is compared with.

    python tests/acl/make_facts.py PATH/TO/abi.json

Imports nothing of aclserve, so that the facts stay an independent witness. Which functions: those marked as the core.
Enums, structs, callbacks, handles and opaque types: whatever these functions need, through fields and parameters too.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("facts.json")

MACROS = re.compile(
    r"ACL_(MAX_|MDL_LOAD_|DYNAMIC_\w+_NAME|HOST_REG_|PKG_VERSION_|UNKNOWN_RANK|INVALID_NODE|TENSOR_SHAPE_RANGE"
    r"|RT_MEM_UCE|STOP_ON|CONTINUE_ON|EVENT_(?!RECORD_|WAIT_)|STREAM_(?!WAIT_))"
)


def make(abi: dict[str, Any]) -> dict[str, Any]:
    """The facts, as plain JSON data in a fixed order."""
    functions = [_function(row) for row in abi["functions"] if row["requested_core"]]
    texts = [text for row in functions for text in (row["result"], *(param[0] for param in row["params"]))]
    needed = _needed(abi, texts)
    return {
        "functions": functions,
        "enums": {name: _pick(row, "header", "underlying", "size", "members") for name, row in needed["enums"].items()},
        "structs": {name: _struct(row) for name, row in needed["structs"].items()},
        "callbacks": {name: _callback(row) for name, row in needed["callbacks"].items()},
        "aliases": {name: row["type"] for name, row in needed["aliases"].items()},
        "opaque": list(needed["opaque_types"]),
        "macros": {name: row["value"] for name, row in sorted(abi["macros"].items()) if MACROS.match(name)},
        "codes": {
            name: [row["value"], row["layer"], row["category"], row["meaning"]]
            for name, row in abi["error_codes"].items()
        },
    }


def _function(row: dict[str, Any]) -> dict[str, Any]:
    first = row["first_seen"]
    return {
        "name": row["name"],
        "result": row["return"]["type"],
        "params": [[param["type"], param["name"], param["dir"]] for param in row["params"]],
        "header": row["header"],
        "library": row["library"]["ge_8.5"][0],
        "since": re.sub(r"^(~|<=)|\s*\(.*$", "", first["cann"] or first["cann_approx"]),
    }


def _needed(abi: dict[str, Any], texts: list[str]) -> dict[str, dict[str, Any]]:
    kinds = ("enums", "structs", "callbacks", "aliases", "opaque_types")
    found: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    waiting = list(texts)
    while waiting:
        for word in re.findall(r"\w+", waiting.pop()):
            for kind in kinds:
                row = abi[kind].get(word)
                if row is not None and word not in found[kind]:
                    found[kind][word] = row
                    waiting += [field["type"] for field in row.get("fields", ())]
                    waiting += [param["type"] for param in row.get("params", ())]
                    waiting += [row.get("return", "")]
    return {kind: {name: abi[kind][name] for name in abi[kind] if name in rows} for kind, rows in found.items()}


def _struct(row: dict[str, Any]) -> dict[str, Any]:
    fields = [
        [
            field["name"],
            field["type"],
            [int(size) for size in field.get("array_dims", ())],
            field["offset"],
            field["size"],
        ]
        for field in row["fields"]
    ]
    return {**_pick(row, "kind", "header", "sizeof", "alignof"), "fields": fields}


def _callback(row: dict[str, Any]) -> dict[str, Any]:
    return {"result": row["return"], "params": [[param["type"], param["name"]] for param in row["params"]]}


def _pick(row: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: row[key] for key in keys}


def render(facts: dict[str, Any]) -> str:
    """JSON with one row of each section a line, so that a change of one fact is a change of one line."""
    sections = []
    for section, rows in facts.items():
        if isinstance(rows, dict):
            lines = [f"{json.dumps(key)}: {json.dumps(row, ensure_ascii=False)}" for key, row in rows.items()]
            opening, closing = "{", "}"
        else:
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            opening, closing = "[", "]"
        body = ",\n  ".join(lines)
        sections.append(f"{json.dumps(section)}: {opening}\n  {body}\n{closing}")
    return "{\n" + ",\n".join(sections) + "\n}\n"


if __name__ == "__main__":
    FACTS.write_text(render(make(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))), encoding="utf-8")
