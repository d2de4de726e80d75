// One view of the patient: a canvas with images, dose, outlines and the crosshair, and a slider.
// Images come first and a quarter of them before the whole; then outlines, above the dose.

import { GoneError, isCancelled } from "./api.js";
import { h, later } from "./dom.js";
import { add, dot, frame, length, letter, unit } from "./geometry.js";
import { MAPS, colourAt, look, pixels } from "./looks.js";
import { FIRST, colours, greys } from "./planes.js";

const DOSE = pixels(MAPS.dose);
const UNCERTAINTY = pixels(MAPS.uncertainty);
const AHEAD = 2;
/** Between two slices of somebody who does not scroll past them. */
const PAUSE_MS = 400;
/** Fiducials are drawn in planes within this distance. */
const NEAR_FIDUCIAL_MM = 2;

export class Pane {
  /**
   * @param {import("./viewer.js").Viewer} viewer
   * @param {string} view   axial, coronal or sagittal
   * @param {{ title?: string, step?: number }} [given]
   */
  constructor(viewer, view, given = {}) {
    this.viewer = viewer;
    this.view = view;
    this.given = given;
    this.layers = new Map();
    this.problems = new Map();
    this.canvas = h("canvas", { tabIndex: 0, role: "img", "aria-label": view, "aria-roledescription": "view of the patient" });
    this.slider = h("input", { type: "range", min: 0, step: 1, "aria-label": `${view} slice`, oninput: () => this.slide(Number(this.slider.value)) });
    this.said = h("p", { className: "damage", role: "status", hidden: true });
    this.node = h("section", { className: `pane ${view}`, "aria-label": given.title ?? view }, this.canvas, this.said, this.slider);
    this.context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    /** The plane that is shown: its index along an axis of the array. */
    this.n = -1;
    this.axis = -1;
    this.width = 1;
    this.height = 1;
    this.isDirty = false;
    this.isClosed = false;
    this.drawn = null;
    this.watch = new ResizeObserver(() => this.resized());
    this.watch.observe(this.canvas);
    this.controller = new AbortController();
    this.turned = -Infinity;
    this.soon = later(140, () => this.fine());
    this.direction = 1;
    this.listen();
  }

  close() {
    this.watch.disconnect();
    this.controller.abort();
    this.isClosed = true;
  }

  // Where things are ------------------------------------------------------------------------------

  get grid() {
    return this.viewer.grid;
  }

  /** The plane that is shown, and how it lies on the screen. */
  place() {
    const f = frame(this.grid, this.view);
    const n = this.grid.plane(f.axis, this.viewer.at);
    const index = this.grid.index(this.viewer.at);
    index[f.axis] = n;
    return { ...f, n, origin: this.grid.point(index) };
  }

  /** Pixels of the canvas (CSS) per mm. */
  scale(f) {
    const corners = [0, 1, 2, 3, 4, 5, 6, 7].map((c) => this.grid.point(this.grid.box[0].map((v, i) => ((c >> i) & 1 ? this.grid.box[1][i] - 1 : v))));
    const extent = (d) => { const all = corners.map((p) => dot(p, d)); return Math.max(...all) - Math.min(...all) || 1; };
    const fit = Math.min(this.width / extent(f.u), this.height / extent(f.v)) * 0.95;
    return fit * this.viewer.zoom;
  }

  /** Return a point's place on the canvas. */
  toScreen(f, k, point) {
    const d = add(point, this.viewer.centre, -1);
    return [dot(d, f.u) * k + this.width / 2, dot(d, f.v) * k + this.height / 2];
  }

  /** Return the point of the shown plane at a place on the canvas. */
  toPoint(x, y) {
    const f = this.place();
    const k = this.scale(f);
    const d = add(this.viewer.centre, f.origin, -1);
    const [a, b] = [(x - this.width / 2) / k + dot(d, f.u), (y - this.height / 2) / k + dot(d, f.v)];
    return add(add(f.origin, f.u, a), f.v, b);
  }

  resized() {
    const ratio = devicePixelRatio || 1;
    this.width = this.canvas.clientWidth;
    this.height = this.canvas.clientHeight;
    this.canvas.width = Math.max(1, Math.round(this.width * ratio));
    this.canvas.height = Math.max(1, Math.round(this.height * ratio));
    this.paint();
  }

  // What is loaded --------------------------------------------------------------------------------

  /** Load what the viewer shows now; what is on its way and not needed is cancelled. */
  refresh() {
    if (this.isClosed) return;
    const { axis, n } = this.place();
    const isMoved = this.n !== n || this.axis !== axis;
    if (isMoved) this.direction = this.axis === axis && n < this.n ? -1 : 1;
    [this.n, this.axis] = [n, axis];
    this.slider.max = String(this.grid.shape[axis] - 1);
    this.slider.value = String(n);
    this.controller.abort();
    this.controller = new AbortController();
    const wanted = this.viewer.layers();
    for (const key of [...this.layers.keys()]) if (!wanted.some((w) => w.key === key)) this.layers.delete(key);
    this.problems.clear();
    this.canvas.dataset.ready = "";
    let isComplete = true;
    for (const layer of wanted) isComplete = this.useKept(layer, axis, n) && isComplete;
    this.paint();
    const { signal } = this.controller;
    if (isComplete) this.fine();
    else {
      for (const layer of wanted) if (!this.holds(layer.key, n)) this.load(layer, axis, n, 4, signal, layer.key === "dose" ? FIRST.wash : FIRST.quarter);
      if (performance.now() - this.turned > PAUSE_MS) this.fine();
      else this.soon();
    }
    this.turned = performance.now();
    this.overlays(axis, n, signal);
    this.describe();
  }

  holds(key, n) {
    const layer = this.layers.get(key);
    return layer?.n === n && layer.axis === this.axis;
  }

  useKept(layer, axis, n) {
    for (const stride of [1, 4]) {
      const plane = this.viewer.source.kept(this.query(layer, axis, n, stride));
      if (plane) {
        this.layers.set(layer.key, { ...layer, axis, n, plane, picture: null });
        return stride === 1;
      }
    }
    return false;
  }

  query(layer, axis, n, stride) {
    const [a, b] = this.grid.box;
    const box = layer.isWhole ? [] : [...a, ...b];
    if (box.length) [box[axis], box[axis + 3]] = [n, n + 1];
    return { array: layer.array, ...layer.labels, axis: this.grid.axisName(axis), n, stride, values: "int16", ...(box.length ? { box: box.join(",") } : {}) };
  }

  async load(layer, axis, n, stride, signal, urgency) {
    try {
      const plane = await this.viewer.source.plane(this.query(layer, axis, n, stride), signal, urgency);
      if (signal.aborted) return;
      const now = this.layers.get(layer.key);
      if (now?.n === n && now.axis === axis && now.plane.stride < stride) return;
      this.layers.set(layer.key, { ...layer, axis, n, plane, picture: null });
      this.paint();
    } catch (error) {
      if (isCancelled(error) || error instanceof GoneError) return;
      this.layers.delete(layer.key);
      this.problems.set(layer.key, `${layer.title}: ${brief(error.message)}`);
      this.paint();
    }
  }

  /** Load all voxels of the shown plane, then those of its neighbours. */
  async fine() {
    if (this.isClosed) return;
    const { axis, n, controller: { signal } } = this;
    const wanted = this.viewer.layers().filter((w) => !this.problems.has(w.key));
    const urgency = (w) => (w.key === "dose" ? FIRST.wholeWash : this.viewer.panes[0] === this ? FIRST.image : FIRST.others);
    await Promise.all(wanted.map((w) => this.load(w, axis, n, 1, signal, urgency(w))));
    for (let i = 1; i <= AHEAD; i++)
      for (const to of [n + i * this.direction, ...(i === 1 ? [n - this.direction] : [])]) {
        if (signal.aborted || to < 0 || to >= this.grid.shape[axis]) continue;
        const ahead = wanted.map((w) => this.viewer.source.plane(this.query(w, axis, to, 1), signal, FIRST.ahead));
        for (const [path, query] of this.lines(axis, to)) ahead.push(this.viewer.source.json(path, query, signal, FIRST.ahead));
        await Promise.all(ahead.map((p) => p.catch(() => null)));
      }
  }

  /** The requests for outlines and isodoses of a plane. */
  /** @returns {[string, Record<string, any>][]} */
  lines(axis, n) {
    const place = { grid: this.grid.name, axis: this.grid.axisName(axis), n };
    /** @type {[string, Record<string, any>][]} */
    const found = this.viewer.outlines(this).map((query) => ["/contours", { ...place, ...query }]);
    const isodoses = this.viewer.isodoses();
    if (isodoses) found.push(["/isodoses", { ...place, ...isodoses }]);
    return found;
  }

  async overlays(axis, n, signal) {
    const wanted = this.lines(axis, n);
    const key = JSON.stringify(wanted);
    if (this.drawn?.key !== key && (this.drawn?.n !== n || this.drawn?.axis !== axis)) this.drawn = null;
    if (this.drawn?.key === key) return;
    const parts = await Promise.all(wanted.map(([path, query]) => this.viewer.source.json(path, query, signal, FIRST.lines).catch((error) => {
      if (!isCancelled(error) && !(error instanceof GoneError)) this.problems.set(path, `${path.slice(1)}: ${brief(error.message)}`);
      return null;
    })));
    if (signal.aborted) return;
    for (const part of parts) for (const text of part?.damaged ?? []) this.problems.set(text, text);
    this.drawn = { key, axis, n, contours: parts.flatMap((p) => p?.contours ?? []), isodoses: parts.flatMap((p) => p?.isodoses ?? []) };
    this.paint();
  }

  // What is drawn ---------------------------------------------------------------------------------

  paint() {
    if (this.isDirty) return;
    this.isDirty = true;
    requestAnimationFrame(() => {
      this.isDirty = false;
      if (!this.isClosed && this.width > 1) this.draw();
    });
  }

  draw() {
    const c = this.context;
    const ratio = this.canvas.width / this.width;
    const f = this.place();
    const k = this.scale(f);
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.fillStyle = "#000";
    c.fillRect(0, 0, this.canvas.width, this.canvas.height);
    for (const { key } of this.viewer.layers()) {
      const layer = this.layers.get(key);
      if (layer) this.drawLayer(c, layer, f, k, ratio);
    }
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawLines(c, f, k);
    this.drawFiducials(c, f, k);
    this.drawCross(c, f, k);
    this.drawWords(c, f, k);
    this.said.hidden = !this.problems.size;
    this.said.textContent = [...this.problems.values()].join("\n");
    this.canvas.dataset.ready = this.isReady() ? "full" : [...this.layers.values()].some((l) => l.n === this.n) ? "part" : "";
  }

  /** Whether all that is to be seen in the plane is there: whole images, and lines. */
  isReady() {
    const isWhole = (w) => this.holds(w.key, this.n) && this.layers.get(w.key).plane.stride === 1;
    return this.drawn?.key === JSON.stringify(this.lines(this.axis, this.n)) && this.viewer.layers().every(isWhole);
  }

  drawLayer(c, layer, f, k, ratio) {
    const style = this.viewer.style(layer.key);
    if (!style.alpha) return;
    if (!layer.picture || layer.styled !== style.id) {
      layer.picture = style.map
        ? colours(layer.plane, style.map === "dose" ? DOSE : UNCERTAINTY, style.low, style.high, style.from)
        : greys(layer.plane, style.low, style.high);
      layer.styled = style.id;
    }
    const { plane } = layer;
    const [ox, oy] = this.toScreen(f, k, plane.origin);
    const step = (d) => [dot(d, f.u) * k, dot(d, f.v) * k];
    const [[ax, ay], [bx, by]] = [step(plane.column), step(plane.row)];
    c.setTransform(ratio * ax, ratio * ay, ratio * bx, ratio * by, ratio * (ox - ax / 2 - bx / 2), ratio * (oy - ay / 2 - by / 2));
    c.globalAlpha = style.alpha;
    c.imageSmoothingEnabled = Math.hypot(ax, ay) * ratio < 6 || plane.stride > 1; // voxels, when near
    c.imageSmoothingQuality = "high";
    c.drawImage(layer.picture, 0, 0);
    c.globalAlpha = 1;
  }

  /** Add a line of x, y, z, x, y, z … to the path. */
  trace(c, f, k, flat, isClosed) {
    for (let i = 0; i < flat.length; i += 3) {
      const [x, y] = this.toScreen(f, k, [flat[i], flat[i + 1], flat[i + 2]]);
      if (i) c.lineTo(x, y);
      else c.moveTo(x, y);
    }
    if (isClosed) c.closePath();
  }

  drawLines(c, f, k) {
    if (!this.drawn || this.drawn.n !== this.n || this.drawn.axis !== this.axis) return;
    c.lineJoin = "round";
    const thick = this.width > 900 ? 1.35 : 1;
    for (const isodose of this.drawn.isodoses) {
      const [r, g, b] = colourAt(MAPS.dose, isodose.gy / this.viewer.doseMax);
      this.stroke(c, { colour: `rgb(${r} ${g} ${b})`, dash: [], width: 1.1 * thick }, () => isodose.lines.forEach((line) => this.trace(c, f, k, line, false)));
    }
    for (const contour of this.drawn.contours) {
      const style = look(contour);
      this.stroke(c, { ...style, width: style.width * thick }, () => contour.polygons.forEach((rings) => rings.forEach((ring) => this.trace(c, f, k, ring, true))));
    }
  }

  /** Draw a path twice: dark and wide below, so that it is seen on white too. */
  stroke(c, { colour, dash, width, alpha = 1 }, path) {
    c.beginPath();
    path();
    c.globalAlpha = alpha;
    c.setLineDash([]);
    c.strokeStyle = "rgb(0 0 0 / .5)";
    c.lineWidth = width + 1.6;
    if (width >= 1) c.stroke();
    c.setLineDash(dash);
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.stroke();
    c.setLineDash([]);
    c.globalAlpha = 1;
  }

  drawFiducials(c, f, k) {
    if (!this.viewer.params.fid) return;
    const normal = unit(this.grid.steps[f.axis]);
    for (const point of this.viewer.about.fiducials_mm ?? []) {
      const away = Math.abs(dot(add(point, f.origin, -1), normal));
      if (away > Math.max(NEAR_FIDUCIAL_MM, length(this.grid.steps[f.axis]) / 2)) continue;
      const [x, y] = this.toScreen(f, k, point);
      this.stroke(c, { colour: "#ffe14d", dash: [], width: 1.6 }, () => {
        c.moveTo(x + 6, y); c.lineTo(x, y + 6); c.lineTo(x - 6, y); c.lineTo(x, y - 6); c.closePath();
      });
    }
  }

  drawCross(c, f, k) {
    if (!this.viewer.params.cross) return;
    const [x, y] = this.toScreen(f, k, this.viewer.at);
    const gap = 9;
    this.stroke(c, { colour: "rgb(255 255 255 / .8)", dash: [], width: 0.9 }, () => {
      c.moveTo(0, y); c.lineTo(x - gap, y); c.moveTo(x + gap, y); c.lineTo(this.width, y);
      c.moveTo(x, 0); c.lineTo(x, y - gap); c.moveTo(x, y + gap); c.lineTo(x, this.height);
    });
  }

  drawWords(c, f, k) {
    const size = Math.max(11, Math.min(17, this.width / 48));
    c.font = `600 ${size}px system-ui, sans-serif`;
    const write = (text, x, y, align, base, colour = "#dfe7eb") => {
      c.lineWidth = 3;
      c.strokeStyle = "rgb(0 0 0 / .75)";
      c.textAlign = align;
      c.textBaseline = base;
      c.strokeText(text, x, y);
      c.fillStyle = colour;
      c.fillText(text, x, y);
    };
    const minus = (d) => d.map((v) => -v);
    const [w, b] = [this.width, this.height];
    write(letter(minus(f.u)), 7, b / 2, "left", "middle");
    write(letter(f.u), w - 7, b / 2, "right", "middle");
    write(letter(minus(f.v)), w / 2, 6, "center", "top");
    write(letter(f.v), w / 2, b - 6, "center", "bottom");
    const mm = this.grid.isAligned ? `${this.grid.axisName(f.axis)} ${f.origin[2 - f.axis].toFixed(1)} mm` : "oblique";
    write(this.given.title ?? this.view, 8, 7, "left", "top");
    c.font = `${size}px system-ui, sans-serif`;
    write(`${mm} · ${f.n + 1}/${this.grid.shape[f.axis]}`, 8, 9 + size * 1.25, "left", "top");
    if (this.viewer.about.synthetic && this.viewer.panes[0] === this) write("phantom, no patient", w - 8, 7, "right", "top", "#ffb86b");
    const bar = [200, 100, 50, 20, 10, 5, 2, 1].find((v) => v * k < w / 3) ?? 1;
    const [x1, y1] = [w - 10, b - 12];
    this.stroke(c, { colour: "#fff", dash: [], width: 2 }, () => {
      c.moveTo(x1 - bar * k, y1 - 4); c.lineTo(x1 - bar * k, y1); c.lineTo(x1, y1); c.lineTo(x1, y1 - 4);
    });
    write(`${bar} mm`, x1, y1 - 7, "right", "bottom");
  }

  describe() {
    const f = this.place();
    this.canvas.setAttribute("aria-label", `${this.given.title ?? this.view}, slice ${f.n + 1} of ${this.grid.shape[f.axis]}, crosshair at ${this.viewer.at.map((v) => v.toFixed(1)).join(", ")} mm. Arrow up and down: slices.`);
    this.slider.setAttribute("aria-valuetext", `slice ${f.n + 1} of ${this.grid.shape[f.axis]}`);
  }

  // What people do --------------------------------------------------------------------------------

  slide(n) {
    const f = this.place();
    this.viewer.move(add(this.viewer.at, this.grid.steps[f.axis], n - this.grid.index(this.viewer.at)[f.axis]));
  }

  /** Go some slices on, towards the head, the front or the left of the patient being positive. */
  turn(slices) {
    const f = this.place();
    const n = Math.min(this.grid.shape[f.axis] - 1, Math.max(0, f.n + slices));
    if (n !== f.n) this.slide(n);
  }

  listen() {
    const { canvas } = this;
    /** @type {Map<number, { x: number, y: number }>} */
    const fingers = new Map();
    let task = "";
    const place = (e) => { const box = canvas.getBoundingClientRect(); return { x: e.clientX - box.left, y: e.clientY - box.top }; };
    canvas.addEventListener("pointerdown", (e) => {
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(e.pointerId);
      fingers.set(e.pointerId, place(e));
      task = fingers.size > 1 ? "pinch" : e.button === 2 ? "window" : e.button === 1 || e.shiftKey ? "pan" : "cross";
      if (task === "cross") this.viewer.move(this.grid.clamped(this.toPoint(place(e).x, place(e).y)));
      e.preventDefault();
    });
    canvas.addEventListener("pointermove", (e) => {
      const to = place(e);
      const from = fingers.get(e.pointerId);
      if (!from) return this.viewer.hover(this.toPoint(to.x, to.y));
      if (task === "cross") this.viewer.move(this.grid.clamped(this.toPoint(to.x, to.y)));
      if (task === "pan") this.pan(to.x - from.x, to.y - from.y);
      if (task === "window") this.viewer.rewindow(to.x - from.x, to.y - from.y);
      if (task === "pinch" && fingers.size === 2) {
        const other = [...fingers.entries()].find(([id]) => id !== e.pointerId)[1];
        const apart = (p) => Math.hypot(p.x - other.x, p.y - other.y) || 1;
        this.viewer.magnify(apart(to) / apart(from));
        this.pan((to.x - from.x) / 2, (to.y - from.y) / 2);
      }
      fingers.set(e.pointerId, to);
    });
    const end = (e) => { fingers.delete(e.pointerId); if (!fingers.size) { task = ""; this.viewer.settled(); } };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => this.viewer.hover(null));
    canvas.addEventListener("contextmenu", (e) => e.preventDefault());
    canvas.addEventListener("dblclick", () => this.viewer.enlarge(this.view));
    let rest = 0;
    canvas.addEventListener("wheel", (e) => {
      e.preventDefault();
      if (e.ctrlKey || e.metaKey) {
        const { x, y } = place(e);
        this.viewer.magnify(Math.exp(-e.deltaY * 0.0025), this.toPoint(x, y));
        return;
      }
      rest += e.deltaMode ? e.deltaY * 40 : e.deltaY; // a notch is about 100
      const steps = Math.trunc(rest / 50) || (Math.abs(e.deltaY) >= 50 ? Math.sign(e.deltaY) : 0);
      if (!steps) return;
      rest = 0;
      this.turn(-Math.sign(steps) * Math.min(5, Math.max(1, Math.abs(Math.round(steps / 2)))) * this.upwards());
    }, { passive: false });
    canvas.addEventListener("keydown", (e) => this.key(e));
  }

  /** 1 if the next slice of the grid lies towards the head, the back or the left. */
  upwards() {
    const f = this.place();
    return dot(this.grid.steps[f.axis], { axial: [0, 0, 1], coronal: [0, 1, 0], sagittal: [1, 0, 0] }[this.view]) > 0 ? 1 : -1;
  }

  pan(dx, dy) {
    const f = this.place();
    const k = this.scale(f);
    this.viewer.pan(add(add([0, 0, 0], f.u, -dx / k), f.v, -dy / k));
  }

  key(e) {
    if (e.altKey || e.ctrlKey || e.metaKey) return;
    const f = this.place();
    const side = { ArrowLeft: [f.u, -1], ArrowRight: [f.u, 1], ArrowUp: [f.v, -1], ArrowDown: [f.v, 1] }[e.key];
    const up = this.upwards();
    if (side && e.shiftKey) this.viewer.move(this.grid.clamped(add(this.viewer.at, side[0], side[1] * 2)));
    else if (e.key === "ArrowUp") this.turn(up);
    else if (e.key === "ArrowDown") this.turn(-up);
    else if (e.key === "PageUp") this.turn(up * 5);
    else if (e.key === "PageDown") this.turn(-up * 5);
    else if (e.key === "ArrowLeft") this.pan(30, 0);
    else if (e.key === "ArrowRight") this.pan(-30, 0);
    else if (e.key === "+" || e.key === "=") this.viewer.magnify(1.25);
    else if (e.key === "-") this.viewer.magnify(0.8);
    else if (e.key === "f") this.viewer.enlarge(this.view);
    else return;
    e.preventDefault();
    e.stopPropagation();
    this.viewer.settled();
  }
}

/** Return what is damaged, without the patient, who is named above. */
function brief(message) {
  return message.replace(/^The store of patient \S+ is (?=damaged)/, "").replace(/ What does not need this.*$/, "");
}
