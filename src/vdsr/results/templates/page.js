"use strict";

const at = (id) => document.getElementById(id);
const read = (id) => JSON.parse(at(id).textContent);

// --- runs: sort and filter ---

const order = { column: -1, sign: 1 };

function sortRuns() {
  const table = at("table");
  if (!table || order.column < 0) return;
  const key = (row) => {
    const cell = row.cells[order.column];
    return { number: cell.dataset.number === undefined ? null : Number(cell.dataset.number), text: cell.textContent };
  };
  const compare = ([a], [b]) => {
    if (a.number !== null && b.number !== null) return order.sign * (a.number - b.number);
    if (a.number !== null || b.number !== null) return a.number !== null ? -1 : 1; // what has no figure comes last
    return order.sign * a.text.localeCompare(b.text, undefined, { numeric: true });
  };
  const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
  table.tBodies[0].append(...rows.sort(compare).map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (column === order.column) head.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  });
}

function filterRuns() {
  const table = at("table");
  if (!table) return;
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) {
    const text = [...row.cells].map((cell) => cell.textContent).join("\n").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  at("count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}

function startRuns() {
  if (!at("table")) return;
  [...at("table").tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      order.sign = order.column === column ? -order.sign : 1;
      order.column = column;
      sortRuns();
    });
  });
  at("filter").addEventListener("input", filterRuns);
  sortRuns();
  filterRuns();
}

// --- charts: drawn by plotly once they come into view ---

function loadPlotly() {
  if (window.Plotly) return;
  const script = document.createElement("script"); // only now: it takes longer than all the rest of the page
  script.textContent = at("plotly").textContent;
  document.head.append(script);
}

const config = { responsive: true, displaylogo: false, displayModeBar: false };
const coarse = matchMedia("(pointer: coarse)").matches; // there, dragging is for scrolling
const charts = new WeakMap();
const seen = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      loadPlotly();
      const { data, layout } = charts.get(target);
      Plotly.newPlot(target, data, coarse ? { ...layout, dragmode: false } : layout, config);
    }
  },
  { rootMargin: "300px" },
);

function showCharts() {
  for (const old of document.querySelectorAll(".chart")) {
    seen.unobserve(old);
    window.Plotly?.purge(old);
  }
  const made = read("figures")[at("experiment").value].map(({ title, text, figure }) => {
    const copy = at("chart").content.cloneNode(true);
    copy.querySelector("h3").textContent = title;
    copy.querySelector("p").textContent = text;
    copy.querySelector(".scroll").setAttribute("aria-label", title);
    charts.set(copy.querySelector(".chart"), figure);
    return copy;
  });
  at("drawn").replaceChildren(...made);
  at("drawn").querySelectorAll(".chart").forEach((chart) => seen.observe(chart));
}

function startCharts() {
  if (!at("experiment")) return;
  at("experiment").addEventListener("change", showCharts);
  showCharts();
}

// --- pictures: bicubic | network | original ---

function showPicture() {
  const picture = read("comparisons")[at("picture").value];
  const { scale, bicubic, network, bicubic_psnr, psnr } = picture.scales[at("scale").value];
  const gain = psnr - bicubic_psnr;
  const said = [
    `bicubic ${bicubic_psnr.toFixed(2)} dB`,
    `network ${psnr.toFixed(2)} dB (${gain < 0 ? "−" : "+"}${Math.abs(gain).toFixed(2)})`,
    "original",
  ];
  const files = { bicubic, network, original: picture.original };
  Object.keys(files).forEach((id, number) => {
    Object.assign(at(id), { src: files[id], width: picture.width, height: picture.height });
    at(id).alt = `${picture.set} ${picture.name}, ×${scale}: ${said[number]}`;
    at("caption").children[number].textContent = said[number];
  });
  const zoom = Number(at("zoom").value);
  at("layers").style.width = zoom ? `${zoom * picture.width}px` : "";
  at("layers").style.maxWidth = zoom ? "none" : `${1.5 * picture.width}px`;
}

function moveBars({ target }) {
  const [first, second] = [at("first"), at("second")];
  if (Number(first.value) > Number(second.value)) (target === first ? second : first).value = target.value;
  for (const bar of [first, second]) {
    at("layers").style.setProperty(`--${bar.id}`, bar.value / 100);
    bar.setAttribute("aria-valuetext", `${Math.round(bar.value)} % from the left`);
  }
}

function startPictures() {
  if (!at("picture")) return;
  for (const id of ["picture", "scale", "zoom"]) at(id).addEventListener("change", showPicture);
  for (const id of ["first", "second"]) at(id).addEventListener("input", moveBars);
  showPicture();
  moveBars({ target: at("first") });
}

function start() {
  startRuns();
  startCharts();
  startPictures();
}

// --- live: newer content from this page's own server, with everything left as the reader had it ---

let tag = `"${document.documentElement.dataset.live}"`;

async function renew() {
  const response = await fetch("content", { cache: "no-store", headers: { "If-None-Match": tag } });
  if (response.status !== 200) return;
  tag = response.headers.get("ETag") ?? "";
  const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
  const kept = new Map([...document.querySelectorAll("main :is(input, select)")].map(({ id, value }) => [id, value]));
  const { scrollTop, scrollLeft } = document.querySelector(".tall") ?? {};
  const focused = document.activeElement?.id;
  document.querySelector("main").replaceChildren(...fresh.body.childNodes);
  for (const [id, value] of kept) {
    const control = at(id);
    if (control && (control.tagName === "INPUT" || [...control.options].some((option) => option.value === value)))
      control.value = value;
  }
  start();
  document.querySelector(".tall")?.scrollTo(scrollLeft ?? 0, scrollTop ?? 0);
  if (focused) at(focused)?.focus({ preventScroll: true });
}

async function live() {
  try {
    await renew();
    at("live").textContent = `live, ${new Date().toLocaleTimeString()}`;
  } catch {
    at("live").textContent = "the server has ended: this is its last state";
  }
  setTimeout(live, 3000);
}

start();
if ("live" in document.documentElement.dataset) live();
