from __future__ import annotations

import pytest
import rqjobs

from shop import bank, tasks
from shop.extensions import db
from shop.models import Order


@pytest.fixture
def order(app):
    with app.app_context():
        order = Order(product="chair", email="ada@example.org", cents=8_900)
        db.session.add(order)
        db.session.commit()
        return order.id


def test_a_declined_order_says_so(app, client, monkeypatch, order):
    def decline(email, cents, key):
        raise bank.Declined("card expired")

    monkeypatch.setattr(bank, "charge", decline)
    with app.app_context():
        assert tasks.charge(order) == "declined: card expired"
    assert "refused: card expired" in client.get("/").text


def test_a_receipt_is_sent_once(app, order):
    with app.app_context():
        tasks.send_receipt(order)
        first = db.session.get(Order, order).receipt_at
        tasks.send_receipt(order)
        assert db.session.get(Order, order).receipt_at == first


def test_nothing_reaches_redis_without_a_fixture(client):
    with pytest.raises(rqjobs.ConfigError, match="TESTING is on"):
        client.post("/orders", data={"product": "chair", "email": "ada@example.org"})
