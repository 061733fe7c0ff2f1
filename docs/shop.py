"""The jobs of a small shop: the demo data of `make screenshots`."""

from __future__ import annotations

import time
from datetime import date
from typing import Literal

from rqjobs import Retry, cron, every, get_current_job, job


@job(queue="high")
def send_receipt(order: int, email: str) -> str:
    """Send the receipt of an order.

    Args:
        order: number of the order
        email: address of the customer
    """
    return f"sent to {email}"


def resize_photo(
    photo: str,
    width: int = 800,
    style: Literal["fit", "crop", "pad"] = "fit",
) -> dict[str, object]:
    """Make a smaller picture of a product photo.

    Args:
        photo: file name of the photo
        width: pixels
        style: how the photo fits into the new size
    """
    return {"file": f"{width}/{photo}", "bytes": width * width // 7, "style": style}


@job(queue="high", timeout=20)
def charge_card(order: int, cents: int) -> str:
    """Charge the card of an order."""
    if cents > 10_000:
        raise ValueError(f"order {order}: the card was declined")
    return f"charged {cents / 100:.2f}"


@every(minutes=15)
@job(queue="low", timeout=600, retry=Retry(max=3, interval=[10, 60, 300]))
def sync_inventory(warehouse: str = "main") -> dict[str, object]:
    """Compare the stock with the warehouse's list."""
    current = get_current_job()
    if current:
        current.meta.update(compared=1204, of=1204)
        current.save_meta()
    return {"warehouse": warehouse, "compared": 1204, "missing": ["table-oak-140"], "surplus": []}


@cron("30 6 * * mon-fri", tz="Europe/Berlin", args=["sales"], overlap=False)
@cron("0 7 1 * *", tz="Europe/Berlin", args=["accounting"], missed="all", name="monthly-accounts")
@job(queue="low")
def write_report(kind: str, day: date | None = None) -> str:
    """Write a report and send it to the team."""
    return f"{kind}: 12 pages"


@cron("0 3 * * sun")
@job(queue="low", timeout=3600)
def import_catalog(supplier: str = "all", pages: int = 40) -> int:
    """Import the products of a supplier; the job's meta shows how far it is."""
    current = get_current_job()
    for page in range(pages):
        if current:
            current.meta.update(page=page, pages=pages)
            current.save_meta()
        time.sleep(2)
    return pages
