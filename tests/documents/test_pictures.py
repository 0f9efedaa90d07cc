"""Pictures of the documentation: there, described, and small."""

from __future__ import annotations

import re

from conftest import ROOT

DOCS = ROOT / "docs"


def test_pictures_are_small_and_described() -> None:
    named: set[str] = set()
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        plain = re.findall(r"!\[([^\]]*)\]\(([^)]+\.png)\)", text)
        directives = re.findall(r"^```\{image\} (\S+)\n:alt: (.*)$", text, flags=re.MULTILINE)
        for alt, name in [*plain, *((alt, name) for name, alt in directives)]:
            assert len(alt) > 20, name
            assert (page.parent / name).exists(), name
            named.add((page.parent / name).resolve().name)
    pictures = {file.name: file.stat().st_size for file in (DOCS / "pictures").iterdir()}
    assert len(pictures) >= 6
    assert named == set(pictures)
    assert max(pictures.values()) < 120_000
    assert sum(pictures.values()) < 600_000
