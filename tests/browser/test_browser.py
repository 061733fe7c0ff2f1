"""The forms work with a real browser, server and worker, and no data of a job runs as script."""

from __future__ import annotations

import os
import shutil

import host_site
import pytest
import sample_jobs
from ports import free_port
from selenium import webdriver
from selenium.common.exceptions import (
    ElementNotInteractableException,
    NoAlertPresentException,
    NoSuchElementException,
    StaleElementReferenceException,
    WebDriverException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import rqjobs
from rqjobs.broker import keys
from rqjobs.jobs import Job

PASSWORD = "correct horse"
NOT_CLICKED = (
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
)
RUN = "window.__pwned=(window.__pwned||0)+1;alert(1)"
HOSTILE = (
    f"</script></textarea></title><script>{RUN}</script><img src=x onerror='{RUN}'><svg onload=\"{RUN}\">"
    f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>"\'`${{alert(1)}}<% {RUN} %>{{{{7*7}}}}'
)


@pytest.fixture
def serve(gunicorn):
    """Serve an application by gunicorn; returns its address."""

    def start(application):
        options = ("--workers", "2", "--threads", "4")
        server = gunicorn(*options, app=application, config=None, RQJOBS_ADMIN_PASSWORD=PASSWORD)
        return server.address

    return start


@pytest.fixture
def site(serve):
    """The address of the pages."""
    return serve("rqjobs.web:create_app()")


@pytest.fixture
def browser(tmp_path):
    chromium = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        message = "no chromium and chromedriver on this machine"
        (pytest.fail if os.environ.get("CI_BROWSER") == "1" else pytest.skip)(message)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability(
        "unhandledPromptBehavior", "ignore"
    )  # an alert must stay open for the test
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1200,1000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(driver, port=free_port()))
    driver.set_script_timeout(120)  # a busy machine
    yield driver
    driver.quit()


@pytest.fixture
def at_home(browser, site, eventually):
    """The browser, logged in, on the home page."""
    browser.get(f"{site}/")
    log_in(browser, eventually)
    return browser


def log_in(browser, eventually):
    browser.find_element(By.ID, "user").send_keys("admin")
    browser.find_element(By.ID, "password").send_keys(PASSWORD)
    browser.find_element(By.CSS_SELECTOR, "button.primary").click()
    eventually(lambda: shown(browser, ".verdict h1"), what="the home page")


def nothing_ran(browser):
    with pytest.raises(NoAlertPresentException):
        browser.switch_to.alert.accept()
    assert browser.execute_script("return window.__pwned") is None


def shown(browser, selector):
    """The text of an element; "" if the page replaces it, or is left, at this moment."""
    try:
        return "".join(element.text for element in browser.find_elements(By.CSS_SELECTOR, selector))
    except WebDriverException:
        return ""


@pytest.fixture
def click(browser, eventually):
    """Click an element as a user does, as soon as it is there, even if the page replaces it."""

    def go(selector, by=By.CSS_SELECTOR):
        def clicked():
            try:
                browser.find_element(by, selector).click()
            except NOT_CLICKED:
                return False
            return True

        eventually(clicked, what=selector)

    return go


def press(browser, selector):
    """Click a button by a script, as soon as it is there; the script does not wait for its answer."""
    browser.execute_script(
        """
        const press = () => {
          const button = document.querySelector(arguments[0]);
          if (button) button.click(); else setTimeout(press, 20);
        };
        setTimeout(press);""",
        selector,
    )


def press_labelled(browser, label):
    press(browser, f"button[aria-label='{label}']")


def question(browser):
    try:
        return browser.switch_to.alert.text
    except NoAlertPresentException:
        return ""


def test_enqueue_a_job_and_watch_it_finish(at_home, site, worker, eventually, click):
    browser = at_home
    browser.get(f"{site}/enqueue")
    Select(browser.find_element(By.ID, "function")).select_by_value(
        "sample_jobs.say"
    )  # the script submits it
    field = eventually(lambda: browser.find_elements(By.ID, "arg.text"), what="the form")[0]
    assert "Say it back." in browser.page_source
    field.send_keys(HOSTILE)
    click("#enqueue button.primary")
    eventually(lambda: shown(browser, "#status") == "queued", what="the job's page")
    browser.execute_script("window.stayed = true")
    worker("default")
    eventually(lambda: shown(browser, "#status") == "finished", what="the end of the job")
    eventually(lambda: "Result" in shown(browser, "[data-job] h2"), what="the result")
    assert repr(HOSTILE) in shown(browser, "#result-value")
    browser.execute_script(  # the button says it for two seconds only
        """
        const button = document.querySelector("[data-copy=result-value]");
        window.said = [];
        new MutationObserver(() => window.said.push(button.textContent))
          .observe(button, {childList: true});"""
    )
    click("[data-copy=result-value]")
    copied = {"Copied", "Selected"}  # the latter if the browser forbids its clipboard
    eventually(lambda: copied & {*browser.execute_script("return window.said")}, what="the copy")
    assert browser.execute_script(
        "return valueText(document.querySelector('#result-value .value'), 0)"
    ) == repr(HOSTILE)
    assert browser.execute_script("return window.stayed"), (
        "the page followed the job without a reload"
    )
    assert browser.title.startswith("finished")
    nothing_ran(browser)
    click("[id^=again]")
    eventually(lambda: "This is a new job" in shown(browser, ".note"), what="the note")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_keyboard_can_choose_a_function(at_home, site, eventually):
    """The first arrow key reloaded the page, with the function that it reached."""
    browser = at_home
    browser.get(f"{site}/enqueue")
    browser.execute_script("window.stayed = true; document.getElementById('function').focus()")
    keys = browser.find_element(By.ID, "function")
    keys.send_keys(Keys.ARROW_DOWN)
    keys.send_keys(Keys.ARROW_DOWN)
    chosen = keys.get_attribute("value")
    assert browser.execute_script("return window.stayed") and chosen != ""
    keys.send_keys(Keys.ENTER)
    eventually(lambda: f"function={chosen}" in browser.current_url, what="the form")


def test_a_live_update_keeps_scroll_and_selection(at_home, eventually, redis):
    browser = at_home
    browser.set_window_size(390, 844)
    first = rqjobs.queue("low").enqueue(sample_jobs.say, "first")
    eventually(lambda: "sample_jobs.say('first')" in shown(browser, ".jobs"), what="the job")
    browser.execute_script(
        """
        window.row = document.querySelector(`.jobs [data-key="${arguments[0]}"]`);
        document.scrollingElement.scrollTop = 60;
        getSelection().selectAllChildren(window.row.querySelector("bdi"));""",
        first.id,
    )
    scrolled = browser.execute_script("return document.scrollingElement.scrollTop")
    assert scrolled > 0, "a phone shows a part of the page"
    wide = "return document.scrollingElement.scrollWidth - innerWidth"
    assert browser.execute_script(wide) <= 0, "a phone shows the whole width"
    rqjobs.queue("low").enqueue(sample_jobs.say, "second")
    rqjobs.queue("another").enqueue(sample_jobs.say, "third")
    eventually(lambda: "sample_jobs.say('third')" in shown(browser, ".jobs"), what="the other jobs")
    assert browser.execute_script("return window.row.isConnected")
    assert browser.execute_script("return document.scrollingElement.scrollTop") == scrolled
    assert browser.execute_script("return getSelection().toString()") == "sample_jobs.say('first')"
    Job.fetch(first.id, connection=redis).delete()
    eventually(
        lambda: not browser.execute_script("return window.row.isConnected"),
        what="the end of its row",
    )
    others = ("sample_jobs.say('second')", "sample_jobs.say('third')")
    eventually(
        lambda: all(other in shown(browser, ".jobs") for other in others), what="the other rows"
    )


def test_outdated_numbers_are_marked(at_home, eventually, redis):
    browser = at_home
    redis.set("rq:suspended", 1)
    eventually(lambda: "RQ is suspended" in shown(browser, "[data-live]"), what="the warning")
    pool = redis.config_get("requirepass")
    redis.config_set("requirepass", "changed")
    try:
        redis.client_kill_filter(skipme=True)
        eventually(lambda: shown(browser, "#live").startswith("stale since "), what="the sign")
        assert browser.find_elements(By.CSS_SELECTOR, "[data-live].outdated")
    finally:
        redis.config_set("requirepass", pool["requirepass"])
    eventually(lambda: shown(browser, "#live") == "live", what="the end of the sign")


def test_a_session_that_has_ended(at_home, eventually, redis):
    """The page keeps what somebody writes in it, and has a link to the login."""
    browser = at_home
    assert shown(browser, "#log-in") == ""
    redis.delete(keys.SESSIONS)
    eventually(lambda: shown(browser, "#log-in") == "Log in again", what="the link")
    assert shown(browser, "#live").startswith("stale since ")
    assert "Your login has ended" in browser.find_element(By.ID, "live").get_attribute("title")
    browser.find_element(By.ID, "log-in").click()
    eventually(lambda: browser.find_elements(By.ID, "password"), what="the login")
    log_in(browser, eventually)
    eventually(lambda: shown(browser, "#live") == "live", what="the live page")


@pytest.mark.parametrize("answer", host_site.ANSWERS)
def test_a_login_of_the_application_that_has_ended(browser, serve, eventually, redis, answer):
    """The page was outdated for ever, and said that the server gives no answer."""
    browser.get(f"{serve('host_site:create_app()')}/")
    eventually(lambda: shown(browser, "#live") == "live", what="the live page")
    redis.set(host_site.ANSWER, answer)
    eventually(lambda: shown(browser, "#log-in") == "Log in again", what="the link")
    assert shown(browser, ".verdict h1"), "the page of the application is not in ours"
    redis.delete(host_site.ANSWER)
    eventually(lambda: shown(browser, "#live") == "live", what="the end of the sign")
    assert shown(browser, "#log-in") == ""


def test_a_page_on_which_nothing_happens_asks_less_often(at_home, site, eventually):
    browser = at_home
    fast = (
        "const real = setTimeout; window.delays = [];"
        "window.setTimeout = (go, ms) => { delays.push(ms); return real(go, ms / 100); };"
    )
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": fast})
    browser.get(f"{site}/")
    delays = lambda: browser.execute_script("return delays.filter((ms) => ms >= 3000)")  # noqa: E731
    eventually(lambda: 5000 in delays(), what="the longer pause")
    assert delays().index(5000) >= 20, "a minute has passed"
    rqjobs.enqueue(sample_jobs.say, "hello")
    eventually(lambda: delays()[-1] == 3000, what="the usual pause")


def test_a_time_is_sent_with_the_offset_of_the_browser(at_home, site, eventually, redis, click):
    browser = at_home
    browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Kolkata"})
    browser.get(f"{site}/?function=sample_jobs.ok")
    eventually(lambda: "Asia/" in shown(browser, "[data-zone]"), what="the zone")
    browser.execute_script(
        "const at = document.getElementById('at'); at.value = '2030-01-01T05:30';"
        "at.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    click("#enqueue button.primary")
    eventually(lambda: shown(browser, "#status") == "scheduled", what="the job's page")
    ((_, due),) = redis.zrange("rq:scheduled:default", 0, -1, withscores=True)
    assert due == 1893456000, "midnight of 2030 in UTC"


def test_no_data_of_a_job_runs_as_script(at_home, site, worker, eventually, redis):
    browser = at_home
    options = {"description": HOSTILE, "meta": {"note": HOSTILE, HOSTILE: 1}}
    worker("default", options=("--name", "one"))
    finished = rqjobs.queue("default").enqueue(sample_jobs.say, args=[HOSTILE], **options)
    failed = rqjobs.queue("default").enqueue(sample_jobs.boom, args=[HOSTILE], **options)
    eventually(
        lambda: failed.get_status() == "failed" and finished.get_status() == "finished",
        what="the end",
    )
    running = rqjobs.queue("default").enqueue(sample_jobs.hang, args=[f"gate{HOSTILE}"], **options)
    eventually(lambda: running.get_status() == "started", what="the long job")
    queued = rqjobs.queue("low").enqueue(sample_jobs.say, args=[HOSTILE], **options)
    ours = [
        "/",
        "/?function=sample_jobs.say",
        "/failed",
        "/workers",
        *(f"/jobs/{job.id}" for job in (finished, failed, running, queued)),
    ]
    theirs = [
        "/rq/",
        "/rq/0/view/workers",
        *(
            f"/rq/0/view/jobs/{queue}/{registry}/8/asc/1"
            for queue, registry in (
                ("default", "finished"),
                ("default", "failed"),
                ("default", "started"),
                ("low", "queued"),
            )
        ),
        *(f"/rq/0/view/job/{job.id}" for job in (finished, failed, running, queued)),
    ]
    for path in ours + theirs:
        browser.get(site + path)
        if path == "/" or "/job" in path:  # the form is filled in, and shows the data as text
            eventually(
                lambda: "window.__pwned=" in shown(browser, "body"), what=f"the text on {path}"
            )
        if path.endswith("workers"):
            eventually(lambda: "one" in shown(browser, "body"), what="the worker")
        nothing_ran(browser)
    redis.rpush(f"gate{HOSTILE}:open", 1)
    eventually(lambda: running.get_status() == "finished", what="the end of the long job")


def test_a_queue_is_paused_and_a_group_of_failed_jobs_requeued(
    at_home, site, worker, eventually, click
):
    browser = at_home
    jobs = [rqjobs.queue("low").enqueue(sample_jobs.boom, "boom") for _ in range(3)]
    worker("low")
    eventually(lambda: {job.get_status() for job in jobs} == {"failed"}, what="the failures")
    eventually(lambda: [group.jobs for group in rqjobs.failed.groups()] == [3], what="their group")
    browser.execute_script("window.stayed = true")
    rqjobs.pause(queue="high", by="ada")
    finding = "The queue high is paused"
    eventually(lambda: finding in shown(browser, ".attention"), what="the finding by itself")
    assert browser.execute_script("return window.stayed")
    press_labelled(browser, "Pause queue low")
    eventually(lambda: "The queue low is paused." in shown(browser, ".note"), what="the note")
    assert [(pause.name, pause.by) for pause in rqjobs.paused()] == [
        ("high", "ada"),
        ("low", "admin"),
    ]
    browser.get(f"{site}/failed")
    eventually(lambda: "rqjobs resume low" in shown(browser, ".warning code"), what="the warning")
    click(".inbox a")
    heading = "ValueError in sample_jobs.boom"
    eventually(lambda: shown(browser, "h1") == heading, what="the page of the group")
    for answer in ("dismiss", "accept"):
        assert {job.get_status() for job in jobs} == {"failed"}
        press(browser, "[action$='/requeue'] button")
        eventually(lambda: question(browser) == "Requeue 3 failed jobs?", what="the question")
        getattr(browser.switch_to.alert, answer)()
    eventually(
        lambda: "3 jobs of sample_jobs.boom are back" in shown(browser, ".note"), what="the note"
    )
    assert {job.get_status() for job in jobs} == {"queued"}, "the queue is paused"
    browser.get(f"{site}/")
    press_labelled(browser, "Resume queue low")
    eventually(lambda: {job.get_status() for job in jobs} == {"failed"}, what="the second failures")
    eventually(lambda: "queue low" not in shown(browser, ".attention"), what="the finding's end")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_no_data_of_a_policy_runs_as_script(at_home, site, worker, eventually, redis):
    """Function names, exceptions, reasons, keys and pauses, forged where they cannot be enqueued."""
    browser = at_home
    tag = f"<img src=x onerror='{RUN}'>"
    redis.hset("rqjobs:paused", mapping={f"function:{HOSTILE}": f"1 {HOSTILE}"})
    redis.hset("rqjobs:paused", "queue:`</code>" + HOSTILE, HOSTILE)
    options = {"limit": 1, "limit_by": "{message}", "unique": "{message}", "keep": 60}
    failed = rqjobs.enqueue(sample_jobs.boom, tag, **options)
    discarded = rqjobs.enqueue(sample_jobs.boom, HOSTILE, discard_on=ValueError)
    waiting = rqjobs.enqueue(sample_jobs.boom, HOSTILE, retry=rqjobs.backoff(2, base=999, cap=999))
    forged = rqjobs.enqueue_in(9999, sample_jobs.ok)
    names = ("limit", "unique", "expires", "kill_after", "paused", "retry", "retries", "on_failed")
    redis.hset(forged.key, mapping={f"rqjobs_{name}": HOSTILE for name in (*names, "ending")})
    redis.hset(forged.key, mapping={"rqjobs_limit": f"1 1.0 1 {HOSTILE}"})
    fields = dict.fromkeys(("function", "error", "message", "first", "last", "total"), HOSTILE)
    redis.hset("rqjobs:failure-group:forged", mapping=fields)
    redis.zadd("rqjobs:failure-groups", {"forged": 1, HOSTILE: 2})
    redis.zadd("rqjobs:failure-group-jobs:forged", {failed.id: 1, HOSTILE: 2})
    worker("default")
    eventually(lambda: waiting.get_status() == "scheduled", what="the retry")
    eventually(lambda: failed.get_status() == "failed", what="the failure")
    (group,) = eventually(  # a moment after the failure
        lambda: [one for one in rqjobs.failed.groups() if one.id != "forged" and one.jobs],
        what="its group",
    )
    ids = (failed.id, discarded.id, waiting.id, forged.id)
    paths = ["/", "/failed", "/failed/forged", f"/failed/{group.id}", "/workers", "/delayed"]
    for path in [*paths, *(f"/jobs/{job_id}" for job_id in ids), "/?function=sample_jobs.boom"]:
        browser.get(site + path)
        eventually(lambda: "window.__pwned=" in shown(browser, "body"), what=f"the text on {path}")
        nothing_ran(browser)


def test_add_run_edit_and_remove_a_schedule(at_home, site, worker, eventually, redis, click):
    browser = at_home
    browser.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Kolkata"})
    browser.get(f"{site}/schedules?function=sample_jobs.say")

    def fill(name, text):
        field = browser.find_element(By.NAME, name)
        field.clear()
        field.send_keys(text)

    def value(field):
        return browser.execute_script("return document.getElementById(arguments[0])?.value", field)

    zones = ("Asia/Kolkata", "Asia/Calcutta")
    eventually(lambda: value("tz") in zones, what="the viewer's zone")
    fill("arg.text", HOSTILE)
    fill("expression", "0 6 * * mon-fry")  # typing selects cron
    click("#rule button.primary")
    eventually(lambda: "field 5" in shown(browser, "#expression-error"), what="the error")
    assert value("arg.text") == HOSTILE
    fill("expression", "0 6 1 1 *")
    fill("tz", "UTC")
    eventually(
        lambda: (
            "at 06:00 on January 1 (UTC)" in (words := shown(browser, ".ahead"))
            and "11:30:00" in words
        ),
        what="the words, with times in the viewer's zone",
    )
    browser.execute_script(
        "document.querySelector('details').open = true; const start = document.getElementById("
        "'start'); start.value = '2030-01-01T05:30'; start.dispatchEvent(new Event('input'))"
    )
    click("#rule button.primary")
    eventually(lambda: shown(browser, "h1") == "say", what="the schedule's page")
    found = rqjobs.schedules.get("say")
    assert (found.rule.expression, found.rule.start.timestamp()) == ("0 6 1 1 *", 1893456000), (
        "midnight of 2030 in UTC"
    )
    eventually(lambda: value("start") == "2030-01-01T05:30", what="the start in the viewer's zone")
    eventually(
        lambda: (
            "11:30:00" in (cells := shown(browser, ".times tbody tr:first-child"))
            and "2030-01-01 06:00:00 UTC" in cells
        ),
        what="the next time in the viewer's zone and the rule's",
    )
    nothing_ran(browser)
    press(browser, "#run-say")
    eventually(lambda: shown(browser, ".jobs .badge") == "queued", what="the run")
    browser.execute_script("window.stayed = true")
    worker("default")
    eventually(lambda: shown(browser, ".jobs .badge") == "finished", what="the outcome")
    assert browser.execute_script("return window.stayed"), (
        "the page followed the run without a reload"
    )
    press(browser, "#pause-say")
    eventually(lambda: shown(browser, ".title .badge") == "paused", what="the pause")
    browser.get(f"{site}/schedules")
    eventually(lambda: "window.__pwned=" in shown(browser, ".schedules"), what="the call as text")
    nothing_ran(browser)
    for answer in ("dismiss", "accept"):
        assert rqjobs.schedules.get("say").state == "paused"
        press(browser, "#remove-say")
        eventually(
            lambda: question(browser).startswith("Remove the schedule say"), what="the question"
        )
        getattr(browser.switch_to.alert, answer)()
    eventually(
        lambda: "There are no schedules yet" in shown(browser, "main"), what="the empty page"
    )


def test_reschedule_a_delayed_job(at_home, site, worker, eventually, redis):
    browser = at_home
    job = rqjobs.enqueue_in(5000, sample_jobs.say, HOSTILE)
    browser.get(f"{site}/delayed")
    eventually(lambda: "in 1 hr." in shown(browser, ".job-list"), what="the delayed job")
    browser.get(browser.execute_script("return document.querySelector('.job-list a').href"))
    form = eventually(lambda: browser.find_elements(By.ID, "reschedule"), what="the form")[0]
    form.find_element(By.NAME, "delay").send_keys("30")
    Select(form.find_element(By.NAME, "unit")).select_by_visible_text("minutes")
    form.find_element(By.CSS_SELECTOR, "button.primary").click()
    eventually(lambda: "The job is due at" in shown(browser, ".note"), what="the note")
    assert redis.zscore("rq:scheduled:default", job.id) < redis.time()[0] + 1801
    worker("default", options=("--with-scheduler",))
    browser.get(f"{site}/delayed")
    press(browser, f"[id='now-{job.id}']")
    eventually(lambda: job.get_status() == "finished", what="the end of the job")
    browser.get(f"{site}/jobs/{job.id}")
    nothing_ran(browser)


def test_failures_schedules_and_queues_take_three_clicks(at_home, site, redis, eventually, click):
    """Is it one fault or many, try one again, every night at six, pause a queue for the deploy."""
    browser = at_home
    for number in range(3):
        rqjobs.enqueue(sample_jobs.boom, f"card {number} was refused")
    rqjobs.Worker(["default"]).work(burst=True, logging_level="CRITICAL")

    click("Failures", By.LINK_TEXT)
    eventually(lambda: "card 2 was refused" in shown(browser, ".inbox"), what="the failure")
    eventually(lambda: "failed now" in shown(browser, "dl"), what="its numbers")
    click(".inbox [id^=try-]")
    eventually(lambda: "back in its queue" in shown(browser, ".note"), what="the job's page")
    assert redis.llen("rq:queue:default") == 1
    browser.get(f"{site}/failed")
    click(".inbox [id^=ignore-]")
    eventually(lambda: "No failures except the ignored" in shown(browser, "main"), what="silence")

    browser.get(f"{site}/")
    click("Schedules", By.LINK_TEXT)
    choice = eventually(lambda: browser.find_elements(By.ID, "function"), what="the functions")[0]
    Select(choice).select_by_value("sample_jobs.say")
    field = eventually(lambda: browser.find_elements(By.ID, "arg.text"), what="the form")[0]
    field.send_keys("good night")
    clock = browser.find_element(By.NAME, "clock")
    browser.execute_script(
        "arguments[0].value = '18:00'; arguments[0].dispatchEvent(new Event('input'))", clock
    )
    click("#rule button.primary")
    eventually(lambda: "is stored." in shown(browser, ".note"), what="the schedule")
    assert rqjobs.schedules.get("say").rule.expression == "0 18 * * *"

    browser.get(f"{site}/")
    click("Queues", By.LINK_TEXT)
    click("default", By.LINK_TEXT)
    eventually(lambda: "sample_jobs.boom" in shown(browser, ".jobs"), what="the job in the queue")
    press_labelled(browser, "Pause queue default")
    eventually(lambda: "paused" in shown(browser, ".title .badge"), what="the pause")
    click("#empty")
    click(".confirm input")
    click(".confirm button")
    eventually(lambda: "1 waiting job of default" in shown(browser, ".note"), what="the note")
    assert redis.llen("rq:queue:default") == 0


def test_jobs_are_found_chosen_and_changed(at_home, site, redis, eventually, click):
    """Find the job of user 42: three clicks. What is chosen stays chosen in a live update."""
    browser = at_home
    jobs = [rqjobs.enqueue(sample_jobs.say, f"user {number}") for number in (41, 42, 43)]
    click("Jobs", By.LINK_TEXT)
    box = eventually(lambda: browser.find_elements(By.ID, "f-text"), what="the filter")[0]
    box.send_keys("USER 42", Keys.ENTER)
    eventually(lambda: "all 3 jobs were searched" in shown(browser, "main"), what="the search")
    one = "sample_jobs.say('user 42')"
    eventually(lambda: shown(browser, ".job-name") == one, what="the only row")

    browser.get(f"{site}/jobs?state=queued")
    for job in (jobs[2], jobs[0]):
        click(f"input[name=ids][value='{job.id}']")
    eventually(lambda: shown(browser, "#chosen-jobs") == "2 chosen", what="the number")
    rqjobs.enqueue(sample_jobs.say, "a newer one")
    eventually(lambda: "a newer one" in shown(browser, ".job-list"), what="the live update")
    click(".bulk button[value=cancel]")
    eventually(lambda: shown(browser, ".note") == "2 jobs are canceled.", what="the note")
    assert browser.current_url == f"{site}/jobs?state=queued"
    assert [job.get_status() for job in jobs] == ["canceled", "queued", "canceled"]

    browser.get(f"{site}/jobs?state=canceled")
    click("#all-jobs")
    click(".bulk button[value=delete]")
    eventually(lambda: "Delete 2 jobs?" in shown(browser, "h1"), what="the question")
    click("button.danger")
    eventually(lambda: shown(browser, ".note") == "2 jobs are deleted.", what="the note")
    assert not redis.exists(jobs[0].key) and redis.exists(jobs[1].key)
