"""A jobs module with sentry-sdk."""

import logging
import os
import time

import sentry_sdk

import rqjobs

sentry_sdk.init(  # a busy machine sends its events later
    dsn=os.environ["SENTRY_DSN"], traces_sample_rate=1.0, shutdown_timeout=60
)
sentry_sdk.set_tag("module", "here")


def fail(name):
    sentry_sdk.set_tag(f"tag of {name}", name)
    sentry_sdk.set_user({"id": name})
    sentry_sdk.add_breadcrumb(message=f"crumb of {name}")
    raise ValueError(name)


def fine(name):
    return name


@rqjobs.job(retry=rqjobs.backoff(2, base=1, cap=0), discard_on=(PermissionError,))
def ask(name):
    run = rqjobs.get_current_job().connection.incr(f"runs:{name}")
    if name == "discarded":
        raise rqjobs.Discard("why")
    if name == "forbidden":
        raise PermissionError
    if run == 1:
        raise {"snoozed": rqjobs.Snooze, "retried": rqjobs.RetryIn}[name](0)


@rqjobs.job(retry=rqjobs.backoff(2, base=1, cap=0), retry_on=(TimeoutError,))
def fail_at_last(name):
    raise {"timeout": TimeoutError, "value": ValueError}[name](name)


def count():
    """A loop that ends when the key `stop` exists."""
    connection = rqjobs.client()
    for _ in rqjobs.resumable(range(10**9)):
        connection.incr("rows")
        time.sleep(0.01)
        if connection.exists("stop"):
            return


def _set_tenant(job):
    job.meta["tenant"] = "shop"


@rqjobs.hooks.before_run
def tag_tenant(job):
    if "tenant" in job.meta:
        sentry_sdk.set_tag("tenant", job.meta["tenant"])


def trace_tenants():
    """Register the hook of the process that enqueues."""
    rqjobs.hooks.before_enqueue(_set_tenant)


def log_lines(name):
    log = logging.getLogger(__name__)
    log.warning("a warning of %s", name)
    log.error("an error of %s", name)
