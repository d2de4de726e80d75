// A predicate as conditions joined by AND: what the facets understand of SQL, and back.
//
// A condition that the facets do not understand stays as it is written.

/**
 * @typedef {{ kind: "in", column: string, values: string[] }
 *   | { kind: "flag", column: string, value: boolean }
 *   | { kind: "range", column: string, low: number | null, high: number | null }
 *   | { kind: "other", text: string }} Condition
 */

const NAME = String.raw`((?:(?:mri|sct|nnunet)\.)?[A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)?)`;
const NUMBER = String.raw`(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)`;
const TEXT = String.raw`'((?:[^']|'')*)'`;
const FORMS = [
  [`^${NAME}\\s*=\\s*${TEXT}$`, (m) => ({ kind: "in", column: m[1], values: [m[2].replaceAll("''", "'")] })],
  [`^${NAME}\\s+IN\\s*\\((\\s*${TEXT}\\s*(?:,\\s*'(?:[^']|'')*'\\s*)*)\\)$`, (m) => ({ kind: "in", column: m[1], values: texts(m[2]) })],
  [`^NOT\\s+${NAME}$`, (m) => ({ kind: "flag", column: m[1], value: false })],
  [`^${NAME}$`, (m) => ({ kind: "flag", column: m[1], value: true })],
  [`^${NAME}\\s+BETWEEN\\s+${NUMBER}\\s+AND\\s+${NUMBER}$`, (m) => ({ kind: "range", column: m[1], low: +m[2], high: +m[3] })],
  [`^${NAME}\\s*>=\\s*${NUMBER}$`, (m) => ({ kind: "range", column: m[1], low: +m[2], high: null })],
  [`^${NAME}\\s*<=\\s*${NUMBER}$`, (m) => ({ kind: "range", column: m[1], low: null, high: +m[2] })],
].map(([form, make]) => [new RegExp(/** @type {string} */ (form), "i"), make]);

function texts(list) {
  return [...list.matchAll(/'((?:[^']|'')*)'/g)].map((m) => m[1].replaceAll("''", "'"));
}

/** Return the conditions of a predicate. @param {string} text @returns {Condition[]} */
export function conditions(text) {
  const parts = conjuncts(text);
  if (parts === null) return [{ kind: "other", text: text.trim() }];
  return parts.map((part) => {
    for (const [form, make] of FORMS) {
      const found = /** @type {RegExp} */ (form).exec(part);
      if (found) return /** @type {any} */ (make)(found);
    }
    return { kind: "other", text: part };
  });
}

/** Return a predicate of conditions. @param {Condition[]} given */
export function predicate(given) {
  if (given.length === 1 && given[0].kind === "other") return given[0].text;
  return given.map(written).filter(Boolean).join(" AND ");
}

function written(each) {
  switch (each.kind) {
    case "in":
      if (!each.values.length) return "";
      return each.values.length === 1
        ? `${each.column} = ${literal(each.values[0])}`
        : `${each.column} IN (${each.values.map(literal).join(", ")})`;
    case "flag":
      return each.value ? each.column : `NOT ${each.column}`;
    case "range":
      if (each.low === null && each.high === null) return "";
      if (each.high === null) return `${each.column} >= ${each.low}`;
      if (each.low === null) return `${each.column} <= ${each.high}`;
      return `${each.column} BETWEEN ${each.low} AND ${each.high}`;
    default:
      return conjuncts(each.text) === null ? `(${each.text}${each.text.includes("--") ? "\n" : ""})` : each.text;
  }
}

/** Return a text as SQL writes it. */
export function literal(text) {
  return `'${text.replaceAll("'", "''")}'`;
}

/** Return the conditions with one about `column` replaced, added or (null) removed. */
export function replaced(given, column, condition) {
  const kept = given.filter((c) => !("column" in c) || c.column.toLowerCase() !== column.toLowerCase());
  return condition ? [...kept, condition] : kept;
}

/** Return the condition about a column; undefined if there is none. */
export function about(given, column) {
  return given.find((c) => "column" in c && c.column.toLowerCase() === column.toLowerCase());
}

/**
 * Split at each AND that is in no brackets or text and of no BETWEEN. Null if there is an OR, or a
 * comment, outside of brackets: then the whole is one condition.
 * @param {string} text
 * @returns {string[] | null}
 */
export function conjuncts(text) {
  const found = [];
  let start = 0;
  let depth = 0;
  let between = false;
  const word = /'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|\/\*[^]*?\*\/|[()]|\b(?:AND|OR|BETWEEN|CASE|END)\b/gi;
  for (let m = word.exec(text); m; m = word.exec(text)) {
    const token = m[0].toUpperCase();
    const isComment = token.startsWith("--") || token.startsWith("/*");
    if (isComment && !depth) return null;
    if (isComment) continue;
    if (token === "(" || token === "CASE") depth++;
    else if (token === ")" || token === "END") depth--;
    else if (depth) continue;
    else if (token === "OR") return null;
    else if (token === "BETWEEN") between = true;
    else if (token === "AND" && between) between = false;
    else if (token === "AND") {
      found.push(text.slice(start, m.index).trim());
      start = m.index + m[0].length;
    }
  }
  found.push(text.slice(start).trim());
  return depth === 0 && found.every(Boolean) ? found : text.trim() ? [text.trim()] : [];
}

const TABLES = { "": "clinical", mri: "clinical", sct: "planning", nnunet: "structures" };

/** Return the SQL expression of a column of a patient; structures are looked up in their table. */
export function expression(column, structures) {
  const parts = column.split(".");
  if (parts.length === 1) return `p.${column}`;
  const [field, structure, prefix = ""] = [...parts].reverse();
  if (!structures.includes(structure)) return column;
  const more = prefix === "nnunet" ? " AND s.source = 'nnunet'" : "";
  return `(SELECT max(s.${field}) FROM ${TABLES[prefix]} s WHERE s.patient_id = p.patient_id AND s.structure = '${structure}'${more})`;
}

/** Return a predicate in plain SQL over `patients p`: named structures become subqueries. */
export function plain(text, structures) {
  const names = structures.join("|");
  const mention = new RegExp(`'(?:[^']|'')*'|\\b(?:(mri|sct|nnunet)\\.)?(${names})(?:\\.(\\w+)|\\s+IS\\s+(NOT\\s+)?NULL)`, "g");
  return text.replace(mention, (whole, prefix = "", structure, field, not) => {
    if (!structure) return whole;
    if (field) return expression([prefix, structure, field].filter(Boolean).join("."), structures);
    const more = prefix === "nnunet" ? " AND s.source = 'nnunet'" : "";
    return `${not ? "" : "NOT "}EXISTS (SELECT 1 FROM ${TABLES[prefix]} s WHERE s.patient_id = p.patient_id AND s.structure = '${structure}'${more})`;
  });
}
