// Local times and forms. The pages work without this script too.
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
  if (button) setTimeout(() => { button.disabled = true; button.dataset.sent = ""; });
});
window.addEventListener("pageshow", () => {  // also when the browser restores a page from its cache
  for (const button of document.querySelectorAll("button[data-sent]")) button.disabled = false;
});

showTimes();
setInterval(showTimes, 1000);
