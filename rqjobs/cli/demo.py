"""`rqjobs demo`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rqjobs import Job, client, dev, enqueue
from rqjobs.cli.output import paragraph
from rqjobs.demo import key_terms, slow, statistics, summarize, unreliable


@click.command("demo")
@click.argument("path", type=click.Path(exists=True, dir_okay=False))
def command(path: str) -> None:
    """Run the demo jobs on the text in PATH and print their results, with a Redis and a worker of their own."""
    sys.exit(dev.with_worker("rqjobs.demo", lambda: run(path, paragraph)))


def run(path: str, echo: Callable[[str], Any], limit: float = 120) -> int:
    """Enqueue all of these jobs on the text of the file `path`, and `echo` each result as it arrives.

    Returns 0 when all have ended (`unreliable` may fail six times in a row); 1 when the file cannot be read or
    carried, another job failed, or one is left after `limit` seconds.
    """
    waiting: dict[bytes, tuple[str, Job]] = {}
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        for function in (statistics, key_terms, summarize, unreliable, slow):
            queued = enqueue(function, *(() if function is slow else (text,)))
            waiting[f"rq:results:{queued.id}".encode()] = function.__name__, queued
    except (OSError, ValueError) as error:
        echo(f"{path}: {error}")
        return 1
    echo(f"{len(waiting)} jobs enqueued on {path} ({len(text):,} characters)")
    end, failed, done = time.monotonic() + limit, 0, 0
    while waiting and (left := end - time.monotonic()) > 0:
        streams: Any = client().xread(
            dict.fromkeys(waiting, "0-0"), block=max(1, int(1000 * min(1, left)))
        )
        if (
            now := queued.get_meta().get("done", 0)
        ) > done:  # the last one enqueued is the slow one
            done = now
            echo(f"slow … {done} of {queued.meta['total']}")
        for stream, _ in streams or ():
            name, ended = waiting.pop(stream)
            result = ended.latest_result()
            if result and result.type == result.Type.SUCCESSFUL:
                value = result.return_value
                pairs = dict(value).items() if isinstance(value, dict | list) else ()
                echo(
                    f"{name}: "
                    + (", ".join(f"{key} {figure}" for key, figure in pairs) or str(value))
                )
            else:
                failed += name != "unreliable"
                echo(
                    f"{name} is among the failed jobs: {((result and result.exc_string) or '').strip()[-200:]}"
                )
    for name, unfinished in waiting.values():
        hint = f"; no worker serves the queue {unfinished.origin!r}, start one with: rqjobs worker {unfinished.origin}"
        echo(
            f"{name}: not done after {limit:.0f} s"
            + hint * (not client().scard(f"rq:workers:{unfinished.origin}"))
        )
    return int(bool(waiting or failed))
