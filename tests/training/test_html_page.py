"""HTML pages: every value is escaped, whatever part it stands in."""

from __future__ import annotations

import html.parser

from cmt_training.html_page import heading, images, page, paragraph, preformatted, table

NASTY = "<script>alert('&')</script>"


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts += [value for name, value in attrs if name == "alt" and value]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_every_value_is_escaped() -> None:
    parts = [heading(NASTY, 1), paragraph(NASTY), table((NASTY,), [(NASTY,)]), *images({NASTY: b"png"})]
    text = page(NASTY, [*parts, preformatted({NASTY: 1})])
    found = Page(text)
    assert "<script" not in text
    assert [tag for tag in found.tags if tag not in ("html", "meta", "style", "tr")] == [
        *("title", "h1", "p", "div", "table", "th", "td", "img", "pre")
    ]
    assert sum(NASTY in one for one in found.texts) == 7
