// What people are shown: the operators' page, the logout page and the challenge. Usable, readable,
// and never carrying out what a visitor wrote.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { after, before, describe, test } from 'node:test';
import { launch, PREFIX, Visitor } from '../support/browser.mjs';
import { Script } from '../support/hand.mjs';
import { signIn } from '../support/ops.mjs';
import { Stage } from '../support/stage.mjs';
import { until } from '../support/wait.mjs';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const POLICY = fileURLToPath(new URL('../policy.yaml', import.meta.url));
const SHOTS = process.env.GAITWAY_SHOTS ?? mkdtempSync(join(tmpdir(), 'gaitway-shots-'));
mkdirSync(SHOTS, { recursive: true });

/** What has broken pages before: markup, attributes, addresses, templates, text that turns around. */
const HOSTILE = [
  '<script>alert(1)</script>', '"><img src=x onerror=alert(2)>', "'-alert(3)-'", '<svg/onload=alert(4)>',
  '</script><script>alert(5)</script>', 'javascript:alert(6)', '{{constructor.constructor("alert(7)")()}}',
  '${alert(8)}', '<iframe srcdoc="<script>parent.alert(9)</script>">', '<a href="javascript:alert(10)">x</a>',
  '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(11)&gt;">',
  '\u202egnp.exe<b onmouseover=alert(12)>\u202c', '<style>*{display:none}</style>', '<meta http-equiv=refresh content="0;url=/">',
  '<base href=https://evil.example/>', '<form action=https://evil.example/><button>', '\u0000<script>alert(13)</script>', '__proto__', 'constructor',
];

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

describe('what people are shown', () => {
  test('lets operators see, log out and pardon, whatever visitors wrote', async (t) => {
    const stage = await Stage.open(t);
    const gateway = await stage.gateway({ policy: POLICY, help: 'the <b>front desk</b> & co' });

    // Somebody to look at: a script that only shadow rules mind, and a crowd with hostile names.
    const bot = await Visitor.enter(browser, t);
    await bot.logIn(gateway.origin, 'chuck');
    await bot.page.goto(`${gateway.origin}/catalogue`);
    let halted = false;
    t.after(() => { halted = true; });
    const run = new Script(bot.page, { stepMs: 14, stepPx: 12, seed: 3 }).run(() => halted || bot.page.isClosed() || bot.page.url().includes(PREFIX));
    run.catch(() => {});

    await t.test('hostile requests, claims and telemetry get as far as they get', async () => {
      for (const [i, text] of HOSTILE.entries()) {
        const token = stage.token({ sub: text, sid: `${text}${i}`, groups: [text, ['shadow', 'fast', 'none'][i % 3]] });
        const printable = text.replace(/[^\x20-\x7e]/g, '');
        const headers = { 'user-agent': printable, referer: `http://x/${printable}`, 'x-forwarded-for': printable, 'accept-language': printable };
        const answer = await gateway.fetch(`/catalogue?q=${encodeURIComponent(text)}`, { token, headers });
        assert.ok([200, 303].includes(answer.status), `${text}: ${answer.status}`);
        await gateway.fetch(`/${encodeURIComponent(text)}`, { token, headers });
        await gateway.fetch(`${PREFIX}/bye?i=${encodeURIComponent(text)}`, { headers }).then(({ body }) => assert.ok(/^\w+$/.test(text) || !String(body).includes(text), text));
        // Telemetry that is none.
        const page = String((await gateway.fetch(`${PREFIX}/token`, { method: 'POST', token })).body);
        const beacon = await gateway.fetch(`${PREFIX}/b?p=${page}`, { method: 'POST', token, headers: { 'content-type': 'application/octet-stream' }, body: text });
        assert.equal(beacon.status, 400, text);
      }
      await until('their incidents are recorded', async () => (await gateway.incidents()).length >= HOSTILE.length);
    });

    const operator = await Visitor.enter(browser, t);
    const { page } = operator;
    await signIn(operator, gateway);

    await t.test('nothing a visitor wrote is carried out on the page', async () => {
      const groups = HOSTILE.slice(0, 12);
      await page.getByRole('row').nth(HOSTILE.length).waitFor();
      for (const view of ['Incidents', 'Audit trail', 'Sessions']) {
        await page.getByRole('link', { name: view }).click();
        await page.getByRole('heading', { name: view === 'Sessions' ? 'Live sessions' : view }).waitFor();
        if (view === 'Incidents') await page.locator('#incidents-rows').getByText(groups[0]).first().waitFor();
      }
      for (let i = 0; i < 4; i++) {
        await page.locator('#sessions-rows [data-role=open]').nth(i).click();
        await page.locator('#detail-body .facts').waitFor();
        await page.keyboard.press('Escape');
      }
      // The page's own charts are the only drawings, and nothing but lines and bars is in them.
      const foreign = 'iframe, object, embed, svg:not(#charts > figure > svg), #charts svg :not(path, rect), math, base, style, td script, dialog script, td img, a[href^=javascript]';
      const seen = await page.evaluate((foreign) => document.querySelectorAll(foreign).length, foreign);
      assert.equal(seen, 0);
      assert.ok(!/[\u202a-\u202e]/.test(await page.locator('#incidents-rows').textContent()), 'no text turns around');
      assert.deepEqual(operator.dialogs, []);
      assert.deepEqual(operator.complaints, []);
    });

    await t.test('a session can be looked at, logged out with a reason, and pardoned with another', async () => {
      const session = (await until('the script is judged', async () => {
        const session = await gateway.sessionOf('chuck');
        return session?.assessment.windows >= 2 && session.decisions.some((said) => said.rule === 'logout-bot') && session;
      }, { withinMs: 60_000 })).identity.session;
      await page.locator('#sessions-search').fill(session);
      await page.locator('#sessions-rows [data-role=open]').first().click();
      const drawer = page.getByRole('dialog', { name: 'Session' });
      await drawer.getByText('What stood out').waitFor();
      await drawer.getByText('would log out').first().waitFor();
      await look(operator, 'ops-detail');
      await drawer.getByRole('button', { name: 'Log out…' }).click();
      const confirm = page.getByRole('dialog', { name: /Log out s_/ });
      await confirm.getByRole('button', { name: 'Log out' }).click();
      // Without a reason nothing happens.
      assert.ok(await confirm.isVisible());
      await look(operator, 'ops-confirm');
      await confirm.getByLabel('Why?').fill('moves like a ruler <img src=x onerror=alert(20)>');
      await confirm.getByRole('button', { name: 'Log out' }).click();
      await drawer.getByText('Logged out').first().waitFor();
      await bot.page.waitForURL(`**${PREFIX}/bye*`);
      await run;
      assert.match(await bot.page.innerText('main'), /contact the <b>front desk<\/b> & co\. Quote/);
      await look(bot, 'logout-page');
      assert.deepEqual(bot.dialogs, []);
      const mail = await until('the mail', () => stage.mails.find((mail) => mail.text.includes(session)));
      assert.match(mail.text, /moves like a ruler/);
      assert.ok(!mail.html.includes('<img'));

      await drawer.getByRole('button', { name: 'Pardon…' }).click();
      const pardon = page.getByRole('dialog', { name: /Pardon s_/ });
      await pardon.getByLabel('Why?').fill('it was the tester');
      await pardon.getByRole('button', { name: 'Pardon' }).click();
      await drawer.getByText('Pardoned').first().waitFor();
      await page.keyboard.press('Escape');
      await page.getByRole('link', { name: 'Audit trail' }).click();
      for (const why of ['moves like a ruler', 'it was the tester']) {
        await page.locator('#audit-rows').getByText(why).first().waitFor();
      }
      assert.ok((await page.locator('#audit-rows').innerText()).includes('Ines'));
      assert.deepEqual([...operator.dialogs, ...operator.complaints], []);
    });

    await t.test('every view can be read and used', async () => {
      await page.getByRole('link', { name: 'Sessions' }).click();
      await page.locator('#sessions-search').fill('');
      await page.locator('#sessions-rows tr').nth(4).waitFor();
      await look(operator, 'ops-sessions');
      await page.getByRole('link', { name: 'Incidents' }).click();
      await page.locator('#incidents-rows tr').nth(4).waitFor();
      await look(operator, 'ops-incidents');
      await page.getByRole('link', { name: 'Audit trail' }).click();
      await page.locator('#audit-rows tr').nth(1).waitFor();
      await look(operator, 'ops-audit');
      await page.getByRole('button', { name: 'Sign out' }).click();
      await page.getByRole('heading', { name: 'Sign in' }).waitFor();
      await look(operator, 'ops-sign-in');
      assert.deepEqual(operator.complaints.filter((line) => !line.includes('401')), []);
    });

    await t.test('a challenge asks, and one click brings the person where they wanted to go', async () => {
      const suspect = await Visitor.enter(browser, t);
      const token = stage.token({ sub: 'grace', groups: ['suspect'] });
      await suspect.context.addCookies([{ name: 'session', value: token, url: gateway.origin }]);
      // The rule is read after the first request.
      await suspect.page.goto(`${gateway.origin}/`);
      await until('the next page is the question', async () => (await suspect.page.goto(`${gateway.origin}/product/clock?from=a&to=b`)).status() === 403);
      await look(suspect, 'challenge-page');
      assert.equal((await gateway.tries(token)).script.status, 403);
      await suspect.page.getByRole('button').press('Enter');
      await suspect.page.waitForURL(`${gateway.origin}/product/clock?from=a&to=b`);
      assert.equal(await suspect.page.innerText('h1'), 'Kitchen clock');
      assert.equal((await gateway.tries(token)).script.status, 200);
    });
    t.diagnostic(`screenshots in ${SHOTS}`);
  });
});

/** Photographs a page wide and narrow, light and dark, and has axe read it each time. */
const look = async ({ page, context }, name) => {
  // axe needs to run beside the page's policy, not to change it: a world of its own.
  const cdp = await context.newCDPSession(page);
  const { frameTree } = await cdp.send('Page.getFrameTree');
  for (const [width, height] of [[1280, 720], [360, 740]]) {
    await page.setViewportSize({ width, height });
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
      await page.screenshot({ path: join(SHOTS, `${name}-${width}-${colorScheme}.png`), fullPage: !(await page.locator('dialog[open]').count()) });
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${name} is ${overflow} px too wide at ${width}`);
      const { executionContextId: contextId } = await cdp.send('Page.createIsolatedWorld', { frameId: frameTree.frame.id, worldName: 'axe' });
      await cdp.send('Runtime.evaluate', { contextId, expression: AXE });
      const { result, exceptionDetails } = await cdp.send('Runtime.evaluate', {
        contextId, awaitPromise: true, returnByValue: true,
        expression: 'axe.run(document, {resultTypes: ["violations"]}).then((found) => found.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => `${v.id}: ${v.help}: ${v.nodes.slice(0, 3).map((n) => n.html + " " + n.failureSummary).join(" | ")}`))',
      });
      assert.equal(exceptionDetails, undefined);
      assert.deepEqual(result.value, [], `${name}, ${width}, ${colorScheme}`);
    }
  }
  await cdp.detach();
  await page.setViewportSize({ width: 1280, height: 720 });
  await page.emulateMedia({ colorScheme: null, reducedMotion: null });
};
