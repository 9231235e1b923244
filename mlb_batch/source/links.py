"""The disk of this machine as a listing walks it: links to folders are followed as far as `input.allow` reaches.

A link that leads farther isn't walked, and its own name stands in the list: as a linked file does, it becomes a row
that says it is forbidden, so that nothing behind it is left out without a word.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class LinkedDisk(LocalFileSystem):  # type: ignore[misc]
    """For one listing: it remembers the links that it met."""

    cachable = False

    def __init__(self, may_open: Callable[[str], bool]) -> None:
        super().__init__()
        self._may_open = may_open
        self._links: set[str] = set()
        self.shut: list[str] = []

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[dict[str, Any]]:
        """What a folder holds, linked folders as folders; nothing where a link isn't followed."""
        if path in self._links and not self._follows(path):
            return []
        entries: list[dict[str, Any]] = super().ls(path, detail=True, **kwargs)
        for entry in entries:
            if entry["islink"] and Path(entry["name"]).is_dir():
                entry["type"] = "directory"
                self._links.add(entry["name"])
        return entries

    def _follows(self, link: str) -> bool:
        if not self._may_open(link):
            self.shut.append(link)
            return False
        return not any(folder.samefile(link) for folder in Path(link).parents)  # it would lead in a circle

    def once(self, names: list[str]) -> list[str]:
        """Without what a link shows again of what is listed under its own name: a `latest` beside the nights."""
        if not self._links:
            return names
        real = cache(os.path.realpath)
        linked = cache(lambda folder: not self._links.isdisjoint((folder, *map(str, Path(folder).parents))))
        places = {name: os.path.split(name) for name in names}
        own = {(real(folder), file) for folder, file in places.values() if not linked(folder)}
        return [
            name for name, (folder, file) in places.items() if not linked(folder) or (real(folder), file) not in own
        ]
