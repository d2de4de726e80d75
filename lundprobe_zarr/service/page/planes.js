// Planes of voxels from the service, kept in memory by bytes, and what is made of them: pictures.

import { json, request } from "./api.js";

const MOST_BYTES = 256e6;
const MOST_TEXTS = 400;
const TYPES = { int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, float32: Float32Array, float64: Float64Array };

/**
 * @typedef {object} Plane
 * @property {number} rows @property {number} columns
 * @property {any} values            stored; a value is stored × slope + intercept
 * @property {number} slope @property {number} intercept
 * @property {number[]} origin       centre of the first voxel, mm, LPS
 * @property {number[]} row @property {number[]} column  steps, mm
 * @property {number} stride @property {string} unit
 */

/** What comes first when the line is slow. */
export const FIRST = { quarter: 0, image: 1, wash: 2, lines: 3, others: 4, wholeWash: 5, histograms: 6, ahead: 9 };
/** Requests at a time: browsers have six connections to a service, and one is for values. */
const AT_A_TIME = 5;

/** Lets a few tasks run at a time, the most urgent first; what is fetched ahead runs alone. */
class Queue {
  constructor() {
    this.running = 0;
    this.waiting = [];
  }

  async run(urgency, signal, work) {
    signal?.throwIfAborted();
    await new Promise((go, fail) => {
      const each = { urgency, go };
      this.waiting.push(each);
      signal?.addEventListener("abort", () => {
        this.waiting = this.waiting.filter((w) => w !== each);
        fail(new DOMException("cancelled", "AbortError"));
      });
      this.next();
    });
    try {
      return await work();
    } finally {
      this.running--;
      this.next();
    }
  }

  next() {
    this.waiting.sort((a, b) => a.urgency - b.urgency);
    while (this.waiting.length && this.running < (this.waiting[0].urgency < FIRST.ahead ? AT_A_TIME : 1)) {
      this.running++;
      this.waiting.shift().go();
    }
  }
}

/** What one patient's requests share. */
export class Source {
  constructor(dataset, patient, sha) {
    this.queue = new Queue();
    this.path = `api/v1/datasets/${dataset}/patients/${patient}`;
    this.sha = sha;
    /** @type {Map<string, Plane>} */
    this.planes = new Map();
    this.texts = new Map();
    this.bytes = 0;
  }

  static key(query) {
    return JSON.stringify(query);
  }

  /** Return a plane if it is in memory. */
  kept(query) {
    const key = Source.key(query);
    const found = this.planes.get(key);
    if (found) {
      this.planes.delete(key);
      this.planes.set(key, found);
    }
    return found;
  }

  /** Return a plane. @returns {Promise<Plane>} */
  async plane(query, signal, urgency = FIRST.quarter) {
    const found = this.kept(query);
    if (found) return found;
    const plane = await this.queue.run(urgency, signal, async () => {
      const answer = await request(`${this.path}/plane`, { query: { ...query, rev: this.sha }, signal });
      const said = JSON.parse(answer.headers.get("X-Plane") ?? "{}");
      return decoded(said, new Uint8Array(await answer.arrayBuffer()));
    });
    if (this.planes.has(Source.key(query))) return plane;
    this.planes.set(Source.key(query), plane);
    this.bytes += plane.values.byteLength;
    for (const [key, old] of this.planes) {
      if (this.bytes <= MOST_BYTES) break;
      this.planes.delete(key);
      this.bytes -= old.values.byteLength;
    }
    return plane;
  }

  /** Return JSON about the patient; the last answers are kept. Without urgency it does not queue. */
  async json(path, query, signal, urgency) {
    const key = `${path} ${Source.key(query)}`;
    if (this.texts.has(key)) return this.texts.get(key);
    const ask = () => json(`${this.path}${path}`, { query: { ...query, rev: this.sha }, signal });
    const found = await (urgency === undefined ? ask() : this.queue.run(urgency, signal, ask));
    if (!found.damaged?.length) this.texts.set(key, found);
    if (this.texts.size > MOST_TEXTS) this.texts.delete(this.texts.keys().next().value);
    return found;
  }
}

/** @returns {Plane} */
function decoded(said, bytes) {
  const Type = TYPES[said.dtype];
  if (!Type) throw new Error(`This page cannot read voxels of type ${said.dtype}.`);
  const size = Type.BYTES_PER_ELEMENT;
  const count = said.shape[0] * said.shape[1];
  if (bytes.length !== count * size) throw new Error("A plane arrived incomplete.");
  const plain = size === 1 ? bytes : said.shuffled ? unshuffled(bytes, size) : bytes;
  return {
    rows: said.shape[0], columns: said.shape[1],
    values: new Type(plain.buffer, plain.byteOffset, count),
    slope: said.slope ?? 1, intercept: said.intercept ?? 0,
    origin: said.origin_mm, row: said.row_mm, column: said.column_mm,
    stride: said.stride, unit: said.unit,
  };
}

function unshuffled(bytes, size) {
  const count = bytes.length / size;
  const out = new Uint8Array(bytes.length);
  for (let b = 0; b < size; b++) {
    const from = b * count;
    for (let i = 0, j = b; i < count; i++, j += size) out[j] = bytes[from + i];
  }
  return out;
}

/** Return a canvas with a plane's values as greys from black (low) to white (high). */
export function greys(plane, low, high) {
  const image = new ImageData(plane.columns, plane.rows);
  const pixels = new Uint32Array(image.data.buffer);
  const k = 256 / (high - low || 1e-9);
  const slope = plane.slope * k;
  const start = (plane.intercept - low) * k;
  const { values } = plane;
  for (let i = 0; i < values.length; i++) {
    let g = values[i] * slope + start;
    g = g < 0 ? 0 : g > 255 ? 255 : g | 0; // what is no number becomes 0
    pixels[i] = 0xff000000 | (g << 16) | (g << 8) | g;
  }
  return painted(image);
}

/** Return a canvas with values from `low` to `high` as colours; what is below `from` is clear. */
export function colours(plane, map, low, high, from) {
  const image = new ImageData(plane.columns, plane.rows);
  const pixels = new Uint32Array(image.data.buffer);
  const k = 255 / (high - low);
  const { values, slope, intercept } = plane;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] * slope + intercept;
    if (!(value >= from) || value <= low) continue;
    pixels[i] = map[Math.min(255, ((value - low) * k) | 0)];
  }
  return painted(image);
}

function painted(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).putImageData(image, 0, 0);
  return canvas;
}
