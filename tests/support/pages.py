"""Is a page whole, and does it need nothing else?"""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "br", "link"}


class Tags(HTMLParser):
    """Every tag that is opened is closed, in order; all addresses it names, all text it shows."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src")]

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("href", "src")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f"{data} "


def read(page: str) -> Tags:
    """Asserts that the page is whole and needs nothing else."""
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert all(address.startswith("#") for address in tags.addresses)
    assert "script" not in tags.seen
    assert "url(http" not in page
    assert "prefers-color-scheme: dark" in page
    page.encode()
    return tags
