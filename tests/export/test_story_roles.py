"""No name alone decides what comes next in a story.

Where a sentence may begin with the hero's name or with the friend's, and goes on differently for the one and the other,
a model that tells stories must first choose a name and then know its role: that is where small ones mix people up. So
the grammar has no such place. Here all places are walked through, as far as sentences of two roles begin alike.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator

from conftest import ROOT

sys.path.append(str(ROOT / "export" / "storyteller"))

from story_grammar import PLOTS
from story_parser import _Graph, _Node
from story_template import Choice, Node, Slot, Template

# What is left of a sentence: its next part, and what is left after it.
Rest = tuple[str | Slot | Choice, "Rest"] | None
Place = tuple[str, _Node]  # plot, sentence


def put(nodes: Iterable[Node], rest: Rest) -> Rest:
    for node in reversed(list(nodes)):
        for part in reversed(re.findall(r"\s*\S+|\s+$", node)) if isinstance(node, str) else [node]:
            rest = (part, rest)
    return rest


def next_parts(rest: Rest) -> Iterator[tuple[str, Rest]]:
    """Words and slots that may come next, with what is left after each."""
    if rest is None:
        return
    part, after = rest
    if isinstance(part, Choice):
        for option in part.options:
            yield from next_parts(put(option, after))
    else:
        yield str(part).replace("!", ""), after


def text(rest: Rest) -> str:
    found = ""
    while rest is not None:
        part, rest = rest
        if isinstance(part, Choice):
            found += "[" + "|".join(text(put(option, None)) for option in part.options) + "]"
        else:
            found += str(part)
    return found


def exchanged(told: str) -> str:
    return re.sub(r"(\{\+?)(hero|friend)", lambda m: m[1] + ("friend" if m[2] == "hero" else "hero"), told)


def decided_by_a_name(begun: list[Rest], before: str = "") -> Iterator[str]:
    """Give the beginnings after which hero and friend may follow, and not in the same way."""
    after: defaultdict[str, dict[str, Rest]] = defaultdict(dict)
    for rest in begun:
        for part, left in next_parts(rest):
            after[part][text(left)] = left
    if "{hero}" in after and "{friend}" in after and set(after["{hero}"]) != set(map(exchanged, after["{friend}"])):
        yield before + " ..."
    for part, ways in after.items():
        if len(ways) > 1:
            yield from decided_by_a_name(list(ways.values()), before + part)


def sentences_that_may_follow() -> Iterator[dict[str, Template]]:
    """Give the sentences between which a teller chooses, for every way through the plots.

    Those of several plots go together as long as what was told may be any of them.
    """
    graphs = {graph.name: graph for graph in map(_Graph, PLOTS)}
    todo: list[frozenset[Place]] = [frozenset((name, node) for name, graph in graphs.items() for node in graph.first)]
    seen: set[frozenset[Place]] = set()
    while todo:
        places = todo.pop()
        if places in seen:
            continue
        seen.add(places)
        told: defaultdict[str, set[Place]] = defaultdict(set)
        templates: dict[str, Template] = {}
        for plot, node in places:
            template = graphs[plot].template[node]
            templates[template.text] = template
            told[template.text].add((plot, node))
        yield templates
        todo += [frozenset((p, next_) for p, n in same for next_ in graphs[p].after[n]) for same in told.values()]


def test_no_name_alone_decides_what_comes_next() -> None:
    found: dict[str, str] = {}
    looked_at = set()
    for templates in sentences_that_may_follow():
        key = frozenset(templates)
        if key not in looked_at:
            looked_at.add(key)
            found |= {
                before: ", ".join(sorted(key)[:4])
                for before in decided_by_a_name([put(one._nodes, None) for one in templates.values()])
            }
    assert len(looked_at) > 100
    assert found == {}


def test_such_a_place_would_be_found() -> None:
    nodes: list[list[Node]] = [["One day, ", slot("hero"), " slept."], ["One day, ", slot("friend"), " ate."]]
    assert list(decided_by_a_name([put(one, None) for one in nodes])) == ["One day,  ..."]
    alike: list[list[Node]] = [[slot("hero"), " met ", slot("friend")], [slot("friend"), " met ", slot("hero")]]
    assert list(decided_by_a_name([put(one, None) for one in alike])) == []


def slot(role: str) -> Slot:
    return Slot(role, "", introduces=False, recall=False)
