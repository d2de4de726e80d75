// Requests to the service: errors in its words, retries where it asks for them, cancelling.

/** Where the service is; the page may lie below a path of a proxy. */
const BASE = new URL("./", document.baseURI);

/** An answer that is an error: its status, and the words of the service. */
export class ApiError extends Error {
  constructor(status, message, details = {}) {
    super(message);
    this.status = status;
    this.code = details.code ?? null;
    /** Where in a query the mistake is; null where it is not known. */
    this.position = details.position ?? null;
  }
}

/** The service cannot be reached. */
export class GoneError extends Error {}

const listeners = { gone: [], back: [], login: [], replaced: [] };
/**
 * Listen for `gone` and `back` of the service, for `login`: the token is no longer valid, and for
 * `replaced`: the dataset has another revision.
 */
export function on(event, listen) {
  listeners[event].push(listen);
}

let isGone = false;
function gone() {
  if (isGone) return;
  isGone = true;
  for (const each of listeners.gone) each();
  look();
}

async function look() {
  try {
    await fetch(new URL("healthz", BASE), { cache: "no-store" });
  } catch {
    setTimeout(look, 2000);
    return;
  }
  isGone = false;
  for (const each of listeners.back) each();
}

/** The URL of a path of the service. */
export function url(path, query = {}) {
  const found = new URL(path, BASE);
  for (const [key, value] of Object.entries(query))
    for (const one of Array.isArray(value) ? value : [value])
      if (one !== undefined && one !== null) found.searchParams.append(key, String(one));
  return found;
}

const PATIENCE = [300, 1000, 3000];

/**
 * Make a request. Raises `ApiError`, `GoneError`, and `AbortError` if `signal` ends it.
 * @param {string} path
 * @param {{ query?: Record<string, any>, body?: any, signal?: AbortSignal, quiet?: boolean }} [given]
 * @returns {Promise<Response>}
 */
export async function request(path, given = {}) {
  const { query = {}, body, signal, quiet = false } = given;
  for (let attempt = 0; ; attempt++) {
    let answer;
    try {
      answer = await fetch(url(path, query), {
        signal,
        method: body === undefined ? "GET" : "POST",
        headers: body === undefined ? {} : { "Content-Type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
        credentials: "same-origin",
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      gone();
      throw new GoneError("The service cannot be reached.");
    }
    if (answer.ok) return answer;
    const isBusy = answer.status === 429 || answer.status === 503;
    if (isBusy && attempt < PATIENCE.length) {
      await pause(PATIENCE[attempt], signal);
      continue;
    }
    const error = await problem(answer);
    if (error.code === "RevisionNotFound") for (const each of listeners.replaced) each();
    if (answer.status === 401 && !quiet) for (const each of listeners.login) each();
    throw error;
  }
}

/** Make a request for JSON, like `request`. @returns {Promise<any>} */
export async function json(path, given = {}) {
  return (await request(path, given)).json();
}

async function problem(answer) {
  let said = {};
  try {
    said = await answer.json();
  } catch {
    said = {};
  }
  const code = answer.headers.get("X-Error-Code");
  return new ApiError(answer.status, said.error ?? `The service answered ${answer.status}.`, { ...said, code });
}

function pause(ms, signal) {
  return new Promise((done, fail) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      fail(new DOMException("cancelled", "AbortError"));
    });
  });
}

/** Whether an error only says that nobody waits any more. */
export function isCancelled(error) {
  return error?.name === "AbortError";
}

/**
 * Run a SELECT; `where` restricts the tables to the patients of a cohort.
 * @param {string} dataset @param {string} text
 * @param {{ where?: string, limit?: number, signal?: AbortSignal }} [given]
 * @returns {Promise<{columns: string[], rows: any[][], truncated: boolean}>}
 */
export function sql(dataset, text, given = {}) {
  const { where, limit, signal } = given;
  /** @type {Record<string, any>} */
  const body = { sql: text };
  if (where) body.where = where;
  if (limit) body.limit = limit;
  return json(`api/datasets/${dataset}/sql`, { body, signal });
}

/** Runs only the newest of several tasks: starting one cancels the one before. */
export class Newest {
  constructor() {
    this.controller = null;
  }
  next() {
    this.controller?.abort();
    this.controller = new AbortController();
    return this.controller.signal;
  }
  stop() {
    this.controller?.abort();
  }
}
