// The list of cases: search, filters, order, pages.
const PER_PAGE = 20;
const list = { found: [], page: 0 };
const texts = data.items.map((item) => `${item.id}\n${plain(item.before)}\n${plain(item.after)}`.toLowerCase());

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, label]) => make("option", { value }, label)));
}

function fillTools() {
  options(byId("type"), [["", "all"], ...data.types.map((name, number) => [number, name])]);
  options(byId("show"), [
    ["", "all cases"],
    ["failed", "a method failed"],
    ["complete", "all methods have a picture"],
    ...data.methods.map((label, method) => [method, `${label} failed`]),
  ]);
  options(byId("metric"), data.columns.map(({ name }, column) => [column, name]));
  options(byId("sort"), [
    ["", "data set"],
    ["disagreement", "disagreement of methods"],
    ["mean", "mean of methods"],
    ...data.methods.map((label, method) => [method, label]),
  ]);
  for (const id of ["metric", "sort", "order"]) byId(id).disabled = !data.columns.length;
  byId("tools").hidden = false;
}

const isFailed = (item, method) => item.cells[method] !== null && item.cells[method].s !== "ok";

function shows(item, number) {
  const type = byId("type").value;
  const wanted = byId("show").value;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  if (type !== "" && item.type !== Number(type)) return false;
  if (wanted === "failed" && !item.cells.some((_, method) => isFailed(item, method))) return false;
  if (wanted === "complete" && !item.cells.every((cell) => cell?.s === "ok")) return false;
  if (/^\d/.test(wanted) && !isFailed(item, Number(wanted))) return false;
  return words.every((word) => texts[number].includes(word));
}

// What a case is sorted by; null goes last in either order.
function rank(item) {
  const by = byId("sort").value;
  const column = Number(byId("metric").value);
  if (/^\d/.test(by)) return valueOf(item, Number(by), column);
  const values = data.methods.map((_, method) => valueOf(item, method, column)).filter((value) => value !== null);
  if (by === "disagreement") return values.length < 2 ? null : Math.max(...values) - Math.min(...values);
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

function search() {
  const numbers = data.items.map((_, number) => number).filter((number) => shows(data.items[number], number));
  const sorted = byId("sort").value !== "";
  byId("order").disabled = !sorted;
  if (sorted) {
    const sign = byId("order").value === "down" ? -1 : 1;
    const ranks = new Map(numbers.map((number) => [number, rank(data.items[number])]));
    numbers.sort((a, b) => {
      const [x, y] = [ranks.get(a), ranks.get(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * (x - y) || a - b;
    });
  }
  list.found = numbers;
  list.page = 0;
  draw();
}

function draw() {
  const pages = Math.max(1, Math.ceil(list.found.length / PER_PAGE));
  list.page = Math.min(list.page, pages - 1);
  const noun = data.seeds ? "case and seed" : "case";
  const all = data.items.length === list.found.length;
  byId("found").textContent = data.seeds
    ? `${list.found.length} of ${data.items.length} pairs of ${noun}`
    : `${all ? "" : `${list.found.length} of `}${counted(data.items.length, noun)}`;
  byId("list").replaceChildren(
    ...list.found.slice(list.page * PER_PAGE, (list.page + 1) * PER_PAGE).map((number) => caseRow(number)),
  );
  byId("pages").hidden = pages === 1;
  options(byId("page"), Array.from({ length: pages }, (_, page) => [page, page + 1]));
  byId("page").value = list.page;
  byId("page-count").textContent = `of ${pages}`;
  byId("page-back").disabled = list.page === 0;
  byId("page-on").disabled = list.page === pages - 1;
}

function turn(page) {
  list.page = page;
  draw();
  byId("cases").scrollIntoView();
  byId("list").querySelector("button")?.focus({ preventScroll: true });
}

function caseRow(number) {
  const item = data.items[number];
  const column = Number(byId("metric").value);
  const lead = data.columns.length ? leaders(item, column) : new Set();
  const open = (picture) => () => openCase(number, { right: picture?.key === "source" ? undefined : picture?.key });
  const shots = picturesOf(item).map((picture) => {
    const value = picture.method === undefined || !data.columns.length ? null : valueOf(item, picture.method, column);
    const said = value === null ? "" : shown(value, data.columns[column].places);
    const label = picture.number === null ? `${picture.label}: ${why(picture)}` : picture.label;
    return make(
      "li",
      {},
      shot(item, picture, { "aria-label": `${label}, open ${nameOf(item)}`, onclick: open(picture) }),
      make(
        "span",
        { class: "shot-name" },
        make("bdi", { class: "name", title: picture.label }, picture.label),
        make("span", { class: lead.has(picture.method) ? "value lead" : "value" }, said),
      ),
    );
  });
  const facts = [data.types[item.type], item.real ? "real picture" : "generated"].join(" \u00b7 ");
  return make(
    "li",
    { class: "case", "data-number": number },
    make(
      "div",
      { class: "case-head" },
      make("h3", {}, make("button", { type: "button", class: "open", dir: "auto", onclick: open() }, nameOf(item))),
      make("span", { class: "unit", dir: "auto" }, facts),
    ),
    prompts(item),
    make("ul", { class: "strip", "aria-label": `Pictures of ${nameOf(item)}` }, ...shots),
  );
}

function startList() {
  fillTools();
  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  for (const id of ["type", "show", "metric", "sort", "order"]) byId(id).addEventListener("change", search);
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("page").addEventListener("change", (event) => turn(Number(event.target.value)));
  byId("page-back").addEventListener("click", () => turn(list.page - 1));
  byId("page-on").addEventListener("click", () => turn(list.page + 1));
  search();
}
