// The page: who is logged in, which view is shown, the banner, the theme.

import { ApiError, GoneError, isCancelled, json, on, request } from "./api.js";
import { closeDialogs, fill, h, icon, iconButton, say } from "./dom.js";
import { showCohort } from "./cohort.js";
import { follow, go, now } from "./state.js";

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const top = /** @type {HTMLElement} */ (document.getElementById("top"));
const banner = /** @type {HTMLElement} */ (document.getElementById("banner"));

/** What the service said of itself; null before somebody is logged in. */
let session = null;
/** The view that is shown: `update` takes the next one if it is of the same kind, `close` ends it. */
let shown = { key: "", update: null, close: null };

const THEMES = ["auto", "dark", "light"];
function theme(next) {
  const { dataset } = document.documentElement;
  const storage = kept();
  const chosen = next ?? storage?.getItem("theme") ?? dataset.theme ?? "auto";
  storage?.setItem("theme", chosen);
  dataset.theme = chosen;
  return chosen;
}

/** What the browser keeps for this page; null in a frame of another site's page, where it may be refused. */
function kept() {
  try {
    return localStorage;
  } catch {
    return null;
  }
}

function header(view) {
  const dataset = session?.datasets.find((d) => d.name === view.dataset);
  const names = session?.datasets.map((d) => d.name) ?? [];
  fill(
    top,
    h("a", { className: "brand", href: "#/", title: "All datasets", onclick: (e) => { e.preventDefault(); go({}); } },
      h("img", { src: new URL("icon.svg", import.meta.url).href, alt: "", width: 22, height: 22 }), "lundprobe-zarr"),
    names.length && view.dataset
      ? h("label", { className: "pick" }, h("span", { className: "unseen" }, "Dataset"),
          h("select", { onchange: (e) => go({ dataset: e.target.value }) },
            names.map((n) => h("option", { value: n, selected: n === view.dataset }, n)),
            !dataset && h("option", { value: view.dataset, selected: true, disabled: true }, view.dataset)))
      : null,
    h("div", { id: "crumb" }),
    h("span", { className: "space" }),
    dataset?.synthetic && h("span", { className: "mark", title: "Made by a program. No patient." }, "phantom, no patient"),
    h("span", { className: "mark plain", title: "For research. Not for diagnosis or treatment." }, "not a medical device"),
    iconButton("theme", "Colours: as the system, dark, light", () => {
      const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
      theme(next);
      say(`Colours: ${next}`);
    }),
    session?.is_known && iconButton("out", `Log out ${session.name}`, logOut, "Log out"),
  );
}

async function logOut() {
  await request("logout", { body: {} }).catch(() => null);
  session = null;
  close();
  start();
}

function close() {
  closeDialogs();
  shown.close?.();
  shown = { key: "", update: null, close: null };
}

/** Show a failure in place of the view. */
function problem(title, text, ...more) {
  close();
  document.title = `${title} – lundprobe-zarr`;
  fill(main, h("section", { className: "problem", role: "alert" }, icon("warn"), h("h1", null, title), h("p", null, text), more));
}

function logIn(said) {
  close();
  header({ dataset: null });
  document.title = "Log in – lundprobe-zarr";
  const field = h("input", {
    type: "password", name: "token", id: "token", autocomplete: "current-password", required: true,
    placeholder: "lp_…", spellcheck: false, autocapitalize: "off", "aria-describedby": "how",
  });
  const wrong = h("p", { className: "wrong", role: "alert" }, said ?? "");
  const button = h("button", { className: "main" }, "Log in");
  const send = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await request("login", { body: { token: field.value }, quiet: true });
      field.value = "";
      await start();
    } catch (error) {
      wrong.textContent = error.message;
      field.select();
    } finally {
      button.disabled = false;
    }
  };
  fill(main, h("form", { className: "login", onsubmit: send },
    h("img", { src: new URL("icon.svg", import.meta.url).href, alt: "", width: 56, height: 56 }),
    h("h1", null, "Log in"),
    h("p", { id: "how" }, "With the token that whoever runs this service gave you. The browser keeps it until you close it or log out, where no script can read it."),
    h("label", { htmlFor: "token" }, "Token"), field, wrong, button,
    h("p", { className: "small" }, "Research data under controlled access. The service may record who reads what.")));
  field.focus();
}

function datasets() {
  document.title = "Datasets – lundprobe-zarr";
  const total = (d) => Object.values(d.patients).reduce((a, b) => a + b, 0);
  fill(main, h("section", { className: "datasets" },
    h("h1", null, "Datasets"),
    session.datasets.length
      ? h("ul", null, session.datasets.map((d) => h("li", null,
          h("a", { href: `#/${d.name}`, onclick: (e) => { e.preventDefault(); go({ dataset: d.name }); } },
            h("strong", null, d.name),
            h("span", null, `${total(d)} patients (${Object.entries(d.patients).map(([p, n]) => `${p} ${n}`).join(", ")}), precision ${d.precision}${d.synthetic ? ", synthetic phantom" : ""}`),
            h("small", null, d.kinds.length === 2 ? "tables and voxels" : `only ${d.kinds[0]}`)))))
      : h("p", null, `${session.name} has no grant for a dataset of this service. Ask whoever runs it.`)));
}

async function show(view, isBack = false) {
  if (!session) return;
  header(view);
  if (view.problem) return problem("This link cannot be read", view.problem, home());
  if (!view.dataset) {
    if (session.datasets.length === 1) return go({ dataset: session.datasets[0].name });
    close();
    return datasets();
  }
  const dataset = session.datasets.find((d) => d.name === view.dataset);
  if (!dataset) return problem(`No dataset ${view.dataset}`, "This service has no such dataset, or your token does not give you any of it.", home());
  const key = view.patient ? `${view.dataset} ${view.patient}` : view.dataset;
  if (shown.key === key && shown.update) return shown.update(view);
  close();
  const context = { main, session, dataset, problem, home, fail };
  shown.key = key;
  try {
    const made = view.patient ? await (await import("./patient.js")).showPatient(context, view) : await showCohort(context, view);
    if (shown.key === key) Object.assign(shown, made);
    else made?.close?.();
  } catch (error) {
    if (shown.key === key) fail(error);
  }
  if (!isBack) scrollTo(0, 0);
}

/** Say a failure of a whole view. */
function fail(error) {
  if (isCancelled(error)) return;
  if (error instanceof GoneError) return; // the banner says so, and the view is shown again
  if (error instanceof ApiError && error.status === 401) return;
  const titles = { 403: "No right to see this", 404: "Not here" };
  problem(titles[error.status] ?? "This cannot be shown", error.message, home());
  if (!(error instanceof ApiError)) console.error(error);
}

function home() {
  const view = now();
  const target = view.patient && view.dataset ? { dataset: view.dataset } : {};
  return h("p", null, h("a", { href: "#/", onclick: (e) => { e.preventDefault(); go(target); } }, target.dataset ? "To the patients of the dataset" : "To the datasets"));
}

async function start() {
  try {
    session = await json("api/v1/session", { quiet: true });
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return logIn();
    if (error instanceof GoneError) return;
    return problem("The service failed", error.message);
  }
  await show(now());
  import("./patient.js"); // while somebody reads the table
}

on("gone", () => {
  fill(banner, icon("warn"), " The service cannot be reached. What is shown may be incomplete; this page tries again every two seconds.");
  banner.hidden = false;
});
on("back", () => {
  banner.hidden = true;
  say("The service is back.");
  if (!session) start();
  else if (shown.update) shown.update(now(), true);
  else show(now());
});
let began = 0;
on("replaced", () => {
  if (performance.now() - began < 5000) return; // several requests say so at a time
  began = performance.now();
  close();
  say("The dataset was replaced by another revision, which is shown now.");
  start();
});
on("login", () => {
  if (!session) return;
  session = null;
  logIn("Your token is no longer valid.");
});

theme();
follow(show);
start();
