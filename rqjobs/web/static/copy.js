// The buttons that copy a value. Without this script the values can be selected.
"use strict";

document.documentElement.classList.add("copies");

// The text of a value: each item of a container on a line of its own, and folded parts too.
function valueText(node, depth) {
  let text = "";
  for (const child of node.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) text += child.data;
    else if (child.nodeName === "UL") {
      for (const item of child.children) text += `\n${"    ".repeat(depth + 1)}${valueText(item, depth + 1)}`;
      text += `\n${"    ".repeat(depth)}`;
    } else if (!child.classList?.contains("count")) text += valueText(child, depth);
  }
  return text;
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  const place = button && document.getElementById(button.dataset.copy);
  if (!place) return;
  const text = valueText(place.querySelector(".value") || place, 0);
  try {
    await navigator.clipboard.writeText(text.replace(/^\n/, ""));
    button.textContent = "Copied";
  } catch {  // without https the browser has no clipboard
    getSelection().selectAllChildren(place);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});
