"use strict";
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const SETTLE = 350; // ms without a move, after which the refined answer is asked for

const state = { session: "", opened: null, case: "", do: {}, view: "counterfactual", slice: null, effect: "total" };
let model = null, flying = false, next = null, settle = 0, latest = null;

const plain = (name) => name.replaceAll("_", " ");
const variable = (name) => model.variables.find((each) => each.name === name);
function number(value, decimals) { // as segcft/core/formatting.py does
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value), digits = decimals ?? (size ? Math.max(0, 2 - Math.floor(Math.log10(size))) : 0);
  const [whole, rest = ""] = size.toFixed(Math.min(12, digits)).split("."), some = rest.replace(/0+$/, "");
  const text = whole.replace(/\B(?=(\d{3})+$)/g, "\u00a0") + (some && `.${some}`);
  return value < 0 && /[1-9]/.test(text) ? `-${text}` : text;
}

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) key in element ? (element[key] = value) : element.setAttribute(key, value);
  element.append(...children);
  return element;
}
function draw(tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
}
let fading = 0;
function say(message) {
  $("toast").textContent = message;
  $("toast").hidden = !message;
  clearTimeout(fading);
  fading = setTimeout(() => { $("toast").hidden = true; }, 9000);
}

async function post(path, body, headers = {}) {
  let response;
  try {
    response = await fetch(path, { method: "POST", body, headers });
  } catch {
    throw new Error("the server does not answer: is segcft serve still running?");
  }
  const told = await response.json().catch(() => ({ error: "the server's answer cannot be read" }));
  if (!response.ok) throw Object.assign(new Error(told.error || response.statusText), { status: response.status });
  return told;
}
const send = (path, content) => post(path, JSON.stringify(content), { "Content-Type": "application/json" });

// ---- opening ----
function forget() {
  if (state.session) navigator.sendBeacon("close", JSON.stringify({ session: state.session }));
  state.session = "";
}
function welcome(opened, name) {
  const before = state.session;
  if (before) send("close", { session: before }).catch(() => {});
  state.session = opened.session;
  state.opened = opened;
  doubt(opened.reasons);
  state.case = name;
  state.slice = null;
  latest = null;
  say("");
  $("name").textContent = opened.uploaded ? `${opened.name}, ${opened.shape.join(" × ")}` : opened.name;
  for (const button of document.querySelectorAll("nav [data-case]")) button.setAttribute("aria-pressed", button.dataset.case === name);
  $("downloads").replaceChildren(...opened.downloads.map((kind) => {
    const button = make("button", { className: "quiet", textContent: { png: "PNG", nifti: "NIfTI", dicom: "DICOM", csv: "CSV" }[kind] });
    button.dataset.kind = kind;
    button.addEventListener("click", () => download(kind, button));
    return button;
  }));
  $("slices").hidden = opened.depth < 2;
  $("slices").querySelector("input").max = opened.depth - 1;
  $("shared").textContent = opened.uploaded ? "The link asks the same of an image that its reader opens: an upload is never part of it." : "";
  $("right").querySelector(".tag").hidden = false;
  build();
  ask(true);
}
async function pick(name) {
  try {
    $("status").textContent = "opening…";
    welcome(await send("open", { case: name }), name);
  } catch (error) { say(error.message); $("status").textContent = ""; }
}
let file = null;
function offer(chosen) {
  file = chosen;
  if (!file) return;
  if (file.size > model.upload_limit) { say(`${file.name} has ${number(file.size / 2 ** 20)} MB; at most ${number(model.upload_limit / 2 ** 20)} MB are taken here`); return; }
  $("about-name").textContent = file.name;
  $("about-error").textContent = "";
  if (model.needed.length || $("about").open) $("about").showModal(); else upload();
}
async function upload() {
  const form = $("about").querySelector("form"), about = { name: file.name, parents: {} };
  for (const field of form.querySelectorAll("[data-variable]")) about.parents[field.dataset.variable] = Number(field.value);
  if (form.low.value !== "" && form.high.value !== "") about.window = [Number(form.low.value), Number(form.high.value)];
  const spacing = form.spacing.value.trim().split(/[\s,x]+/).filter(Boolean).map(Number);
  if (spacing.length) about.spacing = spacing;
  $("go").disabled = true;
  $("status").textContent = "opening…";
  try {
    const told = btoa(String.fromCharCode(...new TextEncoder().encode(JSON.stringify(about))));
    const opened = await post("upload", file, { "X-About": told });
    $("about").close();
    welcome(opened, "");
  } catch (error) {
    $("status").textContent = "";
    if ($("about").open) {
      $("about-error").textContent = error.message;
      if (/level|edge|spacing/.test(error.message)) form.querySelector("details").open = true;
    } else if (/level|edge|spacing/.test(error.message)) {
      $("about-error").textContent = error.message;
      form.querySelector("details").open = true;
      $("about").showModal();
    } else say(error.message);
  } finally { $("go").disabled = false; }
}

// ---- questions ----
const requests = () => Object.entries(state.do).map(([name, value]) => {
  if (typeof value === "string") return `${name}=${value}`;
  const of = variable(name);
  return of.categories.length ? `${name}=${of.categories[value]}` : `${name}==${value}`;
});
function link() {
  const query = new URLSearchParams();
  if (state.case) query.set("case", state.case);
  for (const request of requests()) query.append("do", request);
  if (state.view !== "counterfactual") query.set("view", state.view);
  if (state.effect !== "total") query.set("effect", state.effect);
  const text = query.toString();
  history.replaceState(null, "", text ? `?${text}` : location.pathname);
}
function ask(refined = false) {
  if (!state.session) return;
  link();
  next = refined || next === true;
  document.body.dataset.settled = "no";
  clearTimeout(settle);
  if (!flying) fly();
}
async function fly() {
  const refined = next, began = performance.now(), session = state.session;
  next = null;
  flying = true;
  $("status").textContent = refined ? "refining…" : "…";
  try {
    const told = await send("ask", {
      session, do: requests(), refined, effect: state.effect, slice: state.slice,
      seen: latest ? latest.slice : false, particles: refined && state.view === "posterior",
    });
    if (session === state.session) {
      show(told);
      const spent = Math.round(performance.now() - began);
      $("status").textContent = `${refined ? "refined" : "live"}: ${spent} ms`;
      Object.assign(document.body.dataset, { refined, spent, seconds: told.seconds, request: told.rows[0].request });
    }
  } catch (error) {
    say(error.message);
    $("status").textContent = "";
    if (error.status === 410 && state.case && next === null) { state.session = ""; pick(state.case); }
  }
  flying = false;
  if (next !== null) fly();
  else if (refined) document.body.dataset.settled = "yes";
  else settle = setTimeout(() => ask(true), SETTLE);
}
function set(name, value) {
  if (value === null) delete state.do[name]; else state.do[name] = value;
}

// ---- sliders ----
function build() {
  $("sliders").replaceChildren(...model.variables.map((of) => (of.categories.length ? choice(of) : slider(of))));
  for (const of of model.variables) refresh(of.name);
}
function head(of, right) {
  const label = make("label", { textContent: plain(of.name), htmlFor: `v-${of.name}` });
  if (of.measured) label.title = of.measured;
  return make("div", { className: "line" }, label, right);
}
function choice(of) {
  const box = make("div", { className: "variable" });
  box.dataset.variable = of.name;
  const select = make("select", { id: `v-${of.name}` }, ...of.categories.map((name, place) => make("option", { value: place, textContent: name })));
  select.addEventListener("change", () => {
    const same = Number(select.value) === Math.round(state.opened.values[of.name]);
    set(of.name, same ? null : Number(select.value));
    refresh(of.name);
    ask(true);
  });
  box.append(head(of, select));
  return box;
}
function slider(of) {
  const box = make("div", { className: "variable" });
  box.dataset.variable = of.name;
  const field = make("input", { type: "number", step: "any", id: `v-${of.name}` });
  const range = make("input", { type: "range", min: of.low, max: of.high, step: "any", ariaLabel: plain(of.name) });
  const factual = state.opened.values[of.name];
  const there = (factual - of.low) / (of.high - of.low);
  const mark = make("s", { title: `factual: ${number(factual, of.decimals)} ${of.unit}` });
  mark.style.left = `calc(8px + (100% - 16px) * ${Math.min(1, Math.max(0, there))})`;
  const neat = (value) => Number(Number(value).toPrecision(5));
  range.addEventListener("input", () => { set(of.name, neat(range.value)); refresh(of.name); ask(false); });
  range.addEventListener("change", () => ask(true));
  field.addEventListener("change", () => {
    const value = field.value === "" ? null : neat(field.value);
    set(of.name, value);
    refresh(of.name);
    ask(true);
  });
  const presets = make("div", { className: "presets" }, ...[["−20 %", "-20%"], ["as it is", null], ["+20 %", "+20%"]].map(([text, value]) => {
    const button = make("button", { type: "button", textContent: text });
    button.dataset.preset = value ?? "";
    button.addEventListener("click", () => { set(of.name, value); refresh(of.name); ask(true); });
    return button;
  }));
  const ends = make("div", { className: "ends", title: "range of the training data" }, make("span", { textContent: number(of.low, of.decimals) }), make("span", { textContent: number(of.high, of.decimals) }));
  const right = make("span", {}, field, make("small", { textContent: ` ${of.unit}` }));
  box.append(head(of, right), make("div", { className: "track" }, mark, range), ends, presets);
  return box;
}
function target(name) {
  const asked = state.do[name], factual = state.opened.values[name];
  if (asked === undefined) {
    const row = latest && latest.rows.find((each) => each.variable === name);
    return row ? row.target : factual;
  }
  if (typeof asked === "number") return asked;
  const share = /^([+-]\d+(?:\.\d+)?)%$/.exec(asked);
  if (share) return factual * (1 + Number(share[1]) / 100);
  const row = latest && latest.rows.find((each) => each.variable === name);
  return row ? row.target : factual;
}
function refresh(name) {
  const box = document.querySelector(`.variable[data-variable="${CSS.escape(name)}"]`), of = variable(name), value = target(name);
  box.classList.toggle("asked", name in state.do);
  box.querySelector("label").classList.toggle("set", name in state.do);
  if (of.categories.length) { box.querySelector("select").value = Math.round(value); return; }
  const range = box.querySelector("input[type=range]"), field = box.querySelector("input[type=number]");
  if (document.activeElement !== range || typeof state.do[name] !== "number") range.value = value;
  if (document.activeElement !== field) field.value = Number(Number(value).toPrecision(5));
  for (const button of box.querySelectorAll("[data-preset]")) button.setAttribute("aria-pressed", button.dataset.preset === (state.do[name] ?? ""));
}

// ---- answers ----
function lines(svg, found, [wide, high]) {
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  svg.replaceChildren(...Object.entries(found).map(([name, parts]) => draw("path", {
    stroke: model.colours[name] || "#fff", transform: `scale(${wide} ${high})`,
    d: parts.map((part) => `M${part.map((point) => point.join(" ")).join("L")}`).join(""),
  })));
}
function show(told) {
  latest = told;
  for (const stage of [$("left"), $("right")]) {
    stage.style.setProperty("--ratio", `${told.size[0]} / ${told.size[1]}`);
    if (!told.factual) continue;
    stage.querySelector(".factual").src = told.factual;
    lines(stage.querySelector(".before"), told.before, told.size);
  }
  $("right").querySelector(".answer").src = told.image;
  lines($("right").querySelector(".after"), told.after, told.size);
  layer();
  if (told.slice !== null) {
    $("slices").querySelector("input").value = told.slice;
    $("slices").querySelector("output").textContent = told.slice + 1;
  }
  table(told.rows);
  graph(told.rows);
  doubt(told.reasons);
  for (const of of model.variables) refresh(of.name);
}
function doubt(reasons) { $("reasons").replaceChildren(...reasons.map((reason) => make("li", { textContent: reason }))); }
function layer() {
  const view = state.view, image = $("right").querySelector(".layer"), told = latest;
  $("right").dataset.view = view;
  for (const button of $("views").children) button.setAttribute("aria-pressed", button.dataset.view === view);
  $("mix").hidden = view !== "blend";
  const bar = view === "change" || (view === "posterior" && told && told.deviation);
  $("bar").hidden = !bar;
  if (!told) return;
  const source = view === "change" ? told.change : view === "posterior" ? told.deviation : null;
  if (source) image.src = source; else image.removeAttribute("src");
  if (!bar) return;
  const share = (value) => `${number(100 * value)} %`;
  const [colour, ends] = view === "change"
    ? ["linear-gradient(90deg,#4096ff,#11161c 50%,#ff7a45)", [`−${share(model.limit)} darker`, "change, of the grey range", `brighter +${share(model.limit)}`]]
    : ["linear-gradient(90deg,#11161c,#ffd666)", ["0", "deviation over 8 particles", share(told.deviation_limit)]];
  $("bar").querySelector("i").style.background = colour;
  $("bar").querySelector("span").replaceChildren(...ends.map((text) => make("span", { textContent: text })));
}
const differs = (row) => Math.abs(row.target - row.factual) > 1e-6 * Math.max(1, Math.abs(row.factual));
function table(rows) {
  const body = $("table").tBodies[0];
  body.replaceChildren(...rows.map((row) => {
    const of = variable(row.variable), moved = differs(row), line = make("tr", { className: row.intervened ? "asked" : moved ? "moved" : "" });
    line.dataset.variable = row.variable;
    const cell = (text, small = "") => make("td", {}, text, ...(small ? [make("small", { textContent: small })] : []));
    const change = row.target - row.factual, share = moved && row.measured !== null ? (row.measured - row.factual) / change : null;
    const far = make("span", { className: share === null ? "" : Math.abs(share - 1) < 0.15 ? "near" : "far", textContent: share === null ? "" : `${Math.round(100 * share)} %` });
    const judged = row.evaluator_share === null ? [] : [make("small", { textContent: `evaluator ${Math.round(100 * row.evaluator_share)} %` })];
    const relative = moved && row.factual && !of.categories.length ? `${change > 0 ? "+" : "−"}${number(Math.abs((100 * change) / row.factual))} %` : "";
    line.append(
      cell(plain(row.variable), variable(row.variable).unit), cell(row.texts.factual, row.source === "given" ? "" : "measured"),
      cell(moved || row.intervened ? row.texts.target : "as it is", row.intervened ? relative : moved ? `follows ${relative}` : ""),
      cell(row.texts.measured), make("td", {}, far, ...judged));
    line.dataset.measured = row.measured;
    line.dataset.target = row.target;
    return line;
  }));
}
function graph(rows) {
  const svg = $("graph"), columns = [];
  for (const of of model.variables) (columns[of.depth] ||= []).push(of);
  const wide = 150, high = 40, gap = 14, apart = 70;
  const tallest = Math.max(...columns.map((column) => column.length)), height = Math.max(tallest * (high + gap), 60) + 10;
  const width = (columns.length + 1) * (wide + apart) - apart + 8, places = {};
  columns.forEach((column, x) => column.forEach((of, y) => {
    places[of.name] = [x * (wide + apart) + 4, (height - column.length * (high + gap) + gap) / 2 + y * (high + gap)];
  }));
  places[""] = [columns.length * (wide + apart) + 4, (height - high) / 2];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.maxWidth = `${width * 1.1}px`;
  const marker = draw("marker", { id: "tip", viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto-start-reverse" });
  marker.append(draw("path", { d: "M0 0L8 4L0 8z" }));
  const parts = [marker], moved = Object.fromEntries(rows.map((row) => [row.variable, differs(row)]));
  const asked = Object.fromEntries(rows.map((row) => [row.variable, row.intervened]));
  const arrow = (from, to, live) => {
    const [ax, ay] = places[from], [bx, by] = places[to], x1 = ax + wide, y1 = ay + high / 2, x2 = bx, y2 = by + high / 2, bend = apart * 0.6;
    parts.push(draw("path", { d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2 - 2} ${y2}`, "marker-end": "url(#tip)", class: live ? "live" : "" }));
  };
  for (const of of model.variables) {
    for (const cause of of.causes) arrow(cause, of.name, moved[cause] && moved[of.name] && !asked[of.name]);
    arrow(of.name, "", moved[of.name]);
  }
  const node = (name, title, text, state) => {
    const [x, y] = places[name], group = draw("g", { class: state });
    group.append(draw("rect", { x, y, width: wide, height: high, rx: 8 }), draw("text", { x: x + wide / 2, y: y + 17 }, title), draw("text", { x: x + wide / 2, y: y + 32, class: "soft" }, text));
    parts.push(group);
  };
  for (const row of rows) {
    const of = variable(row.variable), state = row.intervened ? "asked" : differs(row) ? "moved" : "";
    const text = differs(row) ? `${row.texts.factual} → ${row.texts.target}` : row.texts.factual;
    node(row.variable, row.intervened ? `do(${plain(row.variable)})` : plain(row.variable), `${text} ${variable(row.variable).unit}`, state);
  }
  const any = rows.some(differs);
  node("", "image", any ? "moves" : "as it is", any ? "moved" : "");
  svg.replaceChildren(...parts);
}
async function download(kind, button) {
  button.disabled = true;
  try {
    const told = await send("download", { session: state.session, do: requests(), effect: state.effect, kind });
    const bytes = Uint8Array.from(atob(told.content), (each) => each.charCodeAt(0));
    const address = URL.createObjectURL(new Blob([bytes]));
    make("a", { href: address, download: told.name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  } catch (error) { say(error.message); } finally { button.disabled = false; }
}

// ---- start ----
function view(name) {
  state.view = name;
  link();
  layer();
  if (name === "posterior" && !(latest && latest.deviation)) ask(true);
}
async function start() {
  const response = await fetch("model");
  model = await response.json();
  if (!response.ok) throw new Error(model.error);
  document.title = `${model.title} · segcft`;
  $("title").textContent = model.title;
  $("file").accept = model.kinds.join(",");
  $("cases").prepend(...model.cases.map((each) => {
    const button = make("button", { type: "button" }, make("img", { src: each.picture, alt: "" }), each.name);
    button.dataset.case = each.name;
    button.addEventListener("click", () => { pick(each.name); });
    return button;
  }));
  $("legend").replaceChildren(...Object.entries(model.colours).map(([name, colour]) => {
    const swatch = make("i");
    swatch.style.background = colour;
    return make("span", {}, swatch, plain(name));
  }));
  $("judge").textContent = Object.keys(model.colours).length
    ? "Measured by the segmentor that guided the model, in the image as it is shown: no independent judgement. Dashed: factual contours."
    : "This model has no segmentor: nothing is measured, and there are no contours.";
  $("needed").replaceChildren(...model.needed.map((name) => {
    const of = variable(name);
    const field = of.categories.length
      ? make("select", { required: true }, make("option", { value: "", textContent: "choose" }), ...of.categories.map((text, place) => make("option", { value: place, textContent: text })))
      : make("input", { type: "number", step: "any", required: true });
    field.dataset.variable = name;
    return make("label", {}, `${plain(name)}${of.unit ? `, ${of.unit}` : ""}`, field);
  }));
  $("effect").hidden = !model.variables.some((of) => of.causes.length);
  const query = new URLSearchParams(location.search);
  for (const request of query.getAll("do")) {
    const [, name, value] = /^([^=]+)=(.*)$/s.exec(request) || [];
    const of = name && variable(name);
    if (!of) { say(`the link asks for ${request}, which this model does not know`); continue; }
    if (of.categories.length) state.do[name] = of.categories.includes(value) ? of.categories.indexOf(value) : Math.min(of.categories.length - 1, Math.max(0, Math.round(Number(value)) || 0));
    else state.do[name] = /^=-?[\d.]+(e[+-]?\d+)?$/i.test(value) ? Number(value.slice(1)) : value;
  }
  if ([...$("views").children].some((each) => each.dataset.view === query.get("view"))) state.view = query.get("view");
  if (query.get("effect") === "direct") { state.effect = "direct"; $("effect").firstElementChild.checked = false; }
  layer();
  const wanted = query.get("case");
  if (wanted && model.cases.some((each) => each.name === wanted)) await pick(wanted);
  else if (wanted) say(`the link is about ${wanted}, which is not here`);
  else if (model.cases.length && !query.has("do")) await pick(model.cases[0].name);
  else say("Open an image, or drop one.");
}
$("views").addEventListener("click", (event) => { if (event.target.dataset.view) view(event.target.dataset.view); });
$("mix").querySelector("input").addEventListener("input", (event) => $("right").style.setProperty("--mix", event.target.value / 100));
$("slices").querySelector("input").addEventListener("input", (event) => { state.slice = Number(event.target.value); ask(false); });
$("contours").addEventListener("change", (event) => $("images").classList.toggle("bare", !event.target.checked));
$("effect").addEventListener("change", (event) => { state.effect = event.target.checked ? "total" : "direct"; ask(true); });
$("reset").addEventListener("click", () => { state.do = {}; for (const of of model.variables) refresh(of.name); ask(true); });
$("pick").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { offer($("file").files[0]); $("file").value = ""; });
$("cancel").addEventListener("click", () => $("about").close());
$("about").querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); upload(); });
$("share").addEventListener("click", async () => {
  try { await navigator.clipboard.writeText(location.href); $("share").textContent = "Copied"; } catch { prompt("Link", location.href); }
  setTimeout(() => { $("share").textContent = "Copy link"; }, 2000);
});
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
addEventListener("drop", (event) => { event.preventDefault(); $("drop").hidden = true; offer(event.dataTransfer.files[0]); });
addEventListener("pagehide", forget);
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
start().catch((error) => say(error.message));
