// What all parts share: the data, making elements, and words for numbers. Texts become text nodes, never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const addresses = new Map();

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Address of a picture; `small` asks for its thumbnail.
function address(number, small) {
  const medium = data.media[number];
  if (medium.length > 2) return (small && medium[3]) || medium[2];
  if (!addresses.has(number)) addresses.set(number, byId(`m${number}`).textContent);
  return addresses.get(number);
}

const sizeOf = (number) => data.media[number];

function shown(value, places) {
  if (value === null || value === undefined) return "";
  const text = Math.abs(value) < 1e7 ? value.toFixed(places) : value.toPrecision(3);
  return (/^-[0.]*$/.test(text) ? text.slice(1) : text).replace("-", "\u2212");
}

const counted = (number, noun) => `${number.toLocaleString("en").replace(/,/g, "\u202f")} ${noun}${number === 1 ? "" : "s"}`;

const valueOf = (item, method, column) => item.cells[method]?.v?.[column] ?? null;

function failureOf(cell) {
  if (cell.f === undefined) return cell.s === "missing" ? "no source picture" : "failed, no message";
  return data.failures[cell.f][1];
}

// The methods that lead one case in one column: those with the best value, if others have another one.
function leaders(item, column) {
  const { better } = data.columns[column];
  const values = data.methods.map((_, method) => valueOf(item, method, column));
  const present = values.filter((value) => value !== null);
  if (better === "neither" || present.length < 2) return new Set();
  const best = better === "higher" ? Math.max(...present) : Math.min(...present);
  const found = values.flatMap((value, method) => (value === best ? [method] : []));
  return new Set(found.length < present.length ? found : []);
}

const plain = (parts) => (parts ?? []).map(([, text]) => text).join("");

function prompts(item) {
  const words = { gone: "del", new: "ins" };
  const line = (name, parts) => [
    make("dt", {}, name),
    make("dd", { dir: "auto" }, ...parts.map(([kind, text]) => (words[kind] ? make(words[kind], {}, text) : text))),
  ];
  const lines = item.before ? line("source", item.before) : [];
  return make("dl", { class: "prompts" }, ...lines, ...line("target", item.after));
}

const nameOf = (item) => (data.seeds ? `${item.id}, seed ${item.seed}` : item.id);

// Pictures of a case in order: source, ground truth, methods.
function picturesOf(item) {
  const found = [{ key: "source", label: "source", number: item.source }];
  if (item.truth !== null) found.push({ key: "truth", label: "ground truth", number: item.truth });
  data.methods.forEach((label, method) => {
    const cell = item.cells[method];
    found.push({ key: `method ${method}`, label, method, cell, number: cell?.p ?? null });
  });
  return found;
}

function why(picture) {
  if (picture.method === undefined) return "no picture";
  if (!picture.cell) return "not run yet";
  return picture.cell.s === "ok" ? "no picture" : failureOf(picture.cell);
}

// A picture as a button.
function shot(item, picture, properties, lazy = true) {
  const button = make("button", { type: "button", class: "shot", ...properties });
  if (picture.number === null) {
    button.append(make("span", { class: "why" }, why(picture)));
    return button;
  }
  const [width, height] = sizeOf(picture.number);
  if (Math.max(width, height) < 200) button.classList.add("small");
  button.append(make("img", { src: address(picture.number, true), alt: "", width, height, loading: lazy ? "lazy" : null, decoding: "async" }));
  return button;
}
