"""django-rq, with the queue, job and worker classes of rqjobs in its settings."""

from datetime import timedelta

import pytest

import rqjobs

SETUP = "import django; django.setup(); import django_rq, sample_jobs, rqjobs;"


@pytest.fixture(scope="module")
def django(python):
    return python("django-rq>=4.0,<5", "django>=4.2,<7")


@pytest.fixture
def environ(environ, tmp_path):
    return {
        **environ,
        "DJANGO_SETTINGS_MODULE": "django_project",
        "DATABASE": str(tmp_path / "database"),
    }


def test_rqworker_runs_the_jobs_that_django_rq_enqueues(django, run, redis):
    ids = run(
        django,
        "-c",
        f"""{SETUP}
from django.db import transaction
jobs = [django_rq.enqueue(sample_jobs.add, 2, b=3), django_rq.get_queue("high").enqueue(sample_jobs.boom)]
with transaction.atomic():
    django_rq.enqueue(sample_jobs.ok, 7, job_id="committed")
    assert not rqjobs.Job.exists("committed", connection=django_rq.get_connection())
with_decorator = django_rq.job("low")(sample_jobs.ok)
jobs.append(with_decorator.delay(1))
print(*(job.id for job in jobs), "committed")
""",
    ).split()
    run(django, "-m", "django", "rqworker", "--burst", "--with-scheduler", "high", "default", "low")
    jobs = rqjobs.Job.fetch_many(ids, connection=redis)
    assert [job.get_status() for job in jobs] == ["finished", "failed", "finished", "finished"]
    assert [job.return_value() for job in jobs] == [5, None, 1, 7]


def test_the_admin_pages_show_jobs_and_workers_and_act_on_them(
    django, run, worker, redis, eventually
):
    process = worker("default", python=django)
    failed = rqjobs.enqueue("sample_jobs.flaky", "once", 1, meta={"team": "a"})
    waiting = rqjobs.queue("low").enqueue("sample_jobs.ok", {"deep": [1]})
    later = rqjobs.queue("low").enqueue_in(timedelta(hours=1), "sample_jobs.ok")
    eventually(lambda: failed.get_status() == "failed")
    run(
        django,
        "-c",
        f"""{SETUP}
from django.core.management import call_command
call_command("migrate", verbosity=0)
from django.contrib.auth.models import User
from django.test import Client
client = Client()
client.force_login(User.objects.create_superuser("admin"))

def page(address, *texts, post=None):
    address = "/admin/django_rq/dashboard/" + address
    reply = client.post(address, post, follow=True) if post is not None else client.get(address)
    text = reply.content.decode()
    assert reply.status_code == 200, (address, reply.status_code)
    for expected in texts:
        assert expected in text, (address, expected, text.partition("<main")[2])

page("", "default", "low")
page("queues/0/failed/", {failed.id!r}, "sample_jobs.flaky")
page("queues/0/{failed.id}/", "sample_jobs.flaky", "rq-state-failed")
page("queues/2/", {waiting.id!r}, "sample_jobs.ok")
page("queues/2/{waiting.id}/", "deep")
page("queues/2/scheduled/", {later.id!r})
page("workers/0/", {process.name!r})
page("queues/0/{failed.id}/requeue/", post={{"requeue": "1"}})
page("queues/2/{waiting.id}/delete/", post={{"post": "yes"}})
""",
    )
    eventually(lambda: failed.get_status() == "finished")
    assert failed.return_value() == "once" and failed.get_meta() == {"team": "a"}
    assert not rqjobs.Job.exists(waiting.id, connection=redis)
