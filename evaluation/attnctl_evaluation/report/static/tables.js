// The figure's axes, the table of means, the heat table, the theme, copying.
function startTables() {
  document.documentElement.classList.add("js");
  const table = byId("means-table");
  byId("means-show").hidden = false;
  for (const radio of byId("means-show").querySelectorAll("input")) {
    radio.addEventListener("change", () => (table.dataset.under = radio.value));
  }
  for (const button of table.querySelectorAll(".sort")) button.addEventListener("click", () => sortBy(table, button));
  const heat = byId("heat-column");
  if (heat) {
    byId("heat-choice").hidden = false;
    heat.addEventListener("change", () => {
      for (const part of document.querySelectorAll(".heat-part")) part.toggleAttribute("data-later", part.dataset.column !== heat.value);
    });
  }
  for (const axis of ["axis-x", "axis-y"]) {
    byId(axis)?.addEventListener("change", () => {
      for (const plot of document.querySelectorAll(".plot")) {
        plot.hidden = plot.dataset.x !== byId("axis-x").value || plot.dataset.y !== byId("axis-y").value;
      }
    });
  }
  const bibtex = byId("copy-bibtex");
  const entries = [...document.querySelectorAll(".bibtex")].map((entry) => entry.textContent);
  bibtex.hidden = !entries.length;
  bibtex.addEventListener("click", () => copy(entries.join("\n\n"), bibtex));
}

// The first click sorts best first, the second worst first, the third as it was.
function sortBy(table, button) {
  const head = button.closest("th");
  const column = [...head.parentElement.children].indexOf(head);
  const body = table.tBodies[0];
  sortBy.original ??= [...body.rows];
  const first = button.dataset.better === "lower" ? "ascending" : "descending";
  const second = first === "ascending" ? "descending" : "ascending";
  const next = { null: first, [first]: second, [second]: null }[head.getAttribute("aria-sort")];
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  if (next === null) {
    body.append(...sortBy.original);
    return;
  }
  head.setAttribute("aria-sort", next);
  const sign = next === "ascending" ? 1 : -1;
  const value = (row) => (row.cells[column].dataset.value === "" ? null : Number(row.cells[column].dataset.value));
  body.append(
    ...[...sortBy.original].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
    }),
  );
}

async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed here";
  }
  setTimeout(() => (button.textContent = before), 1500);
}

function startTheme() {
  const button = byId("theme");
  const themes = ["system", "light", "dark"];
  const recall = () => {
    try {
      return localStorage.getItem("attnctl-theme");
    } catch {
      return null;
    }
  };
  const set = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    try {
      localStorage.setItem("attnctl-theme", theme);
    } catch {
      // Some browsers keep nothing for files: the theme then holds until the page is closed.
    }
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    set(themes[(themes.indexOf(now) + 1) % themes.length]);
  });
  const kept = recall();
  if (themes.includes(kept)) set(kept);
}
