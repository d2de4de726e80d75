// Facets beside the table: counts and histograms of all patients, in front of them the selected.
// A facet shows what the predicate says of its column, and changes only that.

import { sql } from "./api.js";
import { h, fill, iconButton, isTyping, number, redraw, s } from "./dom.js";
import { about, expression, literal } from "./predicate.js";

const BINS = 28;
/** Shares of the values within the axis: outliers are counted in the outermost bars. */
const SHARES = [0.01, 0.99];
export const HISTOGRAMS = ["dose_max_gy", "CTVT_427.volume_cc", "Rectum.volume_cc", "Bladder.volume_cc", "PTVT_427.d95_gy"];
const LISTS = ["part", "protocol"];
const FLAGS = { sct_warning_text: "sCT warning", geometry_matches_csv: "geometry as CSV" };

/** Values of columns as one table with the columns `k` and `v`. */
function values(columns, structures) {
  const each = columns.map((c) => `SELECT ${literal(c)} AS k, CAST(${expression(c, structures)} AS DOUBLE) AS v FROM patients p`);
  return `WITH v AS (SELECT * FROM (${each.join(" UNION ALL ")}) WHERE isfinite(v))`;
}

/** Counts of all rows in bins whose edges the values themselves give. */
export function binsQuery(columns, structures) {
  return `${values(columns, structures)}, q AS (SELECT k, quantile_cont(v, ${SHARES[0]}) AS a, quantile_cont(v, ${SHARES[1]}) AS b, min(v) AS low, max(v) AS high, median(v) AS mid, count(*) AS total FROM v GROUP BY k), w AS (SELECT *, CASE WHEN b > a THEN (b - a) / ${BINS} ELSE 1 END AS step FROM q) SELECT k, a, step, low, high, mid, total, CAST(least(greatest(floor((v - a) / step), 0), ${BINS - 1}) AS INTEGER) AS bin, count(*) AS n FROM v JOIN w USING (k) GROUP BY ALL`;
}

/** Counts in the same bins, for a part of the patients. */
export function countsQuery(axes, structures) {
  const known = axes.map((x) => `(${literal(x.column)}, ${x.a}, ${x.step})`).join(", ");
  return `${values(axes.map((x) => x.column), structures)}, w(k, a, step) AS (VALUES ${known}), q AS (SELECT k, median(v) AS mid FROM v GROUP BY k) SELECT k, mid, CAST(least(greatest(floor((v - a) / step), 0), ${BINS - 1}) AS INTEGER) AS bin, count(*) AS n FROM v JOIN w USING (k) JOIN q USING (k) GROUP BY ALL`;
}

export function listsQuery(structures) {
  const columns = [...LISTS, ...Object.keys(FLAGS), ...structures.map((x) => `missing_${x}`)];
  return columns.map((c) => `SELECT ${literal(c)} AS k, CAST(${c} AS VARCHAR) AS v, count(*) AS n FROM patients GROUP BY ALL`).join(" UNION ALL ");
}

/**
 * The facets of a dataset.
 * @param {{ dataset: string, structures: string[], columns: Map<string, any>, change: (column: string, condition: any) => void, choose: (columns: string[]) => void }} given
 */
export class Facets {
  constructor(given) {
    this.dataset = given.dataset;
    this.structures = given.structures;
    this.columns = given.columns;
    this.change = given.change;
    this.choose = given.choose;
    this.lists = h("div", { className: "lists" });
    this.charts = h("div", { className: "charts" });
    this.axes = [];
    /** The columns with a histogram, and those that are counted. */
    this.shown = [];
    this.loaded = null;
    /** Medians of the selected patients. */
    this.medians = new Map();
    this.whole = new Map();
    this.part = new Map();
    this.counts = new Map();
    this.conditions = [];
    /** The timer of a drawing that waits until nobody types. */
    this.waiting = 0;
    this.node = h("aside", { className: "facets", "aria-label": "Filters" }, this.lists, this.charts);
  }

  /** Count all patients; `shown` are the columns with a histogram. */
  async load(shown, signal) {
    if (this.loaded === shown.join()) return;
    this.shown = shown;
    const [lists, bins] = await Promise.all([
      this.whole.size ? null : sql(this.dataset, listsQuery(this.structures), { signal }),
      shown.length ? sql(this.dataset, binsQuery(shown, this.structures), { signal }) : { rows: [] },
    ]);
    for (const [k, v, n] of lists?.rows ?? []) this.whole.set(`${k}\0${v}`, n);
    const axes = new Map();
    for (const [column, a, step, low, high, mid, total, bin, n] of bins.rows) {
      if (!axes.has(column)) axes.set(column, { column, a, step, low, high, mid, total, all: Array(BINS).fill(0) });
      axes.get(column).all[bin] = n;
    }
    this.axes = shown.map((c) => axes.get(c)).filter(Boolean);
    this.loaded = shown.join();
  }

  /** Count the patients of a predicate. */
  async select(where, signal) {
    if (!where) {
      this.part = this.whole;
      this.counts = new Map(this.axes.map((x) => [x.column, x.all]));
      this.medians = new Map(this.axes.map((x) => [x.column, x.mid]));
      return;
    }
    const [lists, bins] = await Promise.all([
      sql(this.dataset, listsQuery(this.structures), { where, signal }),
      this.axes.length ? sql(this.dataset, countsQuery(this.axes, this.structures), { where, signal }) : { rows: [] },
    ]);
    this.part = new Map(lists.rows.map(([k, v, n]) => [`${k}\0${v}`, n]));
    this.counts = new Map(this.axes.map((x) => [x.column, Array(BINS).fill(0)]));
    this.medians = new Map();
    for (const [k, mid, bin, n] of bins.rows) {
      this.medians.set(k, mid);
      this.counts.get(k)[bin] = n;
    }
  }

  draw(conditions) {
    this.conditions = conditions;
    clearTimeout(this.waiting);
    if (isTyping(this.node)) return void (this.waiting = setTimeout(() => this.draw(this.conditions), 300));
    redraw(this.node, "data-facet", () => {
      fill(this.lists, LISTS.map((c) => this.list(c)), this.missing(), this.flags());
      fill(this.charts, this.axes.map((x) => this.chart(x)), this.more());
    });
  }

  count(column, value) {
    const all = this.whole.get(`${column}\0${value}`) ?? 0;
    const part = this.part.get(`${column}\0${value}`) ?? 0;
    return h("span", { className: "count", title: `${part} selected of ${all}` }, h("b", null, number(part)), part === all ? null : ` / ${number(all)}`);
  }

  list(column) {
    const found = [...this.whole.keys()].map((k) => k.split("\0")).filter(([k]) => k === column).map(([, v]) => v).sort();
    const chosen = /** @type {any} */ (about(this.conditions, column))?.values;
    const toggle = (value, isOn) => {
      const next = found.filter((v) => (v === value ? isOn : !chosen || chosen.includes(v)));
      const condition = next.length === found.length || !next.length ? null : { kind: "in", column, values: next };
      this.change(column, condition);
    };
    return h("fieldset", null, h("legend", null, column), found.map((value) => h("label", { className: "row" },
      h("input", { type: "checkbox", "data-facet": `${column}=${value}`, checked: !chosen || chosen.includes(value), onchange: (e) => toggle(value, e.target.checked) }),
      h("span", null, value), this.count(column, value))));
  }

  /** Three states of a flag: any, one value, the other. */
  flag(column, label, words) {
    const chosen = /** @type {any} */ (about(this.conditions, column));
    const now = chosen?.kind === "flag" ? String(chosen.value) : "";
    const set = (e) => this.change(column, e.target.value === "" ? null : { kind: "flag", column, value: e.target.value === "true" });
    const part = this.part.get(`${column}\0true`) ?? 0;
    const all = this.whole.get(`${column}\0true`) ?? 0;
    return h("label", { className: "row", title: this.columns.get(column)?.description }, h("span", null, label),
      h("span", { className: "count", title: `${part} of the selected, ${all} of all` }, h("b", null, number(part)), part === all ? null : ` / ${number(all)}`),
      h("select", { onchange: set, "data-facet": column, "aria-label": `${label}: which patients` },
        [["", "any"], ["false", words[0]], ["true", words[1]]].map(([v, t]) => h("option", { value: v, selected: v === now }, t))));
  }

  missing() {
    const some = this.structures.filter((x) => this.whole.get(`missing_${x}\0true`));
    if (!some.length) return null;
    return h("fieldset", null, h("legend", { title: "Patients without a clinical mask of a structure" }, "missing"), some.map((x) => this.flag(`missing_${x}`, x, ["has it", "lacks it"])));
  }

  flags() {
    const some = Object.keys(FLAGS).filter((c) => this.whole.get(`${c}\0true`) && this.whole.get(`${c}\0false`));
    if (!some.length) return null;
    return h("fieldset", null, h("legend", null, "flags"), some.map((c) => this.flag(c, FLAGS[c], ["no", "yes"])));
  }

  chart(x) {
    const column = this.columns.get(x.column);
    const chosen = /** @type {any} */ (about(this.conditions, x.column));
    const [low, high] = chosen?.kind === "range" ? [chosen.low, chosen.high] : [null, null];
    const set = (from, to) => this.change(x.column, from === null && to === null ? null : { kind: "range", column: x.column, low: from, high: to });
    const field = (value, label, side) => h("input", {
      type: "number", step: "any", value: value ?? "", placeholder: number(side === "low" ? x.low : x.high), "aria-label": `${x.column} ${label}`, "data-facet": `${x.column} ${side}`,
      onchange: (e) => {
        const given = e.target.value === "" ? null : Number(e.target.value);
        side === "low" ? set(given, high) : set(low, given);
      },
    });
    return h("figure", { className: "chart", "aria-label": `${x.column}, histogram` },
      h("figcaption", null, h("span", { title: column?.description ?? "" }, x.column, column?.unit ? h("small", null, ` ${unit(column.unit)}`) : null),
        iconButton("close", `Remove the histogram of ${x.column}`, () => this.choose(this.shown.filter((c) => c !== x.column)))),
      this.bars(x, low, high, set),
      h("div", { className: "ends" }, field(low, "at least", "low"), h("span", null, "to"), field(high, "at most", "high")),
      h("small", null, `median ${number(this.medians.get(x.column))}`, this.medians.get(x.column) === x.mid ? null : `, of all ${number(x.mid)}`));
  }

  bars(x, low, high, set) {
    const [W, H] = [BINS * 10, 64];
    const most = Math.max(1, ...x.all);
    const tall = (n) => (n ? Math.max(1.5, (Math.sqrt(n) / Math.sqrt(most)) * H) : 0);
    const part = this.counts.get(x.column) ?? [];
    const place = (v) => Math.min(W, Math.max(0, ((v - x.a) / x.step) * 10));
    const edge = (bin) => x.a + bin * x.step;
    const bars = x.all.map((n, i) => {
      const from = i === 0 ? number(x.low) : number(edge(i));
      const to = i === BINS - 1 ? number(x.high) : number(edge(i + 1));
      return s("g", null, s("title", null, `${from} to ${to}: ${part[i] ?? 0} of ${n} patients`),
        s("rect", { x: i * 10, y: 0, width: 10, height: H, class: "hit" }),
        s("rect", { x: i * 10 + 1, y: H - tall(n), width: 8, height: tall(n), class: "all" }),
        s("rect", { x: i * 10 + 1, y: H - tall(part[i] ?? 0), width: 8, height: tall(part[i] ?? 0), class: "part" }));
    });
    const brush = s("rect", { class: "brush", y: 0, height: H, x: 0, width: 0 });
    const mark = (a, b) => { brush.setAttribute("x", String(Math.min(a, b))); brush.setAttribute("width", String(Math.abs(b - a))); };
    if (low !== null || high !== null) mark(low === null ? 0 : place(low), high === null ? W : place(high));
    const node = s("svg", { viewBox: `0 0 ${W} ${H}`, class: "bars", role: "img", preserveAspectRatio: "none", "aria-label": `${x.total} patients from ${number(x.low)} to ${number(x.high)}; drag to select a range` }, bars, brush);
    let start = null;
    const at = (e) => { const box = node.getBoundingClientRect(); return Math.min(W, Math.max(0, ((e.clientX - box.left) / box.width) * W)); };
    node.addEventListener("pointerdown", (e) => { start = at(e); node.setPointerCapture(e.pointerId); mark(start, start); });
    node.addEventListener("pointermove", (e) => start !== null && mark(start, at(e)));
    node.addEventListener("pointerup", (e) => {
      if (start === null) return;
      const [a, b] = [start, at(e)].sort((p, q) => p - q).map((p) => Math.round(p / 10));
      start = null;
      if (a === b) return set(null, null);
      set(a === 0 ? null : rounded(edge(a), x.step), b === BINS ? null : rounded(edge(b), x.step));
    });
    node.addEventListener("pointercancel", () => { start = null; });
    return node;
  }

  more() {
    const free = [...this.columns.values()].filter((c) => /double|float|int/.test(c.type) && !c.type.startsWith("list") && !this.shown.includes(c.name));
    return h("label", { className: "more" }, h("span", { className: "unseen" }, "Add a histogram"),
      h("select", { onchange: (e) => e.target.value && this.choose([...this.shown, e.target.value]) },
        h("option", { value: "" }, "+ histogram of …"), free.map((c) => h("option", { value: c.name }, c.name))));
  }
}

/** Round an edge to what a person would type. */
function rounded(value, step) {
  const digits = Math.max(0, Math.min(12, 1 - Math.floor(Math.log10(step))));
  return Number(value.toFixed(digits));
}

/** A unit as people write it. */
export function unit(text) {
  return { cm3: "cm³", byte: "bytes", 1: "" }[text] ?? text;
}
