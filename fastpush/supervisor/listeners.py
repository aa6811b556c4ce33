"""Listening TCP sockets: for each address one SO_REUSEPORT socket per worker slot, bound before any fork.

SO_REUSEPORT would let a second server of the same user join the port and silently take
a share of the connections. So each address is first bound without it, which fails
if anybody listens there.

What systemd passes on is used instead of a socket of our own (inherited.py): a slot's
own sockets go back to it, with the connections that wait in them; a socket unit's
socket is shared by all slots.
"""

import errno
import os
import resource
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from fastpush.child import LISTEN_BACKLOG, Listener, ListenerRole
from fastpush.config import Config, check_exposure
from fastpush.config import addresses as listen_addresses
from fastpush.errors import ConfigError, StartError
from fastpush.supervisor.inherited import Inherited, slot_name
from fastpush.supervisor.notify import Notifier

ADDRESSES_MAX = 16  # descriptors that fit into one Cover message
DESCRIPTORS_SPARE = 64  # log, lock, control socket and its clients, modules being imported
DESCRIPTORS_FEW = 4096


@dataclass(frozen=True, slots=True)
class _Address:
    family: int
    sockaddr: tuple[str, int] | tuple[str, int, int, int]
    role: ListenerRole

    def is_of(self, bound: socket.socket) -> bool:
        return (self.family, self.sockaddr) == (bound.family, bound.getsockname())

    def at_port(self, port: int) -> "_Address":
        return _Address(self.family, (self.sockaddr[0], port, *self.sockaddr[2:]), self.role)

    def __str__(self) -> str:
        host, port = self.sockaddr[:2]
        return f"[{host}]:{port}" if self.family == socket.AF_INET6 else f"{host}:{port}"


@dataclass(slots=True)
class Listeners:
    """All listening sockets.

    slots:     one tuple of them per worker slot, in the same order in each.
    addresses: what they are bound to.
    port:      of the first address: the one the server is known by.
    shared:    for each address, whether its socket is a socket unit's, the same one in every slot.
    forgotten: names in systemd's descriptor store under which some socket is not used any more.
    kept:      whether systemd holds every socket, so that none closes when this process ends.
    """

    slots: tuple[tuple[Listener, ...], ...]
    addresses: tuple[str, ...]
    port: int
    shared: tuple[bool, ...]
    forgotten: tuple[str, ...] = ()
    kept: bool = False

    def keep(self, notifier: Notifier) -> None:
        """Have systemd hold the sockets for the service's next start, one name a slot; sets `kept`."""
        for name in self.forgotten:
            notifier.forget(name)
        self.kept = True
        for slot, listeners in enumerate(self.slots):
            own = [
                listener.socket.fileno() for listener, shared in zip(listeners, self.shared, strict=True) if not shared
            ]
            if own and not notifier.store(slot_name(slot), own):
                self.kept = False

    def check_exposure(self, config: Config) -> None:
        """Judge what the kernel bound: a name such as localhost means what the host says it means.

        Raises: ConfigError, for an open server that others can reach.
        """
        roles = [listener.role for listener in self.slots[0]]
        outer = [address for address, role in zip(self.addresses, roles, strict=True) if role != "api"]
        inner = [address for address, role in zip(self.addresses, roles, strict=True) if role == "api"]
        check_exposure(
            replace(config, server=replace(config.server, listen=outer), api=replace(config.api, listen=inner))
        )

    def close(self) -> None:
        """Stop listening, as far as no child does and systemd keeps nothing."""
        for listeners in self.slots:
            for listener in listeners:
                listener.socket.close()


def worker_slots(config: Config) -> int:
    """Return the number of worker slots: as configured, or one per core this process may run on."""
    return config.server.workers or len(os.sched_getaffinity(0))


def first_port(config: Config) -> int:
    """Return the port that the server is known by; 0 when the kernel is to choose it."""
    return listen_addresses(config.server.listen)[0][1]


def bind(config: Config, inherited: Sequence[Inherited] = ()) -> Listeners:
    """Bind and listen on every configured address, once per worker slot, but for what was inherited.

    Port 0 becomes a free port, the same in every slot; no inherited socket is taken for it. Inherited sockets
    are closed if they are not used: connections that wait in them are reset, or with the sysctl
    net.ipv4.tcp_migrate_req = 1 moved to another slot's.

    Raises: StartError naming the address and what to change; ConfigError for an open server that others can reach,
            and for a socket unit that has other addresses than the configuration.
    """
    slots: list[list[Listener]] = [[] for _ in range(worker_slots(config))]
    stored = [one for one in inherited if one.slot is not None]
    units = [one for one in inherited if one.slot is None]
    addresses: list[_Address] = []
    shared: list[bool] = []
    try:
        wanted = _addresses(config)
        _check_units(units, wanted)
        for address in wanted:
            unit = next((one for one in units if address.is_of(one.socket)), None)
            addresses.append(_share(unit, slots, address) if unit else _give(stored, slots, address))
            shared.append(unit is not None)
        _set_options(slots, config.connections.socket_send_bytes)
        used = {listener.socket for listeners in slots for listener in listeners}
        unused = [one for one in inherited if one.socket not in used]
        found = Listeners(
            slots=tuple(tuple(listeners) for listeners in slots),
            addresses=tuple(map(str, addresses)),
            port=addresses[0].sockaddr[1],
            shared=tuple(shared),
            forgotten=tuple(sorted({one.name for one in unused if one.slot is not None})),
        )
        found.check_exposure(config)
    except BaseException:
        _close([listener.socket for listeners in slots for listener in listeners])
        _close([one.socket for one in inherited])
        raise
    _close([one.socket for one in unused])
    return found


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _check_units(units: list[Inherited], wanted: list[_Address]) -> None:
    """Refuse a socket unit's socket that is not configured: nobody would accept from it."""
    configured = " and ".join(map(str, wanted))
    seen: set[str] = set()
    for unit in units:
        address = _Address(unit.socket.family, unit.socket.getsockname(), "all")
        if str(address) in seen:
            raise StartError(f"systemd passes {address} more than once; name it in one socket unit, without ReusePort=")
        seen.add(str(address))
        if not any(known.is_of(unit.socket) for known in wanted):
            raise ConfigError(
                f"{unit.name} listens on {address}, the configuration on {configured}: "
                f'write "{address}" under [server] listen or [api] listen, or change ListenStream= in the socket unit'
            )


def _share(unit: Inherited, slots: list[list[Listener]], address: _Address) -> _Address:
    """Give every slot the unit's socket, each a descriptor of its own that it may close."""
    for listeners in slots:
        listeners.append(Listener(unit.socket.dup(), address.role))
    return address


def _give(stored: list[Inherited], slots: list[list[Listener]], address: _Address) -> _Address:
    """Give every slot its inherited socket, or a new one."""
    of_slot = {one.slot: one.socket for one in stored if address.is_of(one.socket)}
    if not of_slot:  # else it is we who listen there
        _probe(address)
    for slot, listeners in enumerate(slots):
        listeners.append(Listener(of_slot.get(slot) or _listen(address), address.role))
        address = address.at_port(listeners[-1].socket.getsockname()[1])
    return address


def _set_options(slots: list[list[Listener]], send_bytes: int) -> None:
    """Set what accepted sockets inherit: no system call per connection."""
    for listener in (listener for listeners in slots for listener in listeners):
        listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if send_bytes:
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)


def _addresses(config: Config) -> list[_Address]:
    api = listen_addresses(config.api.listen)
    role: ListenerRole = "public" if api else "all"
    found = [_resolve(host, port, role) for host, port in listen_addresses(config.server.listen)]
    found += [_resolve(host, port, "api") for host, port in api]
    texts = [str(address) for address in found if address.sockaddr[1]]
    if twice := {text for text in texts if texts.count(text) > 1}:
        raise StartError(f"{', '.join(sorted(twice))} stands under listen more than once")
    if len(found) > ADDRESSES_MAX:
        raise StartError(f"{len(found)} addresses under listen; {ADDRESSES_MAX} are allowed")
    return found


def _resolve(host: str, port: int, role: ListenerRole) -> _Address:
    """Resolve a name to ONE address, IPv4 before IPv6; who wants both lists both."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise StartError(f"the host of listen address {host}:{port} is unknown: {error.strerror}") from error
    family, _, _, _, sockaddr = min(found, key=lambda result: result[0] != socket.AF_INET)
    return _Address(family, sockaddr, role)  # type: ignore[arg-type]


def _probe(address: _Address) -> None:
    """Fail if another program listens on `address`, even one that shares its port."""
    if address.sockaddr[1] == 0:
        return  # the kernel chooses a port that nobody has
    with socket.socket(address.family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not stopped by connections still closing
        _bind(probe, address)


def _listen(address: _Address) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind(listener, address)
        listener.listen(LISTEN_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _bind(unbound: socket.socket, address: _Address) -> None:
    if address.family == socket.AF_INET6:
        # Otherwise [::] takes the port of every IPv4 address too, past the exposure check.
        unbound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        unbound.bind(address.sockaddr)
    except OSError as error:
        raise StartError(_advice(error, address)) from error


def _advice(error: OSError, address: _Address) -> str:
    port = address.sockaddr[1]
    match error.errno:
        case errno.EADDRINUSE:
            return f"{address} is already in use; `ss -ltnp 'sport = :{port}'` shows by which program"
        case errno.EADDRNOTAVAIL:
            return f"{address} is not an address of this host; `ip -brief address` lists those that are"
        case errno.EACCES:
            return (
                f"{address} needs a privilege; choose a port from 1024 on, or let systemd listen there: "
                "fastpush.socket of `fastpush install-service`"
            )
        case _:
            return f"cannot listen on {address}: {error.strerror}"


def raise_descriptor_limit(slots: int, addresses: int) -> tuple[int, bool]:
    """Raise this process's file-descriptor limit as far as it may; children inherit it.

    Returns: the limit, and whether it is low for a server of connections.
    Raises:  StartError when not even the listening sockets fit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = hard if hard != resource.RLIM_INFINITY else 1 << 30
    needed = slots * addresses + 2 * (slots + 1) + DESCRIPTORS_SPARE
    if limit < needed:
        raise StartError(
            f"at most {limit} file descriptors are allowed, {slots} workers on {addresses} addresses need {needed}; "
            "raise it (`ulimit -Hn`, or LimitNOFILE= in the systemd unit) or lower [server] workers"
        )
    return limit, limit < DESCRIPTORS_FEW
