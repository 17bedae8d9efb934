"use strict";
for (const tabs of document.querySelectorAll(".tabs")) {
  const parts = [...tabs.querySelectorAll(":scope > .tab")];
  if (parts.length < 2) continue;
  const group = document.createElement("span");
  group.className = "group";
  parts.forEach((part, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = part.dataset.title;
    button.addEventListener("click", () => show(place));
    group.append(button);
  });
  const show = (chosen) => parts.forEach((part, place) => {
    part.hidden = place !== chosen;
    group.children[place].setAttribute("aria-pressed", place === chosen);
  });
  tabs.prepend(group);
  tabs.classList.add("ready");
  show(0);
}
for (const head of document.querySelectorAll(".methods th[data-aim]")) {
  const sort = () => {
    const place = [...head.parentNode.children].indexOf(head), body = head.closest("table").tBodies[0];
    const aim = Number(head.dataset.aim), turned = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const rank = (row) => {
      const text = row.children[place].dataset.value;
      if (text === "" || text === undefined) return Infinity;
      return turned * (Number.isFinite(aim) ? Math.abs(Number(text) - aim) : -Number(text));
    };
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", turned > 0 ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => rank(a) - rank(b)));
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}
for (const viewer of document.querySelectorAll(".viewer")) {
  const chosen = { subject: "0", variable: "0" }, slider = viewer.querySelector("input[type=range]");
  const blocks = [...viewer.querySelectorAll(".block")];
  const update = () => {
    for (const block of blocks) {
      block.hidden = Object.keys(chosen).some((kind) => block.dataset[kind] !== chosen[kind]);
      block.style.setProperty("--step", slider.value);
      for (const told of block.querySelectorAll("[data-texts]")) told.textContent = told.dataset.texts.split("|")[slider.value];
    }
  };
  for (const button of viewer.querySelectorAll(".group button")) {
    const kind = button.dataset.subject === undefined ? "variable" : "subject";
    button.addEventListener("click", () => {
      chosen[kind] = button.dataset[kind];
      for (const other of button.parentNode.children) other.setAttribute("aria-pressed", other === button);
      update();
    });
  }
  slider.addEventListener("input", update);
  viewer.querySelector(".outlined").addEventListener("change", (event) => viewer.classList.toggle("plain", !event.target.checked));
  let timer = 0, way = 1;
  const play = viewer.querySelector(".play");
  play.addEventListener("click", () => {
    clearInterval(timer);
    timer = timer ? 0 : setInterval(() => {
      const at = Number(slider.value), last = Number(slider.max);
      way = at >= last ? -1 : at <= 0 ? 1 : way;
      slider.value = at + way;
      update();
    }, 350);
    play.textContent = timer ? "stop" : "play";
  });
}
for (const picture of document.querySelectorAll(".picture img")) {
  picture.addEventListener("click", () => picture.classList.toggle("large"));
}
