"""Giving up privileges, for good: capabilities (capabilities(7)) and system calls (seccomp(2)). Linux only."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from meshlib.errors import MeshError

NET_ADMIN = 12  #: CAP_NET_ADMIN
NET_RAW = 13  #: CAP_NET_RAW
_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 4
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_FILTER = 38, 22, 2
_PR_SET_DUMPABLE = 4
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63  #: beyond what any kernel has; those it does not know are answered EINVAL

# Classic BPF, as seccomp reads it: operation, jump if true, jump if false, constant.
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE, _OFFSET_FIRST_ARGUMENT = 0, 4, 16
#: Architecture (audit number) and the numbers of: socket, execve, execveat, ptrace, process_vm_writev, bpf, mount,
#: init_module, finit_module, setns, unshare.
_CALLS = {
    "x86_64": (0xC000003E, 41, (59, 322, 101, 311, 321, 165, 175, 313, 308, 272)),
    "aarch64": (0xC00000B7, 198, (221, 281, 117, 271, 280, 40, 105, 273, 268, 97)),
}
#: The same numbers everywhere: the three of io_uring, which makes sockets past every filter, and pidfd_getfd, which
#: takes them from other processes.
_NEWER_CALLS = (425, 426, 427, 438)
#: System calls from here on are those of the x32 interface, under other numbers; no architecture has as many.
_X32 = 0x40000000
_AF_NETLINK = 16


class CannotConfine(MeshError):
    """The kernel did not let us give up privileges; going on with them would not be what was promised."""


def confine_parser() -> None:
    """No capability, ever again, in this process and its children. Raises CannotConfine."""
    _no_new_privileges()
    _keep_capabilities(frozenset())


def confine_programmer() -> None:
    """CAP_NET_ADMIN alone, and no sockets but netlink's, no programs, no other namespaces. Raises CannotConfine."""
    _no_new_privileges()
    _keep_capabilities(frozenset({NET_ADMIN}))
    _filter_calls()
    _prctl(_PR_SET_DUMPABLE, 0)


def confine_runner() -> None:
    """CAP_NET_ADMIN, and CAP_NET_RAW for iptables' old kind, in this process and the programs that it runs. Raises
    CannotConfine."""
    _no_new_privileges()
    _keep_capabilities(frozenset({NET_ADMIN, NET_RAW}))
    _prctl(_PR_SET_DUMPABLE, 0)


def capabilities() -> int:
    """The effective capabilities of this process, as bits."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("CapEff:"))
    return int(line.split()[1], 16)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> None:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc().prctl(ctypes.c_int(option), *values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _no_new_privileges() -> None:
    try:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise CannotConfine(f"no_new_privs: {error}") from error


def _keep_capabilities(kept: frozenset[int]) -> None:
    for number in range(_LAST_CAPABILITY + 1):
        if number in kept:
            continue
        try:
            _prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == errno.EINVAL:
                break  # the kernel knows no more of them
            if (
                error.errno != errno.EPERM
            ):  # without CAP_SETPCAP the set can stay: nothing is gained from it any more
                raise CannotConfine(f"capability {number}: {error}") from error
    try:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as error:
        raise CannotConfine(f"ambient capabilities: {error}") from error
    held = capabilities()
    bits = sum(1 << number for number in kept) & held
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    # effective, permitted, inheritable: the low halves, then the high ones
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    if _libc().capset(header, data) != 0:
        number = ctypes.get_errno()
        raise CannotConfine(f"capset: {os.strerror(number)}")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _filter_calls() -> None:
    machine = platform.machine()
    if machine not in _CALLS:
        return  # the capability bounds it, as everywhere
    architecture, socket_call, forbidden = _CALLS[machine]
    rules: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _OFFSET_ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in (*forbidden, *_NEWER_CALLS):
        rules += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    rules += [
        (_EQUAL, 0, 3, socket_call),
        (_LOAD, 0, 0, _OFFSET_FIRST_ARGUMENT),
        (_EQUAL, 1, 0, _AF_NETLINK),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *rule) for rule in rules)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(rules), ctypes.addressof(buffer))
    try:
        _prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.addressof(program))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return  # a kernel without seccomp: the capability bounds it
        raise CannotConfine(f"seccomp: {error}") from error
