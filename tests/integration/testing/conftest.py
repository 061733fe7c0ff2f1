"""The fixtures of the plugin run in this process, on a private Redis beside the suite's."""

import fixture_jobs
import pytest

import rqjobs
from rqjobs import config


@pytest.fixture(scope="session", autouse=True)
def private_server(_rqjobs_private_redis):
    """Start it before the first test, which else would seem to leave a process behind."""
    _rqjobs_private_redis.start()
    return _rqjobs_private_redis


@pytest.fixture(autouse=True)
def modules(settings):
    config.use(modules=("fixture_jobs",))
    fixture_jobs.calls.clear()
    early = rqjobs.queue("low")  # a program may have it since its import
    yield early
    assert settings.redis_url == config.current().redis_url
    assert rqjobs.client().dbsize() == 0, "a job has reached the other Redis"
