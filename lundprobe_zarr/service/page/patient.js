// One patient: panels around the panes of the viewer.

import { isCancelled, json, sql } from "./api.js";
import { dialog, fill, h, iconButton, isTyping, later, number, redraw, say } from "./dom.js";
import { selected } from "./cohort.js";
import { dvhChart, swatch } from "./dvh.js";
import { CT_WINDOWS, MAPS, OBSERVERS, colourAt, gradient, look } from "./looks.js";
import { Pane } from "./pane.js";
import { FIRST, Source } from "./planes.js";
import { expression } from "./predicate.js";
import { go } from "./state.js";
import { PREDICTED, Viewer, levels } from "./viewer.js";

const GRIDS = { mri: "MRI", sct: "synthetic CT", dose: "planning dose" };

export async function showPatient(context, view) {
  const { main, session, dataset } = context;
  document.title = `${view.patient} – lundprobe-zarr`;
  crumb(dataset, view.patient, session);
  fill(main, h("p", { className: "waiting" }, "Loading …"));
  const source = new Source(dataset.name, view.patient, dataset.sha);
  const about = await json(source.path, { query: { rev: dataset.sha } });
  const page = new PatientView(context, about, source);
  page.viewer.take(view.params);
  page.arrange();
  page.histograms();
  return { update: (next) => page.update(next), close: () => page.close() };
}

/** The patient's name in the header, with the one before and the next of the selected patients. */
function crumb(dataset, patient, session) {
  const place = document.getElementById("crumb");
  if (!place) return;
  const { where = "", order = "" } = selected.get(dataset.name) ?? {};
  const turn = async (by) => {
    try {
      const column = order.replace(/^-/, "");
      const first = column && column !== "patient_id" ? `${expression(column, session.structures.map((x) => x.name))} ${order.startsWith("-") ? "DESC" : "ASC"} NULLS LAST, ` : "";
      const last = column === "patient_id" && order.startsWith("-") ? " DESC" : "";
      const found = await sql(dataset.name, `SELECT p.patient_id FROM patients p ORDER BY ${first}p.patient_id${last}`, { where });
      const ids = found.rows.map(([id]) => id);
      const next = ids[(ids.indexOf(patient) + by + ids.length) % ids.length];
      if (next && next !== patient) go({ dataset: dataset.name, patient: next });
      else say("This is the only patient of the selection.");
    } catch (error) {
      if (!isCancelled(error)) dialog("The next patient cannot be found", h("p", null, error.message));
    }
  };
  const toTable = { dataset: dataset.name, params: Object.fromEntries([["where", where], ["sort", order]].filter(([, v]) => v)) };
  fill(place,
    iconButton("back", "All patients (Esc)", () => go(toTable), "Patients"),
    h("strong", null, patient),
    dataset.kinds.includes("tables") && [iconButton("back", "Patient before (,)", () => turn(-1)), iconButton("next", "Next patient (.)", () => turn(1))]);
  /** @type {any} */ (place).turn = turn;
  /** @type {any} */ (place).leave = () => go(toTable);
}

class PatientView {
  constructor({ main, session, dataset }, about, source) {
    this.dataset = dataset;
    /** The answer of `/dvh`. */
    this.found = null;
    this.about = about;
    this.viewer = new Viewer(about, source, about.prescription.gy);
    this.viewer.onvalues = (found, isCross, error) => this.values(found, isCross, error);
    this.viewer.listeners.push(() => this.draw());
    this.descriptions = new Map(session.structures.map((x) => [x.name, x.description]));
    this.stage = h("div", { className: "stage-panes" });
    this.left = h("aside", { className: "panel left", "aria-label": "What is shown" });
    this.point = h("section", { className: "card", "aria-label": "Values at a point" });
    this.chart = h("section", { className: "card", "aria-label": "Dose and volume" }, h("h2", null, "Dose and volume"), h("p", { className: "small" }, "Loading …"));
    this.facts = h("section", { className: "card", "aria-label": "About the patient" });
    fill(main, h("div", { className: "patient" }, h("h1", { className: "unseen" }, `Patient ${about.patient_id}`), this.left, this.stage, h("aside", { className: "panel right", "aria-label": "Values", tabIndex: 0 }, this.point, this.chart, this.facts)));
    this.keys = (e) => this.key(e);
    addEventListener("keydown", this.keys);
    this.redraw = later(30, () => this.controls());
    this.describe();
  }

  close() {
    removeEventListener("keydown", this.keys);
    this.viewer.close();
    const place = document.getElementById("crumb");
    if (place) fill(place);
  }

  update(view) {
    crumb(this.dataset, view.patient, { structures: [...this.descriptions.keys()].map((name) => ({ name })) });
    this.viewer.take(view.params);
    if (!this.found) this.histograms();
  }

  /** Make the panes of the layout. */
  arrange() {
    const { lay } = this.viewer.params;
    this.layout = lay;
    for (const pane of this.viewer.panes) pane.close();
    this.viewer.panes =
      lay === "observers"
        ? [new Pane(this.viewer, "axial", { title: "step 1: without the map", step: 1 }), new Pane(this.viewer, "axial", { title: "step 2: with the map", step: 2 })]
        : (lay === "3" ? ["axial", "coronal", "sagittal"] : [lay]).map((view) => new Pane(this.viewer, view));
    this.stage.className = `stage-panes lay-${lay}`;
    fill(this.stage, this.viewer.panes.map((p) => p.node));
    this.viewer.refresh();
  }

  draw() {
    if (this.layout !== undefined && this.layout !== this.viewer.params.lay) return this.arrange();
    this.redraw();
    this.drawHistograms();
  }

  // The left panel --------------------------------------------------------------------------------

  controls() {
    const active = document.activeElement;
    if (this.left.contains(active) && active?.matches('input[type="range"]') && this.isBusy) return;
    if (isTyping(this.left)) return void setTimeout(this.redraw, 300);
    redraw(this.left, "data-key", () => fill(this.left, this.views(), this.image(), this.dose(), this.structures()));
  }

  section(title, ...children) {
    return h("section", { className: "card" }, h("h2", null, title), children);
  }

  check(key, label, value, change, more) {
    return h("label", { className: "row" }, h("input", { type: "checkbox", "data-key": key, checked: value, onchange: (e) => change(e.target.checked) }), label, more ?? null);
  }

  range(key, label, value, low, high, change, unit = "") {
    const shown = h("output", null, `${Math.round(value)}${unit}`);
    return h("label", { className: "row" }, h("span", { className: "name" }, label),
      h("input", { type: "range", min: low, max: high, value, "data-key": key,
        oninput: (e) => { this.isBusy = true; shown.textContent = `${e.target.value}${unit}`; change(Number(e.target.value), false); },
        onchange: (e) => { this.isBusy = false; change(Number(e.target.value), true); } }), shown);
  }

  views() {
    const { lay } = this.viewer.params;
    const options = [["3", "3 views"], ["axial", "axial"], ["coronal", "coronal"], ["sagittal", "sagittal"], ...(this.viewer.hasObservers ? [["observers", "observers"]] : [])];
    return h("section", { className: "card" }, h("div", { className: "segments", role: "group", "aria-label": "Layout" },
      options.map(([value, text]) => h("button", { type: "button", "data-key": `lay-${value}`, "aria-pressed": String(lay === value), onclick: () => this.viewer.set({ lay: value }) }, text))),
      h("div", { className: "row" }, iconButton("fit", "Show the whole body (0)", () => this.viewer.fit(), "Fit"),
        iconButton("help", "Mouse and keys (?)", () => help(), "Help")));
  }

  image() {
    const v = this.viewer;
    const { grid, blend, t2w, sct } = v.params;
    const hasBoth = grid === "mri" && v.volume("mri/image", "sCT") && v.volume("mri/image", "T2w");
    const isT2w = grid === "mri" && v.volume("mri/image", "T2w");
    return this.section("Image",
      h("label", { className: "row" }, h("span", { className: "name" }, "grid"),
        h("select", { "data-key": "grid", onchange: (e) => v.set(e.target.value === "dose" ? { grid: "dose", from: 5 } : { grid: e.target.value }) }, Object.keys(v.grids).map((g) => h("option", { value: g, selected: g === grid }, GRIDS[g] ?? g)))),
      hasBoth && this.range("blend", "T2w ↔ sCT", blend, 0, 100, (value, isStep) => v.set({ blend: value }, isStep), " %"),
      isT2w && blend < 100 && this.windowOf("t2w", "T2w", t2w, { "1–99.7 %": v.window("T2w"), "all values": v.volume("mri/image", "T2w").range }),
      (grid === "sct" || blend > 0) && v.volume(`${grid}/image`, "sCT") && this.windowOf("sct", "sCT, HU", sct, CT_WINDOWS));
  }

  windowOf(key, label, [low, high], presets) {
    const set = (pair) => this.viewer.set({ [key]: pair });
    const known = Object.entries(presets).filter(([, p]) => p);
    const now = known.find(([, p]) => p[0] === low && p[1] === high)?.[0] ?? "";
    const field = (value, which, side) => h("input", { type: "number", step: "any", value: number(value).replaceAll("\u202f", ""), "aria-label": `${label} ${which}`, "data-key": `${key}-${which}`, onchange: (e) => {
      const next = side ? [low, Number(e.target.value)] : [Number(e.target.value), high];
      if (next[0] < next[1]) set(next);
    } });
    return h("div", { className: "row window" }, h("span", { className: "name" }, label), field(low, "black", 0), field(high, "white", 1),
      h("select", { "aria-label": `${label} window`, "data-key": `${key}-preset`, onchange: (e) => set(presets[e.target.value]) },
        !now && h("option", { value: "", selected: true, disabled: true }, "own"), known.map(([text]) => h("option", { value: text, selected: text === now }, text))));
  }

  dose() {
    const v = this.viewer;
    const p = v.params;
    if (!v.volume(`${p.grid}/dose`)) return this.section("Dose", h("p", { className: "small" }, this.whyMissing(`${p.grid}/dose`)));
    const words = p.unit === "Gy" ? "Gy" : `% of ${v.prescription} Gy`;
    return this.section("Dose",
      p.grid !== "dose" && this.range("wash", "wash", p.wash, 0, 100, (value, isStep) => v.set({ wash: value }, isStep), " %"),
      this.range("from", "from", p.from, 0, 110, (value, isStep) => v.set({ from: value }, isStep), " %"),
      h("div", { className: "scale" }, h("div", { style: { background: gradient(MAPS.dose) } }), h("span", null, "0"), h("span", null, `${v.doseMax.toFixed(1)} Gy`)),
      this.check("isodoses", "isodoses", p.isodoses, (isOn) => v.set({ isodoses: isOn })),
      h("div", { className: "row" }, h("input", { type: "text", value: p.iso, "aria-label": `Isodoses, ${words}`, "data-key": "iso", title: "Up to 12 levels",
        onchange: (e) => { const found = levels(e.target.value); found ? v.set({ iso: found }) : (e.target.value = p.iso); } }),
        h("select", { "aria-label": "Unit of the isodoses", "data-key": "unit", onchange: (e) => v.set({ unit: e.target.value, iso: this.converted(e.target.value) }) },
          h("option", { value: "pct", selected: p.unit === "pct" }, `% of ${v.prescription}`), h("option", { value: "Gy", selected: p.unit === "Gy" }, "Gy"))),
      p.isodoses && h("div", { className: "legend" }, v.list("iso").map(Number).map((level) => {
        const gy = p.unit === "Gy" ? level : (level * v.prescription) / 100;
        return h("span", null, swatch({ colour: `rgb(${colourAt(MAPS.dose, gy / v.doseMax).join(" ")})`, dash: [] }), p.unit === "Gy" ? `${level} Gy` : `${level} %`);
      })));
  }

  converted(unit) {
    const k = unit === "Gy" ? this.viewer.prescription / 100 : 100 / this.viewer.prescription;
    return this.viewer.list("iso").map((v) => Number((v * k).toFixed(1))).join(",");
  }

  whyMissing(array) {
    return this.about.missing.find((m) => m.array === array)?.why ?? "There is none on this grid.";
  }

  structures() {
    const v = this.viewer;
    const p = v.params;
    if (p.grid === "dose") return this.section("Structures", h("p", { className: "small" }, "The planning grid has dose alone. Outlines are drawn on the MRI and on the CT grid."));
    const hidden = v.list("hide");
    const toggle = (structure, isOn) => v.set({ hide: (isOn ? hidden.filter((s) => s !== structure) : [...hidden, structure]).join(",") });
    const rows = this.about.structures.map((s) => {
      const segmentation = this.about.segmentations.find((x) => x.grid === p.grid && x.source === "clinical" && x.structure === s.structure);
      const label = [swatch(look({ structure: s.structure, source: "clinical" })), h("span", { className: "name", title: this.descriptions.get(s.structure) ?? s.is }, s.structure)];
      if (!segmentation)
        return h("li", { className: "absent" }, h("div", { className: "row" }, h("input", { type: "checkbox", disabled: true, "aria-label": `${s.structure}: missing` }), label, h("small", null, "missing")), h("small", { className: "why" }, s.missing_because ?? "no mask on this grid"));
      return h("li", null, h("div", { className: "row" },
        h("label", { className: "row" }, h("input", { type: "checkbox", "data-key": `s-${s.structure}`, checked: !hidden.includes(s.structure), onchange: (e) => toggle(s.structure, e.target.checked) }), label),
        segmentation.centroid_mm ? h("button", { type: "button", className: "quiet volume", title: `${s.structure}, cm³. Go to its centre.`, "aria-label": `Go to the centre of ${s.structure}, ${number(segmentation.volume_cc, 3)} cm³`, onclick: () => v.move(v.grid.clamped(segmentation.centroid_mm)) }, number(segmentation.volume_cc, 3)) : h("small", null, "empty")));
    });
    return this.section(["Structures", h("small", { className: "right" }, "cm³")], h("ul", { className: "structures" }, rows), this.sources(), this.marks());
  }

  sources() {
    const v = this.viewer;
    const chosen = v.list("src");
    const has = (key) => this.about.segmentations.some((s) => s.grid === v.params.grid && (key.startsWith("observer") ? s.source === "observer" && s.step === Number(key.at(-1)) : s.source === key));
    const there = Object.keys(v.sources).filter(has);
    if (there.length < 2) return null;
    const isSided = v.params.lay === "observers";
    const toggle = (key, isOn) => v.set({ src: (isOn ? [...chosen, key] : chosen.filter((s) => s !== key)).join(",") });
    const shown = v.list("obs");
    const observers = (isSided || chosen.some((s) => s.startsWith("observer"))) && h("div", { className: "row wrap" }, Object.keys(OBSERVERS).map((o) => this.check(`o-${o}`, [swatch(OBSERVERS[o]), o.slice(3)], shown.includes(o), (isOn) => v.set({ obs: (isOn ? [...shown, o] : shown.filter((x) => x !== o)).join(",") }))));
    return [h("h3", null, "Drawn by"), there.filter((key) => !isSided || key === "nnunet").map((key) => this.check(`src-${key}`, v.sources[key], chosen.includes(key), (isOn) => toggle(key, isOn))), observers,
      v.uncertainties.length ? [h("label", { className: "row" }, h("span", { className: "name" }, "uncertainty"), h("select", { "data-key": "unc", onchange: (e) => v.set({ unc: e.target.value }) }, h("option", { value: "" }, "none"), v.uncertainties.map((s) => h("option", { value: s, selected: s === v.params.unc }, s)))),
        v.params.unc && h("div", { className: "scale" }, h("div", { style: { background: gradient(MAPS.uncertainty) } }), h("span", null, "0"), h("span", null, "0.5, standard deviation of 10 folds"))] : null];
  }

  marks() {
    const v = this.viewer;
    const fiducials = this.about.fiducials_mm?.length ?? 0;
    return [h("h3", null, "Marks"), this.check("cross", "crosshair (x)", v.params.cross, (isOn) => v.set({ cross: isOn })),
      fiducials ? this.check("fid", `${fiducials} gold fiducials ◇`, v.params.fid, (isOn) => v.set({ fid: isOn })) : null];
  }

  // The right panel -------------------------------------------------------------------------------

  values(found, isCross, error) {
    const title = h("h2", null, isCross ? "At the crosshair" : "Under the pointer");
    if (!found) return fill(this.point, title, h("p", { className: "wrong" }, error?.message ?? ""));
    const [x, y, z] = found.point_mm;
    const rows = Object.entries(found.grids).flatMap(([grid, at]) => {
      const lines = (at?.values ?? []).map((each) => this.value(each)).filter(Boolean);
      return lines.length ? [h("tr", { className: "group" }, h("th", { scope: "rowgroup" }, `${GRIDS[grid]} grid`), h("td", { className: "n", title: "z, y, x" }, `voxel ${at.voxel.join(", ")}`)), lines] : [];
    });
    const inside = Object.values(found.grids).flatMap((at) => at?.inside ?? []);
    const names = [...new Set(inside.filter((i) => i.source === "clinical").map((i) => i.structure))];
    const others = byStructure(inside.filter((i) => i.source !== "clinical"));
    fill(this.point, title,
      h("p", { className: "mm" }, [["x", x], ["y", y], ["z", z]].map(([k, v]) => h("span", null, h("b", null, k), ` ${v.toFixed(1)}`)), h("small", null, "mm, LPS")),
      h("table", { className: "numbers" }, h("tbody", null, rows.length ? rows : h("tr", null, h("td", null, "outside of all grids")))),
      h("p", { className: "inside", title: found.rule }, names.length ? names.map((s) => h("span", { className: "tag" }, swatch(look({ structure: s, source: "clinical" })), s)) : h("small", null, "in no clinical structure")),
      others.map(([structure, words]) => h("p", { className: "small" }, h("b", null, structure), ` also by ${words}`)),
      found.damaged.map((text) => h("p", { className: "wrong" }, text)));
  }

  /** A row of the values of a voxel: of images, dose and uncertainty. */
  value(each) {
    const what = each.array.endsWith("/dose") ? "dose" : each.labels.modality ?? (each.array.endsWith("/uncertainty") ? `uncertainty ${each.labels.structure}` : null);
    if (!what) return null;
    const percent = what === "dose" && typeof each.value === "number" ? `${number((100 * each.value) / this.about.prescription.gy, 3)} % · ` : "";
    return h("tr", { "data-array": each.array, "data-label": each.labels.modality ?? each.labels.structure ?? "", "data-value": String(each.value) }, h("th", { scope: "row" }, what),
      h("td", { className: "n", title: String(each.value) }, h("small", null, percent), h("b", null, exact(each.value)), each.unit === "1" ? null : ` ${each.unit}`));
  }

  async histograms() {
    try {
      const grid = this.viewer.grids.sct && this.about.segmentations.some((s) => s.grid === "sct") ? "sct" : "mri";
      const structures = this.about.structures.map((s) => s.structure).filter((s) => s !== "BODY").join(",");
      this.found = await this.viewer.source.json("/dvh", { grid, structures }, undefined, FIRST.histograms);
      this.drawHistograms();
    } catch (error) {
      if (!isCancelled(error)) fill(this.chart, h("h2", null, "Dose and volume"), h("p", { className: "wrong" }, error.message));
    }
  }

  drawHistograms() {
    const key = this.viewer.params?.hide;
    if (!this.found || this.drawnFor === key) return;
    this.drawnFor = key;
    const hidden = this.viewer.list("hide");
    fill(this.chart, h("h2", null, "Dose and volume"), dvhChart(this.found, (c) => !hidden.includes(c.structure)));
  }

  describe() {
    const a = this.about;
    const row = a.tables?.patients?.[0];
    const size = (grid) => { const g = a.grids[grid]; return `${[...g.shape].reverse().join(" × ")}, ${[...g.spacing_mm].reverse().map((v) => number(v, 3)).join(" × ")} mm${g.is_aligned ? "" : ", oblique"}`; };
    const facts = [["part", a.part], ["protocol", a.protocol], ["precision", a.precision], ...Object.keys(a.grids).map((g) => [`${GRIDS[g]} grid`, size(g)]),
      ["dose", row?.dose_max_gy ? `up to ${number(row.dose_max_gy)} Gy; ${a.prescription.gy} Gy in ${a.prescription.fractions} fractions` : null],
      ["fiducials", a.fiducials_mm ? String(a.fiducials_mm.length) : "unreadable"], ["sCT", row?.sct_warning_text ? "warning text burnt into the first 50 rows" : null], ["revision", a.revision.slice(0, 12)]];
    const list = (title, items) => items?.length ? [h("h3", null, title), h("ul", { className: "findings" }, items.map((text) => h("li", null, text)))] : null;
    fill(this.facts, h("h2", null, a.synthetic ? "Phantom: no patient" : "Patient"),
      h("dl", null, facts.filter(([, v]) => v).map(([k, v]) => [h("dt", null, k), h("dd", null, v)])),
      list("Findings", a.findings), list("Quality control", a.qc?.map((q) => `${q.severity}: ${q.message}`)), list("Damaged", a.damaged),
      list("Missing", a.missing.map((m) => `${m.array}${Object.keys(m.labels).length ? ` ${Object.values(m.labels).join(" ")}` : ""}: ${m.why}`)),
      h("p", { className: "small" }, "For research. Not a medical device; not for diagnosis or treatment."));
  }

  key(e) {
    const target = /** @type {HTMLElement} */ (e.target);
    if (e.altKey || e.ctrlKey || e.metaKey || target.matches("input:not([type=range]):not([type=checkbox]), select, textarea, dialog *")) return;
    const v = this.viewer;
    const place = /** @type {any} */ (document.getElementById("crumb"));
    const pane = v.panes[0];
    const act = {
      "?": help, 0: () => v.fit(), x: () => v.set({ cross: !v.params.cross }), d: () => v.set({ wash: v.params.wash ? 0 : 35 }), i: () => v.set({ isodoses: !v.params.isodoses }),
      b: () => v.set({ blend: v.params.blend ? 0 : 100 }), s: () => v.set({ hide: v.list("hide").length > 1 ? "BODY" : this.about.structures.map((x) => x.structure).join(",") }),
      1: () => v.set({ lay: "axial" }), 2: () => v.set({ lay: "coronal" }), 3: () => v.set({ lay: "sagittal" }), 4: () => v.set({ lay: "3" }),
      ",": () => place?.turn?.(-1), ".": () => place?.turn?.(1), Escape: () => place?.leave?.(), ArrowUp: () => pane?.turn(pane.upwards()), ArrowDown: () => pane?.turn(-pane.upwards()),
    }[e.key];
    if (!act || (e.key.startsWith("Arrow") && target.matches("input, aside, [role=region], svg"))) return;
    e.preventDefault();
    act();
  }
}

function exact(value) {
  if (value === null) return "unreadable";
  return typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value);
}

/** Return who else put a voxel into each structure: networks, folds, observers. */
function byStructure(inside) {
  return [...new Set(inside.map((i) => i.structure))].map((structure) => {
    const of = (source, step) => inside.filter((i) => i.structure === structure && i.source === source && (step === undefined || i.step === step));
    const seen = (step) => of("observer", step).map((i) => i.observer.replace(/^obs/, "")).join(" ");
    const folds = of("nnunet_fold").length;
    const words = [of("nnunet").length && "nnU-Net", folds && `${folds} of 10 folds`, ...[1, 2].map((step) => seen(step) && `observers ${seen(step)} in step ${step}`)];
    const predicted = inside.filter((i) => i.structure === structure && i.source.startsWith(PREDICTED)).map((i) => `prediction ${i.source.slice(PREDICTED.length)}`);
    return [structure, [...words, ...predicted].filter(Boolean).join(", ")];
  });
}

function help() {
  const rows = [
    ["click, drag", "crosshair in all views"], ["wheel; ↑ ↓; Page Up, Page Down", "slices"], ["Ctrl and wheel; + −; pinch", "zoom"], ["Shift or middle button and drag; ← →", "pan"],
    ["Shift and arrows", "move the crosshair"], ["right button and drag", "window: width and level"], ["double click, f", "one view, or three"], ["1 2 3 4", "axial, coronal, sagittal, three views"],
    ["0", "the whole body"], ["x", "crosshair"], ["b", "T2w or sCT"], ["d", "dose wash"], ["i", "isodoses"], ["s", "structures"], [", .", "patient before, next patient"], ["Esc", "back to the patients"],
  ];
  dialog("Mouse and keys", h("table", { className: "numbers keys" }, h("tbody", null, rows.map(([k, what]) => h("tr", null, h("th", { scope: "row" }, k), h("td", null, what))))),
    h("p", { className: "small" }, "Left on the screen is the patient's right. Positions are in mm in the DICOM patient frame (LPS): x to the left, y to the back, z to the head. Nothing is resampled: each view is a plane of the grid. The address of this page holds all of the view; who has a right to the data can open it."));
}
