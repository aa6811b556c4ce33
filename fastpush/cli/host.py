"""What the kernel of this host allows, and whether that is enough for a configuration."""

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Literal, NamedTuple

from fastpush.child import DESCRIPTORS_RESERVED, LISTEN_BACKLOG
from fastpush.cli.common import count_of
from fastpush.config import Config, addresses
from fastpush.supervisor.listeners import worker_slots

UNLIMITED = 1 << 62
DESCRIPTORS_WANTED = 65536  # where the configuration does not say how many clients there may be
PORTS_WANTED = 60000  # of the 64,512 that a kernel can be given for outgoing connections
MEMORY_SHARE = 0.8
TABLE_SHARE = 0.75
_LOOPBACK = tuple(map(ip_address, ("127.0.0.1", "::1")))


class Finding(NamedTuple):
    """One line of the report. advice: what would be better.  exit_code: of a server that fails for it, else 0."""

    name: str
    text: str
    advice: str = ""
    exit_code: int = 0

    @property
    def severity(self) -> Literal["ok", "advice", "fails"]:
        """How bad it is."""
        return "fails" if self.exit_code else "advice" if self.advice else "ok"


@dataclass(frozen=True)
class Host:
    """Limits of the kernel. A figure that it does not tell, as in some containers, is one that nothing exceeds.

    descriptors:      hard limit of one process.  descriptors_most: what that limit may be raised to.
    backlog:          connects that may wait in one listening socket.
    half_open:        connects before their third packet; counts only without syn_cookies.
    ephemeral_ports:  first and last port of outgoing connections.  reserved_ports: left out of these.
    privileged_below: ports that only root and who has the capability may bind.
    send_bytes:       largest send buffer that a socket may ask for.
    tracked_most:     connections that the firewall can track; 0: it tracks none.  tracked: now.
    """

    cores: int
    memory_bytes: int
    descriptors: int
    descriptors_most: int
    backlog: int
    half_open: int
    syn_cookies: bool
    ephemeral_ports: tuple[int, int]
    reserved_ports: str
    privileged_below: int
    send_bytes: int
    tracked_most: int
    tracked: int

    @classmethod
    def read(cls, process: str = "self", proc: Path = Path("/proc")) -> "Host":
        """Return what `proc` says. process: id of the one whose limit of descriptors counts."""

        def text(path: str) -> str:
            try:
                return (proc / path).read_text(encoding="ascii")
            except (OSError, ValueError):
                return ""

        def number(path: str, pattern: str = r"(\d+)", default: int = UNLIMITED) -> int:
            found = re.search(pattern, text(path))
            return int(found[1]) if found else default

        ports = re.findall(r"\d+", text("sys/net/ipv4/ip_local_port_range"))
        return cls(
            cores=len(os.sched_getaffinity(0)),
            memory_bytes=number("meminfo", r"MemTotal:\s+(\d+) kB", UNLIMITED // 1024) * 1024,
            descriptors=number(f"{process}/limits", r"Max open files\s+\S+\s+(\d+)"),
            descriptors_most=number("sys/fs/nr_open"),
            backlog=number("sys/net/core/somaxconn"),
            half_open=number("sys/net/ipv4/tcp_max_syn_backlog"),
            syn_cookies=number("sys/net/ipv4/tcp_syncookies") != 0,
            ephemeral_ports=(int(ports[0]), int(ports[1])) if ports else (65536, 65535),
            reserved_ports=text("sys/net/ipv4/ip_local_reserved_ports").strip(),
            privileged_below=number("sys/net/ipv4/ip_unprivileged_port_start", default=1024),
            send_bytes=number("sys/net/core/wmem_max"),
            tracked_most=number("sys/net/netfilter/nf_conntrack_max", default=0),
            tracked=number("sys/net/netfilter/nf_conntrack_count", default=0),
        )


def examine(config: Config, host: Host) -> list[Finding]:
    """Return what there is to say about the host. Where nothing depends on a limit, it is left out."""
    found = [
        _workers(config, host),
        _descriptors(config, host),
        _memory(config, host),
        _backlog(host),
        _half_open(host),
        _send_buffer(config, host),
        _ephemeral_ports(config, host),
        _tracking(config, host),
    ]
    return [finding for finding in found if finding]


def _workers(config: Config, host: Host) -> Finding:
    slots = worker_slots(config)
    text = f"{slots}, on {count_of(host.cores, 'core')}"
    few = "more workers than cores cost memory and gain nothing: lower [server] workers"
    return Finding("workers", text, few if slots > host.cores else "")


def _descriptors(config: Config, host: Host) -> Finding:
    """Each client takes one, of the process that serves it."""
    asked = config.limits.connections
    wanted = asked + DESCRIPTORS_RESERVED if asked else DESCRIPTORS_WANTED
    text = f"{_number(host.descriptors)} a process here, one a client"
    if host.descriptors >= wanted:
        return Finding("descriptors", text)
    why = f"[limits] connections asks for {asked:,} in each worker: " if asked else ""
    advice = f"{why}`ulimit -Hn {wanted}` before the start, or LimitNOFILE= in the unit (fastpush.service has 1048576)"
    if host.descriptors_most < wanted:
        advice += f", and first `sysctl -w fs.nr_open={wanted}`"
    return Finding("descriptors", text, advice)


def _memory(config: Config, host: Host) -> Finding:
    """What the bounds of all queues add up to."""
    slots, limits = worker_slots(config), config.limits
    parts = {
        "[limits] worker_send_bytes": slots * limits.worker_send_bytes,
        "[bus] queue_bytes": slots * 2 * config.bus.queue_bytes,
        "[limits] connections or message_bytes": slots * limits.connections * limits.message_bytes,
    }
    most = sum(parts.values())
    text = f"{_size(host.memory_bytes)}; queues and messages that wait may take {_size(most)} at worst"
    if most <= host.memory_bytes * MEMORY_SHARE:
        return Finding("memory", text)
    largest = max(parts, key=lambda name: parts[name])
    workers = count_of(slots, "worker")
    return Finding("memory", text, f"lower {largest}: in {workers} that makes {_size(parts[largest])}")


def _backlog(host: Host) -> Finding:
    text = f"{_number(min(host.backlog, LISTEN_BACKLOG))} connects may wait for each worker"
    if host.backlog >= LISTEN_BACKLOG:
        return Finding("backlog", text)
    return Finding("backlog", text, f"for bursts of connects `sysctl -w net.core.somaxconn={LISTEN_BACKLOG}`")


def _half_open(host: Host) -> Finding | None:
    """With SYN cookies the kernel goes on without a queue; without them it drops."""
    if host.syn_cookies or host.half_open >= LISTEN_BACKLOG:
        return None
    text = f"{host.half_open:,} connects may be half open, and SYN cookies are off"
    remedy = f"`sysctl -w net.ipv4.tcp_syncookies=1`, or net.ipv4.tcp_max_syn_backlog={LISTEN_BACKLOG}"
    return Finding("half open", text, f"for bursts of connects {remedy}")


def _send_buffer(config: Config, host: Host) -> Finding | None:
    asked = config.connections.socket_send_bytes
    if asked <= host.send_bytes:
        return None
    text = f"the kernel cuts [connections] socket_send_bytes to {_size(host.send_bytes)}"
    return Finding("send buffer", text, f"lower it, or `sysctl -w net.core.wmem_max={asked}`")


def _ephemeral_ports(config: Config, host: Host) -> Finding | None:
    """Ports that the kernel gives to outgoing connections: maybe ours, and maybe too few for a proxy beside us."""
    first, last = host.ephemeral_ports
    if first > last:
        return None
    reserved = _ports(host.reserved_ports)
    count = last - first + 1 - sum(first <= port <= last for port in reserved)
    own = [port for port in listen_ports(config) if first <= port <= last and port not in reserved]
    advice = []
    if own:
        ports = ",".join([*filter(None, [host.reserved_ports]), *map(str, own)])
        taken = f"an outgoing connection may have {' or '.join(map(str, own))} when the server starts"
        advice.append(f"{taken}: `sysctl -w net.ipv4.ip_local_reserved_ports={ports}`")
    connections = config.limits.connections * worker_slots(config) or PORTS_WANTED
    if _has_proxy_here(config) and count < connections:
        advice.append(
            f"a proxy on this host reaches one address {count:,} times: "
            '`sysctl -w net.ipv4.ip_local_port_range="1024 65535"`, or listen on several addresses'
        )
    return Finding("outgoing ports", f"{first} to {last}, {count:,} for each address reached", "\n".join(advice))


def _tracking(config: Config, host: Host) -> Finding | None:
    if not host.tracked_most:
        return None
    text = f"the firewall tracks {host.tracked:,} of at most {host.tracked_most:,} connections"
    wanted = config.limits.connections * worker_slots(config) or DESCRIPTORS_WANTED
    if host.tracked + wanted <= host.tracked_most and host.tracked <= host.tracked_most * TABLE_SHARE:
        return Finding("tracking", text)
    enough = 2 * (host.tracked + wanted)
    return Finding("tracking", text, f"a full table drops packets: `sysctl -w net.netfilter.nf_conntrack_max={enough}`")


def listen_ports(config: Config) -> list[int]:
    """Return every port that the configuration names, once; 0 stands for any."""
    return sorted({port for _, port in [*addresses(config.server.listen), *addresses(config.api.listen)]})


def _has_proxy_here(config: Config) -> bool:
    networks = [ip_network(text) for text in config.server.trusted_proxies]
    return any(address in network for address in _LOOPBACK for network in networks)


def _ports(text: str) -> set[int]:
    """Return the ports of the kernel's notation, such as 8080,9000-9010."""
    pairs = [part.partition("-") for part in text.split(",") if part]
    return {port for first, _, last in pairs for port in range(int(first), int(last or first) + 1)}


def _number(count: int) -> str:
    return f"{count:,}" if count < UNLIMITED else "any number"


def _size(count: float) -> str:
    if count >= UNLIMITED // 2:
        return "memory of unknown size"
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:  # noqa: PLR2004
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
