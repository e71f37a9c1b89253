"""What scenes are made of: things with names in subgroups, and the emoji sets ("hands") that draw them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from PIL import Image

from aligngpt.errors import AlignGPTError

CATEGORIES = {
    "animal-mammal": ("mammal", "mammals"),
    "animal-bird": ("bird", "birds"),
    "animal-reptile": ("reptile", "reptiles"),
    "animal-marine": ("sea animal", "sea animals"),
    "animal-bug": ("bug", "bugs"),
    "plant-flower": ("flower", "flowers"),
    "plant-other": ("plant", "plants"),
    "food-fruit": ("fruit", "fruits"),
    "food-vegetable": ("vegetable", "vegetables"),
    "food-prepared": ("dish", "dishes"),
    "food-sweet": ("dessert", "desserts"),
    "drink": ("drink", "drinks"),
    "transport-ground": ("land vehicle", "land vehicles"),
    "transport-water": ("boat", "boats"),
    "transport-air": ("aircraft", "aircraft"),
    "sport": ("piece of sports equipment", "pieces of sports equipment"),
    "musical-instrument": ("musical instrument", "musical instruments"),
    "clothing": ("piece of clothing", "pieces of clothing"),
    "tool": ("tool", "tools"),
    "household": ("household item", "household items"),
}
"""Unicode subgroups of things one can point at, with what their members are called, singular and plural."""

UNSEEN_SUBGROUPS = frozenset({"food-sweet", "musical-instrument", "transport-air"})
"""Subgroups that occur in no training picture, only in the `test_subgroup` split."""

ALIKE = """
monkey face; dog face; guide dog; service dog; cat face; black cat; tiger face; leopard; horse face; cow face; ox;
water buffalo; pig face; two-hump camel; mouse face; rat; rabbit face; polar bear; mammoth; ewe; boar; orangutan;
otter; badger; beaver; hatching chick; front-facing baby chick; chicken; dove; black bird; goose; dragon face;
whale; fish; lady beetle; cockroach; cricket; fly; white flower; rosette; blossom; hyacinth; deciduous tree; four
leaf clover; herb; fallen leaf; leaf fluttering in wind; lime; melon; green apple; brown mushroom; tamale; stuffed
flatbread; flatbread; burrito; pot of food; fondue; bowl with spoon; butter; glass of milk; sake; teacup without
handle; clinking beer mugs; clinking glasses; pouring liquid; baby bottle; tumbler glass; oncoming bus; oncoming
police car; oncoming taxi; oncoming automobile; sport utility vehicle; minibus; metro; train; light rail; station;
tram car; railway car; bullet train; mountain railway; trolleybus; motor scooter; motorized wheelchair; passenger
ship; motor boat; small airplane; airplane departure; airplane arrival; softball; rugby football; volleyball;
lacrosse; field hockey; long drum; ice cream; shaved ice; goggles; lab coat; kimono; clutch bag; handbag; hiking
boot; flat shoe; thong sandal; woman’s boot; bikini; shorts; briefs; broken chain; hammer and pick; hammer and
wrench; pick; link; pancakes; cut of meat; high-speed train; tram; cucumber; blueberries; running shirt; man’s shoe;
woman’s sandal; military helmet; couch and lamp; toilet; bathtub; razor; wilted flower; olive; lotus; bread; dodo;
peacock; hibiscus; woman’s clothes; cricket game; cookie; poodle; automobile; articulated lorry; ship; glasses;
poultry leg
"""
"""Names of things drawn too much like another at 26 px, or of which another is a case: a poodle is a dog."""

NOT_ONE_THING = """
pig nose; paw prints; feather; wing; bird; phoenix; spiral shell; coral; spider web; microbe; bug; bouquet; potted
plant; sheaf of rice; empty nest; nest with eggs; mushroom; leafy green; cooking; shallow pan of food; salt; canned
food; ice; egg; honey pot; bus stop; motorway; railway track; oil drum; fuel pump; wheel; police car light; stop
sign; horizontal traffic light; construction; manual wheelchair; anchor; ring buoy; seat; parachute; satellite;
suspension railway; aerial tramway; mountain cableway; flag in hole; goal net; diving mask; hair pick; lipstick;
ring; gem stone; prayer beads; shopping bags; folding hand fan; sari; maracas; teapot; dagger; bomb; white cane;
chains; mouse trap; bubbles; sponge; lotion bottle; ping pong; badminton; tennis; bowling; roller skate; skateboard;
shower; elevator; window; mirror; dragon; unicorn; mate; amphora; toolbox; hook; hot beverage; crossed swords;
vertical traffic light; ice hockey
"""
"""Names of things that are not one whole thing, or not what their category says."""

LEFT_OUT = frozenset(" ".join(f"{ALIKE.strip()}; {NOT_ONE_THING.strip()}".split()).split("; "))

DRAW_SIZES = (36, 26)
"""Side of a drawn thing in pixels, in a grid of two and of three cells a side."""


class MaterialError(AlignGPTError):
    """The material of the scenes is missing, cannot be fetched, or is not as expected."""


@dataclass(frozen=True)
class Thing:
    """Something a picture can show.

    Attributes:
        code: Unicode code points in lower-case hexadecimal joined by hyphens, without the variation selector.
        name: English CLDR name.
        subgroup: Unicode subgroup, such as `animal-mammal`.
        tags: keywords that share no word with the name; may be empty.
        foreign: names by language code, for the languages in which the name is not the English one.
    """

    code: str
    name: str
    subgroup: str
    tags: tuple[str, ...] = ()
    foreign: Mapping[str, str] = field(default_factory=dict, hash=False, compare=False)

    @property
    def category(self) -> str:
        """What a member of the subgroup is called."""
        return CATEGORIES[self.subgroup][0]


@dataclass(frozen=True)
class Hand:
    """An emoji set: all its pictures are by the same hand.

    Attributes:
        name: name of the set.
        licence: SPDX expression of the licence of its pictures.
        draw: makes an RGBA picture of a thing's code at a side of that many pixels.
        codes: codes of the things it has.
    """

    name: str
    licence: str
    draw: Callable[[str, int], Image.Image]
    codes: frozenset[str]


@dataclass(frozen=True)
class Material:
    """Everything scenes are composed from.

    Attributes:
        things: in the order of their codes; every hand has each of them.
        hands: the hands of the training pictures.
        unseen_hand: the hand of the `test_hand` split only; None if there is just one hand.
        packages: exact requirement of each package used, with the licence of what is taken from it.
    """

    things: tuple[Thing, ...]
    hands: tuple[Hand, ...]
    unseen_hand: Hand | None
    packages: Mapping[str, str]

    @property
    def seen(self) -> tuple[Thing, ...]:
        """The things that training pictures may show."""
        return tuple(thing for thing in self.things if thing.subgroup not in UNSEEN_SUBGROUPS)

    @property
    def unseen(self) -> tuple[Thing, ...]:
        """The things of the subgroups that no training picture shows."""
        return tuple(thing for thing in self.things if thing.subgroup in UNSEEN_SUBGROUPS)


def choose_things(candidates: Iterable[Thing], hands: Iterable[Hand]) -> tuple[Thing, ...]:
    """The candidates that scenes can use: of a known subgroup, not left out, drawn by every hand, of a unique name."""
    hands = tuple(hands)
    by_name = {
        thing.name: thing
        for thing in sorted(candidates, key=lambda thing: thing.code, reverse=True)
        if thing.subgroup in CATEGORIES
        and thing.name not in LEFT_OUT
        and all(thing.code in hand.codes for hand in hands)
    }
    return tuple(sorted(by_name.values(), key=lambda thing: thing.code))


def tags_beside_name(name: str, tags: Iterable[str]) -> tuple[str, ...]:
    """The tags that do not name the thing: they share no word with the name."""
    words = set(name.lower().replace("-", " ").split())
    return tuple(tag for tag in tags if not words & set(tag.lower().replace("-", " ").split()))


def foreign_names(name: str, names: Mapping[str, str]) -> dict[str, str]:
    """The names by language that differ from the English one."""
    return {language: other for language, other in names.items() if other and other.lower() != name.lower()}
