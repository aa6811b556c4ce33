"""Server-Sent Events (the HTML standard, section 9.2): what stands on the wire. No I/O."""

import re

_LINE_ENDS = re.compile(rb"\r\n|\n|\r")

COMMENT = b":\n\n"  # keeps a connection alive; nobody is told


def event(text: bytes, name: str = "", identifier: str = "") -> bytes:
    """Return one event. name, identifier: hold no line ends; "" leaves the field out."""
    fields = [b"event: %b\n" % name.encode()] if name else []
    if identifier:
        fields.append(b"id: %b\n" % identifier.encode())
    lines = _LINE_ENDS.split(text) if b"\n" in text or b"\r" in text else [text]
    return b"".join((*fields, *[b"data: %b\n" % line for line in lines], b"\n"))
