// Keys. Single letters act unless the reader switched them off in the help box, and never while text is typed.
function startKeys() {
  const help = byId("help");
  byId("help-open").hidden = false;
  byId("help-open").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open) return;
    const target = event.target;
    if (target.matches("input[type=search], textarea, select, [contenteditable]")) return;
    const inside = byId("viewer").open;
    const arrows = event.key.startsWith("Arrow");
    if (arrows && (!inside || target.matches("input") || target.closest(".scroll, pre"))) return;
    if (!arrows && (!byId("keys-on").checked || event.key.length !== 1)) return;
    const act = (inside ? viewerKey : pageKey)(event.key);
    if (act) {
      event.preventDefault();
      act();
    }
  });
}

function pageKey(key) {
  const rows = [...byId("list").querySelectorAll(".open")];
  const at = rows.findIndex((row) => row.closest(".case").contains(document.activeElement));
  const go = (row) => () => {
    row?.focus();
    row?.closest(".case").scrollIntoView({ block: "nearest" });
  };
  return {
    "/": () => byId("search").focus(),
    "?": () => byId("help").showModal(),
    j: go(rows[Math.min(at + 1, rows.length - 1)]),
    k: go(rows[Math.max(at - 1, 0)]),
  }[key];
}

function viewerKey(key) {
  const method = /^[1-9]$/.test(key) ? Number(key) - 1 : -1;
  if (method >= 0) return method < data.methods.length ? () => changeStage({ right: `method ${method}` }) : undefined;
  return {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    s: () => changeStage({ view: "slider" }),
    b: () => changeStage({ view: "beside" }),
    d: () => changeStage({ view: "difference" }),
    x: () => changeStage({ left: stage.after, right: stage.before }),
    m: () => !byId("mask").disabled && byId("mask").click(),
    "?": () => byId("help").showModal(),
  }[key];
}
