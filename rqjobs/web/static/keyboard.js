// Keys: "/" searches, "?" helps. And the menu of a phone. The pages work without this script too.
"use strict";

{
  const help = document.getElementById("help");
  const link = document.getElementById("help-link");
  const SEARCH = "[data-search], main input[type=search]";
  const isTyping = (target) => target.closest("input, select, textarea, [contenteditable]") !== null;

  const showHelp = () => { if (!help.open) help.showModal(); };

  const search = () => {
    const field = document.querySelector(SEARCH);
    if (!field) {
      const jobs = document.querySelector("#pages a[data-jobs]");
      if (jobs) location.assign(`${jobs.href}#search`);
      return;
    }
    field.focus();
    field.select?.();
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (isTyping(event.target)) {
      if (event.key === "Escape" && event.target.matches(SEARCH)) event.target.blur();
      return;
    }
    if (help?.open) return;
    const action = {"/": search, "?": showHelp}[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });

  link?.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    showHelp();
  });
  if (location.hash === "#search") search();

  const menu = document.getElementById("menu");
  if (menu) {
    const header = menu.closest("header");
    header.classList.add("folds");
    menu.hidden = false;
    menu.addEventListener("click", () => {
      const isOpen = header.classList.toggle("open");
      menu.setAttribute("aria-expanded", isOpen);
    });
  }
}
