"""The pytest plugin of rqjobs: fixtures for tests of code that enqueues jobs, and a guard.

Every run of pytest in the environment loads this module, so it imports rqjobs only when a fixture
is used. It stands beside the package because an import from within would import the package. The
fixtures are explained in docs/testing.md, and made in `rqjobs/testing/`.

The guard: an environment variable, which child processes inherit, forbids rqjobs to connect to any
Redis but the private one of a fixture.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from rqjobs.testing.fixtures import InlineJobs, RecordedJobs, RedisJobs
    from rqjobs.testing.frozen_scheduler import FrozenScheduler
    from rqjobs.testing.private_redis import PrivateRedis

GUARD_VARIABLE = "RQJOBS_TEST_REDIS"  # rqjobs.config.TEST_REDIS
NO_REDIS = "none"
ALLOW_SETTING = "rqjobs_allow_redis"
MARKER = "real_redis"
_is_guarded = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting that turns the guard off."""
    parser.addini(
        ALLOW_SETTING,
        "true lets tests use the Redis of REDIS_URL without a fixture of rqjobs",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and begin the guard if the plugin was loaded late."""
    config.addinivalue_line(
        "markers", f"{MARKER}: the test may use the Redis of the project's settings (rqjobs)"
    )
    _begin_guard(config)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Begin the guard before the first conftest.py is imported."""
    _begin_guard(early_config)


def _begin_guard(config: pytest.Config) -> None:
    if _is_guarded in config.stash:
        return
    config.stash[_is_guarded] = True
    before = os.environ.get(GUARD_VARIABLE)
    config.add_cleanup(lambda: _set_guard(before))
    _set_guard(None if config.getini(ALLOW_SETTING) else NO_REDIS)


def _set_guard(value: str | None) -> None:
    if value is None:
        os.environ.pop(GUARD_VARIABLE, None)
    else:
        os.environ[GUARD_VARIABLE] = value


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test with the marker use the project's Redis."""
    if item.get_closest_marker(MARKER) is None:
        return (yield)
    before = os.environ.get(GUARD_VARIABLE)
    _set_guard(None)
    try:
        return (yield)
    finally:
        _set_guard(before)
        if before is not None:
            _disconnect()


def _disconnect() -> None:
    """Close the connections to the project's Redis: the guard sees new connections only."""
    connection: Any = sys.modules.get("rqjobs.connection")
    if connection is not None:
        with contextlib.suppress(Exception):  # no Redis is configured
            connection.client().connection_pool.disconnect()


@pytest.fixture(scope="session")
def _rqjobs_private_redis(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrivateRedis]:
    from rqjobs.testing.private_redis import PrivateRedis, read_settings

    read_settings(pytestconfig.rootpath)
    server = PrivateRedis(tmp_path_factory.mktemp("rqjobs"))
    yield server
    server.stop()


@pytest.fixture
def jobs_recorded(_rqjobs_private_redis: PrivateRedis) -> Iterator[RecordedJobs]:
    """Jobs are recorded and do not run: `jobs_recorded.assert_enqueued(send_report, 42)`."""
    from rqjobs.testing.fixtures import RecordedJobs

    with RecordedJobs().active(_rqjobs_private_redis) as jobs:
        yield jobs


@pytest.fixture
def jobs_inline(_rqjobs_private_redis: PrivateRedis) -> Iterator[InlineJobs]:
    """Each job runs in this process while it is enqueued, and an enqueue raises its exception."""
    from rqjobs.testing.fixtures import InlineJobs

    with InlineJobs().active(_rqjobs_private_redis) as jobs:
        yield jobs


@pytest.fixture
def jobs_redis(_rqjobs_private_redis: PrivateRedis) -> Iterator[RedisJobs]:
    """Jobs go to a private Redis, and `jobs_redis.work()` runs them in a real worker process."""
    from rqjobs.testing.fixtures import RedisJobs

    with RedisJobs().active(_rqjobs_private_redis) as jobs:
        yield jobs


@pytest.fixture
def frozen_scheduler(_rqjobs_private_redis: PrivateRedis) -> Iterator[FrozenScheduler]:
    """Schedules and delayed jobs by a clock that the test moves: `.move_to(…)`, `.advance(…)`."""
    from rqjobs.testing.frozen_scheduler import FrozenScheduler

    with FrozenScheduler().active(_rqjobs_private_redis) as scheduler:
        yield scheduler
