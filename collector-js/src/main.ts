// The collector, put together: sources fill a batch, the transport takes it away.
// Finds its server by its own address, does nothing where it cannot, and judges nothing.
import { createBatch, EVENTS_MAX } from './batch';
import { environment } from './environment';
import { type Emit, Kind, type Stop, UNTRUSTED } from './event';
import { quiet, stopAll } from './listen';
import { observeClick } from './sources/click';
import { observeFocus } from './sources/focus';
import { observeKey } from './sources/key';
import { observeNavigation } from './sources/navigation';
import { observePointer } from './sources/pointer';
import { observeScroll } from './sources/scroll';
import { observeVisibility } from './sources/visibility';
import { observeWheel } from './sources/wheel';
import { createTransport } from './transport';

const BATCH_INTERVAL_MS = 2_000;
const LOADED = Symbol.for('gaitway.collector');

const start = (base: string) => {
  let timer = 0;
  let begun = false;
  let stop: Stop = () => {};
  const batch = createBatch(environment);
  const transport = createTransport(base, batch, () => stop());

  // A page connects when it comes into view, to be reachable. A frame waits for input: many are
  // invisible helpers, and the page around them is connected anyway.
  const begin = (wanted: boolean) => {
    if (document.hidden || !(begun || wanted)) return;
    if (!begun) transport._resume();
    begun = true;
  };
  // Runs only while there is something to send: an idle page has no timer.
  const arm = () => {
    if (!timer && begun && batch._size() && !document.hidden) {
      timer = setTimeout(onTimer, BATCH_INTERVAL_MS);
    }
  };
  const onTimer = quiet(() => {
    timer = 0;
    transport._flush();
    arm();
  });
  const emit: Emit = (kind, event, fields) => {
    const nowMs = performance.now();
    const atMs = event.timeStamp;
    batch._add(
      event.isTrusted ? kind : kind | UNTRUSTED,
      // Some browsers have given 0, or the time since 1970.
      atMs > 0 && atMs <= nowMs + 1_000 ? atMs : nowMs,
      fields,
    );
    begin((kind & 15) < Kind.Focus);
    if (batch._size() === EVENTS_MAX) transport._flush();
    arm();
  };
  const turn = (hidden: boolean, leaving: boolean) => {
    clearTimeout(timer);
    timer = 0;
    if (hidden) transport._pause(leaving);
    else if (begun) transport._resume();
    begin(self === top);
    arm();
  };

  stop = stopAll([
    observePointer(emit),
    observeClick(emit),
    observeWheel(emit),
    observeScroll(emit),
    observeKey(emit),
    observeFocus(emit),
    observeNavigation(emit),
    observeVisibility(emit, turn),
    transport._stop,
    () => clearTimeout(timer),
  ]);
  begin(self === top);
};

try {
  const script = document.currentScript;
  const page = window as { [LOADED]?: boolean };
  // A second copy stays silent, and so does one in a sandbox or a page from elsewhere ("null").
  if (script instanceof HTMLScriptElement && !page[LOADED]) {
    const base = new URL('.', script.src);
    if (base.origin === origin) {
      page[LOADED] = true;
      start(base.href);
    }
  }
} catch {
  // A browser too old for us: the page goes on without.
}
