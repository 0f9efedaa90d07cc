"""The words that a role of a story may take."""

from __future__ import annotations

from collections.abc import Mapping

from story_names import HE, NAMES, SHE, Invented, Names, words
from story_template import Table, Type


def _table(text: str) -> Table:
    return Table({word: {} for word in words(text)})


_PRONOUNS = {column: f"{{{column}}}" for column in HE}


ADJECTIVE = "adj"  # an axis that may be the same for two roles


def _thing(adjectives: str, nouns: str) -> Type:
    return Type(
        {"noun": _table(nouns), ADJECTIVE: _table(adjectives)},
        {"": "{noun}", "a": "a {adj} {noun}", "full": "{adj} {noun}"},
    )


def _record(columns: str, *rows: tuple[str, ...]) -> Type:
    """Make a type of one axis whose first column is the key; each column is a form."""
    key, *others = columns.split()
    table = Table({row[0]: dict(zip(others, row[1:], strict=True)) for row in rows})
    return Type({key: table}, {"": f"{{{key}}}"} | {name: f"{{{name}}}" for name in others})


def _phrases(text: str) -> Type:
    return Type({"word": _table(text)}, {"": "{word}"})


CHILDREN = ("girl", "boy")
ANIMALS = tuple(words("rabbit bear mouse fox cat duck squirrel hedgehog badger otter beaver mole frog goat pig lamb"))
COLORS = "red blue green yellow orange purple pink white brown silver golden"

PERSON = Type(
    {
        "name": Names(NAMES),
        "kind": Table({"girl": {"he": "she"}, "boy": {"he": "he"}} | {animal: {} for animal in ANIMALS}),
    },
    {"": "{name}", "kind": "{kind}"} | _PRONOUNS,
)
PET = Type(
    {
        "name": Invented(as_name=True),
        "kind": _table("puppy kitten turtle duckling rabbit hedgehog mouse squirrel frog lamb pony goat parrot piglet"),
    },
    {"": "{name}", "kind": "{kind}"} | _PRONOUNS,
)
NEWCOMER = Type(
    {
        "name": Invented(as_name=True),
        "from": _table("""over the mountains, across the sea, the far north, the warm south, a big city, a tiny island,
                       the other side of the river, a land of snow, beyond the hills, a town of towers"""),
    },
    {"": "{name}", "from": "{from}"} | _PRONOUNS,
)
ELDER = Type(
    {
        "elder": Table({"mom": SHE, "dad": HE, "grandma": SHE, "grandpa": HE, "aunt": SHE, "uncle": HE}),
    },
    {"": "{elder}"} | _PRONOUNS,
)
KIN = Type(  # who lives elsewhere
    {"elder": Table({"grandma": SHE, "grandpa": HE, "aunt": SHE, "uncle": HE, "godmother": SHE, "godfather": HE})},
    {"": "{elder}"} | _PRONOUNS,
)
MAGIC_WORD = Type({"Word": Invented(as_name=False)}, {"": "{word}", "Word": "{Word}"})
PLACE = Type(
    {
        "place": Table(
            {
                place: {"prep": prep}
                for prep, places in {
                    "at": "beach, playground, market, farm, old mill, harbor",
                    "in": "park, garden, forest, meadow, orchard, valley, village square, green woods, wide field",
                    "by": "lake, river, pond, sea, stream, old bridge, waterfall",
                    "on": "hill, riverbank, village green",
                }.items()
                for place in words(places)
            }
        )
    },
    {"": "the {place}", "at": "{prep} the {place}"},
)
SPOT = _phrases("""
    under a bush, behind a rock, in the tall grass, beside an old fence, under a bench, in a pile of leaves,
    behind a log, in a hollow tree, next to a fallen branch, in a patch of clover, behind a stump, among the daisies,
    under the ferns, at the edge of a puddle, behind a wheelbarrow, under a wooden cart, between two roots,
    in a flower bed, beside a molehill, behind the well
""")
TOY = _thing(
    f"{COLORS} little big shiny old new striped spotted tiny wooden",
    """ball, kite, doll, drum, toy boat, toy car, toy train, teddy bear, robot, whistle, spinning top, paper plane,
    puppet, rag doll, jump rope, balloon, toy rocket, toy duck, pinwheel, hoop, toy lion, toy tractor, toy whale,
    toy dragon, toy elephant, toy horse, trumpet, yo-yo, toy plane, toy monkey""",
)
TREAT = _thing(
    "sweet big fresh tasty little lovely fine small",
    """apple, pear, plum, peach, cookie, muffin, bun, pancake, cupcake, honey cake, jam tart, banana, berry pie, carrot,
    sandwich, bread roll, waffle, oat cake, rice cake, nut cake, cheese roll, orange, pretzel, scone""",
)
TRINKET = _thing(
    "tiny shiny pretty yellow white brown red little lovely perfect golden small gray purple",
    """stone, feather, shell, acorn, daisy, leaf, button, ribbon, pebble, bead, pine cone, flower, chestnut, clover,
    buttercup, seed pod, twig, petal, coin, bell""",
)
GIFT = _thing(
    f"{COLORS} pretty lovely soft little fine",
    """scarf, hat, paper crown, picture, necklace, bracelet, mug, blanket, pillow, birdhouse, lantern, wind chime,
    storybook, clay pot, quilt, flower crown, bookmark, paper star, cushion, paper bird, purse, mask""",
)
BOX = _thing(
    "red blue green yellow old little big brown white dusty heavy wooden round",
    "box basket drawer jar chest cupboard bag trunk tin crate suitcase sack cabinet barrel pot bucket",
)
BEAST = _thing(
    "tiny little small young gray brown frightened",
    "hedgehog, squirrel, rabbit, fox cub, duckling, mouse, kitten, lamb, puppy, sparrow, baby owl, turtle, mole, fawn",
)
HOBBY = _phrases("""
    draw pictures, climb trees, sing silly songs, look at the clouds, dance in the kitchen, jump in puddles,
    gather smooth stones, build tall towers, read about the sea, count the stars, make mud pies, chase butterflies,
    listen to the birds, sit on the swing, tell funny jokes, whistle little tunes, roll down hills, paint big pictures,
    bake tiny cakes, dig deep holes, watch the ants, play the drum, invent stories, ask big questions,
    run in the wind, hum in the bath, talk to the trees, wave at the trains
""")
FEAR = _record(
    "fear avoid test step truth",
    (
        "the dark",
        "never slept without a lamp",
        "walk down the long dark hall",
        "put one foot into the dark hall",
        "the dark was as soft and quiet as a blanket",
    ),
    (
        "deep water",
        "always stayed on the shore",
        "swim across the little pond",
        "put one toe into the cool water",
        "the water was gentle and held you up like a pillow",
    ),
    (
        "thunder",
        "hid under the bed whenever the sky rumbled",
        "watch the storm from the window",
        "peeked out from behind the curtain",
        "thunder was only a very big drum in the clouds",
    ),
    (
        "high places",
        "never climbed higher than the first branch",
        "climb up to the tree house",
        "put one foot on the ladder",
        "from up there the whole world looked small and lovely",
    ),
    (
        "singing for others",
        "never sang when anyone was near",
        "sing a song at the village fair",
        "sang the first note in a tiny voice",
        "everyone listened, and then everyone clapped",
    ),
    (
        "the big slide",
        "only watched while the others slid",
        "go down the big slide",
        "climbed the first three steps",
        "sliding felt just like flying",
    ),
    (
        "the noisy geese",
        "always took the long way around the pond",
        "walk past the noisy geese",
        "took one small step toward the geese",
        "the geese only wanted to say hello",
    ),
    (
        "the ice",
        "always stood at the edge of the frozen lake",
        "skate across the frozen lake",
        "slid one foot onto the smooth ice",
        "skating was like dancing on glass",
    ),
    (
        "bees",
        "never played near the flowers",
        "walk through the field of flowers",
        "took one slow step among the flowers",
        "the bees were far too busy to mind",
    ),
    (
        "the wind",
        "stayed inside on every windy day",
        "fly a kite on the windy hill",
        "opened the door just a little",
        "the wind only wanted someone to play with",
    ),
)
CHORE = _record(
    "task did result",
    ("water the roses", "watered the roses", "the roses were red and bright"),
    ("feed the hens", "fed the hens", "the hens were fat and happy"),
    ("feed the goldfish", "fed the goldfish", "the goldfish was swimming in merry circles"),
    ("brush the pony", "brushed the pony", "the coat of the pony was shining"),
    ("look after the tomatoes", "looked after the tomatoes", "the tomatoes were round and red"),
    ("walk the old dog", "walked the old dog", "the old dog was wagging its tail"),
    ("light the lamp in the window", "lit the lamp in the window", "the lamp was glowing in the window"),
    ("give milk to the cat", "gave milk to the cat", "the cat was purring by the door"),
    ("wind the tall clock", "wound the tall clock", "the tall clock was ticking away"),
    ("sweep the steps", "swept the steps", "the steps were clean and bright"),
)
FUN = _phrases("""
    a circus came to town, a puppet show began in the square, a band marched down the street,
    a boat race started on the river, everyone ran off to fly kites, a man with balloons came by,
    the others went to slide on the hill, a fair opened in the meadow, the others went to pick cherries,
    a clown began to juggle in the square
""")
LOCK = _record(
    "lock where inside",
    ("blue door", "behind the stairs", "a tiny room full of picture books"),
    ("garden shed", "behind the hedge", "an old bicycle with a silver bell"),
    ("cabin", "at the end of the garden", "a little boat with a striped sail"),
    ("tree house", "in the old oak tree", "a telescope that looked up at the stars"),
    ("tower room", "at the top of the stairs", "a hundred paper birds on strings"),
    ("boathouse", "by the water", "a small red boat, ready to row"),
    ("cellar door", "under the kitchen", "shelf after shelf of sweet jam"),
    ("attic door", "under the roof", "a rocking horse with a real mane"),
    ("stable", "behind the barn", "a painted cart with yellow wheels"),
)
TOOL = _record(
    "item need",
    ("lantern", "it was dark inside"),
    ("candle", "inside it was as dark as night"),
    ("broom", "there was dust all over the floor"),
    ("cloth", "everything in there was dusty"),
    ("blanket", "it was cold inside"),
    ("oil can", "the hinges squeaked and squeaked"),
    ("flashlight", "the light inside did not work"),
    ("brush", "there were cobwebs in every corner"),
)
TROUBLE = _record(
    "trouble rescue",
    ("was stuck in a thorny bush", "held the thorny branches apart"),
    ("was tangled in an old net", "untied the knots one by one"),
    ("had fallen into a deep hole", "put a long branch down into the hole"),
    ("was stuck in the thick mud", "laid a plank across the mud"),
    ("was caught under a wire fence", "lifted the wire very gently"),
    ("was trapped under a fallen branch", "rolled the heavy branch away"),
    ("had climbed into a barrel and could not get out", "tipped the barrel over very slowly"),
    ("was caught in a tangle of string", "cut the string with great care"),
    ("had slipped down between two big stones", "pushed the big stones apart"),
)
PLAN = _record(
    "plan instead",
    ("have a picnic", "spread a blanket on the floor and had the picnic there"),
    ("sail toy boats", "sailed the boats in the bathtub"),
    ("sleep in a tent", "built a tent out of chairs and sheets"),
    ("fly kites", "made paper birds and hung them from the lamp"),
    ("hunt for treasure", "drew a map and hunted for treasure under the beds"),
    ("play hide and seek", "played hide and seek all over the house"),
    ("go to the circus", "put on a circus in the kitchen"),
    ("look for butterflies", "painted butterflies on the windows"),
    ("ride to the castle", "built a castle out of pillows"),
    ("play music in the square", "made music with pots and spoons"),
)
FRAGILE = _phrases("blue vase, flower pot, glass lamp, clay bowl, tall jug, snow globe, white plate, honey jar, teapot")
PLANT = _record(
    "seed plant",
    ("sunflower seed", "a sunflower as tall as the door"),
    ("pumpkin seed", "a pumpkin as round as the moon"),
    ("bean", "a beanstalk full of sweet green beans"),
    ("melon seed", "a melon as big as a drum"),
    ("poppy seed", "a poppy as red as the evening sky"),
    ("pea", "a vine with a hundred little peas"),
    ("tomato seed", "a bush of shiny red tomatoes"),
    ("strawberry seed", "a row of strawberries as sweet as honey"),
    ("tulip bulb", "a tulip like a yellow cup"),
)
HIGH = _phrases("""
    in a tall tree, on the roof, on top of a high wall, on the roof of the barn, in the oldest oak, on a lamp post,
    at the top of the fence, on the high branch of a pine
""")
MARK = _phrases("""
    the old oak, the mossy rock, the crooked gate, the broken cart, the white stones, the hollow log, the stone well,
    the little shrine, the fallen tree, the red barn, the scarecrow, the berry bushes, the wooden bench, the quiet pond
""")
STUFFED = Type(
    {
        "name": Invented(as_name=True),
        "kind": _table("rabbit bear elephant dragon dog whale penguin lion owl fox tiger"),
    },
    {"": "{name}", "kind": "{kind}"} | _PRONOUNS,
)
GUIDE = Type(
    {"name": Invented(as_name=True), "kind": _table("owl firefly fox hare moth deer badger crow frog mouse bat toad")},
    {"": "{name}", "kind": "{kind}"} | _PRONOUNS,
)
VERSE = _phrases("""
    the stars are near, the night is kind, the wind goes home, the river sings, the sun will rise, the moon hangs low,
    the birds fly home, the hills are green, the sea is wide, the snow falls slow, the rain will pass, the bells will ring
""")
OUTING = _record(
    "did smell",
    ("baked a plum cake", "the whole house smelled of sugar"),
    ("planted tulips", "the air smelled of earth and rain"),
    ("picked berries", "their fingers were as red as roses"),
    ("painted the fence", "there was paint on everything, even on the cat"),
    ("flew a kite on the hill", "the wind pulled at the string like a playful dog"),
    ("fished from the little pier", "the water winked in the sun"),
    ("made soup from the garden", "steam danced over the big pot"),
    ("looked at old pictures", "every picture had a story"),
    ("fed the chickens", "the chickens clucked and danced about"),
    ("built a birdhouse", "a robin came to look at once"),
)

ROLES: Mapping[str, Type] = {
    "hero": PERSON,
    "friend": PERSON,
    "elder": ELDER,
    "kin": KIN,
    "pet": PET,
    "newcomer": NEWCOMER,
    "guide": GUIDE,
    "stuffed": STUFFED,
    "word": MAGIC_WORD,
    "verse": VERSE,
    "place": PLACE,
    "spot": SPOT,
    "spot2": SPOT,
    "high": HIGH,
    "mark": MARK,
    "mark2": MARK,
    "toy": TOY,
    "toy2": TOY,
    "treat": TREAT,
    "trinket": TRINKET,
    "token": TRINKET,
    "find": TRINKET,
    "gift": GIFT,
    "box": BOX,
    "box2": BOX,
    "beast": BEAST,
    "fragile": Type({"noun": FRAGILE.axes["word"]}, {"": "{noun}", "a": "a {noun}"}),
    "hobby": HOBBY,
    "fear": FEAR,
    "chore": CHORE,
    "fun": FUN,
    "lock": LOCK,
    "tool": TOOL,
    "trouble": TROUBLE,
    "plan": PLAN,
    "plant": PLANT,
    "outing": OUTING,
    "outing2": OUTING,
}
