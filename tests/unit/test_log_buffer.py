"""The lines that a horse has not sent, as its parent finds them."""

from __future__ import annotations

from rqjobs.job_logs import LOG_MAX_BYTES, Batch, encode_line
from rqjobs.worker.log_buffer import HALF_BYTES, LogBuffer


def test_the_parent_finds_what_was_sent_last_and_what_came_after():
    buffer = LogBuffer()
    buffer.begin("token", 3)
    assert buffer.take() is None and buffer.rest() is None
    buffer.add(b"a\n")
    assert buffer.take() == Batch(1, 0, b"a\n")
    buffer.add(b"b\n")
    buffer.add(b"c\n")
    # The first write may not have arrived; a repeated one is not made twice.
    assert buffer.left_by("token") == (3, [Batch(1, 0, b"a\n"), Batch(2, 0, b"b\nc\n")])
    assert buffer.left_by("another") == buffer.left_by("") == (1, [])
    buffer.sent()
    assert buffer.left_by("token") == (3, [Batch(2, 0, b"b\nc\n")])
    assert buffer.take() == Batch(2, 0, b"b\nc\n")
    buffer.sent()
    assert buffer.left_by("token") == (3, []) and buffer.rest() is None


def test_a_full_buffer_drops_its_oldest_lines_and_counts_them():
    buffer = LogBuffer()
    buffer.begin("token", 1)
    lines = [b"%07d\n" % number for number in range(HALF_BYTES // 8 * 3)]
    for line in lines:
        buffer.add(line)
    batch = buffer.rest()
    assert len(batch.text) == LOG_MAX_BYTES and lines[-1] in batch.text
    assert batch.dropped == len(lines) - batch.text.count(b"\n")
    assert batch.text.splitlines(keepends=True) == lines[batch.dropped :]


def test_the_longest_lines_fit():
    longest = encode_line(1e9, 10**9, "𝄞" * 10_000, '"' * 10_000, "𝄞" * 100_000)
    assert 32 * 1024 < len(longest) < LOG_MAX_BYTES
    buffer = LogBuffer()
    buffer.begin("token", 1)
    for number in range(20):
        buffer.add(longest)
        batch = buffer.rest()
        assert batch.text == longest and batch.dropped == number
