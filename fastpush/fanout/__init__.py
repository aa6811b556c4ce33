"""Fan-out: one publication to all local connections that want its key.

    hub.py     who wants which key, and what the broker is told of it
    pump.py    when a key's messages are written: at once, or gathered while the key is busy
    batch.py   what is written: each wire form made once, several messages joined to one write

A frame is built once by the worker that took the push; here the same `bytes` object goes to
every receiver and every send queue. While receivers are walked nothing may change their
groups: they only mark themselves, and are closed after the walk.
"""

from fastpush.fanout.batch import (
    CHANNEL_FORMS,
    CLIENT,
    DEFLATE,
    ENVELOPE,
    EVENTS,
    GZIP,
    LINES,
    PLAIN,
    UNIDIRECTIONAL,
    Receiver,
)
from fastpush.fanout.hub import Group, Hub

__all__ = [
    "CHANNEL_FORMS",
    "CLIENT",
    "DEFLATE",
    "ENVELOPE",
    "EVENTS",
    "GZIP",
    "LINES",
    "PLAIN",
    "UNIDIRECTIONAL",
    "Group",
    "Hub",
    "Receiver",
]
