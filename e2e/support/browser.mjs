// A real Chromium and its visitors: tabs that remember everything the page complained about and every
// frame of telemetry that left it.
import { chromium } from 'playwright-core';

// `AutomationControlled` off: people's browsers do not say of themselves that a program drives them.
// The script's browser is the same one, so that movement alone tells them apart.
const ARGS = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
  '--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage',
  '--disable-blink-features=AutomationControlled',
];
export const VIEWPORT = { width: 1280, height: 720 };
export const PREFIX = '/_gaitway';
/** Chromium says so of the shop's price socket, with or without a gateway, when a page is left. */
const SHOPS_OWN = /\/ws\/stock' failed: Page entered Back-Forward Cache/;

export const launch = () => chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ARGS,
  ignoreDefaultArgs: ['--disable-back-forward-cache', '--enable-automation'],
});

export class Visitor {
  /** Messages of the telemetry socket to the page. */
  told = [];
  /** Telemetry bytes that left the page, by socket or request. */
  sent = [];
  /** Errors of the page, policy violations among them. */
  complaints = [];
  dialogs = [];

  static async enter(browser, t, options = {}) {
    const visitor = new Visitor();
    visitor.context = await browser.newContext({ viewport: VIEWPORT, ...options });
    t.after(() => visitor.context.close());
    await visitor.context.addInitScript(() => {
      document.addEventListener('securitypolicyviolation', (event) =>
        console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`));
    });
    // On the context: the last frame of a page leaves when the page is gone.
    visitor.context.on('request', (request) => {
      if (new URL(request.url()).pathname !== `${PREFIX}/b`) return;
      const body = request.postDataBuffer();
      if (body) visitor.sent.push(body);
    });
    visitor.page = await visitor.context.newPage();
    visitor.watch(visitor.page);
    return visitor;
  }

  watch(page) {
    page.on('pageerror', (error) => this.complaints.push(`uncaught: ${error.message}`));
    page.on('console', (line) => {
      if (line.type() !== 'error' || SHOPS_OWN.test(line.text())) return;
      this.complaints.push(`${line.text()} (${line.location().url})`);
    });
    page.on('dialog', (dialog) => {
      this.dialogs.push(dialog.message());
      dialog.dismiss().catch(() => {});
    });
    page.on('websocket', (socket) => {
      if (!new URL(socket.url()).pathname.startsWith(`${PREFIX}/t`)) return;
      socket.on('framesent', ({ payload }) => this.sent.push(Buffer.from(payload)));
      socket.on('framereceived', ({ payload }) => this.told.push(String(payload)));
    });
  }

  /** Logs in on the shop's own page; returns the token. */
  async logIn(origin, user) {
    await this.page.goto(`${origin}/login`);
    await this.page.selectOption('select[name=user]', user);
    await this.page.fill('input[name=password]', 'demo');
    await Promise.all([this.page.waitForURL('**/account'), this.page.click('.login button')]);
    return this.token();
  }

  async token() {
    return (await this.context.cookies()).find((cookie) => cookie.name === 'session')?.value;
  }
}
