"""The page has the numbers of the JSON file, loads nothing, and shows the texts of the data as texts."""

import re
from collections.abc import Callable
from html.parser import HTMLParser

from aligngpt.inspecting.page import signed, signless


def kind_of(index: int) -> str:
    return "colour" if index % 3 else "count"


class Reader(HTMLParser):
    """Collects tags with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_the_numbers_and_loads_nothing(inspect: Callable, write_records: Callable) -> None:
    numbers, page, _ = inspect(write_records(question_type=kind_of))
    read = Reader(page)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in read.tags}
    addresses = [attrs[name] for _, attrs in read.tags for name in ("src", "href", "xlink:href") if name in attrs]
    assert all(one and re.match("data:|#", one) for one in addresses)
    for row in numbers["dose"]["levels"]:
        assert signless(row["log_probability"][0]) in read.text
        assert " to ".join(map(signed, row["minus_own"][1:])) in read.text
    for row in numbers["gate"]:
        assert all(signless(end) in read.text for weight in row["weights"] for end in weight)
    assert all(signless(norm) in read.text for norm in numbers["table"]["norms"])


def test_texts_of_the_data_cannot_become_markup(inspect: Callable, write_records: Callable) -> None:
    data = write_records(2, id="<script>a</script>", question="how <b>many</b>\x00 ?", question_type="<i>$k$")
    _, page, _ = inspect(data)
    assert "<script" not in page and "<b>many" not in page and "<i>$k" not in page and "\x00" not in page
    assert "how &lt;b&gt;many" in page
