"""Stands for the program of a bank. It declines all payments of more than 1,000."""

from __future__ import annotations


class Unavailable(Exception):
    """The bank does not answer now."""


class Declined(Exception):
    """The bank does not pay."""


def charge(email: str, cents: int, key: str) -> None:
    """Take the money of a customer. A second call with the same key takes nothing."""
    if cents > 100_000:
        raise Declined("not enough money")
