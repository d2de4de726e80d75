// What is shown, in the URL's fragment: it stays out of the server's logs, and a link reproduces
// the view.
//
//   #/owner/name?where=…            patients of a dataset
//   #/owner/name/patient_id?at=…    one patient

const PATIENT = /^(oldAcq|newAcq)_[0-9a-f]{16}$/;
const PART = /^[A-Za-z0-9][\w.-]{0,95}$/;

/**
 * @typedef {object} View
 * @property {string | null} dataset   `owner/name`
 * @property {string | null} patient
 * @property {Record<string, string>} params
 * @property {string} [problem]        why the fragment cannot be read
 */

/** Parse a fragment. @param {string} fragment @returns {View} */
export function parse(fragment) {
  const text = fragment.replace(/^#/, "");
  const [path, query = ""] = split(text, "?");
  const parts = path.split("/").filter(Boolean);
  /** @type {View} */
  const view = { dataset: null, patient: null, params: {} };
  if (!parts.length) return view;
  const names = parts.map(unquoted);
  if (!text.startsWith("/") || parts.length < 2 || parts.length > 3 || !names.slice(0, 2).every((n) => PART.test(n)))
    return { ...view, problem: "This link names no dataset. Its end should read #/owner/name." };
  view.dataset = `${names[0]}/${names[1]}`;
  if (names.length === 3) {
    if (!PATIENT.test(names[2]))
      return { ...view, problem: `“${names[2].slice(0, 60)}” is no patient id. One is oldAcq_ or newAcq_ and 16 hexadecimal digits.` };
    view.patient = names[2];
  }
  for (const [key, value] of new URLSearchParams(query)) view.params[key] = value;
  return view;
}

/** Return the fragment of a view; empty parameters are left out. @param {View} view */
export function format(view) {
  if (!view.dataset) return "#/";
  const kept = Object.entries(view.params).filter(([, v]) => v !== "" && v !== undefined && v !== null);
  const query = kept.map(([k, v]) => `${k}=${quoted(String(v))}`).join("&");
  return `#/${view.dataset}${view.patient ? `/${view.patient}` : ""}${query ? `?${query}` : ""}`;
}

/** Return the numbers of a text such as `1,2.5,-3`; null if they are not `count` finite ones. */
export function numbers(text, count) {
  const found = (text ?? "").split(",").map(Number);
  return text && found.length === count && found.every(Number.isFinite) ? found : null;
}

/** @type {((view: View, isBack: boolean) => void) | null} */
let listener = null;

/** Call `listen` for each change that did not come from `go` or `keep`: back, forward, a link. */
export function follow(listen) {
  listener = listen;
  addEventListener("popstate", () => listen(now(), true));
}

/** The view of the present fragment. */
export function now() {
  return parse(location.hash);
}

/** Go to a view: the one before is reached by the browser's back. @param {Partial<View>} view */
export function go(view) {
  const next = { dataset: null, patient: null, params: {}, ...view };
  const fragment = format(next);
  if (fragment !== location.hash) history.pushState(null, "", fragment);
  listener?.(parse(fragment), false);
}

let pending = 0;
/** Note parameters of the present view, at most ten times a second (browsers refuse more). */
export function keep(params) {
  const view = now();
  if (view.problem) return;
  next = { ...(next ?? view.params), ...params };
  if (!pending) pending = setTimeout(flush, 100);
}

/** @type {Record<string, string> | null} */
let next = null;
/** Write what `keep` was given last. */
export function flush() {
  clearTimeout(pending);
  pending = 0;
  if (!next) return;
  const view = { ...now(), params: next };
  next = null;
  history.replaceState(null, "", format(view));
}

/** Note parameters like `keep`, as a step that the browser's back undoes. */
export function step(params) {
  flush();
  const view = now();
  const fragment = format({ ...view, params: { ...view.params, ...params } });
  if (fragment !== location.hash) history.pushState(null, "", fragment);
}

function split(text, mark) {
  const at = text.indexOf(mark);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + 1)];
}

function unquoted(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "?";
  }
}

/** Quote what would end a value or be changed by mail programs; keep the rest readable. */
function quoted(text) {
  return encodeURIComponent(text).replace(/%(2C|3A|2F|20|3B)/g, (code) => (code === "%20" ? "+" : decodeURIComponent(code)));
}
