"""Holds objects of KServe against the models that the kserve package makes of its CRDs. Run by that package's Python:

    python tools/kserve_objects.py FILE ...

One line for each fault, and 1 at the end when there was any. Imports nothing of ours, and of the two packages only the
modules of the models that are needed: all of them take longer than everything else here.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
from typing import Any

import yaml

PACKAGES = ("kserve", "kserve.models", "kubernetes", "kubernetes.client", "kubernetes.client.models")

KINDS = {
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): "V1alpha1ServingRuntime",
    ("serving.kserve.io/v1beta1", "InferenceService"): "V1beta1InferenceService",
}
PLAIN = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "object": (object,), "datetime": (str,)}


def hollow(packages: tuple[str, ...]) -> None:
    """Makes packages importable without what they do when they are imported."""
    for name in packages:
        parent, _, last = name.rpartition(".")
        if parent:
            paths = [f"{path}/{last}" for path in sys.modules[parent].__path__]
        else:
            found = importlib.util.find_spec(name)
            paths = list(found.submodule_search_locations or ()) if found else []
        module = types.ModuleType(name)
        module.__path__ = paths
        sys.modules[name] = module


def faults(value: Any, kind: str, path: str) -> list[str]:
    """What in a value does not fit a type as the models write it: `str`, `list[X]`, `dict(str, X)`, or a model."""
    if inner := re.fullmatch(r"[Ll]ist\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{path}: expected a list, got {value!r}"]
        return [fault for at, one in enumerate(value) for fault in faults(one, inner[1], f"{path}[{at}]")]
    if inner := re.fullmatch(r"[Dd]ict[(\[](?:str|string), (.*)[)\]]", kind):
        if not isinstance(value, dict):
            return [f"{path}: expected a mapping, got {value!r}"]
        return [fault for key, one in value.items() for fault in faults(one, inner[1], f"{path}.{key}")]
    if kind in PLAIN:
        fits = isinstance(value, PLAIN[kind]) and (kind in ("bool", "object") or not isinstance(value, bool))
        return [] if fits else [f"{path}: expected {kind}, got {value!r}"]
    return _model_faults(value, kind, path)


def _model_faults(value: Any, kind: str, path: str) -> list[str]:
    model = _model(kind)
    if model is None:  # a type of the cluster that these models leave open, such as a quantity
        return [] if isinstance(value, (str, int, float)) else [f"{path}: nothing known of {kind}"]
    if not isinstance(value, dict):
        return [f"{path}: expected a mapping, got {value!r}"]
    names = {wire: name for name, wire in model.attribute_map.items()}
    found = [f"{path}: has no field {key}" for key in value if key not in names]
    known = {key: one for key, one in value.items() if key in names}
    try:
        model(**{names[key]: one for key, one in known.items()})
    except ValueError as error:
        found.append(f"{path}: {' '.join(str(error).split())}")
    for key, one in known.items():
        found += faults(one, model.openapi_types[names[key]], f"{path}.{key}")
    return found


def _model(kind: str) -> Any:
    """The class of a model, or None. Its module has its name with underscores."""
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
    for package in ("kserve.models", "kubernetes.client.models"):
        if importlib.util.find_spec(f"{package}.{name}"):
            return getattr(importlib.import_module(f"{package}.{name}"), kind)
    return None


def main(files: list[str]) -> int:
    """Looks at all objects of some files."""
    hollow(PACKAGES)
    found = []
    for file in files:
        with open(file, encoding="utf-8") as stream:
            for thing in yaml.safe_load_all(stream):
                kind = KINDS.get((thing.get("apiVersion"), thing.get("kind")))
                name = f"{file}: {thing.get('kind')} {thing.get('metadata', {}).get('name')}"
                found += [f"{name}: no such kind"] if kind is None else faults(thing, kind, name)
    for fault in found:
        print(fault)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
