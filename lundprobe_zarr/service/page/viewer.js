// What is shown of a patient, and how it changes: position, zoom, images, dose, structures. Panes
// draw it; the panels change it. Everything is in the URL's fragment.

import { Newest, isCancelled } from "./api.js";
import { later } from "./dom.js";
import { Grid, add } from "./geometry.js";
import { CT_WINDOWS } from "./looks.js";
import { flush, keep, numbers, step } from "./state.js";

export const SOURCES = {
  clinical: "clinical", nnunet: "nnU-Net", nnunet_fold: "nnU-Net, 10 folds",
  observer1: "observers, step 1", observer2: "observers, step 2",
};
/** What stands before the name of a prediction that is a source. */
export const PREDICTED = "prediction:";
const DEFAULTS = {
  grid: "mri", blend: 0, wash: 35, from: 50, iso: "50,80,95", unit: "pct", isodoses: true, hide: "BODY", src: "clinical",
  obs: "obsB,obsC,obsD,obsE", unc: "", cross: true, fid: true, lay: "3", zoom: 1,
};
const MOST_ZOOM = 40;
/** Levels outside of these are no isodoses of a plan. */
const MOST_LEVELS = 12;

export class Viewer {
  constructor(about, source, prescription) {
    this.about = about;
    this.source = source;
    this.prescription = prescription;
    this.grids = Object.fromEntries(Object.entries(about.grids).map(([name, given]) => [name, new Grid(name, given)]));
    const predicted = [...new Set(about.segmentations.map((s) => s.source))].filter((s) => s.startsWith(PREDICTED));
    /** What each source is called. @type {Record<string, string>} */
    this.sources = { ...SOURCES, ...Object.fromEntries(predicted.map((s) => [s, `prediction ${s.slice(PREDICTED.length)}`])) };
    this.panes = [];
    this.listeners = [];
    this.values = new Newest();
    this.look = later(60, () => this.ask());
    this.point = null;
    /** @type {any} */
    this.params = { ...DEFAULTS };
    /** Called with the values at a point. @type {((found: any, isCross: boolean, error?: Error) => void) | null} */
    this.onvalues = null;
  }

  /** Take what a fragment says; what is malformed falls back to how a patient opens. */
  take(given) {
    /** @type {any} */
    const p = { ...DEFAULTS };
    const flag = (v, d) => (v === undefined ? d : v !== "0");
    const within = (v, low, high, d) => (v !== undefined && v !== "" && Number.isFinite(Number(v)) ? Math.min(high, Math.max(low, Number(v))) : d);
    p.grid = this.grids[given.grid] ? given.grid : this.grids.mri ? "mri" : Object.keys(this.grids)[0];
    p.blend = within(given.blend, 0, 100, 0);
    p.wash = within(given.wash, 0, 100, DEFAULTS.wash);
    p.from = within(given.from, 0, 200, DEFAULTS.from);
    p.unit = given.unit === "Gy" ? "Gy" : "pct";
    p.iso = levels(given.iso) ?? (p.unit === "Gy" ? "20,34,40.6" : DEFAULTS.iso);
    p.isodoses = flag(given.isodoses, true);
    p.hide = given.hide ?? DEFAULTS.hide;
    p.src = given.src ?? DEFAULTS.src;
    p.obs = given.obs ?? DEFAULTS.obs;
    p.unc = this.uncertainties.includes(given.unc) ? given.unc : "";
    p.cross = flag(given.cross, true);
    p.fid = flag(given.fid, true);
    p.lay = ["3", "axial", "coronal", "sagittal", "observers"].includes(given.lay) ? given.lay : "3";
    if (p.lay === "observers" && !this.hasObservers) p.lay = "3";
    p.zoom = within(given.zoom, 0.2, MOST_ZOOM, 1);
    p.t2w = numbers(given.t2w, 2) ?? this.window("T2w") ?? [0, 1];
    p.sct = numbers(given.sct, 2) ?? CT_WINDOWS["soft tissue"];
    for (const key of ["t2w", "sct"]) if (p[key][0] >= p[key][1]) p[key] = [p[key][0], p[key][0] + 1];
    this.params = p;
    this.at = this.grid.clamped(numbers(given.at, 3) ?? this.about.opening.point_mm);
    this.centre = numbers(given.centre, 3) ?? this.opening();
    this.refresh();
  }

  /** Where a patient is shown at first: the middle of the body, at the height of the target. */
  opening() {
    return this.grid.centre;
  }

  get grid() {
    return this.grids[this.params.grid];
  }

  get zoom() {
    return this.params.zoom;
  }

  get uncertainties() {
    const array = this.about.arrays.find((a) => a.array === "mri/nnunet/uncertainty");
    return (array?.volumes ?? []).map((v) => v.labels.structure);
  }

  get hasObservers() {
    return this.about.segmentations.some((s) => s.source === "observer");
  }

  get doseMax() {
    const row = this.about.tables?.patients?.[0];
    return Math.max(row?.dose_max_gy ?? 0, this.prescription * 1.05);
  }

  volume(array, modality) {
    return this.about.arrays.find((a) => a.array === array)?.volumes.find((v) => !modality || v.labels.modality === modality);
  }

  window(modality) {
    return this.volume("mri/image", modality)?.window;
  }

  list(key) {
    return this.params[key].split(",").filter(Boolean);
  }

  // What panes draw -------------------------------------------------------------------------------

  layers() {
    const { grid, blend, wash, unc } = this.params;
    const found = [];
    const image = (modality) => found.push({ key: modality, array: `${grid}/image`, labels: { modality }, title: modality });
    if (this.volume(`${grid}/image`, "T2w") && (blend < 100 || !this.volume(`${grid}/image`, "sCT"))) image("T2w");
    if (this.volume(`${grid}/image`, "sCT") && (blend > 0 || grid === "sct")) image("sCT");
    if (grid === "mri" && unc) found.push({ key: "uncertainty", array: "mri/nnunet/uncertainty", labels: { structure: unc }, title: "uncertainty" });
    if ((wash > 0 || grid === "dose") && this.volume(`${grid}/dose`)) found.push({ key: "dose", array: `${grid}/dose`, labels: {}, title: "dose" });
    return found;
  }

  /** How a layer is drawn; `id` changes with what its picture depends on. */
  style(key) {
    const { params: p } = this;
    if (key === "dose") {
      const from = (p.from / 100) * this.prescription;
      return { map: "dose", low: 0, high: this.doseMax, from, alpha: p.grid === "dose" ? 1 : p.wash / 100, id: `dose ${from}` };
    }
    if (key === "uncertainty") return { map: "uncertainty", low: 0, high: 0.5, from: 0.01, alpha: 0.75, id: "uncertainty" };
    const [low, high] = key === "T2w" ? p.t2w : p.sct;
    return { low, high, alpha: key === "sCT" && p.grid === "mri" && p.blend < 100 ? p.blend / 100 : 1, id: `${low} ${high}` };
  }

  /** The queries for outlines of a pane. */
  outlines(pane) {
    const { grid } = this.params;
    if (grid === "dose") return [];
    const hidden = this.list("hide");
    const shown = this.about.structures.map((s) => s.structure).filter((s) => !hidden.includes(s));
    if (!shown.length) return [];
    const structures = shown.join(",");
    const chosen = this.list("src").filter((s) => this.sources[s]);
    const wanted = pane.given.step ? [...chosen.filter((s) => s === "nnunet"), `observer${pane.given.step}`] : chosen;
    const there = (source, test = (_) => true) => this.about.segmentations.some((s) => s.grid === grid && s.source === source && shown.includes(s.structure) && test(s));
    const found = [];
    for (const source of wanted) {
      const observed = /^observer(\d)$/.exec(source);
      if (observed && this.params.obs && there("observer", (s) => s.step === Number(observed[1]))) found.push({ source: "observer", step: observed[1], observer: this.params.obs, structures });
      else if (!observed && there(source)) found.push({ source, structures });
    }
    return found;
  }

  isodoses() {
    const { isodoses, iso, unit, grid } = this.params;
    return isodoses && iso && this.volume(`${grid}/dose`) ? { levels: iso, unit } : null;
  }

  // What changes ----------------------------------------------------------------------------------

  refresh() {
    for (const pane of this.panes) pane.refresh();
    this.point = null;
    this.look();
    for (const each of this.listeners) each();
  }

  paint() {
    for (const pane of this.panes) pane.paint();
  }

  /** Change parameters: `isStep` for what the browser's back is to undo. */
  set(params, isStep = true) {
    Object.assign(this.params, params);
    const texts = {};
    for (const [key, value] of Object.entries(params)) {
      const text = typeof value === "boolean" ? (value ? "1" : "0") : String(value);
      const usual = DEFAULTS[key] === undefined ? null : typeof DEFAULTS[key] === "boolean" ? "1" : String(DEFAULTS[key]);
      texts[key] = text === usual ? undefined : text;
      if (key === "grid") this.at = this.grid.clamped(this.at);
    }
    if (isStep) step(texts);
    else keep(texts);
    this.refresh();
  }

  move(point) {
    this.at = rounded(point);
    keep({ at: text(point) });
    this.refresh();
  }

  pan(by) {
    this.centre = rounded(add(this.centre, by));
    keep({ centre: text(this.centre) });
    this.paint();
  }

  magnify(factor, about = this.at) {
    const zoom = Number(Math.min(MOST_ZOOM, Math.max(0.2, this.params.zoom * factor)).toFixed(3));
    const k = this.params.zoom / zoom;
    this.centre = rounded(add(about, add(this.centre, about, -1), k));
    this.params.zoom = zoom;
    keep({ zoom: String(zoom), centre: text(this.centre) });
    this.paint();
  }

  /** Show the whole body again. */
  fit() {
    this.params.zoom = 1;
    this.centre = this.opening();
    keep({ zoom: undefined, centre: undefined });
    this.paint();
  }

  /** Widen or narrow the window of the image that is seen most, and brighten it. */
  rewindow(dx, dy) {
    const key = this.params.grid === "sct" || this.params.blend > 50 ? "sct" : "t2w";
    const [low, high] = this.params[key];
    const width = Math.max(1e-6, (high - low) * Math.exp(dx * 0.005));
    const level = (low + high) / 2 + dy * (high - low) * 0.004;
    this.params[key] = [level - width / 2, level + width / 2].map((v) => Number(v.toPrecision(5)));
    keep({ [key]: this.params[key].join(",") });
    this.paint();
    for (const each of this.listeners) each();
  }

  enlarge(view) {
    if (this.params.lay === "observers") return;
    this.set({ lay: this.params.lay === view ? "3" : view });
  }

  settled() {
    flush();
  }

  // Values at a point -----------------------------------------------------------------------------

  hover(point) {
    this.point = point && this.grid.holds(point) ? point : null;
    this.look();
  }

  async ask() {
    const signal = this.values.next();
    const point = this.point ?? this.at;
    try {
      const [x, y, z] = point.map((v) => v.toFixed(3));
      const found = await this.source.json("/values", { x, y, z }, signal);
      this.onvalues?.(found, this.point === null);
    } catch (error) {
      if (!isCancelled(error)) this.onvalues?.(null, this.point === null, error);
    }
  }

  close() {
    flush();
    this.values.stop();
    for (const pane of this.panes) pane.close();
  }
}

/** Round a point as a link has it, so that the link reproduces the view to the pixel. */
function rounded(point) {
  return point.map((v) => Number(v.toFixed(2)));
}

function text(point) {
  return rounded(point).join(",");
}

/** Return levels as they are asked for: rising, each once; null if they are none. */
export function levels(given) {
  if (given === undefined || given === null) return null;
  const found = given.split(/[,;\s]+/).filter(Boolean).map(Number);
  if (!found.length || !found.every((v) => Number.isFinite(v) && v > 0 && v < 1000)) return null;
  return [...new Set(found)].sort((a, b) => a - b).slice(0, MOST_LEVELS).join(",");
}

