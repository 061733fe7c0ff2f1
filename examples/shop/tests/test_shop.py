from __future__ import annotations

from datetime import datetime, timezone

import pytest
import rqjobs

from shop import bank, tasks
from shop.extensions import db
from shop.models import Order


def order(client, product):
    reply = client.post("/orders", data={"product": product, "email": "ada@example.org"})
    assert reply.status_code == 303


def test_an_order_is_charged_by_a_job(client, jobs_recorded):
    order(client, "chair")
    jobs_recorded.assert_enqueued(tasks.charge, 1, queue="high")
    assert "<td>new" in client.get("/").text


def test_the_jobs_of_an_order(client, jobs_inline):
    order(client, "chair")
    order(client, "piano")
    page = client.get("/").text
    assert "paid, receipt sent" in page and "refused: not enough money" in page


def test_the_bank_is_asked_again_when_it_does_not_answer(client, monkeypatch, jobs_inline):
    def time_out(email, cents, key):
        raise bank.Unavailable

    monkeypatch.setattr(bank, "charge", time_out)
    jobs_inline.raises = False
    order(client, "chair")
    (job,) = jobs_inline.jobs
    assert job.get_status() == "scheduled"


def test_a_receipt_is_sent_once(client, app, jobs_inline):
    order(client, "chair")
    with app.app_context():
        first = db.session.get(Order, 1).receipt_at
        tasks.send_receipt(1)
        assert db.session.get(Order, 1).receipt_at == first


def test_an_announcement_reaches_each_customer(client, app, caplog, jobs_recorded):
    order(client, "chair")
    order(client, "table")
    with app.app_context():
        tasks.announce("we are closed")
    assert caplog.text.count("to ada@example.org: we are closed") == 2


def test_the_report_is_due_each_morning(client, frozen_scheduler):
    frozen_scheduler.move_to(datetime(2040, 1, 2, 12, tzinfo=timezone.utc))
    order(client, "chair")
    frozen_scheduler.advance(days=1)
    job = frozen_scheduler.assert_enqueued(tasks.report, queue="low", count=1)
    frozen_scheduler.work()
    assert job.return_value() == {"paid, receipt sent": 1}


def test_with_a_real_worker(client, jobs_redis):
    order(client, "chair")
    jobs_redis.work()
    assert "paid, receipt sent" in client.get("/").text


def test_nothing_reaches_redis_without_a_fixture(client):
    with pytest.raises(rqjobs.ConfigError, match="TESTING is on"):
        order(client, "chair")
