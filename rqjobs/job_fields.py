"""The fields of a job's hash that need care: they are compressed, and read within limits."""

from __future__ import annotations

import zlib
from typing import Any

from rqjobs import config, hiding, texts

DESCRIPTION_MAX_CHARACTERS = 10_000
# Smaller data are stored as they are, because compressing them takes longer than sending them.
COMPRESS_MIN_BYTES = 512
ZLIB_METHOD = 8  # RFC 1950: the low half of the first byte of compressed data


class PayloadTooLarge(ValueError):
    """A job's arguments are more than RQJOBS_MAX_PAYLOAD_BYTES bytes."""


class ResultTooLarge(ValueError):
    """A job's result, or its meta, is more than RQJOBS_MAX_RESULT_BYTES bytes."""


def check_size(what: str, data: bytes) -> None:
    """Check a serialized result or meta.

    Raises:
        ResultTooLarge: it is more than RQJOBS_MAX_RESULT_BYTES bytes.
    """
    limit = config.current().max_result_bytes
    if len(data) > limit:
        raise ResultTooLarge(
            f"the job's {what} is {len(data):,} bytes, more than RQJOBS_MAX_RESULT_BYTES "
            f"({limit:,}); store it elsewhere, and keep its name or its key"
        )


def compress(data: bytes) -> bytes:
    """A job's data as they are stored: compressed if they are large. RQ reads both."""
    if len(data) < COMPRESS_MIN_BYTES:
        return data
    return zlib.compress(data, 1)


def decompress(stored: bytes) -> bytes:
    """A job's data, which may be compressed.

    Raises:
        PayloadTooLarge: they are larger than any data that rqjobs writes.
    """
    data, is_cut = _decompress(stored)
    if is_cut:
        raise PayloadTooLarge(
            f"the job's data are more than {len(data):,} bytes when they are unpacked (twice the "
            f"larger of RQJOBS_MAX_PAYLOAD_BYTES and RQJOBS_MAX_RESULT_BYTES, which must be the "
            f"same everywhere)"
        )
    return data


def _decompress(stored: bytes) -> tuple[bytes, bool]:
    """The value, up to the largest size that a value may have, and whether it was cut there.

    Values that are not compressed are returned as they are.
    """
    if stored[0] & 0x0F != ZLIB_METHOD:
        return stored, False
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(stored, config.current().max_value_bytes)
    except zlib.error:
        return stored, False
    return data, bool(unpacker.unconsumed_tail)


def read_traceback(stored: bytes) -> str:
    """A traceback as RQ keeps it. Of one that is larger than any of ours, the first part."""
    data, is_cut = _decompress(stored)
    trace = data.decode(errors="replace")
    if is_cut:
        trace += "\n… (the rest of this traceback is not read)"
    return trace


def read_description(stored: bytes) -> str:
    """A description, cut to the length that rqjobs writes. A plain RQ client hides nothing in it."""
    text = stored[: 4 * DESCRIPTION_MAX_CHARACTERS].decode(errors="replace")
    return hiding.hide_text(config.current().hide, text[:DESCRIPTION_MAX_CHARACTERS])


def check_description(description: Any) -> str:
    """A job's description as it is stored: cut to its largest length, and valid UTF-8.

    Raises:
        TypeError: it is not a string.
    """
    if not isinstance(description, str):
        raise TypeError(f"a job's description is a text, not a {type(description).__name__}")
    if len(description) > DESCRIPTION_MAX_CHARACTERS:
        description = f"{description[: DESCRIPTION_MAX_CHARACTERS - 1]}…"
    return texts.escape_surrogates(description)
