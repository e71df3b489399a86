"""Neighbours of one message that are alike go to the engine together, so that they cost one ticket."""

from __future__ import annotations

from collections.abc import Callable

from aclserve_server.engine.company import alike, may_lead
from aclserve_server.engine.items import Item

CompanyRows = Callable[[str, int], int]
"""How many rows a model, by name and version, takes together; 0 where each item goes alone."""


class Group:
    """Items that were accepted one after the other and wait to be handed over."""

    def __init__(self, company_rows: CompanyRows) -> None:
        self._company_rows = company_rows
        self._items: list[Item] = []
        self._most = 1

    def admits(self, item: Item) -> bool:
        """Whether an item may join those that are here; anything may begin."""
        items = self._items
        return not items or (len(items) < self._most and alike(items[0], item))

    def add(self, item: Item) -> None:
        """Takes an item that it admits."""
        if not self._items:
            rows = item.inputs[0].shape[0] if item.inputs and item.inputs[0].shape else 0
            together = self._company_rows(item.model, item.version) if rows > 0 and may_lead(item) else 0
            self._most = together // rows if rows > 0 else 1
        self._items.append(item)

    def take(self) -> list[Item]:
        """All that are here, the first of them with the others in its company. Empties the group."""
        items, self._items = self._items, []
        if len(items) > 1:
            items[0].company = items[1:]
        return items
