"""A kernel with IPVS as an ordinary process: Debian's user-mode-linux, with the host's file system as its root.

It boots in three seconds, has one processor and modules of its own, and sees the same Python and the same tests. What
it programs is its own; what it writes to files is the host's, so it writes into the folder it is given only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.components.process import NotAvailable, program

ROOT = Path(__file__).parents[3]
MODULES = Path("/usr/lib/uml/modules")
#: What the ipvs backend is tested with. A module that is not there is named in the log; the tests say what they miss.
WANTED = (
    *(
        "ip_vs",
        "ip_vs_rr",
        "ip_vs_wrr",
        "ip_vs_lc",
        "ip_vs_wlc",
        "ip_vs_sh",
        "ip_vs_mh",
        "ip_vs_sed",
        "ip_vs_nq",
    ),
    *("nf_conntrack", "nf_conntrack_netlink", "dummy", "veth", "ip_tables", "iptable_nat", "iptable_filter"),
    *("iptable_mangle", "xt_conntrack", "xt_mark", "xt_MASQUERADE", "xt_nat", "xt_tcpudp", "ip6_tables"),
    *("ip6table_nat", "ip6table_filter"),
)

_INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
{own_tmp}
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run
ip link set lo up
mkdir -p /run/modules/lib/modules
ln -s {modules}/$(uname -r) /run/modules/lib/modules/$(uname -r)
for each in {wanted}; do modprobe -d /run/modules $each || echo "no module $each"; done
# Modules that the kernel asks for by itself: it runs this program instead of the host's modprobe.
printf '#!/bin/sh\\nexec /usr/sbin/modprobe -d /run/modules "$@"\\n' >/run/modprobe
chmod +x /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
# When whoever started us is gone, however that went, the console ends, and so do we.
(cat >/dev/null 2>&1; echo "nobody waits for this guest any more"; halt -f) </dev/console &
cd {cwd}
{command} </dev/null
echo $? >{folder}/exit
halt -f
"""


class GuestFailed(Exception):
    """The guest did not come to the end of its command."""


@functools.cache
def kernel() -> str:
    """The guest's program. Raises NotAvailable."""
    if os.geteuid() != 0:
        raise NotAvailable("the user-mode-linux guest needs root: its files are the host's")
    found = program("linux.uml", package="user-mode-linux")
    if not MODULES.is_dir():
        raise NotAvailable(
            f"{MODULES} is missing (Debian package user-mode-linux); `make components` gets it"
        )
    program("modprobe", package="kmod")
    return found


def run(
    command: Sequence[str],
    folder: Path,
    *,
    env: Mapping[str, str] = {},
    memory: int = 1024,
    timeout: float = 300.0,
    cpu: int | None = None,
) -> str:
    """Boot, run a command as root, halt. Returns what it printed; ``folder`` is the guest's to write.

    ``memory`` in MB; ``cpu``: the host's processor that the guest stays on, without which times mean nothing. Raises
    GuestFailed with the end of its console when the command fails or does not end, NotAvailable without the package.
    """
    linux = kernel()
    init, console, ended = folder / "init.sh", folder / "console.log", folder / "exit"
    settings = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env}
    words = ["env", *(f"{name}={value}" for name, value in settings.items()), *command]
    init.write_text(
        _INIT.format(
            modules=MODULES,
            # Its own, unless it would hide the tests.
            own_tmp="" if Path("/tmp") in ROOT.parents else "mount -t tmpfs tmpfs /tmp",
            wanted=" ".join(WANTED),
            cwd=shlex.quote(str(ROOT)),
            command=shlex.join(words),
            folder=shlex.quote(str(folder)),
        )
    )
    init.chmod(0o755)
    args = [linux, f"mem={memory}M", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}"]
    args += ["con=null", "con0=fd:0,fd:1", "quiet"]
    if cpu is not None:
        args = [program("taskset", package="util-linux"), "-c", str(cpu), *args]
    with console.open("wb") as log:
        # Its processes form a group of their own; TMPDIR holds its memory.
        process = subprocess.Popen(
            args,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
            env={**os.environ, "TMPDIR": _memory_folder()},
        )
        try:
            process.wait(timeout)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            _forget_input(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise GuestFailed(f"not finished after {timeout:g} s:\n{_tail(console)}") from None
            raise
    _forget_input(process)
    text = console.read_text(errors="replace")
    code = ended.read_text().strip() if ended.exists() else "none"
    if code != "0":
        raise GuestFailed(f"exit code {code}:\n{_tail(console)}")
    return text


def python() -> str:
    """The interpreter of these tests, which the guest has as well."""
    return sys.executable


def _forget_input(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


def _memory_folder() -> str:
    """Where the guest's memory lies as a file: in memory, where there is such a place."""
    return (
        "/dev/shm"
        if os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**31
        else "/tmp"
    )


def _tail(path: Path, lines: int = 60) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
