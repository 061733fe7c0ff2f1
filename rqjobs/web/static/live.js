// Live parts of pages, and a live job. The pages work without this script too.
"use strict";

// Make `old` like `fresh`, and change only what differs, so that scrolling, selection and focus stay. A row is
// identified by its data-key. The text of a <time> is set by showTimes.
function patch(old, fresh) {
  for (const {name, value} of fresh.attributes) {
    if (old.getAttribute(name) !== value && !isOwnOfViewer(old, name)) old.setAttribute(name, value);
  }
  for (const {name} of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !isOwnOfViewer(old, name)) old.removeAttribute(name);
  }
  if (old.tagName !== "TIME") patchChildren(old, fresh);
}

// What the viewer has opened stays open, and showTimes sets the title of a <time>.
function isOwnOfViewer(element, name) {
  return (element.tagName === "DETAILS" && name === "open") || (element.tagName === "TIME" && name === "title");
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

// The mark in the header: live, or since when there is no answer. A screen reader hears each change once.
const liveMark = document.getElementById("live");
const loginLink = document.getElementById("log-in");  // shown if the login has ended
const staleSince = new Map();  // place -> when the last answer came
let markedState = "";

function showMark() {
  const since = Math.min(...staleSince.values());
  const state = staleSince.size ? "stale" : "live";
  const seconds = Math.round((Date.now() - since) / 1000);
  liveMark.hidden = false;
  liveMark.className = `live ${state}`;
  liveMark.firstElementChild.textContent = staleSince.size ? `stale since ${duration(seconds)}` : "live";
  const reason = loginLink.hidden ? "No answer from the server, or from its Redis." : "Your login has ended.";
  liveMark.title = staleSince.size
    ? `${reason} This page shows the state of ${new Date(since).toLocaleTimeString()}.`
    : "This page follows what happens.";
  if (markedState && markedState !== state) {
    document.getElementById("live-status").textContent = staleSince.size ? liveMark.title : "The page is live again.";
  }
  markedState = state;
}

function duration(seconds) {
  if (seconds < 100) return `${seconds} s`;
  return seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

// Mark `place` as outdated since its last answer, or without `since` as live.
function showStale(place, since) {
  place.classList.toggle("outdated", Boolean(since));
  if (since) staleSince.set(place, since.getTime());
  else staleSince.delete(place);
  showMark();
}

// Show in the title and in the icon how many things need attention.
function showTrouble(text) {
  const number = Number(text);
  if (text === null || !Number.isInteger(number)) return;
  const title = document.title.replace(/^\(\d+!\) /, "");
  const wanted = number ? `(${number}!) ${title}` : title;
  if (document.title !== wanted) document.title = wanted;
  const icon = document.getElementById("icon");
  const address = number ? icon.dataset.trouble : icon.dataset.calm;
  if (icon.getAttribute("href") !== address) icon.setAttribute("href", address);
}

// Call `ask` for `place` every `pause` ms; every five seconds if its outcome was "same" for a minute, and less often
// after errors. A hidden page waits, and asks when it is shown.
function poll(place, pause, ask) {
  let wait = pause;
  let quiet = 0;  // ms
  let answered = new Date();
  let timer = 0;
  let isAsking = false;
  const plan = () => { timer = setTimeout(once, wait); };
  const once = async () => {
    if (document.hidden || isAsking) return;
    isAsking = true;
    let outcome;
    try {
      outcome = await ask();
      answered = new Date();
      quiet = outcome === "same" ? quiet + wait : 0;
      wait = quiet < 60000 ? pause : 5000;
      showStale(place, null);
    } catch {
      wait = Math.min(wait * 2, 30000);
      showStale(place, answered);
    }
    isAsking = false;
    if (outcome === "done") {
      document.removeEventListener("visibilitychange", wake);
      liveMark.hidden = !staleSince.size && document.querySelector("[data-live]") === null;
    } else plan();
  };
  const wake = () => {
    clearTimeout(timer);
    quiet = 0;
    if (!document.hidden) once();
  };
  document.addEventListener("visibilitychange", wake);
  showMark();
  plan();
}

setInterval(() => { if (staleSince.size) showMark(); }, 1000);

// The answer of the server. Throws if the login has ended: the application's own login may then answer with a redirect,
// an error or a page.
async function get(address, headers = {}) {
  const reply = await fetch(address, {headers: {Accept: "application/json", ...headers}, redirect: "manual", cache: "no-store", signal: AbortSignal.timeout(15000)});
  const isOurs = reply.headers.has("X-Rqjobs-Trouble") || reply.headers.get("Content-Type")?.startsWith("application/json");
  const hasEnded = reply.type === "opaqueredirect" || reply.status === 401 || reply.status === 403 || (reply.ok && !isOurs);
  loginLink.hidden = !hasEnded;
  if (hasEnded) throw new Error("the login has ended");
  return reply;
}

{
  for (const place of document.querySelectorAll("[data-live]")) {
    let tag = "";
    poll(place, 3000, async () => {
      const reply = await get(place.dataset.live, tag ? {"If-None-Match": tag} : {});
      if (reply.status === 304) return "same";
      if (!reply.ok) throw new Error(reply.status);
      const html = await reply.text();
      tag = reply.headers.get("ETag") ?? "";
      showTrouble(reply.headers.get("X-Rqjobs-Trouble"));
      replace(place, html);
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
      document.title = document.title.replace(/^(\(\d+!\) )?\w+/, `$1${status}`);
    };
    poll(job, 1000, async () => {
      const reply = await get(job.dataset.job);
      if (reply.status === 404) return showStatus("gone"), "done";
      if (!reply.ok) throw new Error(reply.status);
      const state = await reply.json();
      const isSame = job.shown === state.html;
      showStatus(state.status);
      replace(job, state.html);
      if (state.ended) return "done";
      return isSame ? "same" : "changed";
    });
  }
}
