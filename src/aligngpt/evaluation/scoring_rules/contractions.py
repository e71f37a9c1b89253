"""The contractions that the VQA normalisation corrects (`dont` → `don't`), as the official evaluation lists them."""

ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd "
    "there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've "
    "when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
)
"""Found without their apostrophe."""

MORE_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've "
    "there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've 'ow's'at"
)
"""Found with any one of their apostrophes missing."""


def _table() -> dict[str, str]:
    found = {word.replace("'", ""): word for word in ONE_APOSTROPHE.split()}
    for word in MORE_APOSTROPHES.split():
        places = [place for place, letter in enumerate(word) if letter == "'"]
        found |= {word[:place] + word[place + 1 :]: word for place in places}
    # The official list has this entry the wrong way round.
    return found | {"somebody'd": "somebodyd"}


CONTRACTIONS = _table()
"""Misspelt → correct. The official list's entries with a capital I are left out: texts are lower case when compared."""
