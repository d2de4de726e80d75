// Small helpers for the document: elements, icons, announcements, downloads.

/**
 * Make an element. Properties that begin with `on` are listeners, `class` and `aria-…` are
 * attributes, `style` is an object of CSS properties. Children may be texts, nodes or lists.
 * @param {string} tag
 * @param {Record<string, any> | null} [props]
 * @param {...any} children
 * @returns {any}
 */
export function h(tag, props, ...children) {
  return filled(document.createElement(tag), props, children);
}

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an SVG element, like `h`.
 * @param {string} tag
 * @param {Record<string, any> | null} [props]
 * @param {...any} children
 * @returns {any}
 */
export function s(tag, props, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(node, props, children) {
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "value" && node instanceof HTMLInputElement) node.defaultValue = String(value); // as `isTyping` compares
    else if (key === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else if (key in node && !(node instanceof SVGElement) && !key.includes("-")) node[key] = value;
    else node.setAttribute(key === "className" ? "class" : key, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

/** Replace all children of a node. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}

const TEXTS = 'input[type="number"], input[type="text"]';
addEventListener("change", ({ target }) => target instanceof HTMLInputElement && target.matches(TEXTS) && (target.defaultValue = target.value));

/**
 * Tell whether somebody types into a field below a node. To replace the field would lose the text,
 * and the event of its change.
 * @param {Element} node
 */
export function isTyping(node) {
  const field = textField(node);
  return field !== null && (field.value !== field.defaultValue || field.validity.badInput);
}

/**
 * Redraw what is below a node. The control with the focus keeps it, and a text field its selection:
 * what is typed next replaces what was selected.
 * @param {Element} node
 * @param {string} name   the attribute that names a control
 * @param {() => void} draw
 */
export function redraw(node, name, draw) {
  const key = document.activeElement?.getAttribute(name);
  const field = textField(node);
  const [start, end] = [field?.selectionStart, field?.selectionEnd];
  draw();
  const next = key ? node.querySelector(`[${name}="${CSS.escape(key)}"]`) : null;
  /** @type {any} */ (next)?.focus();
  if (!field || !(next instanceof HTMLInputElement)) return;
  if (start === null) next.select(); // fields of numbers do not tell what is selected
  else next.setSelectionRange(start, end);
}

function textField(node) {
  const active = document.activeElement;
  return active instanceof HTMLInputElement && node.contains(active) && active.matches(TEXTS) ? active : null;
}

const PATHS = {
  back: "M15 5l-7 7 7 7",
  next: "M9 5l7 7-7 7",
  down: "M5 9l7 7 7-7",
  copy: "M9 9h11v11H9zM5 15V4h11",
  save: "M12 4v11m-5-5l5 5 5-5M5 20h14",
  open: "M12 20V9m-5 5l5-5 5 5M5 4h14",
  columns: "M4 5h16v14H4zM9.500 5v14M14.500 5v14",
  close: "M6 6l12 12M18 6L6 18",
  help: "M9 9a3 3 0 1 1 4.500 2.600c-1 .6-1.500 1.200-1.500 2.400M12 17.500v.5",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  out: "M14 4h5v16h-5M4 12h11m-4-4l4 4-4 4",
  full: "M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5",
  warn: "M12 4l9 16H3zM12 10v5M12 17v.5",
  fit: "M4 12h16M12 4v16M8 8h8v8H8z",
};

/** Make an icon of our own; it says nothing to screen readers. */
export function icon(name) {
  return s(
    "svg",
    { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" },
    s("path", { d: PATHS[name] }),
  );
}

/** Make a button with an icon, named for screen readers and for the mouse. */
export function iconButton(name, label, onclick, text) {
  return h(
    "button",
    { type: "button", className: text ? "quiet" : "quiet square", title: label, "aria-label": text ? null : label, onclick },
    icon(name),
    text ?? null,
  );
}

/** Tell screen readers something. */
export function say(text) {
  const place = document.getElementById("said");
  if (place) place.textContent = text;
}

/** Let the browser save a text as a file. */
export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Copy a text, and say so on the button that asked for it. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { value: text, className: "unseen" }); // no clipboard without TLS
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say("Copied");
  if (!button) return;
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
}

/** Show a dialog with a title until it is closed; the focus then is where it was. */
export function dialog(title, ...children) {
  const box = h(
    "dialog",
    { "aria-label": title, onclose: () => box.remove() },
    h("form", { method: "dialog", className: "head" }, h("h2", null, title),
      h("button", { className: "quiet square", "aria-label": "Close" }, icon("close"))),
    h("div", { className: "body" }, children),
  );
  box.addEventListener("click", (event) => event.target === box && box.close());
  document.body.append(box);
  box.showModal();
  return box;
}

/** Close every dialog: another view takes the place of the one they are about. */
export function closeDialogs() {
  for (const box of document.querySelectorAll("dialog")) box.close();
}

/** Return a function that runs `work` once, `wait` ms after its last call. */
export function later(wait, work) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...given), wait);
  };
}

/** Return a number for people: as many digits as say something. */
export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en").replaceAll(",", "\u202f");
  const text = value.toPrecision(digits);
  return text.includes("e") ? String(Number(text)) : text;
}
