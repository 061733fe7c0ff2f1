"""A jobs module with sentry-sdk."""

import os

import sentry_sdk

sentry_sdk.init(dsn=os.environ["SENTRY_DSN"], traces_sample_rate=1.0)
sentry_sdk.set_tag("module", "here")


def fail(name):
    sentry_sdk.set_tag(f"tag of {name}", name)
    sentry_sdk.set_user({"id": name})
    sentry_sdk.add_breadcrumb(message=f"crumb of {name}")
    raise ValueError(name)


def fine(name):
    return name
