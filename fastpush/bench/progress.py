"""Which pushes have arrived, told by all client processes to process 0, which keeps the window."""

import socket
from functools import partial

from fastpush.bench.loop import Loop
from fastpush.bench.publishers import Publishing

_DONE, _EMPTY = b"d", b"e"
_RECORD_BYTES = 34  # a kind and the 33 digits of a stamp, or of a group's number
_READ_BYTES = 262_144 // _RECORD_BYTES * _RECORD_BYTES


class Progress:
    """One process' end. What is told in one turn of the loop goes out in one write.

    index: of the process.  peers: in process 0 a socket for each other process, in others the one to process 0.
    """

    def __init__(self, index: int, peers: dict[int, socket.socket]) -> None:
        self._index = index
        self._peers = peers
        self._unsent = b""
        self._records: list[bytes] = []
        self._publishing: Publishing | None = None
        self._held: dict[int, bytes] = {}

    def attach(self, loop: Loop, publishing: Publishing | None) -> None:
        """Begin: process 0 listens to the others."""
        self._publishing = publishing
        for index, peer in self._peers.items():
            peer.setblocking(False)
            if self._index == 0:
                self._held[index] = b""
                loop.watch(peer.fileno(), partial(self._on_told, index, peer, loop))

    def complete(self, stamps: list[bytes]) -> None:
        """Tell that all receivers of a group in this process have these."""
        if self._index:
            self._records += [_DONE + digits for digits in stamps]
        elif self._publishing is not None:
            self._publishing.on_complete(0, stamps)

    def group_empty(self, group: int) -> None:
        """Tell that nobody here receives the group's pushes any more."""
        if self._index:
            self._records.append(_EMPTY + b"%033d" % group)
        elif self._publishing is not None:
            self._publishing.on_group_empty(0, group)

    def flush(self) -> None:
        """Send what was told since the last turn."""
        if not self._records and not self._unsent:
            return
        self._unsent += b"".join(self._records)
        self._records.clear()
        try:
            self._unsent = self._unsent[self._peers[0].send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = b""  # process 0 has ended; the run is over

    def _on_told(self, index: int, peer: socket.socket, loop: Loop, _events: int) -> None:
        try:
            data = peer.recv(_READ_BYTES)
        except OSError:
            return
        if not data:
            loop.forget(peer.fileno())
            return
        data = self._held[index] + data
        whole = len(data) // _RECORD_BYTES * _RECORD_BYTES
        self._held[index] = data[whole:]
        if self._publishing is None:
            return
        records = [data[at : at + _RECORD_BYTES] for at in range(0, whole, _RECORD_BYTES)]
        for record in records:
            if record[:1] == _EMPTY:
                self._publishing.on_group_empty(index, int(record[1:]))
        self._publishing.on_complete(index, [record[1:] for record in records if record[:1] == _DONE])
