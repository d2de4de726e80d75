// Dose-volume histograms, with the values under the pointer.

import { fill, h, number, s } from "./dom.js";
import { look } from "./looks.js";

const [W, H, LEFT, BOTTOM, TOP, RIGHT] = [320, 200, 34, 28, 8, 8];

/** Draw the histograms of a patient. @param {any} found  the answer of `/dvh` */
export function dvhChart(found, isShown) {
  const curves = found.histograms.filter((c) => c.cumulative_cc?.length && isShown(c));
  if (!curves.length) return h("p", { className: "small" }, "No structure with dose is shown.");
  const covered = (c) => c.cumulative_cc[0] || 1;
  const most = Math.max(found.prescription_gy * 1.1, ...curves.map((c) => c.cumulative_cc.length * found.step_gy));
  const x = (gy) => LEFT + (gy / most) * (W - LEFT - RIGHT);
  const y = (pct) => TOP + (1 - pct / 100) * (H - TOP - BOTTOM);
  const path = (c) => c.cumulative_cc.map((v, i) => `${i ? "L" : "M"}${x(i * found.step_gy).toFixed(1)} ${y((100 * v) / covered(c)).toFixed(1)}`).join("") + `L${x(c.cumulative_cc.length * found.step_gy).toFixed(1)} ${y(0)}`;
  const ticks = [0, 10, 20, 30, 40, 50, 60].filter((g) => g <= most);
  const mark = s("line", { class: "mark-line", y1: TOP, y2: H - BOTTOM, x1: -9, x2: -9 });
  const lines = curves.map((c) => {
    const style = look(c);
    return s("path", { d: path(c), stroke: style.colour, "stroke-dasharray": style.dash.join(" ") || null, "stroke-width": style.width, class: "curve" });
  });
  const node = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "dvh", role: "img", "aria-label": `Cumulative dose-volume histograms of ${curves.map(name).join(", ")}. The table below has the numbers.`, tabindex: 0 },
    s("rect", { x: LEFT, y: TOP, width: W - LEFT - RIGHT, height: H - TOP - BOTTOM, class: "stage" }),
    [0, 25, 50, 75, 100].map((p) => [s("line", { x1: LEFT, x2: W - RIGHT, y1: y(p), y2: y(p), class: "tick" }), s("text", { x: LEFT - 4, y: y(p) + 3.5, class: "end" }, String(p))]),
    ticks.map((g) => s("text", { x: x(g), y: H - BOTTOM + 12, class: "middle" }, String(g))),
    s("line", { x1: x(found.prescription_gy), x2: x(found.prescription_gy), y1: TOP, y2: H - BOTTOM, class: "dose-line" }),
    s("text", { x: W - RIGHT, y: H - 3, class: "end" }, `dose, Gy (line: ${found.prescription_gy})`), s("text", { x: 2, y: H - 3 }, "volume, %"), lines, mark);
  const rows = h("tbody");
  const show = (gy) => {
    fill(rows, curves.map((c) => {
      const i = Math.min(c.cumulative_cc.length, Math.max(0, Math.round(gy / found.step_gy)));
      const cc = c.cumulative_cc[i] ?? 0;
      return h("tr", null, h("th", { scope: "row" }, swatch(look(c)), name(c)), h("td", { className: "n" }, number((100 * cc) / covered(c), 3)), h("td", { className: "n" }, number(cc, 3)), h("td", { className: "n" }, number(mean(c, found.step_gy), 3)));
    }));
    head.textContent = `% ≥ ${gy.toFixed(1)} Gy`;
    const place = String(x(gy));
    mark.setAttribute("x1", place);
    mark.setAttribute("x2", place);
  };
  const head = h("th", { scope: "col" });
  const table = h("table", { className: "numbers curves" }, h("thead", null, h("tr", null, h("th", { scope: "col" }, "structure"), head, h("th", { scope: "col" }, "cm³"), h("th", { scope: "col" }, "mean Gy"))), rows);
  const first = found.prescription_gy * 0.95; // V95
  let at = first;
  node.addEventListener("pointermove", (e) => {
    const box = node.getBoundingClientRect();
    const gy = ((((e.clientX - box.left) / box.width) * W - LEFT) / (W - LEFT - RIGHT)) * most;
    at = Math.min(most, Math.max(0, gy));
    show(at);
  });
  node.addEventListener("pointerleave", () => show((at = first)));
  node.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: -0.5, ArrowRight: 0.5 }[e.key];
    if (!by) return;
    e.preventDefault();
    show((at = Math.min(most, Math.max(0, at + by))));
  });
  show(first);
  return h("div", null, node, table,
    h("p", { className: "small" }, `${found.grid} grid; percent of the part inside the planning dose grid, ${[...new Set(curves.map((c) => (c.from === "table" ? "from the dvh table" : "from the voxels")))].join(" and ")}.`),
    found.damaged.map((text) => h("p", { className: "wrong" }, text)));
}

/** Mean dose by the histogram: exact to half a bin. */
function mean(c, step) {
  const v = c.cumulative_cc;
  let sum = 0;
  for (let i = 0; i < v.length; i++) sum += v[i] * step;
  return sum / (v[0] || 1) - step / 2;
}

function name(c) {
  if (c.source.startsWith("prediction:")) return `${c.structure} ${c.source.replace(":", " ")}`;
  return [c.structure, { nnunet: "nnU-Net", nnunet_fold: `fold ${c.fold}`, observer: `${c.observer} step ${c.step}` }[c.source]].filter(Boolean).join(" ");
}

/** A short line in the colour and dash of a structure. */
export function swatch(style) {
  return s("svg", { viewBox: "0 0 30 10", class: "swatch", "aria-hidden": "true" },
    s("rect", { width: 30, height: 10, rx: 3, fill: "#0b1217" }),
    s("line", { x1: 2, x2: 28, y1: 5, y2: 5, stroke: style.colour, "stroke-width": 2.4, "stroke-dasharray": style.dash.join(" ") || null }));
}
