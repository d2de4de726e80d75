// Read every OME-Zarr group of a store with zarrita, as a viewer in a browser would, and print
// where the corner voxels of its first image lie and which values they have.
//
//   node zarrita.mjs NODE_MODULES STORE GROUP…

import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [modules, store, ...groups] = process.argv.slice(2);
const load = (file) => import(pathToFileURL(resolve(modules, file)));
const zarr = await load("zarrita/dist/src/index.js");
const { default: FileSystemStore } = await load("@zarrita/storage/dist/src/fs.js");

const found = {};
for (const group of groups) {
  const root = zarr.root(new FileSystemStore(join(store, group)));
  const { attrs } = await zarr.open.v3(root, { kind: "group" });
  found[group] = [];
  for (const { axes, datasets } of attrs.ome.multiscales) {
    for (const { path, coordinateTransformations } of datasets) {
      const array = await zarr.open.v3(root.resolve(path), { kind: "array" });
      const [{ scale }, { translation }] = coordinateTransformations;
      const corners = [];
      for (const end of [0, 1]) {
        const index = array.shape.map((n) => end * (n - 1));
        const { data } = await zarr.get(array, index.map((i) => zarr.slice(i, i + 1)));
        const value = typeof data.get === "function" ? data.get(0) : data[0];
        const place = index.map((i, n) => i * scale[n] + translation[n]);
        corners.push({ value: Number(value), place: place.slice(-3) });
      }
      const whole = await zarr.get(array);
      let sum = 0;
      for (const value of whole.data) sum += Number(value);
      found[group].push({ path, axes: axes.map((a) => a.name), shape: array.shape, sum, corners });
    }
  }
}
console.log(JSON.stringify(found));
