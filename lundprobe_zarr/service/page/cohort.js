// The patients of a dataset: a predicate, facets, a table of the selected.

import { ApiError, GoneError, Newest, isCancelled, json, request, sql, url } from "./api.js";
import { copy, dialog, download, fill, h, icon, iconButton, later, number, say } from "./dom.js";
import { Facets, HISTOGRAMS, unit } from "./facets.js";
import { conditions, expression, literal, plain, predicate, replaced } from "./predicate.js";
import { go, now } from "./state.js";

const PAGE = 100;
/** Longest condition that the service takes. */
const MOST_CHARACTERS = 20000;
const COLUMNS = ["part", "protocol", "n_fiducials", "dose_max_gy", "CTVT_427.volume_cc", "Rectum.volume_cc", "Bladder.volume_cc", "PTVT_427.d95_gy", "missing_structures", "findings"];
/** Patients selected last, by dataset: the patient view goes through them. */
export const selected = new Map();

/** Return all columns that can be shown, by name. */
function allColumns(session) {
  const found = new Map(session.columns.patients.map((c) => [c.name, c]));
  for (const structure of session.structures)
    for (const c of session.columns.structure)
      if (!c.type.startsWith("list") && c.type !== "string")
        found.set(`${structure.name}.${c.name}`, { ...c, name: `${structure.name}.${c.name}`, description: `${structure.name}: ${c.description}` });
  return found;
}

export function showCohort(context, view) {
  const table = new CohortView(context, view);
  const run = (next) => table.run(next).catch(context.fail);
  run(view);
  return { update: run, close: () => table.close() };
}

class CohortView {
  constructor({ main, session, dataset, fail }, view) {
    this.fail = fail;
    this.session = session;
    this.dataset = dataset;
    this.columns = allColumns(session);
    this.structures = session.structures.map((x) => x.name);
    this.queue = new Newest();
    document.title = `${dataset.name} – lundprobe-zarr`;
    this.facets = new Facets({
      dataset: dataset.name, structures: this.structures, columns: this.columns,
      change: (column, condition) => this.where(predicate(replaced(conditions(now().params.where ?? ""), column, condition))),
      choose: (columns) => this.go({ hist: columns.join(",") === HISTOGRAMS.join(",") ? "" : columns.join(",") || "none" }),
    });
    this.field = h("textarea", {
      id: "where", rows: 1, spellcheck: false, autocapitalize: "off", autocomplete: "off", "aria-describedby": "mistake",
      placeholder: "All patients. For example: protocol = 'newAcq' AND Rectum.volume_cc > 60",
      oninput: () => this.grow(),
      onkeydown: (e) => {
        if (e.key === "Enter" && !e.shiftKey) { e.preventDefault(); this.where(this.field.value.trim()); }
        if (e.key === "Escape") { this.field.value = now().params.where ?? ""; this.grow(); }
      },
    });
    this.mistake = h("div", { id: "mistake", className: "mistake", role: "alert", hidden: true });
    this.count = h("output", { className: "total", "aria-live": "polite" });
    this.grid = h("div", { className: "grid", tabIndex: 0, role: "region", "aria-label": "Patients" });
    this.pages = h("nav", { className: "pages", "aria-label": "Pages" });
    const file = h("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: (e) => this.upload(e.target) });
    fill(main, h("section", { className: "cohort" }, h("h1", { className: "unseen" }, `Patients of ${dataset.name}`),
      h("form", { className: "bar", role: "search", onsubmit: (e) => { e.preventDefault(); this.where(this.field.value.trim()); } },
        h("label", { htmlFor: "where", className: "mono" }, "WHERE"), this.field,
        h("button", { className: "main", title: "Select (Enter)" }, "Select"),
        iconButton("close", "Clear: all patients", () => this.where("")),
        iconButton("help", "What can be written", () => this.help())),
      this.mistake,
      this.facets.node,
      h("div", { className: "found" },
        h("div", { className: "tools" }, this.count, h("span", { className: "space" }), this.pages,
          iconButton("columns", "Choose columns", () => this.choose(), "Columns"),
          iconButton("copy", "Copy as Python, command line, SQL or curl", () => this.copies(), "Copy as"),
          iconButton("save", "Save this cohort as a file", () => this.save(), "Save"),
          iconButton("open", "Open a saved cohort or split", () => file.click(), "Open"), file),
        this.grid)));
    this.view = view;
  }

  close() {
    this.unpeek();
    this.queue.stop();
  }

  /** Grow the field with its text. */
  grow() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight + 2, 160)}px`;
  }

  go(params) {
    go({ dataset: this.dataset.name, params: { ...now().params, page: "", ...params } });
  }

  where(text) {
    this.go({ where: text });
  }

  get params() {
    return this.view.params;
  }

  get shown() {
    const given = this.params.cols?.split(",").filter((c) => this.columns.has(c));
    return given?.length ? given : COLUMNS;
  }

  get histograms() {
    if (this.params.hist === "none") return [];
    return this.params.hist?.split(",").filter((c) => this.columns.has(c)) ?? HISTOGRAMS;
  }

  get order() {
    const given = this.params.sort ?? "";
    const isDown = given.startsWith("-");
    const column = given.replace(/^-/, "");
    return column === "patient_id" || this.columns.has(column) ? { column, isDown } : { column: "patient_id", isDown: false };
  }

  query(limit, offset) {
    const names = ["patient_id", ...this.shown.filter((c) => c !== "patient_id")];
    const { column, isDown } = this.order;
    const columns = names.map((c) => `${expression(c, this.structures)} AS ${quoted(c)}`).join(", ");
    const first = column === "patient_id" ? "" : `${expression(column, this.structures)} ${isDown ? "DESC" : "ASC"} NULLS LAST, `;
    return `SELECT ${columns} FROM patients p ORDER BY ${first}p.patient_id${column === "patient_id" && isDown ? " DESC" : ""} LIMIT ${limit} OFFSET ${offset}`;
  }

  /** Show what a view says. */
  async run(view) {
    this.view = view;
    const where = (this.params.where ?? "").trim();
    const signal = this.queue.next();
    const page = Math.max(1, Math.floor(Number(this.params.page)) || 1);
    if (document.activeElement !== this.field || this.field.value.trim() !== where) this.field.value = where;
    this.grow();
    this.grid.setAttribute("aria-busy", "true");
    const dataset = this.dataset.name;
    try {
      const [cohort, rows] = await Promise.all([
        where ? json(`api/datasets/${dataset}/cohort`, { body: { where }, signal }) : null,
        sql(dataset, this.query(PAGE, (page - 1) * PAGE), { where, signal }),
      ]);
      this.mistake.hidden = true;
      this.field.removeAttribute("aria-invalid");
      const total = Object.values(this.dataset.patients).reduce((a, b) => a + b, 0);
      const n = cohort ? cohort.num_patients : total;
      this.ids = cohort?.patient_ids ?? null;
      this.counts(n, total);
      this.table(rows, page, n);
      if (this.facets.loaded !== null) this.facets.draw(conditions(where)); // counts follow
      this.grid.removeAttribute("aria-busy");
      await this.facets.load(this.histograms, signal);
      await this.facets.select(where, signal);
      this.facets.draw(conditions(where));
      selected.set(dataset, { where, order: this.params.sort ?? "" });
    } catch (error) {
      if (isCancelled(error)) return;
      this.failed(error, where);
      if (error instanceof ApiError && error.status !== 401) this.facets.draw(conditions(where));
    } finally {
      if (!signal.aborted) this.grid.removeAttribute("aria-busy");
    }
  }

  counts(n, total) {
    fill(this.count, h("b", null, number(n)), n === total ? " patients" : ` of ${number(total)} patients`);
    say(`${n} of ${total} patients`);
  }

  failed(error, where) {
    if (error instanceof GoneError) return;
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 403) return this.fail(error);
    this.field.setAttribute("aria-invalid", "true");
    fill(this.mistake, icon("warn"), h("pre", null, marked(error.message, error.position, where)));
    this.mistake.hidden = false;
    this.count.textContent = "";
    fill(this.grid);
    fill(this.pages);
  }

  table(found, page, total) {
    const { column, isDown } = this.order;
    const isNumber = found.columns.map((c) => /double|float|int/.test(this.columns.get(c)?.type ?? "") && !this.columns.get(c).type.startsWith("list"));
    const head = found.columns.map((name, i) => {
      const known = this.columns.get(name);
      const isSorted = name === column;
      return h("th", { scope: "col", className: isNumber[i] ? "n" : "", "aria-sort": isSorted ? (isDown ? "descending" : "ascending") : null, title: known?.description ?? "" },
        h("button", { type: "button", onclick: () => this.go({ sort: isSorted && !isDown ? `-${name}` : isSorted ? "" : name }) },
          h("span", null, heading(name), isSorted ? h("span", { "aria-hidden": "true" }, isDown ? " ▾" : " ▴") : null),
          known?.unit && unit(known.unit) ? h("small", null, unit(known.unit)) : null));
    });
    const rows = found.rows.map((row) => h("tr", null, row.map((value, i) => i === 0
      ? h("th", { scope: "row" }, h("a", { href: `#/${this.dataset.name}/${value}`, onclick: (e) => this.look(e, value), onpointerenter: (e) => this.peek(e.currentTarget, value), onpointerleave: () => this.unpeek() }, value))
      : h("td", { className: isNumber[i] ? "n" : "" }, cell(value)))));
    fill(this.grid, total
      ? h("table", null, h("thead", null, h("tr", null, head)), h("tbody", null, rows))
      : h("p", { className: "waiting" }, "No patient fits. Clear a filter, or change the condition above."));
    const last = Math.max(1, Math.ceil(total / PAGE));
    const turn = (to) => go({ dataset: this.dataset.name, params: { ...now().params, page: to === 1 ? "" : String(to) } });
    fill(this.pages, last > 1 && [
      h("button", { type: "button", className: "quiet square", "aria-label": "Page before", disabled: page <= 1, onclick: () => turn(page - 1) }, icon("back")),
      h("span", null, `${(page - 1) * PAGE + 1}–${Math.min(total, page * PAGE)}`),
      h("button", { type: "button", className: "quiet square", "aria-label": "Next page", disabled: page >= last, onclick: () => turn(page + 1) }, icon("next"))]);
  }

  /** Show a slice of the patient under the pointer, after a moment. */
  peek(link, patient) {
    if (!this.dataset.kinds.includes("voxels")) return;
    this.unpeek();
    this.waiting = setTimeout(() => {
      const box = link.getBoundingClientRect();
      const path = `api/v1/datasets/${this.dataset.name}/patients/${patient}`;
      const query = { rev: this.dataset.sha };
      const source = url(`${path}/thumbnail`, query).href;
      json(path, { query }).catch(() => null); // the browser keeps it for when the patient is opened
      const place = { left: `${box.right + 12}px`, top: `${Math.max(8, Math.min(innerHeight - 200, box.top - 60))}px` };
      const image = h("img", { alt: "", onerror: () => this.unpeek(), onload: () => this.peeked && document.body.append(this.peeked) });
      this.peeked = h("figure", { className: "peek", "aria-hidden": "true", style: place }, image, h("figcaption", null, "T2w, axial, at the target"));
      image.src = source;
    }, 250);
  }

  unpeek() {
    clearTimeout(this.waiting);
    this.peeked?.remove();
    this.peeked = null;
  }

  look(event, patient) {
    this.unpeek();
    if (event.ctrlKey || event.metaKey || event.button) return;
    event.preventDefault();
    go({ dataset: this.dataset.name, patient });
  }

  choose() {
    const chosen = new Set(this.shown);
    const filter = h("input", { type: "search", placeholder: "Find a column", "aria-label": "Find a column", oninput: () => draw() });
    const list = h("ul", { className: "choices" });
    const apply = later(150, () => this.go({ cols: [...chosen].join(",") === COLUMNS.join(",") ? "" : [...chosen].join(",") }));
    const draw = () => {
      const word = filter.value.toLowerCase();
      const fits = [...this.columns.values()].filter((c) => c.name !== "patient_id" && `${c.name} ${c.description}`.toLowerCase().includes(word));
      fits.sort((a, b) => Number(chosen.has(b.name)) - Number(chosen.has(a.name)));
      fill(list, fits.slice(0, 300).map((c) => h("li", null, h("label", null,
        h("input", { type: "checkbox", checked: chosen.has(c.name), onchange: (e) => { e.target.checked ? chosen.add(c.name) : chosen.delete(c.name); apply(); } }),
        h("b", null, c.name), unit(c.unit) ? h("small", null, ` ${unit(c.unit)}`) : null, h("span", null, c.description)))));
    };
    draw();
    dialog("Columns", h("div", { className: "tools" }, filter,
      h("button", { type: "button", onclick: () => { chosen.clear(); COLUMNS.forEach((c) => chosen.add(c)); draw(); apply(); } }, "As at first")), list);
    filter.focus();
  }

  /** The same selection, for other tools. */
  texts() {
    const where = (this.params.where ?? "").trim();
    const endpoint = url("").href.replace(/\/$/, "");
    const place = `hf://datasets/${this.dataset.name}`;
    const python = where ? `cohort = lp.open_cohort("${place}").where(\n    """${where.replaceAll('"""', '\\"\\"\\"')}"""\n)` : `cohort = lp.open_cohort("${place}")`;
    const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
    const body = JSON.stringify({ where: where || "true" });
    const head = `export HF_ENDPOINT=${endpoint}\nexport HF_TOKEN=…   # your token\n`;
    return {
      Python: `# ${head.trimEnd().replaceAll("\n", "\n# ")}\nimport lundprobe_zarr as lp\n\n${python}\nprint(len(cohort))\ncohort.patients\n`,
      "Command line": `${head}lundprobe-zarr query ${place} ${shell(where || "true")}\n`,
      SQL: `${this.query(1_000_000, 0).replace(" FROM patients p ORDER", where ? ` FROM patients p WHERE ${plain(where, this.structures)} ORDER` : " FROM patients p ORDER").replace(" LIMIT 1000000 OFFSET 0", "")}\n`,
      curl: `curl -s -H "Authorization: Bearer $HF_TOKEN" -H "Content-Type: application/json" \\\n  -d ${shell(body)} \\\n  ${endpoint}/api/datasets/${this.dataset.name}/cohort\n`,
    };
  }

  copies() {
    dialog("Copy as", Object.entries(this.texts()).map(([name, text]) => {
      const button = iconButton("copy", `Copy as ${name}`, (e) => copy(text, e.currentTarget), "Copy");
      return h("section", { className: "snippet" }, h("div", { className: "tools" }, h("h3", null, name), h("span", { className: "space" }), button), h("pre", { tabIndex: 0 }, text));
    }));
  }

  async save() {
    try {
      const where = (this.params.where ?? "").trim() || "true";
      const answer = await request(`api/datasets/${this.dataset.name}/cohort`, { query: { format: "file" }, body: { where } });
      download("cohort.json", await answer.text());
      say("Saved as cohort.json");
    } catch (error) {
      this.failed(error, this.params.where ?? "");
    }
  }

  async upload(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    const refused = (error) => dialog(`${file.name} cannot be used`, h("p", null, error.message));
    try {
      const { differences, subsets } = await json(`api/datasets/${this.dataset.name}/saved`, { body: { text: await file.text() } });
      if (subsets.length === 1 && !differences.length) return await this.open(subsets[0].patient_ids, subsets[0].where);
      const box = dialog(differences.length ? `${file.name} belongs to another dataset` : "Which patients of the split?",
        differences.length > 0 && h("p", null, `It was not saved from ${this.dataset.name} as it is now. It had ${differences.join("; ")}. Patients can be selected by their ids:`),
        h("ul", { className: "choices" }, subsets.map((one) => h("li", null,
          h("button", { type: "button", onclick: () => { box.close(); this.open(one.patient_ids, differences.length ? "" : one.where).catch(refused); } }, `${one.name}: ${one.patient_ids.length} patients`)))));
    } catch (error) {
      refused(error);
    }
  }

  /** Select saved patients: by the condition that selected them if it still gives these ones. */
  async open(ids, text) {
    const dataset = this.dataset.name;
    if (text) {
      const again = await json(`api/datasets/${dataset}/cohort`, { body: { where: text } }).catch(() => null);
      if (again && sorted(again.patient_ids) === sorted(ids)) return this.where(text);
    }
    const byIds = `patient_id IN (${ids.map(literal).join(", ")})`;
    if (byIds.length > MOST_CHARACTERS)
      throw new Error(`It has ${ids.length} patients, and no condition selects the same ones here. That is too many to select by their ids.`);
    const found = await json(`api/datasets/${dataset}/cohort`, { body: { where: ids.length ? byIds : "false" } });
    if (found.num_patients < ids.length)
      dialog("Some patients are not here", h("p", null, `${ids.length - found.num_patients} of the ${ids.length} saved patients are not in ${dataset}. The others are selected.`));
    this.where(byIds);
  }

  help() {
    const examples = ["protocol = 'newAcq' AND NOT missing_PenileBulb", "Rectum.volume_cc > 60 AND PTVT_427.d95_gy < 41", "sct.Bladder.volume_cc BETWEEN 100 AND 300", "len(findings) = 0", "PenileBulb IS NULL"];
    const box = dialog("What can be written", h("p", null, "An SQL condition on the columns of the patients, and on the measures of a structure, by its name: its clinical mask on the MRI grid. The prefix sct takes the mask on the grid of the synthetic CT, nnunet that of the network. A structure that a patient lacks is NULL."),
      h("ul", { className: "choices" }, examples.map((text) => h("li", null, h("button", { type: "button", className: "mono", onclick: () => { box.close(); this.where(text); } }, text)))),
      h("p", null, "“Columns” lists every column with its meaning."));
  }
}

function sorted(ids) {
  return [...ids].sort().join();
}

function quoted(name) {
  return `"${name.replaceAll('"', '""')}"`;
}

function heading(name) {
  const [structure, field] = name.split(".");
  return field ? [h("i", null, `${structure}.`), field] : name;
}

function cell(value) {
  if (value === null || value === undefined) return h("span", { className: "null" }, "null");
  if (Array.isArray(value)) {
    if (!value.length) return "";
    if (typeof value[0] === "number") return value.map((v) => number(v)).join(" × ");
    return h("span", { className: "tags" }, value.map((v) => h("span", { className: "tag", title: v }, v)));
  }
  if (typeof value === "boolean") return value ? "yes" : "no";
  return number(value);
}

/** Return a message, below it the place of the mistake. */
function marked(message, position, where) {
  if (position === null || !where || position > where.length) return message;
  const line = where.slice(0, position).split("\n").length - 1;
  const before = where.slice(0, position).split("\n").pop();
  return `${message}\n\n${where.split("\n")[line]}\n${" ".repeat(before.length)}^`;
}
