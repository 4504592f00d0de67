// The committed file in a real Chromium against a real server: what is seen, what is never seen,
// how it travels, and that the page does not notice.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { chromium } from 'playwright-core';
import { decode } from './decode.mjs';
import { html, PREFIX, startGateway, until } from './gateway.mjs';

const ARGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
  '--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage',
];

let browser;
before(async () => {
  browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: ARGS,
    ignoreDefaultArgs: ['--disable-back-forward-cache'],
  });
});
after(() => browser?.close());

/** A visitor on a page: its browser tab, and everything it complained about. */
const visit = async (t, gateway, path = '/', { prepare, options } = {}) => {
  const context = await browser.newContext({ viewport: { width: 800, height: 600 }, ...options });
  t.after(() => context.close());
  const page = await context.newPage();
  const complaints = [];
  page.on('pageerror', (error) => complaints.push(`uncaught: ${error.message}`));
  page.on('console', (line) => line.type() === 'error' && complaints.push(`console: ${line.text()}`));
  if (prepare) await page.addInitScript(prepare);
  await page.goto(gateway.origin + path);
  return { page, complaints };
};

/** Moves that are far enough apart in time to be kept, each really delivered. */
const wander = async (page, moves = 5, from = 100) => {
  for (let i = 0; i < moves; i++) {
    await page.mouse.move(from + i * 7, from + i * 3);
    await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  }
};

/** Headless tabs are never hidden; this is what a page sees of it. */
const hideable = () => {
  window.show = (visible) => {
    Object.defineProperty(document, 'hidden', { value: !visible, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  };
};

/** Waiting made shorter by a factor; the delays asked for are kept. */
const hasty = (factor) => ({
  content: `{
    window.delays = [];
    const { setTimeout } = window;
    window.setTimeout = (callback, delay) => (delays.push(delay), setTimeout(callback, delay / ${factor}));
  }`,
});

const inOrder = (gateway) =>
  assert.deepEqual(gateway.sequences(), gateway.sequences().map((_, i) => i));

const TALL = '<div style="height:5000px">tall</div>';
const FIELDS = `
  <input id="text">
  <input id="secret" type="password">
  <input id="number" autocomplete="cc-number">
  <input id="once" autocomplete="one-time-code">
  <input id="again" autocomplete="section-a current-password">
  <input id="fresh" autocomplete="new-password">
  <input name="cvv">
  <form data-gaitway-ignore><input id="ignored"></form>
  <div id="rich" contenteditable>rich</div>
  <input id="toggled" type="password" placeholder="shown later">
  <div id="open"></div><div id="closed"></div>
  <script>
    for (const mode of ['open', 'closed']) {
      const host = document.getElementById(mode);
      const shadow = host.attachShadow({ mode });
      shadow.innerHTML = '<input type="password">';
      host.focusInside = () => shadow.firstChild.focus();
    }
  </script>`;

describe('the collector', { concurrency: 6 }, () => {
  test('sees pointer, click, wheel, scroll, keys and navigation, by the .proto', async (t) => {
    const gateway = await startGateway(t, {
      '/': html(`<input id="text"><button>b</button><div id="inner" style="height:80px;overflow:auto">${TALL}</div>${TALL}`),
    });
    const { page, complaints } = await visit(t, gateway);
    await wander(page, 6);
    await page.mouse.click(30, 20, { button: 'left' });
    await page.keyboard.type('aZ5 ,');
    for (const key of ['Enter', 'Backspace', 'ArrowLeft', 'Shift', 'F2', 'Tab']) await page.keyboard.press(key);
    await page.mouse.move(400, 400);
    await page.mouse.wheel(0, 240);
    await page.evaluate(() => document.querySelector('#inner').scrollTo(0, 55));
    await page.evaluate(() => history.pushState({}, '', '/elsewhere'));
    await page.evaluate(() => history.replaceState({}, '', '/elsewhere')); // no change of address
    await until(() => gateway.count('NAVIGATE') && gateway.count('SCROLL') >= 2);

    const events = gateway.events();
    const of = (kind) => events.filter((event) => event.kind === kind);
    assert.ok(of('POINTER_MOVE').length >= 6);
    assert.deepEqual([of('POINTER_MOVE')[0].x, of('POINTER_MOVE')[0].y], [400, 400]);
    assert.equal(of('POINTER_MOVE')[1].movementX, 7);
    assert.ok(of('POINTER_MOVE').every((event) => event.coalesced >= 1 && event.pointer === 'MOUSE'));
    for (const kind of ['POINTER_DOWN', 'POINTER_UP', 'CLICK']) {
      assert.equal(of(kind).length, 1, kind);
      const { x, y, button, pointer, trusted } = of(kind)[0];
      assert.deepEqual([x, y, button, pointer, trusted], [120, 80, 0, 'MOUSE', true]);
    }
    assert.deepEqual(
      of('KEY_DOWN').map((event) => event.keyClass),
      ['LETTER', 'LETTER', 'DIGIT', 'SPACE', 'PUNCTUATION', 'ENTER', 'DELETE', 'NAVIGATION', 'MODIFIER', 'FUNCTION', 'TAB'],
    );
    assert.equal(of('KEY_UP').length, of('KEY_DOWN').length);
    assert.deepEqual(of('WHEEL').map((event) => [event.wheelX, event.wheelY]), [[0, 240]]);
    assert.ok(of('SCROLL').some((event) => event.scrollY === 240), 'document');
    assert.ok(of('SCROLL').some((event) => event.scrollY === 55), 'inner scroller');
    assert.equal(of('NAVIGATE').length, 1);
    assert.ok(events.every((event) => event.trusted));
    for (const { batch } of gateway.frames) {
      assert.ok(batch.events.every((event) => event.atTicks > 0 && event.atTicks <= batch.sentAtTicks + 1));
    }
    const { viewportWidth, viewportHeight, pixelRatioPercent, automation } = gateway.frames[0].batch.environment;
    assert.deepEqual([viewportWidth, viewportHeight, pixelRatioPercent, automation], [800, 600, 100, true]);
    assert.equal(gateway.posts, 0);
    const moves = of('POINTER_MOVE').length;
    t.diagnostic(`${gateway.frames.reduce((sum, frame) => sum + frame.bytes.length, 0)} bytes for ${events.length} events, ${moves} of them moves`);
    assert.deepEqual(complaints, []);
  });

  test('sees touch as touch', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    const { page } = await visit(t, gateway, '/', { options: { hasTouch: true } });
    await page.touchscreen.tap(50, 60);
    await until(() => gateway.count('CLICK'));
    const downs = gateway.events().filter((event) => event.kind === 'POINTER_DOWN');
    assert.deepEqual(downs.map(({ pointer, x, y }) => [pointer, x, y]), [['TOUCH', 200, 240]]);
  });

  test('tells events made by a script from real ones', async (t) => {
    const gateway = await startGateway(t, { '/': html('<button>b</button>') });
    const { page } = await visit(t, gateway);
    await page.evaluate(() => document.querySelector('button').click());
    await page.mouse.click(20, 20);
    await until(() => gateway.count('CLICK') === 2);
    const clicks = gateway.events().filter((event) => event.kind === 'CLICK');
    assert.deepEqual(clicks.map((click) => click.trusted), [false, true]);
  });

  test('records no key at all in password, payment and ignored fields', async (t) => {
    const gateway = await startGateway(t, { '/': html(FIELDS) });
    const { page } = await visit(t, gateway);
    const fields = ['#secret', '#number', '#once', '#again', '#fresh', '[name=cvv]', '#ignored', '#toggled'];
    for (const field of fields) {
      await page.focus(field);
      await page.keyboard.type('abc123');
      await page.keyboard.press('Enter');
    }
    await page.evaluate(() => { document.querySelector('#toggled').type = 'text'; });
    await page.focus('#toggled');
    await page.keyboard.type('abc123');
    for (const host of ['#open', '#closed']) {
      await page.evaluate((host) => document.querySelector(host).focusInside(), host);
      await page.keyboard.type('abc123');
    }
    // Released elsewhere than pressed.
    await page.focus('#secret');
    await page.keyboard.down('x');
    await page.focus('#text');
    await page.keyboard.up('x');
    assert.ok(await page.evaluate(() => document.activeElement.id === 'text'));
    // The proof that silence meant anything: ordinary fields speak.
    await page.keyboard.type('ok');
    await page.focus('#rich');
    await page.keyboard.type('7');
    await until(() => gateway.count('KEY_UP') >= 3);
    const keys = gateway.events().filter((event) => event.kind.startsWith('KEY_'));
    assert.deepEqual(
      keys.map((event) => `${event.kind} ${event.keyClass}`),
      ['KEY_DOWN LETTER', 'KEY_UP LETTER', 'KEY_DOWN LETTER', 'KEY_UP LETTER', 'KEY_DOWN DIGIT', 'KEY_UP DIGIT'],
    );
  });

  test('sends nothing from which typed text could be read', async (t) => {
    const canary = 'Xylophon-4711!';
    const gateway = await startGateway(t, { '/': html('<input id="text">') });
    const { page } = await visit(t, gateway);
    await page.focus('#text');
    await page.keyboard.type(canary);
    await until(() => gateway.count('KEY_UP') >= canary.length);
    const sent = Buffer.concat(gateway.frames.map((frame) => frame.bytes));
    for (let i = 0; i + 3 <= canary.length; i++) {
      for (const encoding of ['latin1', 'utf16le']) {
        assert.ok(!sent.includes(Buffer.from(canary.slice(i, i + 3), encoding)), canary.slice(i, i + 3));
      }
    }
    // Whatever letters of a kind were typed, the same classes travel.
    const classes = gateway.events().filter((event) => event.kind === 'KEY_DOWN' && event.keyClass !== 'MODIFIER').map((event) => event.keyClass);
    assert.deepEqual(classes, [...canary].map((c) => (/[a-z]/i.test(c) ? 'LETTER' : /\d/.test(c) ? 'DIGIT' : 'PUNCTUATION')));
    assert.ok(gateway.requests.every((line) => !line.includes('Xyl')));
  });

  test('sends nothing when nothing happens', async (t) => {
    const gateway = await startGateway(t, { '/': html('quiet') });
    const prepare = () => {
      window.timers = 0;
      const { setTimeout } = window;
      window.setTimeout = (...call) => (window.timers++, setTimeout(...call));
    };
    const { page } = await visit(t, gateway, '/', { prepare });
    await until(() => gateway.sockets.size);
    await until(() => page.evaluate(() => performance.now() > 4_500));
    assert.equal(gateway.frames.length, 0);
    assert.equal(await page.evaluate(() => window.timers), 1, 'the one that watches the handshake');
  });

  test('numbers frames without a gap across lost sockets, and introduces itself again', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    const { page, complaints } = await visit(t, gateway, '/', { prepare: hasty(10) });
    const useSocket = async (clicks) => {
      await until(() => gateway.sockets.size);
      await wander(page, 3);
      await page.mouse.click(20, 20);
      await until(() => gateway.count('CLICK') === clicks); // the last event: nothing is under way
    };
    for (const [i, code] of [4401, 1011, 1001].entries()) {
      await useSocket(i + 1);
      for (const socket of gateway.sockets) socket.close(code);
      await until(() => !gateway.sockets.size);
    }
    await useSocket(4);
    inOrder(gateway);
    const first = new Map();
    for (const frame of gateway.frames) if (!first.has(frame.token)) first.set(frame.token, frame);
    assert.equal(first.size, 4);
    for (const frame of first.values()) assert.ok(frame.batch.environment, frame.token);
    assert.deepEqual(complaints, []);
  });

  test('stays silent after 4403', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    gateway.onSocket = (socket) => socket.close(4403);
    const { page } = await visit(t, gateway);
    await until(() => gateway.lastClose === 4403);
    await wander(page, 10);
    await until(() => page.evaluate(() => performance.now() > 4_000));
    assert.deepEqual([gateway.frames.length, gateway.handshakes, gateway.tokensIssued], [0, 1, 1]);
  });

  test('stays silent when the token is 204', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    gateway.tokenStatus = 204;
    const { page, complaints } = await visit(t, gateway);
    await until(() => gateway.requests.includes(`POST ${PREFIX}/token`));
    await wander(page, 10);
    await until(() => page.evaluate(() => performance.now() > 4_000));
    assert.deepEqual([gateway.frames.length, gateway.handshakes], [0, 0]);
    assert.equal(gateway.requests.filter((line) => line.endsWith('/token')).length, 1);
    assert.deepEqual(complaints, []);
  });

  test('takes no answer for a token that is none', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    gateway.tokenBody = '<!doctype html><title>Sign in</title>';
    const { page } = await visit(t, gateway, '/', { prepare: hasty(10) });
    await until(() => gateway.requests.filter((line) => line.endsWith('/token')).length >= 2);
    assert.equal(gateway.handshakes, 0);
    gateway.tokenBody = undefined;
    await until(() => gateway.sockets.size);
    await wander(page);
    await until(() => gateway.frames.length);
  });

  test('posts where sockets are refused, and resends what was not accepted', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    gateway.refuseSockets = true;
    gateway.postStatus = 503;
    const { page } = await visit(t, gateway, '/', { prepare: hasty(10) });
    await wander(page);
    await until(() => gateway.posts);
    gateway.postStatus = 401;
    const posts = gateway.posts;
    await until(() => gateway.posts > posts);
    gateway.postStatus = 204;
    await until(() => gateway.frames.length);
    await wander(page);
    await until(() => gateway.frames.length >= 2);
    assert.ok(gateway.frames.every((frame) => frame.by === 'post'));
    assert.equal(gateway.postType, 'application/octet-stream');
    inOrder(gateway);
    assert.equal(gateway.frames.reduce((sum, frame) => sum + frame.batch.dropped, 0), 0);
    await until(() => gateway.tokensIssued >= 2);
    // And back to a socket when there is one.
    gateway.refuseSockets = false;
    await until(() => gateway.sockets.size);
    await wander(page);
    await until(() => gateway.frames.at(-1).by === 'socket');
  });

  test('delivers the last batch when the page is left', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL), '/next': 'next' });
    const { page, complaints } = await visit(t, gateway);
    await until(() => gateway.sockets.size);
    await wander(page, 4);
    await page.mouse.down();
    await page.goto(`${gateway.origin}/next`);
    await until(() => gateway.count('HIDDEN'));
    assert.deepEqual(gateway.events().slice(-2).map((event) => event.kind), ['POINTER_DOWN', 'HIDDEN']);
    assert.equal(gateway.frames.at(-1).by, 'post');
    assert.equal(gateway.count('HIDDEN'), 1);
    await until(() => !gateway.sockets.size);
    assert.deepEqual(complaints, []);
  });

  test('delivers the last batch over the socket when the token is too old to post with', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL), '/next': 'next' });
    const prepare = () => {
      const now = performance.now.bind(performance);
      performance.now = () => now() + (window.later || 0);
    };
    const { page } = await visit(t, gateway, '/', { prepare });
    await until(() => gateway.sockets.size);
    await wander(page, 4);
    await page.evaluate(() => { window.later = 120_000; });
    await page.goto(`${gateway.origin}/next`);
    await until(() => gateway.count('HIDDEN'));
    assert.equal(gateway.frames.at(-1).by, 'socket');
    assert.equal(gateway.posts, 0);
  });

  test('pauses in a hidden tab and goes on when it is seen again', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    const { page } = await visit(t, gateway, '/', { prepare: hideable });
    await until(() => gateway.sockets.size);
    await wander(page, 3);
    await page.evaluate(() => window.show(false));
    await until(() => gateway.count('HIDDEN'));
    assert.equal(gateway.sockets.size, 1, 'the socket stays, for the gateway may have something to say');
    for (const socket of gateway.sockets) socket.close(1011);
    await until(() => !gateway.sockets.size);
    const hiddenAtMs = await page.evaluate(() => performance.now());
    await until(() => page.evaluate((at) => performance.now() > at + 2_500, hiddenAtMs));
    assert.equal(gateway.handshakes, 1, 'no new attempt while hidden');
    await page.evaluate(() => window.show(true));
    await until(() => gateway.count('VISIBLE') && gateway.sockets.size);
    inOrder(gateway);
  });

  test('goes on after the back/forward cache', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL), '/next': 'next' });
    const { page } = await visit(t, gateway);
    await page.evaluate(() => {
      addEventListener('pageshow', (event) => { window.restored = event.persisted; });
    });
    await until(() => gateway.sockets.size);
    await wander(page, 3);
    await page.goto(`${gateway.origin}/next`);
    await until(() => gateway.count('HIDDEN') && !gateway.sockets.size);
    await page.goBack({ waitUntil: 'commit' });
    assert.ok(await until(() => page.evaluate(() => window.restored)), 'the open socket kept the page out of the cache');
    await until(() => gateway.count('VISIBLE') && gateway.sockets.size);
    inOrder(gateway);
  });

  for (const [way, tell] of [
    ['the socket', (gateway, text) => gateway.sockets.forEach((socket) => socket.send(text))],
    ['the answer to a post', (gateway, text) => { gateway.postStatus = 200; gateway.postBody = text; }],
  ]) {
    test(`leaves at once when told so by ${way}`, async (t) => {
      const gateway = await startGateway(t, { '/': html(TALL), [`${PREFIX}/bye`]: '<p>bye</p>' });
      gateway.refuseSockets = way !== 'the socket';
      const { page } = await visit(t, gateway);
      await until(() => gateway.handshakes);
      if (!gateway.refuseSockets) await until(() => gateway.sockets.size);
      tell(gateway, JSON.stringify({ t: 'go', u: `${PREFIX}/bye?i=7` }));
      await wander(page).catch(() => {}); // the page may leave under the mouse
      await page.waitForURL(`${gateway.origin}${PREFIX}/bye?i=7`);
      assert.equal(await page.textContent('p'), 'bye');
      assert.equal(await page.evaluate(() => history.length), 2, 'the page left is not in the history');
    });
  }

  test('ignores every other message', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL), '/bye': 'bye' });
    const { page, complaints } = await visit(t, gateway);
    await until(() => gateway.sockets.size);
    const go = (u) => JSON.stringify({ t: 'go', u });
    const messages = [
      go('https://example.org/'), go('//example.org/'), go('/\\example.org/'), go('/\t/example.org/'), go('\\\\example.org'),
      go('javascript:alert(1)'), go('bye'), go(gateway.origin + '/bye'), go(' /bye'), go(''), go(7), go(['/bye']), go(null), go({}),
      '{"t":"ok"}', '{"t":"GO","u":"/bye"}', '{"u":"/bye"}', 'go', '{', 'null', '[]', '',
    ];
    for (const socket of gateway.sockets) {
      for (const message of messages) socket.send(message);
      socket.send(Buffer.from(go('/bye'))); // binary
    }
    await wander(page);
    await until(() => gateway.frames.length);
    assert.equal(page.url(), `${gateway.origin}/`);
    assert.equal(gateway.sockets.size, 1);
    assert.deepEqual(complaints, []);
  });

  test('works under a strict policy without one violation', async (t) => {
    const csp =
      "default-src 'none'; script-src 'nonce-abc'; style-src 'none'; connect-src 'self'; base-uri 'none'; " +
      "form-action 'none'; frame-ancestors 'none'; trusted-types 'none'; require-trusted-types-for 'script'";
    const gateway = await startGateway(t, {
      '/': { body: html(TALL.replace(/ style="[^"]*"/, ''), { nonce: 'abc' }), headers: { 'content-security-policy': csp } },
      '/next': 'next',
    });
    const prepare = () => {
      document.addEventListener('securitypolicyviolation', (event) => console.error('violation ' + event.violatedDirective));
    };
    const { page, complaints } = await visit(t, gateway, '/', { prepare });
    await wander(page);
    await until(() => gateway.frames.some((frame) => frame.by === 'socket'));
    await page.goto(`${gateway.origin}/next`);
    await until(() => gateway.frames.some((frame) => frame.by === 'post'));
    assert.deepEqual(complaints, []);
  });

  test('stops where the policy forbids the connection, and posts where it forbids the socket only', async (t) => {
    const gateway = await startGateway(t, {});
    gateway.pages['/none'] = { body: html(TALL), headers: { 'content-security-policy': "connect-src 'none'" } };
    gateway.pages['/http'] = { body: html(TALL), headers: { 'content-security-policy': `connect-src ${gateway.origin}${PREFIX}/token ${gateway.origin}${PREFIX}/b` } };
    const none = await visit(t, gateway, '/none');
    await wander(none.page);
    await until(() => none.page.evaluate(() => performance.now() > 3_500));
    assert.equal(none.complaints.filter((line) => line.includes('Connecting to')).length, 1, none.complaints.join('\n'));
    assert.equal(gateway.tokensIssued, 0);
    const prepare = () => { // the handshake limit must not be what helps
      const { setTimeout } = window;
      window.setTimeout = (callback, delay) => (delay === 10_000 ? 0 : setTimeout(callback, delay));
    };
    const http = await visit(t, gateway, '/http', { prepare });
    await wander(http.page);
    await until(() => gateway.frames.length);
    await wander(http.page);
    await until(() => gateway.frames.length > 1);
    assert.ok(gateway.frames.every((frame) => frame.by === 'post'));
    await until(() => http.page.evaluate(() => performance.now() > 6_000));
    assert.equal(http.complaints.filter((line) => line.includes('Connecting to')).length, 1, http.complaints.join('\n'));
  });

  test('sees through handlers that throw or stop propagation, and disturbs none', async (t) => {
    const head = `<script>
      window.seen = [];
      for (const type of ['pointermove', 'click', 'keydown', 'wheel', 'scroll']) {
        document.addEventListener(type, (event) => { seen.push(type); event.stopImmediatePropagation(); throw new Error('of the page'); }, true);
      }
      document.addEventListener('wheel', (event) => event.preventDefault(), { passive: false, capture: true });
      addEventListener('wheel', (event) => event.preventDefault(), { passive: false, capture: true });
    </script>`;
    const gateway = await startGateway(t, { '/': html(`<input id="text">${TALL}`, { head }) });
    const { page, complaints } = await visit(t, gateway);
    await wander(page, 3);
    await page.mouse.click(30, 15);
    await page.keyboard.press('a');
    await page.mouse.wheel(0, 300);
    await until(() => gateway.count('WHEEL') && gateway.count('KEY_UP') && gateway.count('CLICK') && gateway.count('POINTER_MOVE') >= 3);
    assert.equal(await page.evaluate(() => scrollY), 0, 'preventDefault of the page still holds');
    const seen = await page.evaluate(() => [...new Set(window.seen)].sort());
    assert.deepEqual(seen, ['click', 'keydown', 'pointermove', 'wheel']);
    assert.ok(complaints.length && complaints.every((line) => line.includes('of the page')), complaints.join('\n'));
  });

  test('listens passively only, and patches nothing', async (t) => {
    const gateway = await startGateway(t, { '/': html('x'), '/bare': '<p>bare' });
    const prepare = () => {
      window.listeners = [];
      const add = EventTarget.prototype.addEventListener;
      EventTarget.prototype.addEventListener = function (type, handler, options) {
        window.listeners.push([type, options?.passive === true && options?.capture === true]);
        return add.call(this, type, handler, options);
      };
    };
    const survey = () =>
      [window, document, history, History.prototype, EventTarget.prototype, XMLHttpRequest.prototype, Document.prototype, Event.prototype]
        .map((object) => Object.getOwnPropertyNames(object).filter((name) => name !== 'listeners').map((name) => {
          const { value, get } = Object.getOwnPropertyDescriptor(object, name);
          return typeof (value || get) === 'function' ? name + (name === 'addEventListener' ? '' : value || get) : name;
        }).sort().join());
    const bare = await visit(t, gateway, '/bare', { prepare });
    const with_ = await visit(t, gateway, '/', { prepare });
    await until(() => gateway.sockets.size);
    assert.deepEqual(await with_.page.evaluate(survey), await bare.page.evaluate(survey));
    const listeners = await with_.page.evaluate(() => window.listeners);
    assert.ok(listeners.length >= 15);
    assert.deepEqual(listeners.filter(([, passive]) => !passive), []);
    const stored = await with_.page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]);
    assert.deepEqual(stored, [0, 0, '']);
  });

  test('survives a server that is down, and takes up again when it is back', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    const { page, complaints } = await visit(t, gateway, '/', { prepare: hasty(10) });
    await until(() => gateway.sockets.size);
    await wander(page, 3);
    const { port } = gateway;
    await gateway.kill();
    await wander(page, 3);
    await until(() => complaints.some((line) => line.includes('ERR_CONNECTION_REFUSED')));
    assert.equal(await page.evaluate(() => 6 * 7), 42);
    await gateway.listen(port);
    await until(() => gateway.sockets.size);
    await until(() => gateway.frames.length);
    // The browser itself reports refused connections; nothing else may have gone wrong.
    assert.deepEqual(complaints.filter((line) => !line.includes('ERR_CONNECTION_REFUSED')), []);
  });

  test('never throws into a page whose fetch, WebSocket and clock are broken', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    const prepare = () => {
      window.fetch = () => { window.asked = true; throw new Error('no fetch'); };
      window.WebSocket = function () { throw new Error('no socket'); };
      window.matchMedia = () => { throw new Error('no media'); };
    };
    const { page, complaints } = await visit(t, gateway, '/', { prepare });
    await wander(page);
    await until(() => page.evaluate(() => window.asked && performance.now() > 3_000));
    assert.deepEqual(complaints, []);
  });

  test('never throws from a timer or a socket either', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    const prepare = () => { // asked when a frame is made
      window.matchMedia = () => { window.asked = (window.asked || 0) + 1; throw new Error('no media'); };
    };
    const { page, complaints } = await visit(t, gateway, '/', { prepare });
    await until(() => gateway.sockets.size);
    await wander(page);
    await until(() => page.evaluate(() => window.asked));
    await wander(page);
    assert.deepEqual(complaints, []);
  });

  test('loaded twice, records once', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL, { head: `<script src="${PREFIX}/c.js" defer></script>` }) });
    const { page } = await visit(t, gateway);
    await page.evaluate((src) => {
      document.head.append(Object.assign(document.createElement('script'), { src }));
    }, `${PREFIX}/c.js`);
    await page.mouse.click(40, 40);
    await until(() => gateway.count('CLICK'));
    assert.deepEqual([gateway.count('CLICK'), gateway.tokensIssued, gateway.handshakes], [1, 1, 1]);
  });

  test('in frames: a quiet one does not connect, a used one does, a sandboxed one never', async (t) => {
    const gateway = await startGateway(t, {
      '/': '<iframe src="/frame" name="used"></iframe><iframe src="/frame"></iframe><iframe sandbox="allow-scripts" src="/frame" name="boxed"></iframe>',
      '/frame': html(TALL),
      [`${PREFIX}/bye`]: 'bye',
    });
    const { page, complaints } = await visit(t, gateway);
    await page.waitForLoadState('load');
    assert.equal(gateway.requests.filter((line) => line.endsWith('/c.js')).length >= 1, true);
    await page.frame('boxed').locator('div').click({ position: { x: 20, y: 20 } });
    await page.frame('used').locator('div').click({ position: { x: 20, y: 20 } });
    await until(() => gateway.count('CLICK'));
    assert.deepEqual([gateway.tokensIssued, gateway.handshakes, gateway.count('CLICK')], [1, 1, 1]);
    for (const socket of gateway.sockets) socket.send(`{"t":"go","u":"${PREFIX}/bye"}`);
    await page.waitForURL(`${gateway.origin}${PREFIX}/bye`); // the whole page, not the frame
    assert.deepEqual(complaints, []);
  });

  test('in a frame of another site: only the frame leaves', async (t) => {
    const inner = await startGateway(t, { '/': html(TALL), '/bye': '<p>bye</p>' });
    const outer = await startGateway(t, { '/': `<iframe name="inner" src="${inner.origin}/"></iframe>` });
    const { page } = await visit(t, outer);
    await page.frame('inner').locator('div').click({ position: { x: 20, y: 20 } });
    await until(() => inner.frames.length);
    for (const socket of inner.sockets) socket.send('{"t":"go","u":"/bye"}');
    await until(() => page.frame('inner').url() === `${inner.origin}/bye`);
    assert.equal(page.url(), `${outer.origin}/`);
  });

  test('under a storm of moves: bounded work, bounded memory, honest about the rest', async (t) => {
    const MOVES = 20_000;
    const KEYS = 2_000;
    const gateway = await startGateway(t, { '/': html(TALL) });
    gateway.tokenStatus = 500; // nothing can be sent yet
    const prepare = () => {
      window.reads = 0;
      const { getCoalescedEvents } = PointerEvent.prototype;
      PointerEvent.prototype.getCoalescedEvents = function () {
        window.reads++;
        return getCoalescedEvents.call(this);
      };
    };
    const { page, complaints } = await visit(t, gateway, '/', { prepare });
    const { spanMs, reads } = await page.evaluate(({ MOVES, KEYS }) => {
      const from = performance.now();
      for (let i = 0; i < MOVES; i++) {
        dispatchEvent(new PointerEvent('pointermove', { pointerId: 1, pointerType: 'mouse', clientX: i % 800, clientY: 5 }));
      }
      const spanMs = performance.now() - from;
      for (let i = 0; i < KEYS; i++) dispatchEvent(new KeyboardEvent('keydown', { key: 'x' }));
      return { spanMs, reads: window.reads };
    }, { MOVES, KEYS });
    const kept = Math.floor(spanMs / 13) + 1;
    assert.ok(reads >= 1 && reads <= kept, `${reads} moves looked at in ${spanMs} ms`);
    gateway.tokenStatus = 200;
    await until(() => gateway.frames.length);
    const { batch } = gateway.frames[0];
    assert.equal(batch.events.length, 500);
    assert.equal(gateway.count('POINTER_MOVE'), reads);
    assert.equal(batch.events.length + batch.dropped, reads + KEYS);
    assert.deepEqual(complaints.filter((line) => !line.includes('status of 500')), []);
  });

  test('many pointers are kept apart, and each thinned by itself', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    const { page } = await visit(t, gateway);
    await page.evaluate(() => {
      for (const pointerId of [1, 2, 1, 2]) {
        dispatchEvent(new PointerEvent('pointermove', { pointerId, pointerType: 'touch', clientX: pointerId }));
      }
    });
    await until(() => gateway.frames.length);
    assert.deepEqual(gateway.events().map((event) => [event.kind, event.pointer, event.x]).slice(0, 2), [
      ['POINTER_MOVE', 'TOUCH', 4],
      ['POINTER_MOVE', 'TOUCH', 8],
    ]);
    // Sixteen are remembered; one more and all are forgotten, so the first may move again at once.
    const before = gateway.events().length;
    await page.evaluate(() => {
      for (let pointerId = 101; pointerId <= 117; pointerId++) dispatchEvent(new PointerEvent('pointermove', { pointerId }));
      dispatchEvent(new PointerEvent('pointermove', { pointerId: 117, clientX: 1 }));
      dispatchEvent(new PointerEvent('pointermove', { pointerId: 101, clientX: 2 }));
    });
    await until(() => gateway.events().length > before);
    assert.ok(gateway.events().slice(before).some((event) => event.x === 8));
  });

  test('sees the window gain and lose the keyboard, but not fields; and no key where there was none', async (t) => {
    const gateway = await startGateway(t, { '/': html('<input id="text"><input id="other">') });
    const { page } = await visit(t, gateway);
    await page.focus('#text');
    await page.focus('#other');
    await page.evaluate(() => {
      dispatchEvent(new Event('blur'));
      dispatchEvent(new Event('focus'));
      document.body.dispatchEvent(new Event('keydown', { bubbles: true })); // as autofill does
      document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'Process', bubbles: true }));
      document.body.dispatchEvent(new KeyboardEvent('keydown', { key: 'é', repeat: true, bubbles: true }));
      document.body.dispatchEvent(new KeyboardEvent('keydown', { key: '漢', bubbles: true }));
    });
    await until(() => gateway.count('KEY_DOWN') >= 3);
    const made = gateway.events().filter((event) => !event.trusted);
    assert.deepEqual(made.map(({ kind, keyClass, repeat }) => [kind, keyClass, repeat]), [
      ['BLUR', undefined, undefined],
      ['FOCUS', undefined, undefined],
      ['KEY_DOWN', 'UNKNOWN', 0],
      ['KEY_DOWN', 'LETTER', 1],
      ['KEY_DOWN', 'LETTER', 0],
    ]);
    assert.deepEqual(gateway.events().filter((event) => event.trusted), []);
  });

  test('without the Navigation API: one event for a hash, one for going back', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    const prepare = () => Object.defineProperty(window, 'navigation', { value: undefined });
    const { page } = await visit(t, gateway, '/', { prepare });
    await page.evaluate(() => new Promise((done) => {
      addEventListener('hashchange', done, { once: true });
      location.hash = 'part';
    }));
    await page.evaluate(() => new Promise((done) => {
      addEventListener('hashchange', done, { once: true });
      history.back();
    }));
    await page.mouse.click(20, 20);
    await until(() => gateway.count('CLICK'));
    assert.equal(gateway.count('NAVIGATE'), 2);
  });

  test('delivers the last batch by beacon where fetch cannot outlive a page', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL), '/next': 'next' });
    const prepare = () => { delete Request.prototype.keepalive; };
    const { page, complaints } = await visit(t, gateway, '/', { prepare });
    await until(() => gateway.sockets.size);
    await wander(page, 3);
    await page.goto(`${gateway.origin}/next`);
    await until(() => gateway.count('HIDDEN'));
    assert.deepEqual([gateway.frames.at(-1).by, gateway.postType], ['post', 'application/octet-stream']);
    assert.deepEqual(complaints, []);
  });

  test('asks an unreachable server ever more rarely, down to once a minute, never in step', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    gateway.tokenStatus = 503;
    const { page } = await visit(t, gateway, '/', { prepare: hasty(100) });
    await until(() => gateway.requests.filter((line) => line.endsWith('/token')).length >= 9);
    const delays = await page.evaluate(() => window.delays);
    for (const [i, nominal] of [1, 2, 4, 8, 16, 32, 60, 60].entries()) {
      const seconds = delays[i] / 1_000;
      assert.ok(seconds >= nominal * 0.75 && seconds <= nominal * 1.25, `attempt ${i}: ${seconds} s`);
    }
    assert.notEqual(delays[6], delays[7]);
  });

  test('posts when a handshake hangs', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    gateway.hangSockets = true;
    const { page } = await visit(t, gateway, '/', { prepare: hasty(10) });
    await wander(page);
    await until(() => gateway.frames.length);
    assert.ok(gateway.frames.every((frame) => frame.by === 'post'));
    assert.ok((await page.evaluate(() => window.delays)).includes(10_000));
  });

  test('waits while the line is jammed', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    const prepare = () => {
      window.jam = 64_000;
      Object.defineProperty(WebSocket.prototype, 'bufferedAmount', { get: () => (window.asked = true) && window.jam });
    };
    const { page } = await visit(t, gateway, '/', { prepare });
    await until(() => gateway.sockets.size);
    await wander(page);
    await until(() => page.evaluate(() => window.asked && performance.now() > 4_500));
    assert.equal(gateway.frames.length, 0);
    await page.evaluate(() => { window.jam = 63_999; });
    await until(() => gateway.frames.length);
    inOrder(gateway);
  });

  test('keeps three unaccepted frames, and a gap in the numbers tells of the others', async (t) => {
    const gateway = await startGateway(t, { '/': html(TALL) });
    gateway.refuseSockets = true;
    gateway.postStatus = 500;
    const { page } = await visit(t, gateway, '/', { prepare: hideable });
    await until(() => gateway.handshakes);
    // Every look away sends what there is, and all of it comes back.
    for (let looks = 0; looks < 6; looks++) {
      const { posts } = gateway;
      await page.evaluate(() => {
        dispatchEvent(new WheelEvent('wheel', { deltaY: 1 }));
        window.show(false);
      });
      await until(() => gateway.posts > posts);
      await page.evaluate(() => window.show(true));
    }
    gateway.postStatus = 204;
    gateway.refuseSockets = false;
    await until(() => gateway.sockets.size);
    await page.evaluate(() => dispatchEvent(new WheelEvent('wheel', { deltaY: 9 })));
    await until(() => gateway.events().some((event) => event.wheelY === 9));
    const sequences = gateway.sequences().sort((a, b) => a - b);
    assert.equal(new Set(sequences).size, sequences.length, `${sequences}`);
    assert.ok(sequences.at(-1) >= 6 && sequences.length < sequences.at(-1) + 1, `${sequences}`);
  });
});

test('measured: bytes of a pointer move, time of a flush', async (t) => {
  // Reported, not asserted: no figure of time is the same twice.
  const gateway = await startGateway(t, { '/': html(TALL) });
  const prepare = () => {
    window.flushMs = [];
    const { send } = WebSocket.prototype;
    WebSocket.prototype.send = function (data) {
      window.sentAtMs = performance.now();
      return send.call(this, data);
    };
    const { setTimeout } = window;
    window.setTimeout = (callback, delay) =>
      setTimeout(() => {
        const from = performance.now();
        window.sentAtMs = 0;
        callback();
        if (window.sentAtMs) window.flushMs.push(performance.now() - from);
      }, delay);
  };
  const { page } = await visit(t, gateway, '/', { prepare });
  await until(() => gateway.sockets.size);
  for (let i = 0; (await page.evaluate(() => window.flushMs.length)) < 3; i++) {
    await page.mouse.move(200 + 150 * Math.cos(i / 9), 200 + 130 * Math.sin(i / 7));
  }
  await until(() => gateway.frames.length >= 3);
  const moves = gateway.count('POINTER_MOVE');
  const bytes = gateway.frames.reduce((sum, frame) => sum + frame.bytes.length, 0);
  t.diagnostic(`${(bytes / moves).toFixed(1)} bytes a move over ${moves} moves in ${gateway.frames.length} frames`);
  const flushMs = await page.evaluate(() => window.flushMs);
  t.diagnostic(`flush ${flushMs.map((ms) => ms.toFixed(2)).join(', ')} ms`);
  assert.ok(decode(gateway.frames[0].bytes).events.length);
});
