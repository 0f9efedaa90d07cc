"""How plots are written down, and the beats that many of them share: openings, small gifts on the way, endings.

A plot is a text. A blank line ends a beat, and each line of a beat is one way to tell it (indented lines go on with the
line before): a sentence, or several with `//` between them. A beat that begins with a line `?` may be left out.
A line `@name` stands for all ways of a shared beat. `{p}` and `{q}` are the hero and the friend in either order, and so
are `{x}` and `{y}`, in an order of their own. How a sentence is written, `story_template` says.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from story_template import Template, expand_macros
from story_words import ROLES

Need = tuple[str, str]  # role, axis

_JOINED_LINES = re.compile(r"\s*\n\s*(?=\|)")

_MACROS = {
    "nature": "little|little|small|kind|cheerful|curious|gentle|brave|clever|playful|friendly|merry|quiet|shy|bright",
    "house": "[little|small|tiny|white|yellow|stone|crooked|cozy] [house|cottage|home]",
    "nearby": """by the sea|near the woods|on a green hill|beside a river|at the edge of a village|under a tall oak tree
        |next to a windmill|by a quiet lake|behind an old mill|at the end of a long lane|near a field of sunflowers
        |between two hills|above a sleepy harbor""",
    "land": "in a [quiet|sunny|green|faraway|little|busy] [village|valley|town]",
    "fine": "sunny|bright|warm|fine|lovely|golden|breezy|clear|mild|sparkling",
    "time": "morning|morning|day|afternoon",
    "weekday": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "one_day": "One day|One <fine> <time>|One <weekday> [morning|afternoon]|One [spring|summer|autumn] <time>",
    "soon": "Soon|Before long|After a while|A little later",
    "suddenly": "Suddenly|All at once|Then suddenly|But then|But all at once",
    "just_then": "Just then|At that moment|Right then|A moment later",
    "at_last": "At last|Finally|In the end|After a long time",
    "went": "went|walked|ran|skipped|hurried",
    "looked_sad": "looked [sad|lonely|unhappy|gloomy]",
    "was_sad": "[felt|was] [very sad|so sad|sad|quite unhappy|sad and tired]",
    "was_glad": "[felt|was] [very happy|so happy|happy|full of joy|as happy as could be|glad]",
    "was_proud": "[felt|was] [very proud|so proud|proud and happy|proud]",
    "gave": "gave|handed|passed|gave",
    "said": "said|said|said|answered|replied",
    "called": "called|shouted|cried",
    "kindly": "|| kindly| softly| warmly| gently| quietly| in a gentle voice",
    "sadly": "|| sadly| softly| with a sigh| in a small voice| in a low voice| and looked at the ground",
    "gladly": "|| happily| with a laugh| with shining eyes| and laughed| and clapped| and jumped up and down",
    "seat": """under a tree|on a bench|by the gate|on the soft grass|on an old log|in the shade|on a flat stone
        |by a hedge|at the side of the path|on a low wall""",
    "calm": """The wind was soft|A bird sang above them|White clouds drifted by|Bees hummed in the clover
        |It was nice and quiet|A butterfly danced past|The leaves whispered|The sun was warm on their faces
        |Somewhere a bell rang|A frog croaked in the reeds""",
    "problem": "What is wrong|What is the matter|Why are you so sad|What happened",
    "hug": "[big|long|warm|tight] hug",
    "evening": "That night|That evening|At bedtime|When the stars came out",
    "side": "side by side|together|arm in arm",
    "sky": """as the sun went down|under a pink sky|while the birds sang|as the stars came out|in the golden light
        |while the moon came up""",
    "forever": "From that day on|From then on|Ever after|After that day",
    "heart": """{hero}'s heart [beat fast|went thump, thump, thump|jumped]|{hero:His} knees [shook|felt like jelly]
        |{hero:His} tummy felt [funny|full of butterflies]|{hero}'s cheeks turned [hot|red|pale]""",
}
MACROS = {name: _JOINED_LINES.sub("", text) for name, text in _MACROS.items()}

TEMPLATES: dict[str, Template] = {}


def _template(text: str) -> Template:
    """Make one template for each text, however many beats have it."""
    expanded = expand_macros(text, MACROS)
    if expanded not in TEMPLATES:
        TEMPLATES[expanded] = Template(expanded, ROLES)
    return TEMPLATES[expanded]


@dataclass(frozen=True)
class Alternative:
    """Sentences that belong together, with what they tell first and what must have been told before them."""

    sentences: tuple[Template, ...]
    introduces: frozenset[Need]
    needs: frozenset[Need]

    @classmethod
    def of(cls, sentences: tuple[Template, ...]) -> Alternative:
        """Add up what the sentences tell and need."""
        introduces: set[Need] = set()
        needs: set[Need] = set()
        for sentence in sentences:
            needs |= sentence.needs - introduces
            introduces |= sentence.introduces
        return cls(sentences, frozenset(introduces), frozenset(needs))


@dataclass(frozen=True)
class Beat:
    """A choice: of a group (one way to tell it), then of an alternative in the group (who is x and who is y)."""

    groups: tuple[tuple[Alternative, ...], ...]
    optional: bool


@dataclass(frozen=True)
class Plot:
    """A story's skeleton. Animals may play the parts where `animals` says so."""

    name: str
    animals: bool
    beats: tuple[Beat, ...]

    @property
    def roles(self) -> list[str]:
        """The roles in it, in the order of `ROLES`."""
        used = {
            role
            for beat in self.beats
            for group in beat.groups
            for alternative in group
            for role, _ in alternative.introduces | alternative.needs
        }
        return [role for role in ROLES if role in used]


_LETTER = re.compile(r"(\{\+?)([pqxy])(?=[:!}])")
_ORDERED = ("hero", "friend")


def _in_every_order(texts: list[str]) -> tuple[Alternative, ...]:
    letters = {match[2] for text in texts for match in _LETTER.finditer(text)}
    pairs = [pair for pair in ("pq", "xy") if letters & set(pair)]
    found = []
    for orders in itertools.product((_ORDERED, _ORDERED[::-1]), repeat=len(pairs)):
        roles = {pair[i]: order[i] for pair, order in zip(pairs, orders, strict=True) for i in (0, 1)}
        named = [_LETTER.sub(lambda match, roles=roles: match[1] + roles[match[2]], text) for text in texts]  # type: ignore[misc]
        found.append(Alternative.of(tuple(map(_template, named))))
    return tuple(found)


def _beat(text: str, shared: Mapping[str, Beat]) -> Beat:
    lines = re.sub(r"\n\s+", " ", _JOINED_LINES.sub("", text.strip())).split("\n")
    optional = lines[0] == "?"
    groups: list[tuple[Alternative, ...]] = []
    for line in lines[optional:]:
        if line.startswith("@"):
            beat = shared[line[1:]]
            groups += beat.groups
            optional = optional or (beat.optional and len(lines) == 1)
        else:
            groups.append(_in_every_order([sentence.strip() for sentence in line.split("//")]))
    return Beat(tuple(groups), optional)


def beats(text: str, shared: Mapping[str, Beat]) -> tuple[Beat, ...]:
    """Read a plot's text."""
    return tuple(_beat(part, shared) for part in re.split(r"\n\s*\n", text.strip()))


def plot(name: str, text: str, *, animals: bool = True) -> Plot:
    """Read a plot that uses the shared beats."""
    return Plot(name, animals, beats(text, SHARED))


_SHARED_TEXTS = {
    "open": """
Once upon a time, there [was|lived] a <nature> {+hero:kind} [named|called] {+hero}.
Once upon a time, a <nature> {+hero:kind} named {+hero} lived in a <house> <nearby>.
Once upon a time, <land>, there [was|lived] a <nature> {+hero:kind} [named|called] {+hero}.
There [was once|once was] a <nature> {+hero:kind} [named|called] {+hero}, who lived in a <house> <nearby>.
{+hero} was a <nature> {+hero:kind} who lived in a <house> <nearby>.
In a <house> <nearby>, there lived a <nature> {+hero:kind} named {+hero}.
Once upon a time, <nearby>, there [was|lived] a <nature> {+hero:kind} [named|called] {+hero}.
One <fine> <time> [long ago|not so long ago], a <nature> {+hero:kind} named {+hero} moved into a <house> <nearby>.
Do you know {+hero}, the <nature> {+hero:kind} who lived in a <house> <nearby>?
""",
    "likes": """
{hero:He} [loved|liked] to {+hobby} [all day long|every day|from morning till night|whenever {hero:he} could].
[Most of all|More than anything in the world|Above all], {hero:he} loved to {+hobby}.
There was nothing {hero:he} liked [better|more] than to {+hobby}.
[Every day|Each morning|After breakfast|Before supper], {hero:he} liked to {+hobby}.
""",
    "open_two": """
Once upon a time, there [were|lived] two [good|dear|best|merry|little] friends named {+p} and {+q}.
Once upon a time, a <nature> {+hero:kind} named {+hero} had a [good|dear|best] friend named {+friend}.
Once upon a time, <land>, there lived a <nature> {+hero:kind} named {+hero} and a <nature> {+friend:kind} named {+friend}.
{+p} and {+q} were [neighbors|good friends|the best of friends|friends] who [lived|grew up] <nearby>.
A <nature> {+hero:kind} named {+hero} and a <nature> {+friend:kind} named {+friend}
    [lived next door to each other|lived <nearby>|played together every day].
""",
    "open_pair": """
@open_two
When {+p} and {+q} <went> to {+place}, {x} <gave> {+trinket:a} to {y!}. //
    They were [good|dear|best|old] friends, and {y} [was delighted|smiled and smiled|loved it at once].
When {+p} and {+q} <went> to {+place} [one day|on <weekday>|after breakfast|to play], {x} <gave> the {+toy} to {y!}. //
    The two were [good|dear|best|old] friends, and {y} <said>, "[Thank you|How nice|That is kind], {x!}."
<one_day>, {+p} and {+q} <went> to {+place}. // {x} had {+toy:a} and <gave> the {toy} to {y!}. //
    They were [good|dear|best|old] friends, and [they did everything together|they never ran out of games
    |one was never far from the other].
""",
    "to_place": """
<one_day>, {p} and {q} <went> to {+place}.
<one_day>, the two friends <went> to {+place} [to play|to look around|before lunch|after breakfast].
<one_day>, {p} met {q} {+place:at}.
There was [so much|a lot|plenty|always something] to do {place:at}.
[That <time>|That day], {p} and {q} [played|ran about|laughed and talked|looked around] {place:at}.
""",
    "air": """
?
The sky was [blue|clear|bright|high|pale], and a [small|big|fat|lazy|lonely|white] [cloud|bird|bee|butterfly|dragonfly]
    [drifted|floated|flew|wandered] [by|past|over the grass].
The [grass|air|wind|path|whole world] smelled of [mint|hay|flowers|rain|warm earth|honey|apples|pine|wet stones].
[Somewhere|Far away|Not far off|High above], [a bird sang|a dog barked|a bell rang|someone laughed|a rooster crowed
    |a cuckoo called|bees hummed|a horse neighed], [and the wind was soft|and then it was quiet|again and again].
[Red|Yellow|White|Golden|Brown|Tiny] [leaves|petals|feathers] [danced|tumbled|floated] [over the path|through the air
    |to the ground|in the wind].
The [sun|wind] [tickled|warmed|touched] {hero:his} [nose|cheeks|ears|back], and [the birds sang|the leaves rustled
    |a frog croaked|the grass was still wet].
A [snail|beetle|lizard|ladybug|squirrel|frog] [crossed the path|sat on a stone|looked up at {hero:him}] and [went its own way
    |was in no hurry|did not mind {hero:him} at all].
""",
    "gives": """
?
While {p} and {q} [rested|sat|waited] <seat>, {x} <gave> {+token:a} to {y!}.
When {p} and {q} [stopped|sat down|rested] <seat>, {x} <gave> {+token:a} to {y!}.
[Later|A little later|Without a word], {x} <gave> {+token:a} to {y!}.
{p} and {q} [sat down|stopped to rest|rested|stopped] <seat>. // <calm>. //
    [Then|After a moment,|With a smile,] {x} <gave> {+token:a} to {y!}.
{p} and {q} [sat|rested|lay] <seat> for a while. //
    "[Here|Look|Close your eyes], I have something for you," said {x}, and <gave> {+token:a} to {y!}.
{p} had found {+token:a} [on the way|that morning|by the path] and gave it to {q!}.
{p} and {q} found {+token:a} [on the ground|by the path|in the grass]. //
    "[You saw it first|You should have it|Keep it for luck]," said {x}, and gave the {token} to {y!}.
""",
    "end_friends": """
<forever>, {p} and {q} [were|stayed] [the best of friends|best friends|friends].
<forever>, {p} and {q} [looked after each other|shared everything|played together every day].
<evening>, {hero} [thought of|thought about] {friend} and smiled. //
    "[I am so lucky|It is good to have a friend|What a good day]," {hero:he} whispered, and fell asleep.
And the next [day|morning], {p} and {q} went out to {hobby} together.
And [if you walk by|if you listen well|on quiet days], you can still hear {p} and {q} laughing {place:at}.
""",
    "end_pair": """
@end_friends
{p} and {q} [walked|went|skipped] home <side> <sky>, [tired and happy|singing all the way|and they were happy].
[And all|All] the way home, {p} and {q} [laughed|sang|talked and laughed] <sky>.
""",
    "end_solo": """
<evening>, {hero} [fell asleep|slept|went to bed] with a smile [on {hero:his} face|as wide as the moon].
The very next [day|morning], {hero} was out [again|early], ready to {hobby} [once more|as always|as before].
<evening>, {hero} felt warm [inside|all over], and the stars [twinkled|shone] [above the house|over the roof|in the window].
And {hero} [never forgot that day, not even when {hero:he} was old|always remembered that day].
""",
    "the_end": """
?
The end.
And that [is|was] the end of [the|this] story.
Good night, {hero!}!
""",
}

SHARED: dict[str, Beat] = {}
for _name, _text in _SHARED_TEXTS.items():
    SHARED[_name] = _beat(_text, SHARED)
