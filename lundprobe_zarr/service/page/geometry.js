// Positions in mm, DICOM patient frame (LPS: x to the left, y to the back, z to the head), through
// each grid's affine; oblique grids are no exception. Vectors are arrays of three numbers.

export const add = (a, b, k = 1) => [a[0] + k * b[0], a[1] + k * b[1], a[2] + k * b[2]];
export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const scale = (a, k) => [a[0] * k, a[1] * k, a[2] * k];
export const length = (a) => Math.hypot(a[0], a[1], a[2]);
export const unit = (a) => scale(a, 1 / (length(a) || 1));

/** The three views: what is to the right and below on the screen, as radiology has it. */
export const VIEWS = {
  axial: { normal: [0, 0, 1], right: [1, 0, 0], below: [0, 1, 0] },
  coronal: { normal: [0, 1, 0], right: [1, 0, 0], below: [0, 0, -1] },
  sagittal: { normal: [1, 0, 0], right: [0, 1, 0], below: [0, 0, -1] },
};
/** Letters of the directions of x, y and z. */
const LETTERS = [["R", "L"], ["A", "P"], ["I", "S"]];
const AXES = ["z", "y", "x"];

/** Return the letter of the side of the patient that a direction points to. */
export function letter(direction) {
  const sizes = direction.map(Math.abs);
  const axis = sizes.indexOf(Math.max(...sizes));
  return LETTERS[axis][direction[axis] > 0 ? 1 : 0];
}

/** A grid of voxels: indices (z, y, x) to mm and back. */
export class Grid {
  /** @param {{ shape: number[], affine_ras: number[][], spacing_mm: number[], body_box: number[][] | null, is_aligned: boolean }} given */
  constructor(name, given) {
    this.name = name;
    this.shape = given.shape;
    this.spacing = given.spacing_mm;
    this.isAligned = given.is_aligned;
    const m = given.affine_ras;
    const column = (i) => [-m[0][i], -m[1][i], m[2][i]]; // RAS to LPS
    /** Steps of one voxel along the axes z, y, x of the array. */
    this.steps = [column(2), column(1), column(0)];
    this.origin = column(3);
    this.inverse = inverted(this.steps);
    this.box = padded(given.body_box, this.shape);
    this.axisOf = assigned(this.steps);
  }

  /** Return the point of a fractional index (z, y, x). */
  point(index) {
    return this.steps.reduce((p, step, i) => add(p, step, index[i]), this.origin);
  }

  /** Return the fractional index (z, y, x) of a point. */
  index(point) {
    const d = add(point, this.origin, -1);
    return this.inverse.map((row) => dot(row, d));
  }

  /** Return the index of the plane nearest to a point, kept within the grid. */
  plane(axis, point) {
    return Math.min(this.shape[axis] - 1, Math.max(0, Math.floor(this.index(point)[axis] + 0.5)));
  }

  /** Return whether a point lies in a voxel. */
  holds(point) {
    return this.index(point).every((v, i) => v >= -0.5 && v < this.shape[i] - 0.5);
  }

  /** Return a point within the grid, near to another. */
  clamped(point) {
    return this.point(this.index(point).map((v, i) => Math.min(this.shape[i] - 1, Math.max(0, v))));
  }

  /** Return the centre of the box of the BODY. */
  get centre() {
    return this.point(this.box[0].map((v, i) => (v + this.box[1][i] - 1) / 2));
  }

  axisName(axis) {
    return AXES[axis];
  }
}

/** Share of a box that is shown beyond it on each side. */
const MARGIN = 0.02;

/** Return a box with a margin, within the grid; the whole grid without one. */
function padded(box, shape) {
  if (!box) return [[0, 0, 0], shape];
  const [from, to] = box;
  const more = from.map((a, i) => Math.ceil((to[i] - a) * MARGIN) + 1);
  return [from.map((a, i) => Math.max(0, a - more[i])), to.map((b, i) => Math.min(shape[i], b + more[i]))];
}

/**
 * The rows of the inverse of the matrix whose columns are the three steps.
 * @param {number[][]} steps
 */
function inverted(steps) {
  const [a, b, c] = steps;
  const cross = (u, v) => [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
  const volume = dot(a, cross(b, c));
  return [cross(b, c), cross(c, a), cross(a, b)].map((row) => scale(row, 1 / volume));
}

/** Return which array axis lies across each view: the nearest, each axis once. */
function assigned(steps) {
  const names = Object.keys(VIEWS);
  const orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
  const fit = (order) => names.reduce((sum, name, i) => sum + Math.abs(dot(VIEWS[name].normal, unit(steps[order[i]]))), 0);
  const best = orders.reduce((a, b) => (fit(b) > fit(a) + 1e-9 ? b : a));
  return Object.fromEntries(names.map((name, i) => [name, best[i]]));
}

/**
 * How a plane of a grid lies on the screen: `u` to the right and `v` downwards, at right angles.
 * @param {Grid} grid @param {string} view
 */
export function frame(grid, view) {
  const axis = grid.axisOf[view];
  const [rows, columns] = [0, 1, 2].filter((a) => a !== axis);
  const { right, below } = VIEWS[view];
  const fits = (a, b) => Math.abs(dot(unit(grid.steps[a]), right)) + Math.abs(dot(unit(grid.steps[b]), below));
  const [across, down] = fits(columns, rows) >= fits(rows, columns) ? [columns, rows] : [rows, columns];
  const signed = (a, to) => scale(unit(grid.steps[a]), dot(grid.steps[a], to) < 0 ? -1 : 1);
  const u = signed(across, right);
  const d = signed(down, below);
  return { axis, across, down, u, v: unit(add(d, u, -dot(d, u))) };
}
