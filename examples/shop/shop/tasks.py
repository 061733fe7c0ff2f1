"""The jobs. They run in the app's context, so `db.session` works as in a page."""

from __future__ import annotations

from datetime import datetime, timezone

import rqjobs
from flask import current_app
from rqjobs import Discard, backoff, cron

from shop import bank
from shop.extensions import db, jobs
from shop.models import Order


@jobs.job(queue="high", unique="args", retry=backoff(5), retry_on=(bank.Unavailable,))
def charge(order_id: int) -> str:
    """Take the money for an order, and then send the receipt.

    The job may run twice, so it first looks at what is done. The bank gets the number of the order
    as a key, and charges a key once.
    """
    order = _order(order_id)
    if order.paid_at is None:
        try:
            bank.charge(order.email, order.cents, key=f"order-{order.id}")
        except bank.Declined as error:
            order.refusal = str(error)
            db.session.commit()
            return f"declined: {error}"
        order.paid_at = _now()
        db.session.commit()
    jobs.enqueue(send_receipt, order.id)
    return f"charged {order.cents / 100:.2f}"


@jobs.job(rate="5/s")
def send_receipt(order_id: int) -> str:
    """Send the receipt of an order. The mail server takes five messages a second."""
    order = _order(order_id)
    if order.receipt_at is None:
        current_app.logger.info("to %s: thank you for %s", order.email, order.product)
        order.receipt_at = _now()
        db.session.commit()
    return f"sent to {order.email}"


@jobs.job(queue="low", timeout=3600)
def announce(text: str) -> None:
    """Send a text to the customer of each order.

    A deploy may stop the loop. The next worker goes on with the next order.
    """
    for email in rqjobs.resumable(_customers_after):
        current_app.logger.info("to %s: %s", email, text)


def _customers_after(order_id: int | None) -> list[tuple[int, str]]:
    query = db.select(Order.id, Order.email).where(Order.id > (order_id or 0))
    rows = db.session.execute(query.order_by(Order.id).limit(500))
    return [(number, email) for number, email in rows]


@cron("0 7 * * mon-fri", tz="Europe/Berlin")
@jobs.job(queue="low", timeout=600)
def report() -> dict[str, int]:
    """Count the orders of each state."""
    orders = db.session.scalars(db.select(Order)).all()
    states = [order.state for order in orders]
    return {state: states.count(state) for state in sorted(set(states))}


def _order(order_id: int) -> Order:
    order = db.session.get(Order, order_id)
    if order is None:
        raise Discard(f"the order {order_id} does not exist any more")
    return order


def _now() -> datetime:
    return datetime.now(timezone.utc)
