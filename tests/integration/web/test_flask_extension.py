"""`rqjobs.Jobs` and `flask jobs`: settings, context, and no Redis in tests."""

from __future__ import annotations

import json
import signal
import sys
import urllib.request

import pytest
import sample_jobs
from flask import Flask
from ports import free_port

import rqjobs
from rqjobs import catalog, cli, config, connection, storing
from rqjobs.flask_extension import Commands

SHOP = """
import os
import rqjobs
from flask import Flask, current_app, g

jobs = rqjobs.Jobs(pages="/jobs")

def create_app():
    app = Flask("shop")
    app.config.update(
        RQJOBS_MODULES=["shop_jobs"],
        RQJOBS_QUEUES="urgent,default",
        REDIS_URL=os.environ["SHOP_REDIS"],
    )
    jobs.init_app(app)

    @app.teardown_appcontext
    def tear_down(error):
        if "said" in g:
            rqjobs.client().rpush("torn down", f"{g.said} {type(error).__name__}")

    @app.get("/say/<text>")
    def say(text):
        import shop_jobs
        return jobs.enqueue(shop_jobs.say, text).id

    return app
"""
SHOP_JOBS = """
from flask import current_app, g
from shop import jobs

@jobs.job(queue="urgent")
def say(text: str) -> str:
    assert "said" not in g
    g.said = text
    if text == "no":
        raise ValueError(text)
    return f"{text} in {current_app.name}"

def on_end(job, connection, *outcome):
    connection.rpush("called back", current_app.name)
"""


@pytest.fixture
def process(monkeypatch, server):
    """Let this process be one without an app, whose Redis comes from the environment."""
    monkeypatch.setenv("REDIS_URL", server)
    for module, name, value in (
        (config, "_app_settings", None),
        (config, "_overrides", {}),
        (config, "_current", None),
        (catalog, "_app", None),
        (catalog, "_is_app_chosen", False),
        (catalog, "_app_jobs", set()),
        (connection, "_check_before_use", None),
    ):
        monkeypatch.setattr(module, name, value)
    return monkeypatch


def make_app(jobs=None, **settings):
    app = Flask("shop")
    app.config.update(settings)
    (jobs or rqjobs.Jobs()).init_app(app)
    return app


def test_the_environment_has_precedence_over_env_file_and_app_config(process, tmp_path):
    process.chdir(tmp_path)
    (tmp_path / ".env").write_text("RQJOBS_ADMIN_USER=file\nRQJOBS_SHUTDOWN_TIMEOUT=7\n")
    process.setenv("RQJOBS_SHUTDOWN_TIMEOUT", "6")
    process.setenv("RQJOBS_ADMIN_USER", "")  # restored at the end
    process.delenv("RQJOBS_ADMIN_USER")
    app = make_app(
        REDIS_URL="redis://elsewhere",
        RQJOBS_ADMIN_USER="app",
        RQJOBS_SHUTDOWN_TIMEOUT=5,
        RQJOBS_QUEUES=("a", "b"),
        RQJOBS_WEBHOOK_HOSTS=None,
        SECRET_KEY="short",
        PORT="any",
    )
    settings = config.current()
    assert (settings.admin_user, settings.shutdown_timeout) == ("file", 6)
    assert settings.queues == ("a", "b") and settings.redis_url != "redis://elsewhere"
    assert settings.secret_key is None and settings.port == 8000
    assert catalog.flask_app() is app
    with config.overridden(queues=("c",)):
        make_app(
            RQJOBS_QUEUES="a,b",
            RQJOBS_ADMIN_USER="other",
            REDIS_URL="redis://elsewhere",
            RQJOBS_SHUTDOWN_TIMEOUT=5,
        )
        assert config.current().queues == ("c",)
    assert config.current().queues == ("a", "b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"RQJOBS_QEUES": "a"}, "app.config: RQJOBS_QEUES is not a setting .* RQJOBS_QUEUES"),
        ({"RQJOBS_QUEUES": 1.5}, r"app.config\['RQJOBS_QUEUES'\] is of the type float"),
        ({"RQJOBS_MAX_FAILED_JOBS": True}, "is of the type bool; give text, a whole number"),
        ({"RQJOBS_SHUTDOWN_TIMEOUT": -1}, r"app.config\['RQJOBS_SHUTDOWN_TIMEOUT'\]='-1' is not"),
        ({"RQJOBS_ADMIN_PASSWORD": "geheim"}, r"PASSWORD'\]=… is shorter than 8 characters"),
        ({"RQJOBS_FLASK_APP": "shop:app"}, "tells a worker how to find this app"),
        ({"RQJOBS_SERIALIZER": "signed-pickle", "SECRET_KEY": "k" * 32}, "in the environment"),
    ],
)
def test_a_wrong_setting_of_an_app_is_refused_and_changes_nothing(process, settings, message):
    before = config.current()
    with pytest.raises(rqjobs.ConfigError, match=message):
        make_app(**settings)
    assert config.current() is before and catalog.flask_app() is None


def test_two_apps_with_different_settings_are_refused_unless_one_is_tested(process):
    app = make_app(RQJOBS_QUEUES="a")
    make_app(RQJOBS_QUEUES=["a"])
    with pytest.raises(rqjobs.ConfigError, match="different values of RQJOBS_QUEUES in app"):
        make_app(RQJOBS_QUEUES="b")
    assert config.current().queues == ("a",)
    make_app(RQJOBS_QUEUES="b", TESTING=True)
    make_app(RQJOBS_QUEUES="c")
    assert config.current().queues == ("c",)
    with pytest.raises(ValueError, match="has a Jobs already"):
        rqjobs.Jobs(app)
    own = Flask("own")
    own.cli.command("jobs")(lambda: None)
    with pytest.raises(ValueError, match="has a command 'jobs' already"):
        rqjobs.Jobs(own)
    with pytest.raises(TypeError, match="takes a Flask app"):
        rqjobs.Jobs(lambda: app)
    with pytest.raises(TypeError, match="pages=True is not a prefix"):
        rqjobs.Jobs(Flask("shop"), pages=True)


def test_a_jobs_without_an_app_enqueues_nothing_and_then_all_its_functions_work(process, redis):
    jobs = rqjobs.Jobs()
    for use in (
        lambda: jobs.enqueue(sample_jobs.ok),
        lambda: jobs.queue("low"),
        lambda: jobs.schedules.names(),
    ):
        with pytest.raises(rqjobs.ConfigError, match=r"call jobs.init_app\(app\)"):
            use()
    make_app(jobs, RQJOBS_MODULES="sample_jobs")
    jobs.enqueue(sample_jobs.ok)
    jobs.enqueue_in(60, sample_jobs.ok)
    jobs.enqueue_many([(sample_jobs.ok,)])
    assert jobs.queue("default").count == 2 and redis.zcard("rq:scheduled:default") == 1
    assert jobs.schedules is rqjobs.schedules and jobs.delayed is rqjobs.delayed


def test_the_decorator_attaches_options_to_the_same_function(process):
    def function():
        pass

    jobs = rqjobs.Jobs()
    assert jobs.job(function) is function
    assert jobs.job(queue="low")(function) is function
    assert catalog.options(function) == {"queue": "low"}
    with pytest.raises(TypeError, match="has no option qeue"):
        jobs.job(qeue="low")(function)


def test_a_tested_app_reaches_no_redis_but_that_of_a_test(process, redis):
    process.delitem(sys.modules, "pytest_rqjobs")  # whose setting allows it here
    jobs = rqjobs.Jobs(pages="/jobs")
    app = make_app(jobs, RQJOBS_MODULES="sample_jobs")
    older_queue = jobs.queue("low")
    app.config["TESTING"] = True  # as often, after the factory
    for use in (
        lambda: jobs.enqueue(sample_jobs.ok),
        lambda: older_queue.enqueue(sample_jobs.ok),
        lambda: rqjobs.enqueue_in(60, sample_jobs.ok),
        lambda: rqjobs.schedules.names(),
        lambda: app.test_client().post("/jobs/login", headers={"Sec-Fetch-Site": "same-origin"}),
    ):
        with pytest.raises(rqjobs.ConfigError, match=r"TESTING is on.*jobs_inline, jobs_recorded"):
            use()
    assert not redis.keys("*")
    stored = []
    with storing.replaced_by(lambda connection, placements, jobs: stored.extend(jobs)):
        job = jobs.enqueue(sample_jobs.ok)
    assert stored == [job] and not redis.keys("rq*")
    with config.overridden(redis_url=config.current().redis_url):
        assert jobs.enqueue(sample_jobs.ok).id in rqjobs.queue("default").job_ids
    with pytest.raises(rqjobs.ConfigError, match="TESTING is on"):
        jobs.enqueue(sample_jobs.ok)


def test_the_pages_are_below_their_prefix(process):
    app = make_app(rqjobs.Jobs(pages="/jobs"))
    assert app.test_client().get("/jobs/").status_code in (303, 401)
    assert app.test_client().get("/").status_code == 404
    without = Flask("plain")
    rqjobs.Jobs(without)
    assert "rqjobs" not in without.blueprints


@pytest.fixture
def shop(environ, tmp_path):
    """An app factory and its jobs, in a folder without settings in the environment."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "shop_jobs.py").write_text(SHOP_JOBS)
    environ.pop("RQJOBS_MODULES")
    environ["SHOP_REDIS"] = environ.pop("REDIS_URL")


WORKERS = {
    "flask": (("-m", "flask", "--app", "shop", "jobs", "worker"), {}),
    "rqjobs": (("-m", "rqjobs", "worker"), {"RQJOBS_FLASK_APP": "shop:create_app"}),
    "rq": (
        ("-m", "rq.cli", "worker", "--worker-class", "rqjobs.Worker", "urgent", "default"),
        {"RQJOBS_FLASK_APP": "shop:create_app"},
    ),
}


@pytest.mark.parametrize("command", WORKERS)
def test_jobs_and_callbacks_run_in_a_context_of_the_app(shop, spawn, redis, environ, command):
    code = (
        "import rqjobs, shop, shop_jobs; shop.create_app()\n"
        "for text in ('yes', 'no'): print(shop.jobs.enqueue(shop_jobs.say, text,"
        " on_success=shop_jobs.on_end, on_failure=shop_jobs.on_end).id)"
    )
    client = spawn(sys.executable, "-c", code)
    assert client.wait(60) == 0, client.output()
    arguments, env = WORKERS[command]
    if command == "rq":  # its command line asks Redis before it makes the worker
        env = {**env, "REDIS_URL": environ["SHOP_REDIS"]}
    worker = spawn(sys.executable, *arguments, "--burst", env=env)
    assert worker.wait(60) == 0, worker.output()
    good, bad = (
        rqjobs.Job.fetch(job_id, connection=redis)
        for job_id in client.output().split()
        if len(job_id) == 36
    )
    assert good.return_value() == "yes in shop" and good.origin == "urgent"
    assert "ValueError: no" in bad.latest_result().exc_string
    assert redis.lrange("torn down", 0, -1) == [b"yes NoneType", b"no ValueError"]
    assert redis.lrange("called back", 0, -1) == [b"shop"] * 2


def test_a_worker_without_the_app_of_its_jobs_is_refused(shop, spawn, environ):
    env = {"REDIS_URL": environ["SHOP_REDIS"], "RQJOBS_MODULES": "shop_jobs"}
    worker = spawn(sys.executable, "-m", "rqjobs", "worker", "--burst", env=env)
    assert worker.wait(60) == 2
    assert worker.output() == (
        "rqjobs: shop_jobs.say is a job of a Flask app, and no app is set: set RQJOBS_FLASK_APP, "
        "for example to shop:create_app, or start the worker with flask --app shop jobs worker\n"
    )


def test_commands_have_the_settings_of_the_app(shop, spawn):
    env = {"RQJOBS_FLASK_APP": "shop:create_app"}
    stats = [
        spawn(sys.executable, "-m", "flask", "--app", "shop", "jobs", "stats", "--json"),
        spawn(sys.executable, "-m", "rqjobs", "stats", "--json", env=env),
    ]
    broken = spawn(sys.executable, "-m", "rqjobs", "audit", env={"RQJOBS_FLASK_APP": "shop:create"})
    for process in stats:
        assert process.wait(60) == 0, process.output()
        names = {queue["name"] for queue in json.loads(process.output())["queues"]}
        assert names == {"urgent", "default"}
    assert broken.wait(60) == 1
    assert "settings of its config are missing here\nrqjobs: no Redis: set" in broken.output()


def test_flask_jobs_has_every_command_and_prints_errors_as_one_line(process, capsys):
    app = make_app(REDIS_URL="redis://127.0.0.1:1", RQJOBS_MODULES="sample_jobs")
    commands = app.cli.commands["jobs"]
    assert isinstance(commands, Commands)
    assert commands.list_commands(None) == sorted(cli.main.commands)
    process.setattr(config, "_current", None)
    process.delenv("REDIS_URL")
    result = app.test_cli_runner().invoke(args=["jobs", "stats"])
    assert result.exit_code == 1 and result.output.count("\n") == 1
    assert result.output.startswith("rqjobs: Error") and "127.0.0.1:1" in result.output
    result = app.test_cli_runner().invoke(args=["jobs", "dev"])
    assert result.exit_code == 2 and "start it by its name, as in flask --app" in result.output


def test_flask_jobs_dev_serves_the_app_and_runs_its_jobs(shop, spawn, environ, eventually):
    """It starts a Redis, because app.config has none, and its workers find the app as it has."""
    environ["SHOP_REDIS"] = ""
    address = f"http://127.0.0.1:{free_port()}"
    dev = spawn(
        *(sys.executable, "-m", "flask", "--app", "shop", "jobs", "dev", "--workers", "1"),
        env={"PORT": address.rpartition(":")[2]},
    )
    eventually(lambda: "Ctrl-C stops" in dev.output() or dev.poll() is not None, timeout=60)
    for lines in (f"Open  {address}/\n", f"Open  {address}/jobs/\n  log in as admin"):
        assert lines in dev.output()  # a child may have written lines between them
    with urllib.request.urlopen(f"{address}/say/hello", timeout=60) as reply:
        job_id = reply.read().decode()
    eventually(lambda: f"Job OK ({job_id})" in dev.output(), timeout=60)
    dev.send_signal(signal.SIGINT)
    assert dev.wait(60) == 0, dev.output()
