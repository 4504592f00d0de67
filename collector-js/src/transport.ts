// Brings batches to the gateway and brings back its one order, to leave the page. A page token
// first, then a WebSocket, and single requests while there is none and when the page is left.
// Must not know: what is in a batch. Never throws and never lets a promise go unhandled.
import type { Batch } from './batch';
import type { Stop } from './event';
import { listen, quiet } from './listen';

const RETRY_MIN_MS = 1_000;
const RETRY_MAX_MS = 60_000;
/** A handshake a proxy swallowed would otherwise hang for minutes. */
const HANDSHAKE_MAX_MS = 10_000;
/** A token younger than this that is refused will not get better by asking again at once. */
const RENEWABLE_AFTER_MS = 10_000;
/** The gateway promises 60 s. */
const TOKEN_FRESH_MS = 55_000;
/** Bytes the browser may hold back on a slow line; beyond that events wait in the batch. */
const UNSENT_BYTES_MAX = 64_000;
/** Three full batches; the browser lets 64 KiB of such requests outlive a page. */
const UNANSWERED_FRAMES_MAX = 3;
const FRAME_TYPE = 'application/octet-stream';
const TOKEN = /^[\w.~-]{1,200}$/;

const enum Close {
  TokenExpired = 4401,
  NotWanted = 4403,
}

export interface Transport {
  /** Sends what there is, if there is a way now. */
  _flush(): void;
  /** The page comes into view: connect, unless connected. */
  _resume(): void;
  /** The page goes out of view: one last batch, and no new attempts until `_resume`. */
  _pause(leaving: boolean): void;
  _stop: Stop;
}

/** `base` ends in a slash; `halt` stops the whole collector, for the gateway does not want this page. */
export const createTransport = (base: string, batch: Batch, halt: Stop): Transport => {
  const socketBase = base.replace(/^http/, 'ws');
  let token = '';
  let tokenAtMs = 0;
  let socket: WebSocket | undefined;
  let openedAtMs = 0; // 0 while it is not
  let failures = 0;
  let timer = 0;
  let paused = true;
  let asking = false; // for a token
  let posting = 0; // requests with a frame under way
  let unanswered: Uint8Array[] = []; // frames whose request failed, to be sent again as they are
  let posts = false; // no socket was to be had lately
  let socketBlocked = false;

  const isOpen = () => !!socket && socket.readyState === 1;
  const tokenAgeMs = () => performance.now() - tokenAtMs;
  const next = () => unanswered.shift() || batch._take(performance.now());
  const request = (endpoint: string, init: RequestInit) =>
    // Inside a promise, since a page's own `fetch` may throw.
    Promise.resolve().then(() =>
      fetch(base + endpoint, { method: 'POST', credentials: 'same-origin', ...init }),
    );
  const retry = () => {
    if (paused || socket) return;
    clearTimeout(timer);
    const delayMs = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** failures++);
    timer = setTimeout(quiet(connect), delayMs * (0.75 + Math.random() / 2));
  };
  const renew = () => (tokenAgeMs() > RENEWABLE_AFTER_MS ? connect() : retry());

  const connect = () => {
    clearTimeout(timer);
    if (paused || asking || socket) return;
    asking = true;
    request('token', {})
      .then((response) => {
        if (response.status === 204) return halt();
        return response.text().then((text) => {
          // Anything but a token is somebody else answering, such as the app behind a removed gateway.
          if (response.status !== 200 || !TOKEN.test(text)) throw 0;
          token = text;
          tokenAtMs = performance.now();
          asking = false;
          dial();
        });
      })
      .catch(retry)
      .then(() => (asking = false));
  };

  const dial = () => {
    if (paused) return;
    openedAtMs = 0;
    if (socketBlocked) return lose();
    try {
      const dialled = (socket = new WebSocket(socketBase + 't?p=' + token));
      timer = setTimeout(quiet(lose), HANDSHAKE_MAX_MS);
      dialled.onopen = quiet(() => {
        if (socket !== dialled) return;
        clearTimeout(timer);
        openedAtMs = performance.now();
        posts = false;
        batch._introduce(); // it may be another gateway
        flush();
      });
      dialled.onmessage = (event) => obey(event.data);
      dialled.onclose = quiet((event) => {
        if (socket === dialled) lose(event.code);
      });
    } catch {
      lose();
    }
  };

  const abandon = () => {
    clearTimeout(timer);
    const abandoned = socket;
    socket = undefined;
    if (abandoned) abandoned.close();
  };

  const lose = (code?: number) => {
    abandon();
    if (code === Close.NotWanted) return halt();
    posts = !openedAtMs;
    if (openedAtMs && performance.now() - openedAtMs > RENEWABLE_AFTER_MS) failures = 0;
    if (posts) flush();
    if (code === Close.TokenExpired) renew();
    else if (!socketBlocked) retry();
  };

  const flush = () => {
    if (isOpen()) {
      for (let frame; socket!.bufferedAmount < UNSENT_BYTES_MAX && (frame = next()); ) {
        socket!.send(frame as Uint8Array<ArrayBuffer>);
      }
    } else if (posts && token && !posting) {
      const frame = next();
      if (frame) post(frame);
    }
  };

  const post = (frame: Uint8Array) => {
    const endpoint = 'b?p=' + token;
    if (paused && !('keepalive' in Request.prototype)) {
      navigator.sendBeacon(base + endpoint, new Blob([frame as BlobPart], { type: FRAME_TYPE }));
      return;
    }
    posting++;
    request(endpoint, {
      body: frame as BodyInit,
      keepalive: true, // outlives the page
      headers: { 'content-type': FRAME_TYPE },
    })
      .then((response) => {
        if (response.status === 403) return halt();
        if (response.status === 401) return again(frame, renew);
        if (response.status >= 500) return again(frame, retry);
        return response.text().then(obey);
      })
      .catch(() => again(frame, retry))
      .then(() => posting--);
  };

  const again = (frame: Uint8Array, reconnect: () => void) => {
    if (unanswered.length < UNANSWERED_FRAMES_MAX) unanswered.push(frame);
    if (isOpen()) flush();
    else reconnect();
  };

  /** The only order there is: leave for an address of this origin. Anything else is ignored. */
  const obey = (text: string) => {
    try {
      const { t, u } = JSON.parse(text);
      // Parsed first: `//host`, `/\host` and tabs between are other origins that begin like a path.
      const address = new URL(u, origin);
      if (t !== 'go' || u[0] !== '/' || address.origin !== origin) return;
      try {
        // From inside a frame of ours the whole page leaves; a foreign page around us stays.
        if (top!.location.origin === origin) return top!.location.replace(address.href);
      } catch {
        // Not ours to look at.
      }
      location.replace(address.href);
    } catch {
      // Not for us.
    }
  };

  const unlisten = listen(document, 'securitypolicyviolation', (event: SecurityPolicyViolationEvent) => {
    if (event.disposition === 'report') return;
    // The page's own policy forbids it: asking again would only fill its console and its reports.
    if (event.blockedURI.startsWith(base)) halt();
    if (event.blockedURI.startsWith(socketBase)) {
      socketBlocked = true;
      lose(); // Chromium says nothing to the socket itself
    }
  });

  return {
    _flush: flush,

    _resume() {
      paused = false;
      connect();
    },

    _pause(leaving) {
      paused = true;
      clearTimeout(timer);
      if (token && tokenAgeMs() < TOKEN_FRESH_MS) {
        // Requests of this kind outlive the page; what a socket still holds does not.
        for (let frame; (frame = next()); ) post(frame);
      } else {
        flush();
      }
      if (leaving) abandon();
    },

    _stop() {
      unlisten();
      paused = true;
      abandon();
    },
  };
};
