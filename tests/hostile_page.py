"""A page read as a browser would, and a string that tries to break out of it."""

from html.parser import HTMLParser

EVIL = """</dd><script>alert('x')</script> "><img src=x onerror=alert(1)> | **bold** `code` [link](javascript:x)"""


VOID = {"meta", "img", "rect", "br", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, visible text, and whether every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.well_formed = [], [], [], True
        self.feed(text)
        self.well_formed &= not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.well_formed &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]
