"""Tokens that break pictures which take them for markup or mathematics, and what HTML makes of a document."""

from html.parser import HTMLParser

TOKENS = (
    "<bos>",
    "<s>",
    "</script>",
    '<img/src="x"onerror="document.title=1">',
    "<b>bold</b>",
    "&amp;",
    "\n",
    "",
    " ",
    '"',
    "'",
    "\\",
    "🙂",
    "שלום",
    "$\\foo$",
    "_hidden",
    "[data-tl-edit]",
)


class Document(HTMLParser):
    """The tags, titles and text of a document."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.titles, self.text, self.scripts = [], [], "", []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._inside = tag == "script"
        self.titles += [value for name, value in attributes if name == "title"]

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts.append(data)
        else:
            self.text += data
