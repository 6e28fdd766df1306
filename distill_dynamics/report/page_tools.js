// Theme, sortable tables, downloads, and a print with everything unfolded. The page is complete without it.

const root = document.documentElement;

function button(text, label, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", onClick);
  return made;
}

// --- theme: the system's, until the reader says otherwise; remembered where a file may store anything

const THEME = "distill_dynamics theme";

function stored() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null;
  }
}

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

const toggle = document.getElementById("theme");

function showTheme() {
  toggle.textContent = isDark() ? "Light" : "Dark";
  toggle.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
}

if (["dark", "light"].includes(stored())) root.dataset.theme = stored();
toggle.hidden = false;
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  showTheme();
  try {
    localStorage.setItem(THEME, root.dataset.theme);
  } catch {
    // then it holds for this visit
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
showTheme();

const guide = document.getElementById("guide");
if (guide) guide.open = matchMedia("(min-width: 40rem)").matches; // a phone has no room for it to stay open

// --- downloads

function save(name, url) {
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
}

function saveText(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  save(name, url);
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

const ONE = "[+-]?[0-9.]+(e[+-]?[0-9]+)?"; // alone, with its error, as an interval, or with its interval
const NUMBER = new RegExp(`^${ONE}( \u00b1 ${ONE}| to ${ONE}| \\(${ONE} to ${ONE}\\))?$`);

function cell(text) {
  // A spreadsheet runs what begins so as a formula.
  const safe = /^[=+\-@\t\r]/.test(text) && !NUMBER.test(text) ? "'" + text : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function saveCsv(name, rows) {
  const text = rows.map((row) => row.map((text) => cell(String(text))).join(",")).join("\r\n");
  saveText(`${name}.csv`, "text/csv", "\ufeff" + text + "\r\n"); // the mark tells a spreadsheet that it is UTF-8
}

function curveRows(curves) {
  // A row a point: its value apart from its error, or from the ends of its interval.
  const rows = [["panel", "curve", "point", "measure", "value", "error", "low", "high", "unit"]];
  for (const curve of curves) {
    for (const [, , point, text] of curve.points) {
      const [value, ...more] = text.split(/ \u00b1 | \(| to |\)/).filter(Boolean);
      const [error, low, high] = more.length > 1 ? ["", ...more] : [more[0] ?? "", "", ""];
      rows.push([curve.panel, curve.label, point, curve.measure, value, error, low, high, curve.unit]);
    }
  }
  return rows;
}

function gridRows(grids) {
  const rows = [["panel", "row", "column", "value"]];
  for (const { panel, rows: names, columns, values } of grids) {
    values.forEach((line, y) => line.forEach((value, x) => rows.push([panel, names[y], columns[x], value ?? ""])));
  }
  return rows;
}

function svgText(svg) {
  const copy = svg.cloneNode(true);
  for (const hidden of copy.querySelectorAll("[style*='display: none'], .mark")) hidden.remove();
  copy.removeAttribute("role");
  copy.style.background = "#fff";
  copy.style.minWidth = copy.style.maxWidth = "";
  return new XMLSerializer().serializeToString(copy);
}

function savePng(name, svg) {
  const image = new Image();
  const { width, height } = svg.viewBox.baseVal;
  image.onload = () => {
    const canvas = document.createElement("canvas");
    const scale = 300 / 72; // the page's figures are in points: 300 pixels an inch
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    save(`${name}.png`, canvas.toDataURL("image/png"));
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svgText(svg));
}

for (const figure of document.querySelectorAll("figure")) {
  const svg = figure.querySelector("svg");
  const title = figure.querySelector("h3").textContent;
  const data = figure.querySelector("script");
  const bar = document.createElement("p");
  bar.className = "downloads";
  bar.append(button("SVG", `${title} as SVG`, () => saveText(`${figure.id}.svg`, "image/svg+xml", svgText(svg))));
  bar.append(button("PNG", `${title} as PNG`, () => savePng(figure.id, svg)));
  if (data) {
    const rows = () => (data.dataset.grids === undefined ? curveRows : gridRows)(JSON.parse(data.textContent));
    bar.append(button("CSV", `Numbers of ${title} as CSV`, () => saveCsv(figure.id, rows())));
  }
  figure.querySelector("figcaption").after(bar);
}

// --- tables: sorted by a column's numbers or words, up, down, and as they were; and as CSV

function valueOf(text) {
  const found = /^[+-]?[0-9][0-9.,]*(e[+-]?[0-9]+)?/.exec(text.replace("\u2212", "-"));
  return found ? Number(found[0].replaceAll(",", "")) : null;
}

const collator = new Intl.Collator("en", { numeric: true });

function sorted(rows, column, direction) {
  const text = (row) => row.cells[column].textContent.trim();
  const isEmpty = (row) => ["", "\u2013"].includes(text(row));
  const full = rows.filter((row) => !isEmpty(row));
  // A row's name may begin with a digit and be no number.
  const numeric = full[column ? "some" : "every"]((row) => valueOf(text(row)) !== null);
  const last = numeric ? (row) => valueOf(text(row)) === null : isEmpty;
  const order = numeric
    ? (a, b) => valueOf(text(a)) - valueOf(text(b))
    : (a, b) => collator.compare(text(a), text(b));
  // What has no value stays last either way.
  return [...rows.filter((row) => !last(row)).sort((a, b) => direction * order(a, b)), ...rows.filter(last)];
}

function sortable(table) {
  const body = table.tBodies[0];
  const given = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.tagName !== "TH" || given.length < 2) return;
    const text = head.textContent;
    const made = button("", `Sort by ${text}`, () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort ?? "none"];
      for (const other of heads) other.removeAttribute("aria-sort");
      if (next !== "none") head.setAttribute("aria-sort", next);
      body.append(...(next === "none" ? given : sorted(given, column, next === "ascending" ? 1 : -1)));
      announcement.textContent = next === "none" ? "in the order given" : `sorted by ${text}, ${next}`;
    });
    const words = document.createElement("span"); // one, as a button on a phone lays out what is in it
    words.append(...head.childNodes);
    made.append(words);
    head.append(made);
  });
}

document.querySelectorAll("table").forEach((table, number) => {
  const rows = () => [...table.rows].map((row) => [...row.cells].map((one) => one.textContent.trim()));
  const caption = table.caption.textContent;
  table.caption.append(" ", button("CSV", `${caption} as CSV`, () => saveCsv(`table-${number + 1}`, rows())));
  if (!table.classList.contains("facts")) sortable(table);
});

// --- paper: everything unfolded, and as it was afterwards

let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});
