"""permessage-deflate (RFC 7692): what is agreed in the handshake, and deflated payloads. No I/O.

Both directions go without context takeover: every message is a deflate stream of its own.
So what is sent can be deflated once for all receivers, and a connection holds no window.
"""

import re
import zlib

from fastpush.errors import CloseCode, ProtocolViolation

_ANSWER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
_WINDOW_BITS = 15  # of what is sent; for what is received the largest copes with every smaller one
_SYNC_TAIL = b"\x00\x00\xff\xff"  # RFC 7692, 7.2.1: ends every sync flush, and is left out on the wire
_END = _SYNC_TAIL + b"\x03\x00"  # and an empty final block, which a message that was cut hardly reaches
_STREAMS_MAX = 64  # in one message; each costs a decoder and a copy of the rest, for two bytes

# RFC 6455, 9.1. No repetition gives back what it took ("++", "*+"), so that time is linear in the header.
_OWS = r"[ \t]*+"
_TCHAR = r"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_QUOTED = rf'"(?:\\?{_TCHAR})++"'  # which is a token, too, once it is unescaped
_PARAMETER = rf"{_OWS};{_OWS}({_TCHAR}++)(?:{_OWS}={_OWS}({_TCHAR}++|{_QUOTED}))?+"
_parameters = re.compile(_PARAMETER).findall
_match_extension = re.compile(rf"{_OWS}(?:({_TCHAR}++)((?:{_PARAMETER})*+))?+{_OWS}(?:,|\Z)").match

# Acceptable values of each known parameter; "" stands for none. RFC 7692, 7.1.
_ACCEPTABLE = {
    "server_no_context_takeover": frozenset(("",)),
    "client_no_context_takeover": frozenset(("",)),
    "server_max_window_bits": frozenset((str(_WINDOW_BITS),)),
    "client_max_window_bits": frozenset(("", "8", "9", "10", "11", "12", "13", "14", "15")),
}


def negotiate(header: str) -> str | None:
    """Return the answer to a client's Sec-WebSocket-Extensions; None: there is none, no extension is used.

    header: all its values, joined with ", ". The first acceptable offer is taken; one for a smaller window
    than that of the shared frames, or with a parameter that is unknown, repeated or invalid, is declined
    (RFC 7692, 5.1). A header that breaks the grammar offers nothing.
    """
    answer = None
    position = 0
    while position < len(header):
        extension = _match_extension(header, position)
        if extension is None:
            return None
        if answer is None and extension[1] == "permessage-deflate":
            answer = _answer(_parameters(extension[2]))
        position = extension.end()
    return answer


def _answer(parameters: list[tuple[str, str]]) -> str | None:
    values = {name: re.sub(r'["\\]', "", value) for name, value in parameters}
    if len(values) < len(parameters):
        return None
    if any(value not in _ACCEPTABLE.get(name, ()) for name, value in values.items()):
        return None
    # RFC 7692, 7.1.2.1: who accepts this one says so.
    is_asked = "server_max_window_bits" in values
    return f"{_ANSWER}; server_max_window_bits={_WINDOW_BITS}" if is_asked else _ANSWER


def compress(payload: bytes | memoryview, level: int) -> bytes:
    """Return the payload of a compressed message (RFC 7692, 7.2.1), never empty. level: zlib's, 1 to 9."""
    encoder = zlib.compressobj(level, zlib.DEFLATED, -_WINDOW_BITS)
    deflated = encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH)
    return deflated[: -len(_SYNC_TAIL)]


def inflate(payload: bytes | bytearray, most_bytes: int) -> bytes:
    """Return what a compressed message of a client holds (RFC 7692, 7.2.2).

    A block with BFINAL ends a deflate stream; another may follow in the same message (7.2.3.4).
    Raises: ProtocolViolation 1009: more than `most_bytes`, of which one byte more is inflated at most;
            1002: not deflate data, or not all of it. Not 1007, which is for data that does not fit
            its message's type (RFC 6455, 7.4.1): here there is no message yet.
    Cost:   one copy of the payload, and of the rest for each further stream.
    """
    inflated = b""
    rest = bytes(payload) + _END
    for _ in range(_STREAMS_MAX):
        decoder = zlib.decompressobj(-_WINDOW_BITS)
        try:
            inflated += decoder.decompress(rest, most_bytes + 1 - len(inflated))
        except zlib.error:
            break
        if len(inflated) > most_bytes:
            raise ProtocolViolation(CloseCode.MESSAGE_TOO_BIG, f"message is larger than {most_bytes} bytes")
        rest = decoder.unused_data
        if not decoder.eof:
            break
        if not rest:
            return inflated
    raise ProtocolViolation(CloseCode.PROTOCOL_ERROR, "compressed message is damaged")
