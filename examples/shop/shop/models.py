"""The tables."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from shop.extensions import db


class Order(db.Model):
    """An order. `paid_at` and `receipt_at` tell a job that runs again what is done already."""

    id: Mapped[int] = mapped_column(primary_key=True)
    product: Mapped[str]
    email: Mapped[str]
    cents: Mapped[int]
    paid_at: Mapped[datetime | None]
    receipt_at: Mapped[datetime | None]
    refusal: Mapped[str | None]

    @property
    def state(self) -> str:
        if self.refusal:
            return f"refused: {self.refusal}"
        if self.receipt_at:
            return "paid, receipt sent"
        if self.paid_at:
            return "paid"
        return "new"
