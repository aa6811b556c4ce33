"""fastpush.supervisor.listeners: one listening socket per slot and address, on nobody else's port."""

import errno
import os
import resource
import socket

import pytest

from fastpush.config import Api, Config, Connections, Server
from fastpush.errors import ConfigError, StartError
from fastpush.supervisor import listeners
from fastpush.supervisor.listeners import bind, first_port, raise_descriptor_limit, worker_slots


def config(*listen: str, workers: int = 2, api: str = "", send_bytes: int = 65536) -> Config:
    return Config(
        server=Server(listen=list(listen), workers=workers),
        api=Api(listen=api),
        connections=Connections(socket_send_bytes=send_bytes),
    )


def test_every_slot_has_every_address_in_the_same_order() -> None:
    """Each slot listens on all addresses, each address on one port in all slots."""
    bound = bind(config("127.0.0.1:0", "127.0.0.2:0", workers=3))
    names = [[listener.socket.getsockname() for listener in of_slot] for of_slot in bound.slots]
    assert len(names) == 3
    assert names[0] == names[1] == names[2]
    assert bound.addresses == tuple(f"{host}:{port}" for host, port in names[0])
    assert bound.port == names[0][0][1]
    bound.close()


def test_roles() -> None:
    """Everything is served on one address, unless [api] listen moves the rest to another."""
    alone, split = bind(config("127.0.0.1:0")), bind(config("127.0.0.1:0", api="127.0.0.2:0"))
    assert [listener.role for listener in alone.slots[0]] == ["all"]
    assert [listener.role for listener in split.slots[1]] == ["public", "api"]
    alone.close()
    split.close()


@pytest.mark.parametrize(("send_bytes", "expected"), [(65536, 131072), (8192, 16384)])
def test_accepted_sockets_inherit_options(send_bytes: int, expected: int) -> None:
    """An accepted socket has the configured send buffer (doubled by the kernel) and TCP_NODELAY."""
    bound = bind(config("127.0.0.1:0", workers=1, send_bytes=send_bytes))
    listener = bound.slots[0][0].socket
    listener.setblocking(True)
    with socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == expected
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    bound.close()


def test_zero_leaves_the_send_buffer_to_the_kernel() -> None:
    """socket_send_bytes = 0 sets nothing: the kernel's own size, which grows by itself, stays."""
    bound, plain = bind(config("127.0.0.1:0", workers=1, send_bytes=0)), socket.socket()
    sizes = {end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for end in (bound.slots[0][0].socket, plain)}
    assert len(sizes) == 1
    bound.close()
    plain.close()


def test_listeners_survive_no_exec_and_never_block() -> None:
    """Programs that workers start do not inherit the port; accept never blocks."""
    bound = bind(config("127.0.0.1:0"))
    ends = [listener.socket for of_slot in bound.slots for listener in of_slot]
    assert not any(end.get_inheritable() or end.getblocking() for end in ends)
    bound.close()


def test_ipv6_leaves_ipv4_alone() -> None:
    """An IPv6 address is written in brackets and takes no IPv4 connection."""
    bound = bind(config("[::1]:0"))
    listener = bound.slots[0][0].socket
    assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    assert bound.addresses == (f"[::1]:{bound.port}",)
    bound.close()


def test_localhost_is_one_address() -> None:
    """A name stands for one address, IPv4 first."""
    bound = bind(config("localhost:0"))
    assert bound.addresses == (f"127.0.0.1:{bound.port}",)
    bound.close()


def test_port_shared_by_another_socket_of_this_user_is_refused() -> None:
    """A listener with SO_REUSEPORT would let us join it: noticed, named, nothing left open."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartError, match=f"{address} is already in use; `ss -ltnp"):
            bind(config("127.0.0.1:0", address))


def test_port_with_closing_connections_is_free() -> None:
    """A connection in TIME_WAIT does not keep a restarted server from its port."""
    with socket.create_server(("127.0.0.1", 0)) as old:
        port = old.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = old.accept()
            accepted.close()  # the server's end closes first: TIME_WAIT is on its port
            assert client.recv(1) == b""
    bind(config(f"127.0.0.1:{port}")).close()


def test_an_address_of_another_host_is_refused() -> None:
    """An address that this host does not have is named, with where to look."""
    with pytest.raises(StartError, match=r"192\.0\.2\.1:0 is not an address of this host; `ip -brief address`"):
        bind(config("192.0.2.1:0"))


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EACCES, "127.0.0.1:80 needs a privilege; choose a port from 1024 on"),
        (errno.EAFNOSUPPORT, "cannot listen on 127.0.0.1:80: Address family not supported"),
    ],
)
def test_other_refusals_are_explained(code: int, advice: str) -> None:
    """Every other refusal names the address and what can be done."""
    address = listeners._resolve("127.0.0.1", 80, "all")
    assert advice in listeners._advice(OSError(code, os.strerror(code)), address)


def test_same_address_under_two_names_is_refused() -> None:
    """A name and the address it stands for are one and the same."""
    with socket.create_server(("127.0.0.1", 0)) as lender:
        port = lender.getsockname()[1]
    with pytest.raises(StartError, match=f"127.0.0.1:{port} stands under listen more than once"):
        bind(config(f"127.0.0.1:{port}", f"localhost:{port}"))


def test_open_server_is_judged_by_what_was_bound() -> None:
    """Without authentication an address that others reach is refused after binding too."""
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        bind(config("0.0.0.0:0"))


def test_too_many_addresses() -> None:
    """More addresses than one control message can carry are refused."""
    with pytest.raises(StartError, match="17 addresses under listen; 16 are allowed"):
        bind(config(*(f"127.0.0.{n}:0" for n in range(1, 18))))


def test_slots_and_port() -> None:
    """Zero workers means one per core; the server is known by its first port."""
    assert worker_slots(config("127.0.0.1:1", workers=0)) == len(os.sched_getaffinity(0))
    assert worker_slots(config("127.0.0.1:1", workers=7)) == 7
    assert first_port(config("127.0.0.1:81", "127.0.0.1:82")) == 81


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Descriptor limits that the tests read and write instead of the process's own."""
    kept = [(256, 10_000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: kept[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: kept.append(pair))
    return kept


def test_soft_limit_is_raised(limits: list[tuple[int, int]]) -> None:
    """The soft limit of file descriptors goes up to the hard one."""
    assert raise_descriptor_limit(4, 1) == (10_000, False)
    assert limits[-1] == (10_000, 10_000)


def test_low_limit_is_reported(limits: list[tuple[int, int]]) -> None:
    """A hard limit that suffices to start but not for many connections is reported."""
    limits.append((256, 1024))
    assert raise_descriptor_limit(4, 1) == (1024, True)


def test_limit_below_the_listeners_is_refused(limits: list[tuple[int, int]]) -> None:
    """A hard limit that the server's own sockets exceed ends the start with numbers and advice."""
    limits.append((100, 100))
    with pytest.raises(StartError, match=r"at most 100 file descriptors .* 20 workers on 2 addresses need 146; raise"):
        raise_descriptor_limit(20, 2)
