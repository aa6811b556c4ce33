"""fastpush.supervisor.inherited and listeners.bind: sockets that systemd passes, of its store and of socket units."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from fastpush.config import Api, Auth, Config, Connections, Push, Server
from fastpush.errors import ConfigError, StartError
from fastpush.supervisor import inherited
from fastpush.supervisor.inherited import Inherited, slot_name, take_inherited
from fastpush.supervisor.listeners import Listeners, bind
from fastpush.supervisor.notify import Notifier

Listening = Callable[..., socket.socket]


@pytest.fixture
def listening() -> Iterator[Listening]:
    """Make listening sockets on loopback that end with the test."""
    made: list[socket.socket] = []

    def make(address: str = "127.0.0.1", port: int = 0, *, shared: bool = True) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made.append(one := socket.socket(family))
        if shared:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind((address, port))
        one.listen()
        return one

    yield make
    for one in made:
        one.close()


def config(*listen: str, workers: int = 2, api: str = "", send_bytes: int = 65536, is_open: bool = True) -> Config:
    closed = (
        {} if is_open else {"auth": Auth(mode="static", tokens_file="t"), "push": Push(auth="keys", keys=["k" * 16])}
    )
    return Config(
        server=Server(listen=list(listen), workers=workers),
        api=Api(listen=api),
        connections=Connections(socket_send_bytes=send_bytes),
        **closed,
    )


def address(of: socket.socket) -> str:
    return f"{of.getsockname()[0]}:{of.getsockname()[1]}"


def numbers(bound: Listeners) -> list[list[int]]:
    """Return the inodes of the sockets of each slot."""
    return [[os.fstat(one.socket.fileno()).st_ino for one in listeners] for listeners in bound.slots]


def inode(of: socket.socket) -> int:
    return os.fstat(of.fileno()).st_ino


class Store(Notifier):
    """What would be said to systemd about its store."""

    def __init__(self, *, works: bool = True) -> None:
        self.works = works
        self.calls: list[tuple[str, str, int]] = []

    def store(self, name, descriptors) -> bool:
        self.calls.append(("store", name, len(descriptors)))
        return self.works

    def forget(self, name) -> None:
        self.calls.append(("forget", name, 0))


# The environment


def pass_on(monkeypatch: pytest.MonkeyPatch, sockets: list[socket.socket], names: str, pid: int | None = None) -> None:
    """Say in the environment that copies of the sockets were passed, from wherever they are."""
    first = fcntl.fcntl(sockets[0], fcntl.F_DUPFD, 100)
    for offset, one in enumerate(sockets[1:], 1):
        os.dup2(one.fileno(), first + offset)
    monkeypatch.setattr(inherited, "FIRST_DESCRIPTOR", first)
    monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", str(len(sockets)))
    monkeypatch.setenv("LISTEN_FDNAMES", names)


def test_sockets_are_taken_with_their_names(monkeypatch: pytest.MonkeyPatch, listening: Listening) -> None:
    """Each socket comes with its name, non-blocking, closed in programs that are started; the variables are gone."""
    one, two = listening(), listening()
    pass_on(monkeypatch, [one, two], "fastpush-slot-1:web.socket")
    taken = take_inherited()
    assert [(i.name, i.slot, i.socket.getsockname()) for i in taken] == [
        ("fastpush-slot-1", 1, one.getsockname()),
        ("web.socket", None, two.getsockname()),
    ]
    assert not any(i.socket.get_inheritable() or i.socket.getblocking() for i in taken)
    assert not [name for name in os.environ if name.startswith("LISTEN_")]
    assert take_inherited() == []
    for i in taken:
        i.socket.close()


def test_sockets_of_another_process_are_left(monkeypatch: pytest.MonkeyPatch, listening: Listening) -> None:
    """What $LISTEN_PID says was meant for a process before us, and the variables are gone all the same."""
    one = listening()
    pass_on(monkeypatch, [one], "x", pid=1)
    assert take_inherited() == []
    assert "LISTEN_FDS" not in os.environ
    os.close(inherited.FIRST_DESCRIPTOR)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_other_sockets_are_refused(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    """A socket that does not listen, and one that is no TCP socket, are refused with their unit's name and a remedy."""
    with socket.socket(socket.AF_INET, kind) as other:
        pass_on(monkeypatch, [other], "web.socket")
        with pytest.raises(StartError, match=r"passes as web\.socket, is not a listening TCP socket; .* Accept=no"):
            take_inherited()


def test_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that is no socket at all is refused too."""
    with open(os.devnull) as file:  # noqa: PTH123
        pass_on(monkeypatch, [file], "log")  # type: ignore[list-item]
        with pytest.raises(StartError, match="passes as log"):
            take_inherited()
    os.close(inherited.FIRST_DESCRIPTOR)


# From the descriptor store


def test_stored_sockets_go_back_into_their_slots(listening: Listening) -> None:
    """Each slot has its own sockets again, although another program's probe would find the port taken."""
    first = listening()
    second = listening(port=first.getsockname()[1])
    inodes = [[inode(first)], [inode(second)]]
    bound = bind(config(address(first)), [Inherited(slot_name(1), second), Inherited(slot_name(0), first)])
    assert numbers(bound) == inodes
    assert bound.forgotten == ()
    bound.close()


def test_missing_sockets_are_bound_beside_stored_ones(listening: Listening) -> None:
    """More workers than before: the new slots join the port."""
    first = listening()
    bound = bind(config(address(first), workers=3), [Inherited(slot_name(0), first)])
    assert numbers(bound)[0] == [inode(first)]
    assert {one.socket.getsockname() for listeners in bound.slots for one in listeners} == {first.getsockname()}
    bound.close()


def test_sockets_that_fit_nowhere_are_closed_and_forgotten(listening: Listening) -> None:
    """A slot or an address that is gone: its sockets are closed, and the names that held them are told."""
    kept, gone, slot_gone = listening(), listening(), listening()
    names = [Inherited(slot_name(0), kept), Inherited(slot_name(0), gone), Inherited(slot_name(7), slot_gone)]
    bound = bind(config(address(kept), workers=1), names)
    assert bound.forgotten == (slot_name(0), slot_name(7))
    assert gone.fileno() == slot_gone.fileno() == -1
    bound.close()


def test_port_zero_takes_no_stored_socket(listening: Listening) -> None:
    """Port 0 means a port that the kernel chooses: whatever is stored is closed."""
    old = listening()
    bound = bind(config("127.0.0.1:0", workers=1), [Inherited(slot_name(0), old)])
    assert old.fileno() == -1
    bound.close()


def test_a_new_address_is_still_probed(listening: Listening) -> None:
    """Stored sockets vouch for their own address alone; another one that somebody has is refused, and all is closed."""
    stored, foreign = listening(), listening()
    with pytest.raises(StartError, match=f"{address(foreign)} is already in use"):
        bind(config(address(stored), address(foreign), workers=1), [Inherited(slot_name(0), stored)])
    assert stored.fileno() == -1


def test_options_are_set_on_stored_sockets(listening: Listening) -> None:
    """An accepted socket of a stored listener has the send buffer that is configured now, and TCP_NODELAY."""
    stored = listening()
    bound = bind(config(address(stored), workers=1, send_bytes=16384), [Inherited(slot_name(0), stored)])
    listener = bound.slots[0][0].socket
    listener.setblocking(True)
    with socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 32768
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    bound.close()


def test_all_slots_are_stored_after_what_is_forgotten(listening: Listening) -> None:
    """Names with a socket that is not used any more are emptied first, then every slot is stored, then all is kept."""
    kept, gone = listening(), listening()
    bound = bind(config(address(kept)), [Inherited(slot_name(1), kept), Inherited(slot_name(1), gone)])
    store = Store()
    assert not bound.kept
    bound.keep(store)
    assert store.calls == [("forget", slot_name(1), 0), ("store", slot_name(0), 1), ("store", slot_name(1), 1)]
    assert bound.kept
    bound.close()


def test_without_a_store_nothing_is_kept() -> None:
    """Where nobody takes the descriptors, the sockets close with the process."""
    bound = bind(config("127.0.0.1:0"))
    bound.keep(Store(works=False))
    assert not bound.kept
    bound.close()


# From a socket unit


def test_a_units_socket_is_shared_by_all_slots(listening: Listening) -> None:
    """All slots accept from one socket, through descriptors of their own, and the passed one is closed."""
    unit = listening(shared=False)
    number, at = inode(unit), address(unit)
    bound = bind(config(at, workers=3), [Inherited("fastpush.socket", unit)])
    assert numbers(bound) == [[number]] * 3
    assert len({one.socket.fileno() for listeners in bound.slots for one in listeners}) == 3
    assert unit.fileno() == -1 and bound.addresses == (at,)
    bound.close()


def test_roles_follow_the_configuration_not_the_order(listening: Listening) -> None:
    """What is served on a passed socket is said by the configuration that names its address."""
    public, api = listening(shared=False), listening(shared=False)
    units = [Inherited("fastpush.socket", api), Inherited("fastpush.socket", public)]
    settings = config(address(public), api=address(api), workers=1)
    names = [public.getsockname(), api.getsockname()]
    bound = bind(settings, units)
    assert [(one.socket.getsockname(), one.role) for one in bound.slots[0]] == [(names[0], "public"), (names[1], "api")]
    bound.close()


def test_addresses_without_a_unit_are_bound_and_stored(listening: Listening) -> None:
    """[api] listen beside a socket unit is the server's own; it alone is stored, systemd has the other one anyway."""
    unit = listening(shared=False)
    bound = bind(config(address(unit), api="127.0.0.1:0"), [Inherited("fastpush.socket", unit)])
    store = Store()
    bound.keep(store)
    assert store.calls == [("store", slot_name(0), 1), ("store", slot_name(1), 1)]
    assert bound.kept
    bound.close()


def test_units_alone_are_kept_without_a_store(listening: Listening) -> None:
    """With nothing but passed sockets there is nothing to store: they stay open with their units."""
    unit = listening(shared=False)
    bound = bind(config(address(unit)), [Inherited("fastpush.socket", unit)])
    store = Store(works=False)
    bound.keep(store)
    assert store.calls == [] and bound.kept
    bound.close()


def test_a_unit_with_another_address_is_refused(listening: Listening) -> None:
    """The refusal names both addresses and where to change either."""
    unit = listening(shared=False)
    at = address(unit)
    text = rf'web\.socket listens on {at}, the configuration on 127\.0\.0\.1:1: write "{at}" under \[server\] listen'
    with pytest.raises(ConfigError, match=text):
        bind(config("127.0.0.1:1"), [Inherited("web.socket", unit)])
    assert unit.fileno() == -1


def test_one_address_from_two_units_is_refused(listening: Listening) -> None:
    """Two sockets on one port would need ReusePort=; connects to the second would wait for ever."""
    one = listening()
    two = listening(port=one.getsockname()[1])
    with pytest.raises(StartError, match=r"passes .* more than once; .* without ReusePort="):
        bind(config(address(one)), [Inherited("a.socket", one), Inherited("b.socket", two)])


@pytest.mark.parametrize("name", ["fastpush.socket", slot_name(0)])
def test_an_open_server_takes_no_public_socket(listening: Listening, name: str) -> None:
    """The exposure check judges what inherited sockets are bound to; with authentication they are taken."""
    one, two = listening("0.0.0.0"), listening("0.0.0.0")
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        bind(config(address(one), workers=1), [Inherited(name, one)])
    bind(config(address(two), workers=1, is_open=False), [Inherited(name, two)]).close()


def test_ipv6(listening: Listening) -> None:
    """An IPv6 socket is recognised by its address, too."""
    unit = listening("::1", shared=False)
    bound = bind(config(f"[::1]:{unit.getsockname()[1]}", workers=1), [Inherited("fastpush.socket", unit)])
    assert bound.shared == (True,)
    bound.close()
