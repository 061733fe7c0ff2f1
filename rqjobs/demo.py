"""Small jobs that do something real with a text, so that a fresh install has something to run.

A jobs module like yours: plain functions, `@job` where one needs options; what begins with an underscore is no job.
"""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections import Counter
from typing import Any

from rqjobs import Retry, get_current_job, job

_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
a about after again all also am an and any are as at be because been before being below between both but by can cannot
could did do does doing don done down during each else even every few for from get gets give gives go goes had has have
having he her here his how i if in into is it its itself just less let like ll made make makes many may me might more
most much must my never no nor not nothing now of off on once one only or other others our out over own per re rather
same say says see she should since so some still such take takes than that the their them then there these they this
those through to too two under until up us use used uses using ve very via was we well were what whatever when where
whether which while who whom whose why will with within without would yet you your yours
""",
    )
)
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"'”’)])) +(?=\W?[^\Wa-z_])|(?<=[。！？])")
_READING_SPEED = (
    238  # words a minute, silently: M. Brysbaert, Journal of Memory and Language 109 (2019)
)
_LEVELS = (
    (30, "very easy"),
    (40, "easy"),
    (50, "medium"),
    (60, "hard"),
    (float("inf"), "very hard"),
)


@job(queue="high")
def statistics(text: str) -> dict[str, Any]:
    """Count what a text consists of, and say how hard it is to read.

    The figure is LIX (C. H. Björnsson, Läsbarhet, 1968): words per sentence plus the percentage of words longer
    than six letters. It needs no dictionary, so it fits every language that puts spaces between its words.

    Args:
        text: what to measure; Markdown's marks, links and code do not count
    """
    sentences = _sentences(text)
    words = [word for sentence in sentences for word in _WORD.findall(sentence)]
    length = len(words) / max(len(sentences), 1)
    lix = length + 100 * sum(len(word) > 6 for word in words) / max(len(words), 1)
    level = next(level for limit, level in _LEVELS if lix < limit) if words else "nothing to read"
    return {
        "words": len(words),
        "sentences": len(sentences),
        "characters": len(text),
        "LIX": round(lix),
        "level": level,
        "words per sentence": round(length, 1),
        "reading minutes": round(len(words) / _READING_SPEED, 1),
    }


def key_terms(text: str, count: int = 10) -> list[tuple[str, float]]:
    """Find the terms that a text is about; returns (term, score), the best first.

    The method is RAKE (Rose, Engel, Cramer and Cowley, Automatic keyword extraction from individual documents, 2010):
    terms stand between stop words and punctuation; a word scores its degree divided by its frequency, a term the sum
    of its words, here times how often it occurs. They have at most three words, and occur twice if enough do.

    Args:
        text: an English text; in other languages the stop words are taken for terms
        count: how many terms
    """
    phrases: Counter[tuple[str, ...]] = Counter()
    for part in re.split(r"[^\w\s'’\-]+|\s-+\s", " . ".join(_sentences(text))):
        phrase: list[str] = []
        for word in [*_WORD.findall(part.lower()), "the"]:
            if (
                word in _STOP_WORDS
                or re.split("['’]", word)[0] in _STOP_WORDS
                or word.isdigit()
                or len(word) < 2
            ):
                if 0 < len(phrase) <= 3:
                    phrases[tuple(phrase)] += 1
                phrase = []
            else:
                phrase.append(word)
    frequency, degree = Counter[str](), Counter[str]()
    for words, times in phrases.items():
        for word in words:
            frequency[word], degree[word] = (
                frequency[word] + times,
                degree[word] + times * len(words),
            )
    scores = {
        words: phrases[words] * sum(degree[word] / frequency[word] for word in words)
        for words in phrases
    }
    terms = (
        phrases
        if sum(times > 1 for times in phrases.values()) < count
        else phrases - Counter(set(phrases))
    )
    best = sorted(terms, key=lambda words: (-scores[words], words))
    return [(" ".join(words), round(scores[words], 1)) for words in best[: max(count, 0)]]


def summarize(text: str, sentences: int = 3) -> str:
    """Pick the sentences that say most, in the order in which they stand in the text.

    The method is Luhn's (The automatic creation of literature abstracts, IBM Journal 2, 1958): a sentence scores its
    densest cluster of significant words (frequent, and no stop words), their number squared divided by the cluster's
    length; a cluster ends where more than four other words follow each other. What has more than 50 words is a list.

    Args:
        text: what to summarize
        sentences: how many sentences to keep
    """
    candidates = _sentences(text)
    words = [[word.lower() for word in _WORD.findall(sentence)] for sentence in candidates]
    frequency = Counter(
        word for sentence in words for word in sentence if word not in _STOP_WORDS and len(word) > 2
    )
    floor = max(2, frequency.total() // 300)
    scores = [
        _luhn([i for i, word in enumerate(sentence) if frequency[word] >= floor])
        for sentence in words
    ]
    best = sorted(range(len(words)), key=lambda i: (len(words[i]) > 50, -scores[i]))[
        : max(sentences, 0)
    ]
    return " ".join(candidates[i] for i in sorted(best))


@job(retry=Retry(max=5, interval=[1, 2, 4, 8, 16]))
def unreliable(text: str, failure_rate: float = 0.5) -> str:
    """Ask a service that fails at random for a text's fingerprint; it is asked again after 1, 2, 4, 8 and 16 seconds.

    Args:
        text: what to fingerprint
        failure_rate: how often it fails, from 0 (never) to 1 (always)
    """
    if random.random() < failure_rate:
        raise ConnectionError(
            "the service did not answer (this demo fails on purpose; it is retried)"
        )
    return "sha256:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@job(queue="low", timeout=3600)
def slow(steps: int = 10, seconds: float = 1.0) -> float:
    """Find pi by throwing darts, slowly; `done` and `total` in the job's meta say how far it is.

    Args:
        steps: how many rounds
        seconds: how long each round takes
    """
    current, hits, darts = get_current_job(), 0, 10_000
    for step in range(1, steps + 1):
        hits += sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(darts))
        time.sleep(max(seconds, 0))
        if current:
            current.meta.update(done=step, total=steps)
            current.save_meta()
    return round(4 * hits / (darts * max(steps, 1)), 3)


def _sentences(text: str) -> list[str]:
    """The sentences of a text or a Markdown file, without its marks, its links' targets and its code."""
    blocks, fence, sentences = [list[str]()], "", list[str]()
    for line in map(str.strip, text.splitlines()):
        mark = line[:3] if line.startswith(("```", "~~~")) and line.find(line[:3], 3) < 0 else ""
        if fence or mark:
            fence = mark if not fence else "" if mark == fence else fence
            line = ""
        # What is above a blank line, a heading, an item or a table's row ends there, even without a full stop.
        if blocks[-1] and (not line.strip("-=|:+ ") or re.match(r"#|>|\||[-*+•] |\d+[.)] ", line)):
            blocks.append([])
        blocks[-1] += [re.sub(r"^[#>|\-*+•\s]+|^\d+[.)] ", "", line)] * bool(line)
    for lines in blocks:
        block = re.sub(r"</?[A-Za-z!][^<>]{0,500}>", " ", " ".join(lines))
        block = re.sub(
            r"!?\[([^\[\]]{0,500})\](\([^()]{0,1000}\)|\[[^\[\]]{0,100}\])?", r"\1", block
        )
        block = re.sub(r"\b[a-z+]{2,20}://\S+|[`*|]+|(?<!\w)_+|_+(?!\w)", " ", block)
        sentences += _SENTENCE_END.split(" ".join(block.split()))
    return list(filter(_WORD.search, sentences))


def _luhn(places: list[int]) -> float:
    """The score of the best cluster, given at which words of a sentence the significant ones stand."""
    best, start = 0.0, 0
    for i, place in enumerate(places):
        start = i if i and place - places[i - 1] > 5 else start
        best = max(best, (i - start + 1) ** 2 / (place - places[start] + 1))
    return best
