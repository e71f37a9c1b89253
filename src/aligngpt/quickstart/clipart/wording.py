"""Two descriptions of a drawing, independent of each other: its title, and its file name with its keywords.

A title *agrees* if it shares a content word with the file name or the keywords, or if one side has a content word of
five letters or more that is part of the other's letters written together ("Pan Cakes" and "pancakes"). Words are runs
of letters, cut where a small letter is followed by a capital, in lower case, without accents and without the ending of
the plural. Content words have three letters or more and are neither in `NOT_CONTENT` nor part of the author's name.
"""

import re
import unicodedata
from collections.abc import Iterable

from aligngpt.quickstart.clipart.drawings import Drawing

_NOT_CONTENT = """
a an and as at by de del della des di du el et for from il in is la le les lo of on or our the to un una with
clip art clipart svg png image picture drawing vector cartoon icon iconset set symbol sign various unsorted hash
submission sibmission element library theme etiquette aiga misc miscellany simple
"""
NOT_CONTENT = frozenset(_NOT_CONTENT.split())
"""Function words, and words about the library rather than about what is drawn; without the ending of the plural."""

NOT_IN_NAMES = frozenset({"aiga", "clipart", "etiquette", "ganson", "svg"})
"""Words of file names that tell where a drawing comes from; "ganson" is Gerald G., author of 500 of them."""

PART_LETTERS = 5
"""Letters from which on a content word counts where it is a part of a longer one."""

KEYWORDS = 4
"""Keywords in a description, at most."""

_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NOT_A_KEYWORD = re.compile(r"hash|unsorted|signs_and_symbols|\W*|(.*\b)?0x[0-9a-f]+.*|\W*\d+\W*", re.IGNORECASE)


def words_of(text: str) -> list[str]:
    """The words of a text in order: lower case, without accents, digits and punctuation."""
    plain = unicodedata.normalize("NFKD", _CAPITAL.sub(" ", text))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return re.findall(r"[^\W\d_]+", plain.lower())


def without_plural(word: str) -> str:
    """A word without the ending of the English plural: "cherries" → "cherry", "boxes" → "box", "cats" → "cat"."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def content_words(texts: Iterable[str], creators: Iterable[str] = ()) -> frozenset[str]:
    """The content words of texts, without the ending of the plural.

    Args:
        texts: titles, file names or keywords.
        creators: names of the authors, whose words are left out.
    """
    names = {word for creator in creators for word in words_of(creator)}
    found = {without_plural(word) for text in texts for word in words_of(text) if len(word) > 2 and word not in names}
    return frozenset(found - NOT_CONTENT)


def name_of(drawing: Drawing) -> str:
    """The words of the file name without the author's: "cigno_architetto_frances_01" → "cigno".

    The author's name is at the end and may be cut short. Words of one letter are left out.
    """
    words = words_of(drawing.stem)
    creators = [words_of(creator) for creator in drawing.creators]
    for start in range(1, len(words)):
        tail = words[start:]
        if len("".join(tail)) > 1 and any(_is_author(creator, tail) for creator in creators):
            words = words[:start]
            break
    return " ".join(word for word in words if len(word) > 1 and word not in NOT_IN_NAMES)


def _is_author(creator: list[str], words: list[str]) -> bool:
    """Whether all words are of a name, in any order; the last may be cut short."""
    *whole, last = words
    return set(whole) <= set(creator) and any(word.startswith(last) for word in creator)


def keywords_of(drawing: Drawing) -> list[str]:
    """The keywords as plain words in alphabetical order, each once; without the author's name and programs' remains."""
    authors = {word for creator in drawing.creators for word in words_of(creator)}
    kept = {" ".join(words_of(keyword)) for keyword in drawing.keywords if not _NOT_A_KEYWORD.fullmatch(keyword)}
    return sorted(keyword for keyword in kept if keyword and not set(keyword.split()) <= authors)


def description_of(drawing: Drawing) -> str:
    """File name and keywords as one text, such as "angel icon, boy, religion, saint, sky"; may be empty."""
    name = name_of(drawing)
    told = content_words([name])
    further = [keyword for keyword in keywords_of(drawing) if content_words([keyword]) - told]
    return ", ".join(filter(None, [name, *further[:KEYWORDS]]))


def agrees(drawing: Drawing) -> bool:
    """Whether the title agrees with the file name or the keywords; the rule is above."""
    described = [name_of(drawing), *keywords_of(drawing)]
    title, other = (content_words(texts, drawing.creators) for texts in ([drawing.title], described))
    if title & other:
        return True
    together = "".join(words_of(drawing.title)), " ".join("".join(words_of(text)) for text in described)
    return any(
        len(word) >= PART_LETTERS and word in letters
        for words, letters in ((other, together[0]), (title, together[1]))
        for word in words
    )
