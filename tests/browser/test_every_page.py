"""Every page in a real Chromium: axe finds nothing, in light and dark, on a desktop and on a phone."""

# ruff: noqa: F811  (fixtures of the other module)

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import axe_core_python
import pytest
import sample_jobs
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from test_browser import PASSWORD, browser, click, serve, shown, site  # noqa: F401

import rqjobs
from rqjobs import schedules
from rqjobs.broker import activity, keys, logins
from rqjobs.broker.activity import Entry

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
DESKTOP, PHONE = (1200, 900), (360, 740)
LONG = "x" * 300
MAX_PAGES = 40


@pytest.fixture
def log_in(browser, site, eventually):
    """Log the browser in, and wait for the home page."""

    def go():
        browser.get(f"{site}/login")
        browser.find_element(By.ID, "user").send_keys("admin")
        browser.find_element(By.ID, "password").send_keys(PASSWORD)
        browser.find_element(By.CSS_SELECTOR, "button.primary").click()
        eventually(lambda: shown(browser, ".verdict h1"), what="the home page")

    return go


@pytest.fixture
def jobs(redis, worker, eventually):
    """Jobs of every kind, so that no page is empty."""
    failed = rqjobs.enqueue(sample_jobs.boom, LONG)
    done = rqjobs.enqueue(sample_jobs.say, LONG)
    worker("default")
    eventually(lambda: failed.get_status() == "failed", what="the failed job")
    eventually(lambda: done.get_status() == "finished", what="the finished job")
    flow = rqjobs.chain(rqjobs.s(sample_jobs.ok), rqjobs.s(sample_jobs.ok)).enqueue()
    schedules.add("nightly", rqjobs.every(minutes=5), sample_jobs.ok)
    later = rqjobs.enqueue_in(600, sample_jobs.ok)
    return {"failed": failed.id, "done": done.id, "later": later.id, "flow": flow.id}


LINKS = """
return [...document.querySelectorAll(arguments[0])].map((link) => link.getAttribute("href"))
"""


def kind(path):
    """Pages of a kind are checked once: those of the same first part, depth and parameters."""
    address = urlsplit(path)
    parts = address.path.strip("/").split("/")
    return parts[0], len(parts), tuple(sorted(parse_qs(address.query)))


def pages(browser, site, jobs):
    """The pages of the navigation, one of each kind that they link to, and some more."""
    browser.get(f"{site}/")
    navigation = browser.execute_script(LINKS, "#pages a:not(.back), .tools a")
    wanted = [f"/jobs/{jobs[name]}" for name in ("failed", "done", "later")]
    wanted += [f"/flows/{jobs['flow']}", "/schedules/nightly", "/nowhere"]
    wanted += ["/change-jobs?action=delete&all=1&view=state%3Dfailed"]
    wanted += ["/schedules?function=sample_jobs.say", "/enqueue?function=sample_jobs.say"]
    found = [*navigation, *wanted]
    kinds = {kind(path) for path in found}
    for path in navigation:
        if path == "/rq/":
            continue
        browser.get(f"{site}{path}")
        for link in browser.execute_script(LINKS, "main a[href^='/']"):
            if kind(link) not in kinds and len(found) < MAX_PAGES:
                kinds.add(kind(link))
                found.append(link)
    return [path for path in found if not path.startswith(("/rq/", "/assets/", "/api", "/metrics"))]


def show(browser, scheme, size):
    """Show the page in light or dark colours, and in another size."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def check(browser, rules):
    """What axe finds, as lines."""
    options = {"runOnly": rules, "resultTypes": ["violations"]}
    reply = browser.execute_async_script(
        "const [options, done] = arguments; axe.run(document, options).then("
        "(found) => done(found.violations.map((one) => one.id + ': ' + one.nodes.slice(0, 3)"
        ".map((node) => node.html.slice(0, 160)).join(' | '))), (error) => done([String(error)]))",
        options,
    )
    return reply


def test_axe_finds_nothing_on_any_page(browser, site, log_in, jobs):
    log_in()
    problems = []
    for path in pages(browser, site, jobs):
        browser.get(f"{site}{path}")
        browser.execute_script(AXE)
        for scheme, size, rules in (
            ("light", DESKTOP, RULES),
            ("dark", DESKTOP, ["color-contrast"]),
            ("dark", PHONE, RULES),
        ):
            show(browser, scheme, size)
            problems += [f"{path} {scheme} {size[0]}: {one}" for one in check(browser, rules)]
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            if wide > size[0]:
                problems.append(f"{path}: {wide} px in a window of {size[0]} px")
        headings = browser.find_elements(By.CSS_SELECTOR, "h1")
        if len(headings) != 1:
            problems.append(f"{path}: {len(headings)} headings")
    severe = [one["message"] for one in browser.get_log("browser") if one["level"] == "SEVERE"]
    problems += [one for one in severe if "/nowhere" not in one]
    assert not problems, "\n".join(problems)


def test_the_keys_the_menu_and_a_login_link(
    browser,
    site,
    log_in,
    eventually,
    redis,
    tmp_path,
):
    def is_loaded():
        return browser.execute_script("return document.readyState") == "complete"

    browser.get(f"{site}/login")
    file = tmp_path / ".rqjobs" / "secret-key"
    key = eventually(lambda: file.exists() and file.read_text(), what="the key")
    browser.get("about:blank")
    browser.get(f"{site}/login?next=/activity#{logins.create_link(redis, key)}")
    eventually(lambda: shown(browser, "h1") == "Activity", what="the page after the link")
    eventually(lambda: "by a login link" in shown(browser, ".activity"), what="the login")
    eventually(is_loaded, what="its scripts")
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    active = browser.switch_to.active_element
    assert active.get_attribute("data-search") is not None
    active.send_keys("?/")
    assert active.get_attribute("value") == "?/", "in a field the keys are text"
    active.send_keys(Keys.ESCAPE)
    browser.find_element(By.TAG_NAME, "body").send_keys("?")
    eventually(lambda: "Your role is admin" in shown(browser, "dialog[open]"), what="the help")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    eventually(lambda: not browser.find_elements(By.CSS_SELECTOR, "dialog[open]"), what="no help")
    show(browser, "light", PHONE)
    menu = browser.find_element(By.ID, "menu")
    assert shown(browser, "#pages") == "" and menu.get_attribute("aria-expanded") == "false"
    menu.click()
    assert "Workers" in shown(browser, "#pages") and menu.get_attribute("aria-expanded") == "true"
    assert [one for one in browser.get_log("browser") if one["level"] == "SEVERE"] == []


WIDTH = "return document.documentElement.scrollWidth"
CUT_CALLS = """
return [...document.querySelectorAll("table.jobs .wide")]
  .filter((cell) => cell.scrollWidth > cell.clientWidth + 1).map((cell) => cell.innerText)
"""
BROKEN_NAMES = """
return [...document.querySelectorAll(".settings th code")]
  .filter((name) => name.getClientRects().length > 1).map((name) => name.innerText)
"""


def test_a_phone_shows_whole_calls_and_times_also_without_javascript(
    browser, site, log_in, jobs, eventually
):
    """Lists showed "shop.send_…" for each job there, and the page Schedules was 486 px wide."""
    rqjobs.enqueue(sample_jobs.say, "y" * 30)
    log_in()
    group = eventually(rqjobs.failed.groups, what="the group of the failed job")[0].id
    paths = (
        "/",
        f"/failed/{group}",
        "/queues/default",
        "/schedules",
        "/schedules/nightly",
        "/jobs",
    )
    for scripts in (True, False):
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
        show(browser, "light", PHONE)
        for path in paths:
            browser.get(f"{site}{path}")
            eventually(  # on a busy machine a page is laid out a moment later
                lambda: browser.execute_script(WIDTH) <= PHONE[0], timeout=5, what=f"{path} fits"
            )
            assert browser.execute_script(CUT_CALLS) == [], path
        browser.get(f"{site}/")
        if not scripts:
            assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", shown(browser, "main table"))
        show(browser, "light", DESKTOP)
        browser.get(f"{site}/settings")
        assert browser.execute_script(BROKEN_NAMES) == []


def test_the_pages_without_javascript(browser, site, log_in, eventually, redis, click):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    log_in()
    show(browser, "dark", PHONE)
    click("Queues", By.LINK_TEXT)
    click("form[action$='/pauses/pause'] button")
    eventually(lambda: "is paused" in shown(browser, ".note"), what="the note")
    click("#help-link")
    eventually(lambda: shown(browser, "h1") == "Help and keys", what="the page of help")
    click("Activity", By.LINK_TEXT)
    eventually(lambda: "pause queue" in shown(browser, ".activity"), what="the action")
    click("form[action$='/logout'] button")
    eventually(lambda: browser.find_elements(By.ID, "password"), what="the login page")


def test_long_names_from_redis_widen_no_page(browser, site, log_in, redis, eventually):
    """The name of an alert made its page 6,500 px wide; a user, queue or status, others."""
    now = redis.time()[0]
    alert = {"since": now, "rule": LONG, "subject": LONG, "message": LONG}
    redis.hset(keys.ALERTS, LONG, json.dumps(alert))
    activity.record(redis, Entry("cancel job", target=LONG, user=LONG, via="page", note=LONG))
    job = rqjobs.queue("q" + "x" * 60).enqueue(sample_jobs.say, LONG)
    redis.hset(job.key, mapping={"status": LONG, "origin": LONG})
    log_in()

    def fits(path, width):
        browser.get(f"{site}{path}")
        assert LONG[:20] in browser.find_element(By.TAG_NAME, "main").text, path
        eventually(lambda: browser.execute_script(WIDTH) <= width, timeout=5, what=f"{path} fits")

    for size in (DESKTOP, PHONE):
        show(browser, "light", size)
        for path in ("/alerts", "/activity", "/jobs", f"/jobs/{job.id}"):
            fits(path, size[0])
