"""The inside of a network namespace: every address there is leads to the process itself.

Two routes make all of IPv4 and all of IPv6 local to the loopback device. So whatever address is
connected to, private or public, the connection arrives at a server of this process, on exactly
that address, and nothing has a way out. Many machines lack `ip`: the kernel is asked directly.
"""

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

NAME_SERVER = "127.0.0.53"

# Exit code of a process that was not allowed to set up its namespace.
REFUSED = 77

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_RTM_NEWADDR, _RTM_NEWROUTE = 20, 24
_REQUEST_ACK_CREATE = 0x0001 | 0x0004 | 0x0400
_LOCAL_TABLE, _BY_BOOT, _THIS_HOST = 255, 3, 254
_LOCAL, _UNREACHABLE = 2, 7
_ADDRESS, _LOCAL_ADDRESS = 1, 2
_DESTINATION, _DEVICE = 1, 4
_MS_BIND = 4096


def namespaces() -> set[str]:
    """The network and mount namespaces this process is in."""
    return {str(Path("/proc/self/ns", kind).readlink()) for kind in ("net", "mnt")}


def build(
    folder: Path, outside: set[str], hosts: Mapping[str, str], own: tuple[str, ...], dead: str
) -> None:
    """Set up this namespace.

    Args:
        outside: The namespaces that must not be touched: those of whoever made these.
        folder: Takes the files that stand in for those in `/etc`.
        hosts: Names and their addresses, for `/etc/hosts`.
        own: Addresses of the machine; without one of a family, the C library looks for no others.
        dead: The one address without a route.

    Raises:
        OSError: The kernel refuses, for lack of a right or of IPv6; or there is no new namespace.
    """
    if len(outside) != 2 or namespaces() & outside:
        raise OSError("not in namespaces of our own")
    _loopback_up()
    loopback = socket.if_nametoindex("lo")
    for family in (socket.AF_INET, socket.AF_INET6):
        _route(family, _LOCAL, _attribute(_DEVICE, struct.pack("=I", loopback)))
    _route(socket.AF_INET, _UNREACHABLE, _attribute(_DESTINATION, ip_address(dead).packed), 32)
    for address in own:
        _add_address(address, loopback)
    lines = {
        "hosts": [f"{address} {name}" for name, address in hosts.items()],
        "resolv.conf": [f"nameserver {NAME_SERVER}", "options timeout:10 attempts:1"],
        # Nothing that asks a daemon outside over a Unix socket.
        "nsswitch.conf": ["hosts: files dns"],
    }
    for name, content in lines.items():
        (folder / name).write_text("\n".join(content) + "\n")
        _cover(Path("/etc") / name, folder / name)
    name_cache = Path("/run/nscd")
    if name_cache.exists():
        (folder / "nscd").mkdir()
        _cover(name_cache, folder / "nscd")


def _cover(path: Path, stand_in: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(bytes(stand_in), bytes(path), None, ctypes.c_ulong(_MS_BIND), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def _add_address(text: str, device: int) -> None:
    address = ip_address(text)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    head = struct.pack("=BBBBI", family, address.max_prefixlen, 0, 0, device)
    both = _attribute(_LOCAL_ADDRESS, address.packed) + _attribute(_ADDRESS, address.packed)
    _ask_kernel(_RTM_NEWADDR, head + both)


def _route(family: int, kind: int, attribute: bytes, prefix: int = 0) -> None:
    head = struct.pack("=8BI", family, prefix, 0, 0, _LOCAL_TABLE, _BY_BOOT, _THIS_HOST, kind, 0)
    _ask_kernel(_RTM_NEWROUTE, head + attribute)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value


def _ask_kernel(kind: int, body: bytes) -> None:
    head = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST_ACK_CREATE, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.send(head + body)
        (error,) = struct.unpack_from("=i", kernel.recv(4096), 16)
    if error:
        raise OSError(-error, os.strerror(-error))
