"""Running and measuring programs, and what this machine is."""

import dataclasses
import os
import platform
import pwd
import signal
import subprocess
import sys
import tempfile
import threading
import time


@dataclasses.dataclass
class Run:
    """What one program took."""

    seconds: float
    rss: int  # bytes: the largest of its processes at its peak
    output: str = ""


class Failed(Exception):
    """A program that did not succeed; the message holds the end of what it said."""


def server_user():
    """The unprivileged user a PostgreSQL server runs as when we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Failed("running as root, and there is neither a user postgres nor nobody")


def own(path, user):
    """Hands a path, and all below it, to the server's user."""
    if user is None:
        return
    os.lchown(path, user.pw_uid, user.pw_gid)
    for folder, folders, files in os.walk(path):
        for name in folders + files:
            os.lchown(os.path.join(folder, name), user.pw_uid, user.pw_gid)


def run(command, *, user=None, env=None, cwd=None, limit=3600, allowed=(0,)):
    """Runs a program (a list, or a line for bash) to its end and measures it.

    The peak memory is ru_maxrss of wait4: the largest resident set of the program and of the
    children it waited for, each taken alone. It cannot be less than that of this Python, of which
    every program starts as a copy.
    """
    if isinstance(command, str):
        command = ["bash", "-c", "set -o pipefail; " + command]
    as_user = {}
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "RUST_BACKTRACE": "0", **(env or {})}
    if user is not None:
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        environment |= {"HOME": cwd or "/", "USER": user.pw_name, "LOGNAME": user.pw_name}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=cwd,
            start_new_session=True,
            **as_user,
        )
        timer = threading.Timer(limit, lambda: os.killpg(process.pid, signal.SIGKILL))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - start
        process.returncode = code = os.waitstatus_to_exitcode(status)
        said.seek(0)
        output = said.read().decode(errors="replace")
    if code not in allowed:
        words = " ".join(str(word) for word in command)
        raise Failed(f"{words} ended with {code}: {output[-2000:]}")
    return Run(seconds, usage.ru_maxrss * 1024, output)


def stored(path):
    """The bytes of all files below a path."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                pass  # a temporary file of a program that is still at work
    return total


def warm(path):
    """Reads everything below a path, so that each program finds it in the page cache."""
    buffer = bytearray(1 << 20)
    for folder, _, files in os.walk(path):
        for name in files:
            full = os.path.join(folder, name)
            if os.path.islink(full) or not os.path.isfile(full):
                continue
            with open(full, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass


def describe():
    """This machine in one line each."""
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    name = ""
    try:
        name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        pass
    return f"{cores} cores ({model}), {memory / 2**30:.0f} GiB of memory, {name}, Linux {platform.release()}"


def say(text):
    print(text, file=sys.stderr, flush=True)


def load():
    """How busy the machine is with other work, as a share of its cores in the last minute."""
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))
