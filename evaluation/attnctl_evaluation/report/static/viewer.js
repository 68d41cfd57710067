// One case in a dialog, and the address that leads back to it.
const viewer = { number: null, opener: null };

// Names of pictures in addresses: "source", "truth", or the label of a method.
const keyOf = (name) => (name === "source" || name === "truth" ? name : `method ${data.methods.indexOf(name)}`);
const addressName = (key) => (key.startsWith("method ") ? data.methods[Number(key.slice(7))] : key);

function permalink() {
  const item = data.items[viewer.number];
  const parts = [["case", item.id]];
  if (data.seeds) parts.push(["seed", item.seed]);
  parts.push(["before", addressName(stage.before)], ["after", addressName(stage.after)], ["view", stage.view]);
  return `#${parts.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&")}`;
}

function setAddress(address, push) {
  try {
    history[push ? "pushState" : "replaceState"](null, "", address);
  } catch {
    location.replace(address);
  }
}

function openCase(number, { left, right, view, push = true, opener = document.activeElement } = {}) {
  const item = data.items[number];
  const dialog = byId("viewer");
  const pictures = picturesOf(item);
  const has = (key) => pictures.some((picture) => picture.key === key);
  viewer.number = number;
  stage.before = has(left ?? stage.before) ? (left ?? stage.before) : "source";
  const wanted = right ?? stage.after;
  const fallback = pictures.findLast((picture) => picture.method !== undefined && picture.number !== null) ?? pictures.at(-1);
  stage.after = has(wanted) ? wanted : fallback.key;
  stage.view = view ?? stage.view;
  const before = dialog.open;
  drawCase();
  if (!before) {
    viewer.opener = opener;
    dialog.showModal();
    byId("viewer-title").focus();
  }
  setAddress(permalink(), push && !before);
}

function drawCase() {
  const item = data.items[viewer.number];
  const place = list.found.indexOf(viewer.number);
  byId("viewer-title").firstElementChild.textContent = nameOf(item);
  const facts = [data.types[item.type], item.real ? "real picture" : "generated"];
  facts.push(place < 0 ? "not among the cases found" : `${place + 1} of ${list.found.length}`);
  byId("viewer-place").textContent = facts.join(" \u00b7 ");
  byId("viewer-prompts").replaceChildren(prompts(item));
  byId("case-back").disabled = place <= 0;
  byId("case-on").disabled = place < 0 || place === list.found.length - 1;
  const pictures = picturesOf(item);
  for (const id of ["left", "right"]) options(byId(id), pictures.map(({ key, label }) => [key, label]));
  showStage(item);
  byId("strip").replaceChildren(...pictures.map((picture) => choice(item, picture)));
  byId("scores").replaceChildren(...scoreRows(item));
  byId("remarks").replaceChildren(...remarks(item));
}

function choice(item, picture) {
  const pressed = picture.key === stage.after;
  const label = picture.number === null ? `${picture.label}: ${why(picture)}` : `${picture.label} as after`;
  const button = shot(item, picture, {
    "aria-label": label,
    "aria-pressed": String(pressed),
    "data-key": picture.key,
    onclick: () => changeStage({ right: picture.key }),
  }, false);
  return make("li", {}, button, make("span", { class: "shot-name" }, make("bdi", { class: "name", title: picture.label }, picture.label)));
}

function changeStage({ left, right, view }) {
  const focused = document.activeElement?.dataset?.key;
  if (left !== undefined) stage.before = left;
  if (right !== undefined) stage.after = right;
  if (view !== undefined) stage.view = view;
  drawCase();
  setAddress(permalink(), false);
  if (focused) byId("strip").querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function scoreRows(item) {
  const lead = data.columns.map((_, column) => leaders(item, column));
  const head = data.columns.map(({ name, better, unit }) =>
    make("th", { scope: "col", class: "number" }, make("bdi", {}, name), { higher: " \u2191", lower: " \u2193", neither: "" }[better],
      unit ? make("span", { class: "unit" }, unit) : null));
  // Metrics down, methods across where that is the narrower way.
  const rows = data.methods.map((label, method) => {
    const cells = data.columns.map(({ places }, column) => {
      const value = valueOf(item, method, column);
      const reason = item.cells[method]?.r?.[column];
      const note = reason === undefined ? null : data.reasons[reason];
      const mean = make("span", { class: "mean" }, value === null ? "\u2013" : shown(value, places));
      return make("td", { class: lead[column].has(method) ? "number best" : "number" }, mean, note ? make("span", { class: "under gap" }, note) : null);
    });
    return make("tr", { "aria-current": stage.after === `method ${method}` ? "true" : null }, make("th", { scope: "row" }, make("bdi", {}, label)), ...cells);
  });
  return [make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "method"), ...head)), make("tbody", {}, ...rows)];
}

function remarks(item) {
  const found = [];
  const warned = new Map();
  data.methods.forEach((label, method) => {
    const cell = item.cells[method];
    for (const warning of cell?.w ?? []) warned.set(warning, [...(warned.get(warning) ?? []), label]);
    if (!cell || cell.s === "ok") return;
    const [kind, , hint] = cell.f === undefined ? ["", "", ""] : data.failures[cell.f];
    const what = cell.s === "missing" ? "was not tried" : "failed";
    const head = make("p", {}, make("strong", {}, make("bdi", {}, label)), ` ${what}${kind ? `: ${kind}` : ""}`);
    const parts = [head, make("p", { dir: "auto" }, failureOf(cell)), hint ? make("p", { dir: "auto", class: "faint" }, hint) : null];
    found.push(make("div", { class: "remark bad" }, ...parts));
  });
  for (const [warning, labels] of warned) {
    const who = labels.length === data.methods.length ? "all methods" : labels.join(", ");
    const parts = [make("strong", {}, make("bdi", {}, who)), " warned: ", make("bdi", {}, data.warnings[warning])];
    found.push(make("div", { class: "remark" }, make("p", {}, ...parts)));
  }
  return found;
}

function step(by) {
  const place = list.found.indexOf(viewer.number) + by;
  if (place < 0 || place >= list.found.length || viewer.number === null) return;
  openCase(list.found[place], { push: false });
}

// Open what the address names; anything else it may hold is no case, and harmless.
function followAddress() {
  const asked = new URLSearchParams(location.hash.slice(1).replace(/\+/g, "%2B"));
  const id = asked.get("case");
  if (id === null) {
    if (byId("viewer").open) byId("viewer").close();
    return;
  }
  const seed = asked.get("seed");
  const number = data.items.findIndex((item) => item.id === id && (seed === null || item.seed === Number(seed)));
  if (number < 0) {
    byId("found").textContent = `The address names a case that is not here: ${id}`;
    byId("cases").scrollIntoView();
    return;
  }
  const view = ["slider", "beside", "difference"].includes(asked.get("view")) ? asked.get("view") : undefined;
  const name = (key) => (asked.get(key) === null ? undefined : keyOf(asked.get(key)));
  openCase(number, { left: name("before"), right: name("after"), view, push: false, opener: null });
}

function startViewer() {
  const dialog = byId("viewer");
  startStage(changeStage);
  byId("case-back").addEventListener("click", () => step(-1));
  byId("case-on").addEventListener("click", () => step(1));
  byId("case-close").addEventListener("click", () => dialog.close());
  byId("case-link").addEventListener("click", () => copy(location.href, byId("case-link")));
  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#case=")) setAddress("#cases", false);
    const page = Math.floor(list.found.indexOf(viewer.number) / PER_PAGE);
    if (page >= 0 && page !== list.page) {
      list.page = page;
      draw();
    }
    const row = byId("list").querySelector(`[data-number="${viewer.number}"] .open`);
    (viewer.opener?.isConnected && viewer.opener.closest(`[data-number="${viewer.number}"]`) ? viewer.opener : row ?? viewer.opener)?.focus?.();
  });
  window.addEventListener("hashchange", followAddress);
  window.addEventListener("popstate", followAddress);
  window.addEventListener("resize", () => dialog.open && showStage(data.items[viewer.number]));
  if (location.hash.startsWith("#case=")) followAddress();
}
