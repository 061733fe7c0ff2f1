"""The pages: the list of the orders, and the form for a new one."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, redirect, render_template, request, url_for

from shop.extensions import db, jobs
from shop.models import Order
from shop.tasks import charge

blueprint = Blueprint("orders", __name__)
PRODUCTS = {"chair": 8_900, "table": 24_900, "piano": 490_000}  # prices in cents


@blueprint.get("/")
def index() -> Any:
    orders = db.session.scalars(db.select(Order).order_by(Order.id.desc()).limit(50))
    return render_template("index.html", orders=orders, products=PRODUCTS)


@blueprint.post("/orders")
def add() -> Any:
    product = request.form["product"]
    order = Order(product=product, email=request.form["email"], cents=PRODUCTS[product])
    db.session.add(order)
    db.session.flush()  # gives the order its number
    jobs.enqueue(charge, order.id, after_commit=True)
    db.session.commit()
    return redirect(url_for("orders.index"), 303)
