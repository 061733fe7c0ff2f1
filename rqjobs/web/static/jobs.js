// The list of jobs: how many are chosen, and "all that match".
"use strict";
(() => {
  const form = document.getElementById("jobs-form");
  const all = document.getElementById("all-jobs");
  const note = document.getElementById("chosen-jobs");
  if (!form || !all || !note) return;
  const show = () => {
    const boxes = [...form.querySelectorAll("input[name=ids]")];
    const number = boxes.filter((box) => box.checked).length;
    for (const box of boxes) box.disabled = all.checked;
    note.textContent = all.checked || !number ? "" : `${number} chosen`;
  };
  form.addEventListener("change", show);
  show();
})();
