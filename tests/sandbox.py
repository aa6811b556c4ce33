"""`sandbox.py SETTINGS COMMAND…`: become COMMAND in what the options of systemd/fastpush.service make of a process.

For a machine where systemd is not process 1. The same kernel features, put together here: system-call filters by
libseccomp, as systemd loads them; and for root mount, IPC and user namespaces, a user of its own without any
capability. SETTINGS is JSON:

    calls   names of the allowed system calls
    keep    folders that stay visible, read-only, though they lie in a hidden place (the tests' own Python may)
    write   folders that stay writable: runtime and state directory
"""

import ctypes
import errno
import json
import os
import sys
from pathlib import Path

UID = 61184  # the first of systemd's dynamic users
SELF_AND_ROOT = f"0 0 1\n{UID} {UID} 1\n"

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x08000000, 0x10000000
NAMESPACES = 0x7E020080  # all CLONE_NEW… bits of clone(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
ALLOW = 0x7FFF0000
NE, EQ, GT, MASKED_EQ = 1, 4, 6, 7  # libseccomp's comparisons
FAMILIES = {1, 2, 10}  # AF_UNIX, AF_INET, AF_INET6

libc = ctypes.CDLL(None, use_errno=True)
seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
seccomp.seccomp_init.restype = ctypes.c_void_p


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno() or -result
        raise OSError(code, os.strerror(code))
    return result


def error(code: int) -> int:
    return 0x00050000 | code


# Namespaces


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    checked(libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()))


def set_read_only(target: str, *, is_read_only: bool) -> None:
    """mount_setattr(2), with all mounts below."""
    attributes = (ctypes.c_uint64 * 4)()
    attributes[0 if is_read_only else 1] = MOUNT_ATTR_RDONLY
    checked(libc.syscall(MOUNT_SETATTR, AT_FDCWD, target.encode(), AT_RECURSIVE, attributes, 32))


def arrange_files(keep: list[str], write: list[str]) -> None:
    """ProtectSystem, ProtectHome, PrivateTmp, PrivateDevices, ProtectProc, ProcSubset, PrivateMounts, PrivateIPC."""
    checked(libc.unshare(CLONE_NEWNS | CLONE_NEWIPC))
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    kept = {path: os.open(path, os.O_PATH) for path in [*keep, *write]}
    set_read_only("/", is_read_only=True)
    hidden = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
    for place in filter(os.path.isdir, hidden):
        mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777" if "tmp" in place else "mode=755")
    for path, descriptor in kept.items():
        if path in write or path.startswith(hidden):
            Path(path).mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{descriptor}", path, flags=MS_BIND | MS_REC)
        os.close(descriptor)
    for place in filter(os.path.isdir, hidden[:3]):
        set_read_only(place, is_read_only=True)
    for path in write:
        set_read_only(path, is_read_only=False)
    arrange_devices()
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=invisible,subset=pid")


def arrange_devices() -> None:
    nodes = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")]
    opened = {node: os.open(node, os.O_PATH) for node in nodes}
    mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755")
    for node, descriptor in opened.items():
        Path(node).touch()
        mount(f"/proc/self/fd/{descriptor}", node, flags=MS_BIND)
        os.close(descriptor)
    mount("none", "/dev", flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC)


def become_nobody() -> None:
    """PrivateUsers, DynamicUser, CapabilityBoundingSet: root and this user are themselves, all others nobody."""
    reader, end = os.pipe()
    sandboxed = os.getpid()
    writer = os.fork()
    if writer == 0:  # maps are written from the outside
        os.read(reader, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{sandboxed}/{name}").write_text(SELF_AND_ROOT)
        os._exit(0)
    checked(libc.unshare(CLONE_NEWUSER))
    os.write(end, b".")
    if os.waitpid(writer, 0)[1] != 0:
        raise OSError("the user map could not be written")
    os.close(reader)
    os.close(end)
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # the kernel has no more of them
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)


# System calls


class Filter:
    """One seccomp filter; the kernel applies the strictest answer of all that are loaded."""

    def __init__(self, default: int) -> None:
        self._context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, name: str, *comparisons: tuple[int, int, int, int]) -> None:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # of another architecture
        array = (Comparison * max(1, len(comparisons)))(*(Comparison(*one) for one in comparisons))
        answer = ctypes.c_uint32(action)
        checked(seccomp.seccomp_rule_add_array(self._context, answer, number, len(comparisons), array))

    def load(self) -> None:
        checked(seccomp.seccomp_load(self._context))


def restrict_calls(calls: list[str]) -> None:
    """SystemCallFilter, SystemCallErrorNumber, SystemCallArchitectures (libseccomp kills the others)."""
    allowed = Filter(error(errno.EPERM))
    for name in calls:
        allowed.add(ALLOW, name)
    allowed.load()


def restrict_arguments() -> None:
    """What single options forbid of allowed calls; each as in systemd's seccomp-util.c."""
    denied = Filter(ALLOW)
    eperm = error(errno.EPERM)
    # MemoryDenyWriteExecute
    write_and_execute = PROT_WRITE | PROT_EXEC
    denied.add(eperm, "mmap", (2, MASKED_EQ, write_and_execute, write_and_execute))
    for name in ("mprotect", "pkey_mprotect"):
        denied.add(eperm, name, (2, MASKED_EQ, PROT_EXEC, PROT_EXEC))
    denied.add(eperm, "shmat", (2, MASKED_EQ, SHM_EXEC, SHM_EXEC))
    # RestrictAddressFamilies
    for family in set(range(max(FAMILIES))) - FAMILIES:
        denied.add(error(errno.EAFNOSUPPORT), "socket", (0, EQ, family, 0))
    denied.add(error(errno.EAFNOSUPPORT), "socket", (0, GT, max(FAMILIES), 0))
    # RestrictNamespaces
    denied.add(error(errno.ENOSYS), "clone3")  # its flags lie in memory, where no filter sees them
    for bit in (1 << number for number in range(32) if NAMESPACES & 1 << number):
        denied.add(eperm, "clone", (0, MASKED_EQ, bit, bit))
        denied.add(eperm, "unshare", (0, MASKED_EQ, bit, bit))
    denied.add(eperm, "setns")
    # RestrictRealtime, LockPersonality
    for policy in (1, 2, 6):  # SCHED_FIFO, SCHED_RR, SCHED_DEADLINE
        denied.add(eperm, "sched_setscheduler", (1, EQ, policy, 0))
    denied.add(eperm, "personality", (0, NE, 0, 0))
    # RestrictSUIDSGID
    for bit in (0o4000, 0o2000):
        for name, position in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1), ("mkdirat", 2)):
            denied.add(eperm, name, (position, MASKED_EQ, bit, bit))
    denied.load()


def main(settings: str, *command: str) -> None:
    chosen = json.loads(settings)
    if os.geteuid() == 0:
        for path in chosen["write"]:
            for inner in [Path(path), *Path(path).rglob("*")]:
                os.chown(inner, UID, UID)
        arrange_files(chosen["keep"], chosen["write"])
        become_nobody()
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    restrict_arguments()
    restrict_calls(chosen["calls"])
    os.chdir(chosen["write"][0])
    os.umask(0o077)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
