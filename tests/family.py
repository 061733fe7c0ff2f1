"""Job functions that start processes, print, log and use up resources."""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rq import get_current_job

executor = ProcessPoolExecutor(2, multiprocessing.get_context("fork"))  # as modules have them
kept: list = []


def terminated():
    """The exit code of a child that is terminated."""
    child = multiprocessing.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    return child.exitcode


def interrupted():
    """How a forked child and a program end at SIGINT."""
    ready, ready_too = multiprocessing.Pipe()
    child = multiprocessing.Process(target=_wait_for_interrupt, args=(ready_too,))
    child.start()
    ready.recv()
    os.kill(child.pid, signal.SIGINT)
    child.join()
    program = subprocess.Popen(["sleep", "60"])
    program.send_signal(signal.SIGINT)
    return [child.exitcode, program.wait()]


def _wait_for_interrupt(ready):
    try:
        ready.send(1)
        time.sleep(60)
    except KeyboardInterrupt:
        os._exit(42)


def handlers():
    """How a forked child handles SIGTERM, SIGINT and SIGALRM.

    Also whether the job's handler is left.
    """
    own = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as one:
        found = one.submit(_handlers).result()
    signal.signal(signal.SIGUSR1, own)
    return found


def _handlers():
    found = [
        signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGUSR1)
    ]
    return [getattr(one, "name", None) or one.__name__ for one in found]


def pooled():
    with multiprocessing.Pool(2) as pool:
        return pool.map(abs, [-1, -2])


def siblings():
    """The processes that multiprocessing takes for children of this process."""
    return len(multiprocessing.active_children())


def executed():
    """The processes of the module's executor, which outlives the job."""
    executor.submit(abs, -1).result()
    return list(executor._processes)


def at_exit(name: str, seconds: float = 0):
    """Register an exit function that waits, and then makes a file."""
    atexit.register(_at_exit, name, seconds)
    return os.getpid()


def _at_exit(name, seconds):
    time.sleep(seconds)
    with open(name, "w") as file:
        file.write(str(os.getpid()))


def programs():
    """Run a program, and return the programs of earlier runs that are still running."""
    connection = get_current_job().connection
    left = [int(pid) for pid in connection.lrange("programs", 0, -1) if _is_there(int(pid))]
    if connection.llen("programs") < 1:
        program = subprocess.Popen(["sh", "-c", "sleep 60; echo"])
        connection.rpush("programs", program.pid)
        program.wait()
    return left


def _is_there(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
    return False


def forget(number: int = 3):
    """Leave zombies: fork, and do not reap the child."""
    for _ in range(number):
        if not (child := os.fork()):
            os._exit(0)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)


def keep(code: int):
    """Leave a program that has ended, and that a later job reaps."""
    kept.append(subprocess.Popen(["sh", "-c", f"exit {code}"]))
    os.waitid(os.P_PID, kept[-1].pid, os.WEXITED | os.WNOWAIT)


def zombies():
    """The number of children that have ended and were not waited for."""
    children = subprocess.run(
        ["ps", "-o", "stat=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return sum(line.startswith("Z") for line in children.stdout.split())


def wait():
    return kept.pop().wait()


def orphan():
    """A grandchild that lives on for a moment after its parent."""
    if not (child := os.fork()):
        if not os.fork():
            os.setsid()
            time.sleep(0.2)
        os._exit(0)
    os.waitpid(child, 0)


def talk(word: str):
    """Print, log, and print to a child's output."""
    print(f"printed {word}")
    logging.getLogger("family").info("logged %s", word)
    child = os.fork()
    if not child:
        print(f"child {word}")
        sys.exit(0)
    os.waitpid(child, 0)


def leak(size: int):
    """Keep `size` bytes forever; returns the process."""
    kept.append(b"x" * size)
    return os.getpid()


def exhaust(path: str):
    """Take every free descriptor, and fail. With `path`, only while that file does not exist."""
    if path and os.path.exists(path):
        return "done"
    if path:
        Path(path).touch()
    get_current_job().connection.connection_pool.disconnect()  # as with idle connections
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.suppress(OSError):
        while True:
            kept.append(os.open(os.devnull, os.O_RDONLY))
    raise ValueError("all are taken")


def break_sockets():
    """Leave the process without a connection to Redis, and fail."""
    get_current_job().connection.connection_pool.disconnect()

    def refuse(*args, **kwargs):
        raise ConnectionRefusedError(111, "the proxy that a job has set up for its process refuses")

    socket.socket.connect = refuse
    raise ValueError("broken")


def close_all():
    """Close all descriptors, also those of other code, as a recipe for daemons does."""
    os.closerange(3, 256)


class Broken:
    def write(self, *words):
        raise SystemExit("no stream")

    flush = write


def raises(*signal_and_frame):
    raise RuntimeError("by an earlier job's handler")


def removed_folder():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)


LEFTOVERS = {
    # Late enough for this job, which has no time limit, to end before.
    "timer": lambda: signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05),
    "profiling timer": lambda: signal.setitimer(signal.ITIMER_PROF, 0.01, 0.01),
    "virtual timer": lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 0.01, 0.01),
    "timer's handler": lambda: (
        signal.signal(signal.SIGPROF, raises),
        signal.setitimer(signal.ITIMER_PROF, 0.01),
    ),
    "ignored children": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    "broken stream": lambda: setattr(sys, "stdout", Broken()),
    "closed stream": lambda: sys.stdout.close(),
    "detached stream": lambda: sys.stdout.detach(),
    "wrapped stream": lambda: setattr(sys, "stdout", io.TextIOWrapper(sys.stdout.buffer)),
    "removed folder": removed_folder,
    "umask": lambda: os.umask(0o777),
    "time-out": lambda: socket.setdefaulttimeout(0.001),
    "no environment": lambda: os.environ.clear(),
    "changed variable": lambda: os.environ.update(RQ_TEST_OF_LEFTOVERS="changed", ADDED="stays"),
}


def leave(kind):
    LEFTOVERS[kind]()


def look():
    """The state of the process that a job finds.

    The job first uses as much processor time as would fire a timer that an earlier job left.
    """
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    print("printed")
    umask = os.umask(0)
    os.umask(umask)
    return [
        os.getcwd(),
        umask,
        socket.getdefaulttimeout(),
        os.environ["RQ_TEST_OF_LEFTOVERS"],
        subprocess.run(["sh", "-c", "exit 3"]).returncode,
        str(signal.getsignal(signal.SIGPROF)),
    ]
