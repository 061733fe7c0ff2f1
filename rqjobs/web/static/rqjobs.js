// Local times, live tables and a live job. The pages work without this script too.
"use strict";

const clock = new Intl.DateTimeFormat(undefined, {timeStyle: "medium"});
const ago = new Intl.RelativeTimeFormat("en", {numeric: "always", style: "short"});

function relative(moment) {
  const seconds = (moment - Date.now()) / 1000;
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= length) return ago.format(Math.trunc(seconds / length), unit);
  }
  return Math.abs(seconds) < 1 ? "now" : ago.format(Math.trunc(seconds), "second");
}

function showTimes() {
  for (const time of document.querySelectorAll("time")) {
    if (time.shown === time.dateTime && !("ago" in time.dataset)) continue;
    const moment = new Date(time.dateTime);
    if (isNaN(moment)) continue;
    time.shown = time.dateTime;
    const full = moment.toLocaleString(undefined, {dateStyle: "medium", timeStyle: "medium"});
    let shown = full;
    if ("ago" in time.dataset) shown = relative(moment);
    if ("clock" in time.dataset) shown = clock.format(moment);
    if (time.textContent !== shown) time.textContent = shown;
    time.title = full;
  }
}

// Make `old` like `fresh`, and change only what differs, so that scrolling, selection and focus stay. A row is
// identified by its data-key. The text of a <time> is set by showTimes.
function patch(old, fresh) {
  for (const {name, value} of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const {name} of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(old.tagName === "TIME" && name === "title")) old.removeAttribute(name);
  }
  if (old.tagName !== "TIME") patchChildren(old, fresh);
}

function patchChildren(old, fresh) {
  const keys = new Set([...fresh.children].map((child) => child.dataset.key));
  for (const child of [...old.children]) if (child.dataset.key && !keys.has(child.dataset.key)) child.remove();
  const keyed = new Map([...old.children].map((child) => [child.dataset.key, child]));
  let next = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    const key = wanted.dataset?.key;
    const same = (child) => child?.nodeName === wanted.nodeName && child.dataset?.key === key;
    const found = key ? keyed.get(key) : same(next) ? next : null;
    if (!same(found)) {
      old.insertBefore(wanted, next);
      continue;
    }
    if (found === next) next = next.nextSibling;
    else old.insertBefore(found, next);
    if (found.nodeType === Node.ELEMENT_NODE) patch(found, wanted);
    else if (found.data !== wanted.data) found.data = wanted.data;
  }
  while (next) {
    const after = next.nextSibling;
    next.remove();
    next = after;
  }
}

// Put new HTML into a place. The HTML is ours, and escaped by the server.
function replace(place, html) {
  if (place.shown === html) return;
  place.shown = html;
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  const read = logs().filter((log) => log.scrollTop + log.clientHeight < log.scrollHeight - 5);
  patchChildren(place, fresh.content);
  showTimes();
  for (const log of logs()) if (!read.includes(log)) log.scrollTop = log.scrollHeight;
}

// The logs of jobs. One shows its newest lines, unless somebody has scrolled up in it.
function logs() {
  return [...document.querySelectorAll("[data-follow]")];
}

// Show above `place` since when there has been no answer. Without `since`, remove that warning.
function showStale(place, since) {
  place.classList.toggle("stale", Boolean(since));
  let sign = document.getElementById("stale");
  if (!since) return sign?.remove();
  if (!sign) {
    sign = document.createElement("p");
    sign.id = "stale";
    sign.className = "warning";
    sign.setAttribute("role", "status");
    place.before(sign);
  }
  sign.textContent = `No answer since ${since.toLocaleTimeString()}, from the server or from its Redis. This page shows the state at that time.`;
}

// Call `ask` for `place` every `pause` ms, less often after errors, and not while the page is hidden.
function poll(place, pause, ask) {
  let wait = pause;
  let answered = new Date();
  const next = () => setTimeout(async () => {
    if (document.hidden) return next();
    try {
      const outcome = await ask();
      answered = new Date();
      wait = pause;
      showStale(place, null);
      if (outcome === "done") return;
    } catch {
      wait = Math.min(wait * 2, 30000);
      showStale(place, answered);
    }
    next();
  }, wait);
  next();
}

async function get(address) {
  const reply = await fetch(address, {headers: {Accept: "application/json"}, redirect: "error"});
  if (reply.status === 401) location.reload();
  return reply;
}

const live = document.querySelector("[data-live]");
if (live) {
  poll(live, 2000, async () => {
    const reply = await get(live.dataset.live);
    if (!reply.ok) throw new Error(reply.status);
    replace(live, await reply.text());
  });
}

const job = document.querySelector("[data-job]");
if (job && !("ended" in job.dataset)) {
  for (const log of logs()) log.scrollTop = log.scrollHeight;
  const badge = document.querySelector("#status .badge");
  const showStatus = (status) => {
    if (badge.textContent === status) return;
    badge.textContent = status;
    badge.className = `badge ${status}`;
    for (const part of document.querySelectorAll("[data-while]")) part.hidden = part.dataset.while !== status;
    document.title = document.title.replace(/^\w+/, status);
  };
  let quiet = 0;
  poll(job, 1000, async () => {
    if (quiet++ > 60 && quiet % 5) return;  // unchanged for a minute: ask every five seconds
    const reply = await get(job.dataset.job);
    if (reply.status === 404) return showStatus("gone"), "done";
    if (!reply.ok) throw new Error(reply.status);
    const state = await reply.json();
    if (job.shown !== state.html) quiet = 0;
    showStatus(state.status);
    replace(job, state.html);
    if (state.ended) return "done";
  });
}

const choose = document.getElementById("choose");
if (choose) {  // Choosing with the mouse submits. Arrow keys change the value, so the keyboard needs Enter.
  const select = choose.querySelector("select");
  let typing = false;
  select.addEventListener("pointerdown", () => { typing = false; });
  select.addEventListener("keydown", (event) => {
    typing = event.key !== "Enter";
    if (event.key === "Enter") choose.requestSubmit();
  });
  select.addEventListener("change", () => { if (!typing) choose.requestSubmit(); });
}

for (const field of document.querySelectorAll("[data-moment]")) {
  const moment = new Date(field.dataset.moment);
  field.value = new Date(moment - moment.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

for (const field of document.querySelectorAll("[data-own-zone]")) {
  field.value ||= Intl.DateTimeFormat().resolvedOptions().timeZone;
}

for (const offset of document.querySelectorAll("[data-offset-of]")) {
  const field = document.getElementById(offset.dataset.offsetOf);
  const setOffset = () => { offset.value = field.value ? -new Date(field.value).getTimezoneOffset() : ""; };
  field.addEventListener("input", setOffset);
  setOffset();
  document.querySelector("[data-zone]").textContent =
    `Time zone: yours (${Intl.DateTimeFormat().resolvedOptions().timeZone}).`;
}

for (const field of document.querySelectorAll("[data-selects]")) {
  field.addEventListener("input", () => {
    field.form.querySelector(`[type=radio][value=${field.dataset.selects}]`).checked = true;
  });
}

const rule = document.querySelector("[data-ahead]");
if (rule) {  // show the rule as text, without the arguments of the call
  const form = rule.closest("form");
  const place = rule.querySelector(".ahead");
  let asked = 0;
  const ask = async () => {
    const mine = ++asked;
    await new Promise((go) => setTimeout(go, 250));
    if (mine !== asked) return;
    const own = [...new FormData(form)].filter(([name]) => rule.querySelector(`[name="${CSS.escape(name)}"]`));
    try {
      const reply = await get(`${rule.dataset.ahead}?${new URLSearchParams(own)}`);
      if (!reply.ok || mine !== asked) return;
      replace(place, await reply.text());
      place.hidden = false;
    } catch {
      place.hidden = true;
    }
  };
  for (const event of ["input", "change"]) rule.addEventListener(event, ask);
  ask();
}

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) return event.preventDefault();
  const button = event.submitter;
  if (button) setTimeout(() => { button.disabled = true; });
});
window.addEventListener("pageshow", () => {  // also when the browser restores a page from its cache
  for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
});

showTimes();
setInterval(showTimes, 1000);
