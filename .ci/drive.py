"""Use `rqjobs dev` as a person would, over HTTP: start it, log in, enqueue by the form, see the result, stop it.

usage: drive.py RQJOBS COMMAND…    RQJOBS is the `rqjobs` to run `doctor` with, COMMAND what starts everything
Exits 1 with the reason if anything is not as the README says. Needs only the standard library.
"""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar


def until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        threading.Event().wait(0.2)
    return value


def main(rqjobs, *command):
    process = Terminal(command)
    try:
        drive(rqjobs, process)
    except BaseException:
        print(process.output, file=sys.stderr)
        raise
    finally:
        process.kill()
    print("as the README says: page, login, form, result, doctor, Ctrl-C")


class Terminal:
    """A command in a terminal of its own, so that Ctrl-C can be typed."""

    def __init__(self, command):
        self.output, self.code = "", None
        self.pid, self.keyboard = pty.fork()
        if self.pid == 0:
            os.execvp(command[0], command)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        with contextlib.suppress(OSError):  # the terminal is closed when the last process has ended
            while data := os.read(self.keyboard, 65536):
                self.output += data.decode(errors="replace")

    def poll(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def drive(rqjobs, process):
    def banner():
        assert process.poll() is None, f"it ended with {process.code}"
        return re.search(
            r"Open +(http://\S+)\s+log in as (\S+) with the password (\S+)", process.output
        )

    address, user, password = until(banner, 600, "the address").groups()
    address = address.rstrip("/")
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
    opener.addheaders = [("Origin", address)]

    def get(path):
        return opener.open(address + path, timeout=20)

    def post(path, **form):
        return opener.open(address + path, urllib.parse.urlencode(form).encode(), timeout=20)

    until(lambda: get("/healthz").read().strip() == b"ok", 60, "a healthy page")
    try:
        stranger = urllib.request.Request(address + "/jobs", b"function=x", {"Origin": address})
        urllib.request.urlopen(stranger, timeout=20)
        raise AssertionError("a stranger could enqueue")
    except urllib.error.HTTPError as error:
        assert error.code == 401, error.code
    post("/login", user=user, password=password)
    page = get("/?function=rqjobs.demo.statistics").read().decode()
    assert 'name="arg.text"' in page, "no form for the function"
    job = post(
        "/jobs",
        function="rqjobs.demo.statistics",
        queue="default",
        when="now",
        **{"arg.text": "Every job ends. No job is lost!"},
    ).url
    state = until(
        lambda: (now := json.load(get(job[len(address) :] + "/state")))["ended"] and now,
        60,
        "the job's end",
    )
    assert state["status"] == "finished" and "words" in state["html"], state
    doctor = subprocess.run([rqjobs, "doctor"], capture_output=True, text=True, timeout=60)
    assert doctor.returncode == 0 and "LOSS" not in doctor.stdout, doctor.stdout + doctor.stderr
    audit = subprocess.run([rqjobs, "audit"], capture_output=True, text=True, timeout=60)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    before = family(process.pid)
    assert len(before) >= 5, before
    os.write(process.keyboard, b"\x03")
    until(lambda: process.poll() is not None, 60, "the end after Ctrl-C")
    assert process.code == 0, f"it ended with {process.code}"
    until(
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in before),
        10,
        f"the end of {before}",
    )


def family(pid):
    """A process and everything below it."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    return [pid, *(below for child in children for below in family(child))]


if __name__ == "__main__":
    main(*sys.argv[1:])
