"""The page of questions: each has one snippet that is short enough to be read at a glance. test_docs.py runs them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from conftest import ROOT

PAGE = ROOT / "docs" / "questions.md"

# What the page has to answer: a part of the heading or of the snippet.
SUBJECTS = [
    *[
        "to_tokens",
        "logits",
        "logprobs",
        "pattern",
        "resid_pre",
        "session.kv",
        "logit_lens",
        "logit_attrs",
        "activation_patch",
    ],
    *[
        "attribution_patch",
        "incl_bwd",
        "interventions.zero",
        "run_with_hooks",
        "steering_vectors",
        "detect_head",
        "compare(",
    ],
    *[
        "transformers",
        "convert(",
        "q4_0",
        "Conversation",
        "json_schema",
        "grammar=",
        "speculate",
        "n=2",
        "Engine(",
        "openai",
    ],
    *["embed(", "score(", "extract(", "diff(", "explain(", "bench", "bytes", "Tokenizer.from_dict", "seed=7"],
]


def questions() -> Iterator[tuple[str, str]]:
    """Each heading of the third level, and the text below it."""
    page = PAGE.read_text(encoding="utf-8").replace("\n## ", "\n### #")
    for part in page.split("\n### ")[1:]:
        heading, _, text = part.partition("\n")
        if not heading.startswith("#"):
            yield heading, text


def test_each_question_is_answered_by_five_lines() -> None:
    found = list(questions())
    assert len(found) >= 30
    assert [heading for heading, _ in found if not heading.endswith("?")] == []
    for heading, text in found:
        snippets = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
        assert len(snippets) == 1, heading
        imports = [node for node in ast.parse(snippets[0]).body if isinstance(node, ast.Import | ast.ImportFrom)]
        lines = [line for line in snippets[0].splitlines() if line and not line.startswith("#")]
        assert len(lines) - len(imports) <= 5, heading
        assert "# -> " in snippets[0], f"{heading}: says nothing that a test could check"


def test_no_subject_is_missing() -> None:
    text = "".join(heading + text for heading, text in questions())
    assert [subject for subject in SUBJECTS if subject not in text] == []
