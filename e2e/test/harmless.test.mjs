// Do no harm: a shop behind the gateway is the same shop, and nothing a person types ever leaves the
// page or stays anywhere.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { launch, PREFIX, Visitor } from '../support/browser.mjs';
import { Stage } from '../support/stage.mjs';
import { until } from '../support/wait.mjs';

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

describe('a shop behind the gateway', () => {
  test('works as before: pages, policies, streams, forms, uploads, history, caches', async (t) => {
    const stage = await Stage.open(t);
    const gateway = await stage.gateway();
    const visitor = await Visitor.enter(browser, t);
    const { page } = visitor;
    await visitor.logIn(gateway.origin, 'carol');

    await t.test('every page comes with the collector and without a complaint', async () => {
      for (const [path, policy] of [['/', null], ['/catalogue', null], ['/product/teapot', null], ['/cart', "'self'"], ['/account', "'nonce-"]]) {
        const sockets = visitor.page.waitForEvent('websocket', (socket) => socket.url().includes(`${PREFIX}/t`));
        const answer = await page.goto(gateway.origin + path);
        assert.equal(answer.status(), 200, path);
        assert.equal(await page.locator(`script[src="${PREFIX}/c.js"]`).count(), 1, path);
        const csp = answer.headers()['content-security-policy'];
        if (policy) assert.ok(csp.includes(policy), `${path}: ${csp}`);
        else assert.equal(csp, undefined, path);
        // It runs, and may connect, whatever the page's policy says.
        await sockets;
      }
      assert.equal((await page.goto(`${gateway.origin}/nowhere`)).status(), 404);
      visitor.complaints = visitor.complaints.filter((line) => !line.includes('404'));
      assert.deepEqual(visitor.complaints, []);
    });

    await t.test('news and prices arrive', async () => {
      await page.goto(`${gateway.origin}/`);
      await page.waitForFunction(() => document.querySelector('#news').textContent.length > 3);
      const prices = page.waitForEvent('websocket', (socket) => socket.url().endsWith('/ws/stock'));
      await page.goto(`${gateway.origin}/catalogue`);
      const { payload } = await (await prices).waitForEvent('framereceived');
      assert.ok(JSON.parse(payload).cents > 0);
    });

    await t.test('forms and uploads arrive whole', async () => {
      await page.goto(`${gateway.origin}/product/honey`);
      await page.fill('input[name=pieces]', '3');
      await page.click('form[action="/cart"] button');
      await page.waitForURL('**/cart');
      assert.match(await page.innerText('table'), /Forest honey\s+3/);
      await page.goto(`${gateway.origin}/account`);
      const photo = Buffer.alloc(3_000_017, 'a picture of a cat ');
      const uploaded = page.waitForResponse('**/account/photo');
      await page.setInputFiles('#photo', { name: 'cat.jpg', mimeType: 'image/jpeg', buffer: photo });
      const received = await (await uploaded).json();
      assert.deepEqual(received, { bytes: photo.length, sha256: createHash('sha256').update(photo).digest('hex') });
      await page.getByText('3000017 bytes received').waitFor();
    });

    await t.test('back and forward show what was there', async () => {
      await page.goto(`${gateway.origin}/product/lamp`);
      await page.fill('textarea', 'for the corner');
      await page.click('header .brand');
      await page.waitForURL(`${gateway.origin}/`);
      // A page kept whole by the browser is not loaded again: there is no load event to wait for.
      await page.goBack({ waitUntil: 'commit' });
      await page.getByRole('heading', { name: 'Reading lamp' }).waitFor();
      assert.equal(await page.inputValue('textarea'), 'for the corner');
      await page.goForward({ waitUntil: 'commit' });
      await page.getByRole('heading', { name: /quiet kitchen/ }).waitFor();
      assert.deepEqual(visitor.complaints, []);
    });

    await t.test('files are byte for byte those of the shop, and caches keep working', async () => {
      for (const file of ['shop.css', 'shop.js']) {
        const direct = await (await fetch(`${stage.shop}/static/${file}`)).text();
        for (const coding of ['identity', 'gzip']) {
          const answer = await gateway.fetch(`/static/${file}`, { headers: { accept: '*/*', 'accept-encoding': coding } });
          assert.equal(answer.status, 200);
          const etag = answer.headers.etag;
          const again = await gateway.fetch(`/static/${file}`, { headers: { accept: '*/*', 'accept-encoding': coding, 'if-none-match': etag } });
          assert.equal(again.status, 304);
          assert.equal(again.body.length, 0);
          assert.equal(again.headers.etag, etag);
          if (coding === 'identity') assert.equal(String(answer.body), direct);
        }
      }
      // Saved rather than shown, a page is still a page.
      await page.goto(`${gateway.origin}/catalogue`);
      const download = page.waitForEvent('download');
      await page.evaluate(() => {
        const link = Object.assign(document.createElement('a'), { href: '/static/shop.css', download: 'shop.css' });
        document.body.append(link);
        link.click();
      });
      const saved = await (await (await download).createReadStream()).toArray();
      assert.equal(Buffer.concat(saved).toString(), await (await fetch(`${stage.shop}/static/shop.css`)).text());
      const head = await gateway.fetch('/catalogue', { method: 'HEAD' });
      const get = await gateway.fetch('/catalogue');
      assert.equal(head.body.length, 0);
      assert.equal(Number(get.headers['content-length']), get.body.length);
    });
  });

  test('keeps nothing of what is typed: not in frames, logs, metrics, mails or files', async (t) => {
    const canary = 'Quokka9Zephyr';
    const stage = await Stage.open(t);
    const gateway = await stage.gateway();
    const visitor = await Visitor.enter(browser, t);
    const { page } = visitor;
    // A password of another site, typed by somebody who mixes up two sites.
    await page.goto(`${gateway.origin}/login`);
    await page.locator('input[name=password]').pressSequentially(canary);
    await page.press('input[name=password]', 'Enter');
    await page.getByText('That is not the password').waitFor();
    const token = await visitor.logIn(gateway.origin, 'dave');
    await page.goto(`${gateway.origin}/product/olives`);
    await page.locator('textarea').pressSequentially(`${canary} please`);
    await until('the typing is told', () => visitor.sent.length >= 1);
    // A search as most sites do it, in the query.
    await page.evaluate((canary) => {
      document.body.insertAdjacentHTML('beforeend', '<form action="/catalogue"><input type="search" name="q"></form>');
      document.querySelector('[type=search]').focus();
      return canary;
    }, canary);
    await page.locator('[type=search]').pressSequentially(canary);
    await page.press('[type=search]', 'Enter');
    await page.waitForURL(`**/catalogue?q=${canary}`);
    await page.mouse.move(200, 200);
    await until('telemetry leaves and arrives', async () =>
      visitor.sent.length >= 2 && (await gateway.metric('gaitway_telemetry_batches_total')) >= 2);
    // An incident, so that log line, mail and record of one are searched too.
    const session = (await gateway.sessionOf('dave')).identity.session;
    await gateway.revoke(session, 'to have a mail');
    await until('the mail', () => stage.mails.length);
    await page.waitForURL(`**${PREFIX}/bye*`);

    const traces = { ...await stage.traces(), 'telemetry frames': Buffer.concat(visitor.sent).toString('latin1') };
    assert.ok(Object.keys(traces).some((name) => /\.(db|sqlite\d?)$/.test(name)), String(Object.keys(traces)));
    assert.ok(traces.mails.includes(session) && traces['log of data-0'].includes('/catalogue'), 'the traces are those of this story');
    const forbidden = { typed: canary, 'typed, in part': canary.slice(0, 6), token, signature: token.split('.')[2] };
    for (const [what, text] of Object.entries(forbidden)) {
      const wide = Buffer.from(text, 'utf16le').toString('latin1');
      for (const [where, trace] of Object.entries(traces)) {
        assert.ok(!trace.includes(text) && !trace.includes(wide), `${what} found in ${where}`);
      }
    }
    // Who it was is a pseudonym everywhere but in the mail's and the page's groups, which the shop put into the token.
    assert.ok(!traces['log of data-0'].includes('dave'));
  });
});
