"""Drive a running rqjobs over HTTP: log in, enqueue by the form, read the result, press Ctrl-C.

usage: drive.py RQJOBS COMMAND…

RQJOBS is the `rqjobs` program for `doctor` and `audit`. COMMAND starts all processes, for example
`rqjobs dev`. Exits 1 with the reason if something differs from the README. Needs only the standard
library.
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

START_TIMEOUT_SECONDS = 600  # `make run` may install rqjobs first
STEP_TIMEOUT_SECONDS = 60
REQUEST_TIMEOUT_SECONDS = 20
EXIT_TIMEOUT_SECONDS = 10
FUNCTION = "rqjobs.demo.statistics"
BANNER = re.compile(r"Open +(http://\S+)\s+log in as (\S+) with the password (\S+)")


def main(rqjobs, *command):
    terminal = Terminal(command)
    try:
        drive(rqjobs, terminal)
    except BaseException:
        print(terminal.output, file=sys.stderr)
        raise
    finally:
        terminal.kill()
    print("ok: page, login, form, result, doctor, audit, Ctrl-C")


def drive(rqjobs, terminal):
    """Go through all steps; raises an AssertionError at the first that fails."""
    address, user, password = wait_for_banner(terminal)
    client = Client(address)
    wait_for(
        lambda: client.get("/healthz").read().strip() == b"ok",
        STEP_TIMEOUT_SECONDS,
        "a healthy page",
    )
    check_that_login_is_required(address)
    client.post("/login", user=user, password=password)
    run_job(client)
    check_command(rqjobs, "doctor")
    check_command(rqjobs, "audit")
    check_ctrl_c(terminal)


def wait_for(condition, seconds, what):
    """Return the first true value of the condition; raise an AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        threading.Event().wait(0.2)
    return value


class Terminal:
    """A command in a pseudo-terminal, which can receive Ctrl-C."""

    def __init__(self, command):
        self.output = ""
        self.exit_code = None
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.execvp(command[0], command)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with contextlib.suppress(OSError):  # raised when the last process has ended
            while data := os.read(self.file, 65536):
                self.output += data.decode(errors="replace")

    def poll(self):
        """The exit code; None while the command runs."""
        if self.exit_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code

    def press_ctrl_c(self):
        os.write(self.file, b"\x03")

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class Client:
    """A browser's session: it keeps cookies and sends its origin."""

    def __init__(self, address):
        self.address = address
        cookies = urllib.request.HTTPCookieProcessor(CookieJar())
        self.opener = urllib.request.build_opener(cookies)
        self.opener.addheaders = [("Origin", address)]

    def get(self, path):
        return self.opener.open(self.address + path, timeout=REQUEST_TIMEOUT_SECONDS)

    def post(self, path, **form):
        data = urllib.parse.urlencode(form).encode()
        return self.opener.open(self.address + path, data, timeout=REQUEST_TIMEOUT_SECONDS)


def wait_for_banner(terminal):
    """Wait for the printed address; returns it with the user and the password."""

    def find_banner():
        assert terminal.poll() is None, f"the command ended with {terminal.exit_code}"
        return BANNER.search(terminal.output)

    address, user, password = wait_for(find_banner, START_TIMEOUT_SECONDS, "the address").groups()
    return address.rstrip("/"), user, password


def check_that_login_is_required(address):
    try:
        request = urllib.request.Request(address + "/jobs", b"function=x", {"Origin": address})
        urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        assert error.code == 401, error.code
    else:
        raise AssertionError("a job can be enqueued without a login")


def run_job(client):
    """Enqueue a job by the form of its function, and wait for the result on its page."""
    page = client.get(f"/?function={FUNCTION}").read().decode()
    assert 'name="arg.text"' in page, "the function has no form"
    form = {
        "function": FUNCTION,
        "queue": "default",
        "when": "now",
        "arg.text": "Every job ends. No job is lost!",
    }
    job_path = client.post("/jobs", **form).url[len(client.address) :]

    def ended_state():
        state = json.load(client.get(job_path + "/state"))
        return state["ended"] and state

    state = wait_for(ended_state, STEP_TIMEOUT_SECONDS, "the job's end")
    assert state["status"] == "finished" and "words" in state["html"], state


def check_command(rqjobs, name):
    """Run `rqjobs doctor` or `rqjobs audit`: it must succeed and report no loss."""
    done = subprocess.run(
        [rqjobs, name], capture_output=True, text=True, timeout=STEP_TIMEOUT_SECONDS
    )
    assert done.returncode == 0 and "LOSS" not in done.stdout, done.stdout + done.stderr


def check_ctrl_c(terminal):
    """Ctrl-C ends the command with exit code 0, and all its processes."""
    pids = process_tree(terminal.pid)
    assert len(pids) >= 5, pids
    terminal.press_ctrl_c()
    wait_for(lambda: terminal.poll() is not None, STEP_TIMEOUT_SECONDS, "the end after Ctrl-C")
    assert terminal.exit_code == 0, f"the command ended with {terminal.exit_code}"
    wait_for(
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids),
        EXIT_TIMEOUT_SECONDS,
        f"the end of the processes {pids}",
    )


def process_tree(pid):
    """The ids of a process and all its descendants."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        children = [int(child) for child in file.read().split()]
    return [pid, *(descendant for child in children for descendant in process_tree(child))]


if __name__ == "__main__":
    main(*sys.argv[1:])
