/**
 * Requests to the server. What must stay true: a reply is JSON or an ApiError that says what happened; a busy server
 * (429) is asked again, later each time; a token is asked for once and sent with every request after.
 */

const TRIES = 6;
const LONGEST_WAIT_SECONDS = 10;

/** status 0: no answer at all. */
export class ApiError extends Error {
  constructor(message, status, code = 0, { field = null, model } = {}) {
    super(message);
    this.name = 'ApiError';
    this.field = field; // of the form sent, where it is what was wrong
    this.model = model; // that is not at hand: its name, null where nobody knows it; undefined where nothing is missing
    this.status = status;
    this.code = code;
  }
}

const hooks = { askToken: async () => null, busy: () => {} };
let token = keptToken();
let taken = token !== null; // whether the server has taken it; one that was kept was taken once
let asking = null;

/** `askToken(why)` gives a token or null, asked 'first', as the one given is 'wrong', or one that was right has 'changed'; `busy(seconds)` hears that the server asks us to wait, and 0 when it answers again. */
export function setHooks(given) {
  Object.assign(hooks, given);
}

function keptToken() {
  try {
    return sessionStorage.getItem('clipql:token');
  } catch {
    return null;
  }
}

/** One dialog, however many requests were refused at once; the cookie that login sets is for the thumbnails. */
function login() {
  asking ??= (async () => {
    const given = await hooks.askToken(token === null ? 'first' : taken ? 'changed' : 'wrong');
    if (given === null) return false;
    [token, taken] = [given, false];
    try {
      sessionStorage.setItem('clipql:token', given);
    } catch {
      // without storage the token lasts until the page is closed
    }
    await fetch('./api/login', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ token: given }),
    });
    return true;
  })().finally(() => {
    asking = null;
  });
  return asking;
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });

/** The raw Response of a request that went well. Throws ApiError, or the AbortError of `signal`. */
export async function send(path, { method = 'GET', body, headers = {}, signal } = {}) {
  let waited = false;
  for (let attempt = 0; ; attempt++) {
    const sent = token;
    const all = sent === null ? headers : { ...headers, Authorization: `Bearer ${sent}` };
    let response;
    try {
      response = await fetch(`.${path}`, { method, body, headers: all, signal, credentials: 'same-origin' });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError('The server does not answer.', 0);
    }
    if (response.ok) {
      taken ||= sent !== null && sent === token;
      if (waited) hooks.busy(0);
      return response;
    }
    // one that was sent before the token was given is sent again with it, and nobody is asked twice
    if (response.status === 401 && (sent !== token || (await login()))) continue;
    if (response.status === 429 && attempt < TRIES) {
      // the waits of many pages must not fall together, hence the random part
      const asked = Number(response.headers.get('Retry-After')) || 0.25 * 2 ** attempt;
      const seconds = Math.min(LONGEST_WAIT_SECONDS, asked * (1 + Math.random() / 2));
      waited = true;
      hooks.busy(seconds);
      await pause(seconds, signal);
      continue;
    }
    throw await failure(response);
  }
}

async function failure(response) {
  const text = await response.text().catch(() => '');
  try {
    const told = JSON.parse(text);
    if (told && typeof told.error === 'string') return new ApiError(told.error, response.status, told.code ?? 0, told);
  } catch {
    // ClickHouse's protocol answers errors as plain text
  }
  return new ApiError(text.trim() || `The server answered ${response.status}.`, response.status);
}

/** The JSON of a reply; `body` is sent as JSON unless it is a FormData or a string. */
export async function call(path, { body, ...rest } = {}) {
  const raw = body === undefined || body instanceof FormData || typeof body === 'string';
  const response = await send(path, {
    ...rest,
    body: raw ? body : JSON.stringify(body),
    headers: raw ? {} : { 'Content-Type': 'application/json' },
    method: rest.method ?? (body === undefined ? 'GET' : 'POST'),
  });
  return response.json();
}
