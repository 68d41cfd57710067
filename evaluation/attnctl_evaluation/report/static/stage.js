// Two pictures of one case against each other: slider, side by side, difference.
// The difference is made by blending and an SVG filter: a script could not read pixels of a page opened from disk.
const stage = { before: "source", after: null, view: "slider" };

function setDivider(percent) {
  const at = Math.min(100, Math.max(0, Math.round(percent)));
  const divider = byId("divider");
  divider.value = at;
  divider.setAttribute("aria-valuetext", `${at} % before, ${100 - at} % after`);
  byId("stage").style.setProperty("--at", `${at}%`);
}

// With one picture alone there is nothing to compare: it is shown as it is.
function setView(view, single) {
  stage.view = view;
  byId("stage").dataset.view = single ? "single" : view;
  byId("views").querySelector(`[value="${view}"]`).checked = true;
  byId("divider").hidden = single || view !== "slider";
  byId("legend").hidden = byId("gain-choice").hidden = single || view !== "difference";
  byId("mask-choice").hidden = (!single && view === "difference") || byId("mask").disabled;
}

function setGain() {
  const gain = Number(byId("gain").value);
  byId("stage").dataset.gain = gain;
  byId("legend-top").textContent = gain === 1 ? "255" : `${Math.round(255 / gain)} and more`;
}

function showPane(pane, picture, item) {
  const [image, mask] = pane.querySelectorAll("img");
  const none = picture.number === null;
  pane.hidden = none;
  pane.querySelector("figcaption").textContent = picture.label;
  if (none) return;
  const [width, height] = sizeOf(picture.number);
  image.width = width;
  image.height = height;
  image.src = address(picture.number, false);
  image.alt = picture.label;
  pane.classList.toggle("small", Math.max(width, height) < 200);
  mask.hidden = item.mask === null || !byId("mask").checked;
  if (item.mask !== null) {
    const [w, h] = sizeOf(item.mask);
    mask.width = w;
    mask.height = h;
    mask.src = address(item.mask, false);
  }
}

// Show two pictures of a case; a method whose source is not the case's brings its own.
function showStage(item) {
  const pictures = picturesOf(item);
  const find = (key) => pictures.find((picture) => picture.key === key) ?? pictures[0];
  let [before, after] = [find(stage.before), find(stage.after)];
  const own = after.cell?.b;
  if (before.key === "source" && own !== undefined && own !== null) before = { ...before, label: "its own source", number: own };
  byId("mask").disabled = item.mask === null;
  const area = byId("stage");
  showPane(byId("pane-left"), before, item);
  showPane(byId("pane-right"), after, item);
  const lacking = [before, after].filter((picture) => picture.number === null);
  byId("nothing").hidden = !lacking.length;
  byId("nothing").textContent = lacking.map((picture) => `${picture.label}: ${why(picture)}`).join("\n");
  const present = [after, before].find((picture) => picture.number !== null);
  if (present) {
    // As large as it helps, never taller than the window: a small picture grows by whole factors.
    const [width, height] = sizeOf(present.number);
    const room = Math.max(200, (window.innerHeight - 330) * (width / height));
    const scale = Math.max(1, Math.floor(Math.min(room, 768) / width));
    area.style.setProperty("max-width", `${Math.round(Math.min(room, width * scale))}px`);
    byId("divider").style.setProperty("max-width", area.style.maxWidth);
  }
  byId("left").value = stage.before;
  byId("right").value = stage.after;
  setView(stage.view, lacking.length > 0);
}

function startStage(changed) {
  const area = byId("stage");
  const move = (event) => {
    const box = area.getBoundingClientRect();
    setDivider((100 * (event.clientX - box.left)) / box.width);
  };
  area.addEventListener("pointerdown", (event) => {
    if (area.dataset.view !== "slider" || event.button !== 0) return;
    area.setPointerCapture(event.pointerId);
    move(event);
  });
  area.addEventListener("pointermove", (event) => {
    if (area.hasPointerCapture(event.pointerId)) move(event);
  });
  byId("divider").addEventListener("input", (event) => setDivider(Number(event.target.value)));
  for (const radio of byId("views").querySelectorAll("input")) {
    radio.addEventListener("change", () => changed({ view: radio.value }));
  }
  byId("left").addEventListener("change", (event) => changed({ left: event.target.value }));
  byId("right").addEventListener("change", (event) => changed({ right: event.target.value }));
  byId("mask").addEventListener("change", () => changed({}));
  byId("gain").addEventListener("change", setGain);
  setGain();
  setDivider(50);
}
