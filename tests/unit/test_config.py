"""Settings are parsed, or the error is one line with the remedy."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from rqjobs.alert_rules import Rule
from rqjobs.config import RENAMED, SETTINGS, ApiToken, Config, ConfigError

KEY = "k" * 32
GOOD = [
    ("REDIS_URL", "redis://localhost:6379/0", "redis_url", "redis://localhost:6379/0"),
    (
        "REDIS_URL",
        "redis://user:p%40ss@example.org",
        "redis_url",
        "redis://user:p%40ss@example.org",
    ),
    (
        "REDIS_URL",
        "rediss://h:1/2?ssl_cert_reqs=none",
        "redis_url",
        "rediss://h:1/2?ssl_cert_reqs=none",
    ),
    ("REDIS_URL", "unix:///run/redis.sock?db=2", "redis_url", "unix:///run/redis.sock?db=2"),
    ("REDIS_URL", "unix://:pw@/run/redis.sock", "redis_url", "unix://:pw@/run/redis.sock"),
    ("REDIS_URL", "redis://[::1]:6379/1", "redis_url", "redis://[::1]:6379/1"),
    (
        "REDIS_URL",
        "redis+sentinel://:pw@a:1,b:2,c/mymaster/3",
        "redis_url",
        "redis+sentinel://:pw@a:1,b:2,c/mymaster/3",
    ),
    ("REDIS_URL", "rediss+sentinel://a/m", "redis_url", "rediss+sentinel://a/m"),
    ("RQJOBS_QUEUES", "a", "queues", ("a",)),
    ("RQJOBS_ALERTS", "poison , no_worker", "alerts", (Rule("poison"), Rule("no_worker"))),
    (
        "RQJOBS_ALERTS",
        "oldest=2m, oldest:high=10s for 1h, depth=1000",
        "alerts",
        (Rule("oldest", "", 120), Rule("oldest", "high", 10, 3600), Rule("depth", "", 1000)),
    ),
    ("RQJOBS_ALERT_WEBHOOK", "https://h.example/a?b", "alert_webhook", "https://h.example/a?b"),
    ("RQJOBS_ALERT_FORMAT", "slack", "alert_format", "slack"),
    ("RQJOBS_ALERT_JOB", "shop.jobs.tell", "alert_job", "shop.jobs.tell"),
    ("RQJOBS_METRICS_TOKEN", "t" * 16, "metrics_token", "t" * 16),
    ("RQJOBS_QUEUES", " urgent , mail.out,, low_2 ", "queues", ("urgent", "mail.out", "low_2")),
    ("RQJOBS_MODULES", "jobs,shop.emails", "modules", ("jobs", "shop.emails")),
    ("RQJOBS_FLASK_APP", "shop:app", "flask_app", "shop:app"),
    ("RQJOBS_FLASK_APP", "shop.web:create_app()", "flask_app", "shop.web:create_app()"),
    ("RQJOBS_SERIALIZER", "json", "serializer", "json"),
    ("SECRET_KEY", KEY, "secret_key", KEY),
    ("RQJOBS_ADMIN_USER", "Zoë", "admin_user", "Zoë"),
    ("RQJOBS_ADMIN_PASSWORD", "12345678", "admin_password", "12345678"),
    (
        "RQJOBS_WEBHOOK_HOSTS",
        "hooks.example.com,localhost",
        "webhook_hosts",
        ("hooks.example.com", "localhost"),
    ),
    (
        "RQJOBS_API_TOKEN",
        "abcdefgh0123456789_~",
        "api_tokens",
        (ApiToken("api", "operate", "abcdefgh0123456789_~"),),
    ),
    (
        "RQJOBS_API_TOKEN",
        "shop:operate:abcdefgh0123456789/+==, ops:admin:0123456789abcdefgh.-",
        "api_tokens",
        (
            ApiToken("shop", "operate", "abcdefgh0123456789/+=="),
            ApiToken("ops", "admin", "0123456789abcdefgh.-"),
        ),
    ),
    ("RQJOBS_SHUTDOWN_TIMEOUT", "0", "shutdown_timeout", 0),
    ("RQJOBS_SHUTDOWN_TIMEOUT", " 90 ", "shutdown_timeout", 90),
    ("RQJOBS_MAX_PAYLOAD_BYTES", "1024", "max_payload_bytes", 1024),
    ("RQJOBS_MAX_RESULT_BYTES", "1024", "max_result_bytes", 1024),
    ("RQJOBS_MAX_TRACEBACK_BYTES", "1024", "max_traceback_bytes", 1024),
    ("RQJOBS_MAX_FAILED_JOBS", "0", "max_failed_jobs", 0),
    ("RQJOBS_MAX_FAILED_AGE_SECONDS", "60", "max_failed_age_seconds", 60),
    ("RQJOBS_JOB_LOG_LEVEL", "warning", "job_log_level", "WARNING"),
    ("RQJOBS_JOB_LOG_LEVEL", "OFF", "job_log_level", "off"),
    ("RQJOBS_JOB_LOG_PRINTS", "on", "job_log_prints", "on"),
    ("RQJOBS_HIDE", "password, api-token", "hide", ("password", "api-token")),
    ("RQJOBS_OUTBOX_URL", "sqlite:///shop.sqlite", "outbox_url", "sqlite:///shop.sqlite"),
    ("RQJOBS_ONE_TIME_PASSWORD", "12345678", "one_time_password", "12345678"),
    ("RQJOBS_MAX_JOBS_PER_CHILD", "1", "max_jobs_per_child", 1),
    ("RQJOBS_MAX_JOBS_PER_CHILD", "0", "max_jobs_per_child", 0),
    ("RQJOBS_MAX_MEMORY_PER_CHILD", "500000000", "max_memory_per_child", 500_000_000),
    ("RQJOBS_MAX_MEMORY_PER_CHILD", "0", "max_memory_per_child", 0),
    ("RQJOBS_ENVIRONMENT", "staging eu", "environment", "staging eu"),
    ("RQJOBS_APP_URL", "https://shop.example.com/", "app_url", "https://shop.example.com/"),
    ("HOST", "0.0.0.0", "host", "0.0.0.0"),
    ("HOST", "::1", "host", "::1"),
    ("PORT", "65535", "port", 65535),
]
BAD = [
    *(
        ("RQJOBS_ALERTS", text, right)
        for text, right in (
            (",", "is not a list of 1 to 50 rules"),
            ("oldest", "a time, as in 60s"),
            ("oldest=fast", "for example oldest=60s"),
            ("depth=5m", "give a whole number"),
            ("no_worker=3", "no limit"),
            ("poison:high", "write poison"),
            ("eldest=60s", "the rules are oldest, depth"),
            ("depth=1,depth=2", "twice"),
            ("oldest=999999999d", "at most 365d"),
            ("poison for ever", "for example"),
        )
    ),
    *(
        ("RQJOBS_ALERT_WEBHOOK", text, "for example https://hooks.example.com")
        for text in ("hooks.example.com", "ftp://a/b", "http://[", "http:///x")
    ),
    ("RQJOBS_ALERT_FORMAT", "xml", "json, slack"),
    ("RQJOBS_ALERT_JOB", "tell", "for example shop.jobs.send_alert"),
    ("RQJOBS_METRICS_TOKEN", "short", "too short to be a secret"),
    *(
        ("RQJOBS_API_TOKEN", text, "too short, too simple")
        for text in ("short", "a" * 20, "abcdefgh 0123456789 x", "shop:operate:abc", "ä" * 25)
    ),
    *(
        ("RQJOBS_API_TOKEN", text, "a role is read, operate or admin")
        for text in (
            "shop:root:abcdefgh0123456789_~",
            "abcdefgh0123456789_~,abcdefgh0123456789_!",
            "a b:read:abcdefgh0123456789_~",
        )
    ),
    ("RQJOBS_API_TOKEN", ",".join(["a:read:abcdefgh0123456789_~"] * 2), "the same name twice"),
    (
        "RQJOBS_API_TOKEN",
        "a:read:abcdefgh0123456789_~,b:admin:abcdefgh0123456789_~",
        "the same token twice",
    ),
    *(
        ("REDIS_URL", url, "not a Redis URL; for example redis://localhost:6379/0")
        for url in (
            "localhost:6379",
            "http://localhost",
            "redis://",
            "redis:///0",
            "unix://",
            "unix://socket",
            "redis://h:port/0",
            "redis://h:99999",
            "redis://h/zero",
            "redis://[::1",
            "redis://h/0/1",
            "postgres://u:p@h/db",
        )
    ),
    ("REDIS_URL", "redis+sentinel://a:1,b:2", "names no service; for example redis+sentinel://"),
    (
        "RQJOBS_QUEUES",
        "high,high",
        "different names with commas between; for example high,default,low",
    ),
    ("RQJOBS_QUEUES", "high:low", "for example high,default,low"),
    ("RQJOBS_QUEUES", ",", "for example high,default,low"),
    ("RQJOBS_QUEUES", "two words", "for example high,default,low"),
    ("RQJOBS_MODULES", "shop/jobs", "for example jobs,shop.emails"),
    ("RQJOBS_MODULES", "jobs.", "for example jobs,shop.emails"),
    ("RQJOBS_MODULES", "1jobs", "for example jobs,shop.emails"),
    ("RQJOBS_FLASK_APP", "shop", "for example shop:app or shop:create_app"),
    ("RQJOBS_FLASK_APP", "shop:create_app('x')", "for example shop:app or shop:create_app"),
    ("RQJOBS_SERIALIZER", "pickle", "not one of json, signed-pickle"),
    ("SECRET_KEY", "changeme", "too short to be a secret; make one with"),
    ("RQJOBS_ADMIN_PASSWORD", "1234567", "shorter than 8 characters"),
    ("RQJOBS_WEBHOOK_HOSTS", "https://hooks.example.com/x", "for example hooks.example.com"),
    ("RQJOBS_WEBHOOK_HOSTS", "Hooks.Example.com", "in lower case"),
    ("RQJOBS_ONE_TIME_PASSWORD", "1234567", "shorter than 8 characters"),
    ("RQJOBS_MAX_JOBS_PER_CHILD", "-1", "not a number of jobs"),
    ("RQJOBS_MAX_MEMORY_PER_CHILD", "1M", "not a number of bytes"),
    ("RQJOBS_MAX_MEMORY_PER_CHILD", "500", "or 0 for no limit"),
    (
        "RQJOBS_SHUTDOWN_TIMEOUT",
        "-1",
        "not a number of seconds; give a whole number from 0 to 86400",
    ),
    ("RQJOBS_SHUTDOWN_TIMEOUT", "20s", "give a whole number from 0 to 86400"),
    ("RQJOBS_SHUTDOWN_TIMEOUT", "1.5", "give a whole number from 0 to 86400"),
    ("RQJOBS_SHUTDOWN_TIMEOUT", "86401", "give a whole number from 0 to 86400"),
    ("RQJOBS_SHUTDOWN_TIMEOUT", "٣", "give a whole number from 0 to 86400"),
    (
        "RQJOBS_MAX_PAYLOAD_BYTES",
        "1023",
        "not a number of bytes; give a whole number from 1024 to 536870912",
    ),
    ("RQJOBS_MAX_PAYLOAD_BYTES", "256K", "give a whole number from 1024"),
    ("RQJOBS_MAX_RESULT_BYTES", "1M", "give a whole number from 1024 to 268435456"),
    ("RQJOBS_MAX_TRACEBACK_BYTES", "0", "give a whole number from 1024 to 16777216"),
    ("RQJOBS_MAX_FAILED_JOBS", "-1", "give a whole number from 1 to 1000000000, or 0"),
    ("RQJOBS_HIDE", "password,*", "for example password,token"),
    ("RQJOBS_HIDE", "_", "for example password,token"),
    ("RQJOBS_OUTBOX_URL", "shop.sqlite", "is not a database URL of SQLAlchemy; for example"),
    ("RQJOBS_JOB_LOG_LEVEL", "NOTICE", "is not one of DEBUG, INFO, WARNING, ERROR, CRITICAL, off"),
    ("RQJOBS_JOB_LOG_PRINTS", "yes", "is not one of off, on"),
    ("RQJOBS_OUTBOX_URL", "shop.sqlite", "is not a database URL of SQLAlchemy"),
    ("RQJOBS_MAX_FAILED_AGE_SECONDS", "7d", "give a whole number from 60 to 2147483647"),
    ("RQJOBS_ENVIRONMENT", "x" * 31, "not a name of at most 30 characters"),
    ("RQJOBS_APP_URL", "javascript:alert(1)", "not the address of your application; for example"),
    ("HOST", "http://0.0.0.0", "not a host; for example 127.0.0.1, or 0.0.0.0"),
    ("PORT", "0", "not a port; give a whole number from 1 to 65535"),
    ("PORT", "http", "give a whole number from 1 to 65535"),
]
SECRET = {
    "RQJOBS_API_TOKEN",
    "RQJOBS_METRICS_TOKEN",
    "RQJOBS_ALERT_WEBHOOK",
    "RQJOBS_ONE_TIME_PASSWORD",
    "REDIS_URL",
    "SECRET_KEY",
    "RQJOBS_ADMIN_PASSWORD",
    "RQJOBS_OUTBOX_URL",
}


@pytest.mark.parametrize(("name", "text", "attribute", "expected"), GOOD)
def test_a_good_value_is_parsed(name, text, attribute, expected):
    assert getattr(Config.from_env({name: text}), attribute) == expected


@pytest.mark.parametrize(("name", "text", "right"), BAD)
def test_a_bad_value_is_named_with_the_remedy(name, text, right):
    with pytest.raises(ConfigError) as caught:
        Config.from_env({name: text})
    message = str(caught.value)
    assert (
        message.startswith(f"{name}={'…' if name in SECRET else repr(text.strip())} ")
        and right in message
    )
    assert "\n" not in message and caught.value.__cause__ is None


def test_every_setting_is_tested_and_has_a_field():
    assert {name for name, *_ in GOOD} == set(SETTINGS)
    assert {name for name, *_ in BAD} == set(SETTINGS) - {"RQJOBS_ADMIN_USER"}  # any name will do
    assert {attribute for attribute, _ in SETTINGS.values()} == {
        field.name for field in dataclasses.fields(Config)
    }


def test_unset_and_empty_settings_have_the_defaults():
    assert Config.from_env({}) == Config() == Config.from_env(dict.fromkeys(SETTINGS, " "))
    assert (Config().queues, Config().serializer, Config().redis_url) == (
        ("high", "default", "low"),
        "json",
        None,
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@h:port",
        "redis://me:hunter2@h/zero",
        "redis://:/hunter2@h",
        "redis://me:1/hunter2@h/0",
        "redis://:hunter2#@h/0",
        "hunter2",
        "redis+sentinel://:hunter2@h",
        "redis://:[hunter2@h",
    ],
)
def test_no_message_prints_a_secret(url):
    with pytest.raises(ConfigError) as caught:
        Config.from_env({"REDIS_URL": url})
    assert "hunter2" not in str(caught.value)


def test_secrets_are_not_in_the_repr():
    config = Config(
        redis_url="redis://:hunter2@h", secret_key="hunter2" * 4, admin_password="hunter22"
    )
    assert "hunter2" not in repr(config) and "queues=" in repr(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.shutdown_timeout = 1  # type: ignore[misc]


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_setting_under_its_old_name_names_the_new_one(old, new):
    assert new in SETTINGS and old not in SETTINGS
    with pytest.raises(ConfigError, match=f"^{old} is called {new} now"):
        Config.from_env({old: "1"})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("RQJOBS_QUEUE", "did you mean RQJOBS_QUEUES?"),
        ("RQJOBS_MODULE", "did you mean RQJOBS_MODULES?"),
        ("RQJOBS_REDIS_URL", "did you mean REDIS_URL?"),
        ("RQJOBS_XYZZY", "known: HOST"),
        ("RQJOBS_XYZZY", "known: HOST, PORT, REDIS_URL, RQJOBS_ADMIN_PASSWORD"),
    ],
)
def test_an_unknown_name_is_refused_with_a_suggestion(name, hint):
    """A misspelt name must not silently mean the default. Names without the prefix are ignored."""
    with pytest.raises(ConfigError) as caught:
        Config.from_env({name: "x"})
    assert str(caught.value).startswith(f"{name} is not a setting of rqjobs; {hint}")
    Config.from_env({"RQ_DASHBOARD_X": "1", "PATH": "/bin", "rqjobs_queue": "x"})


def test_signed_pickle_needs_a_key():
    with pytest.raises(ConfigError, match="RQJOBS_SERIALIZER='signed-pickle' needs SECRET_KEY"):
        Config.from_env({"RQJOBS_SERIALIZER": "signed-pickle"})
    assert (
        Config.from_env({"RQJOBS_SERIALIZER": "signed-pickle", "SECRET_KEY": KEY}).serializer
        == "signed-pickle"
    )


def test_the_environment_takes_precedence_over_dotenv(tmp_path):
    """This includes empty values. A `.env` in a parent folder is ignored."""
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / ".env").write_text("RQJOBS_MODULES=from_above\n")
    (inner / ".env").write_text(
        "RQJOBS_QUEUES=one,two\nRQJOBS_SHUTDOWN_TIMEOUT=7\nPORT=1234\n# PORT=5\n"
    )
    keep = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RQJOBS_") and name != "PORT"
    }
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from rqjobs import config; c = config.current(); "
            "assert config.current() is c; print(c.queues, c.shutdown_timeout, c.port, c.modules)",
        ],
        cwd=inner,
        env={**keep, "RQJOBS_SHUTDOWN_TIMEOUT": "9", "PORT": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "('one', 'two') 9 8000 ('rqjobs.demo',)\n"
