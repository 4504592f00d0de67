// The loop closes: a script in a real browser is logged out, a person is not; with two gateways on one
// Redis, while Redis is away, with the embedded store, and not at all in shadow.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { launch, PREFIX, Visitor } from '../support/browser.mjs';
import { Person, Script } from '../support/hand.mjs';
import { signIn } from '../support/ops.mjs';
import { Stage } from '../support/stage.mjs';
import { until } from '../support/wait.mjs';

/** How long a script may last: half a dozen windows of ten seconds, on a busy machine. */
const CAUGHT_WITHIN_MS = 90_000;

let browser;
before(async () => { browser = await launch(); });
after(() => browser?.close());

describe('a session that is no person', { concurrency: true }, () => {
  test('is logged out on every gateway, before, during and after an outage of Redis', async (t) => {
    const stage = await Stage.open(t);
    await stage.startRedis();
    const [one, two] = [await stage.gateway({ redis: true }), await stage.gateway({ redis: true })];
    const person = await atHome(t, one, 'alice', 7);
    const bystander = await two.logIn('erin');

    await t.test('a script leaves for the logout page by itself', async () => {
      const bot = await scripted(t, one, 'mallory');
      const streams = [one.prices(bot.token), two.prices(bot.token), two.stream('/events', bot.token)];
      const prices = one.prices(await person.token());
      await until('all streams flow', () => [...streams, prices].every((stream) => stream.bytes > 0));
      const session = (await until('its session is seen', () => one.sessionOf('mallory'))).identity.session;

      const farewell = await bot.logout();
      assert.match(bot.told.join(), /"t":"go"/);
      const text = await bot.page.innerText('main');
      const incident = (await one.incidents(session)).find((row) => row.incident.action === 'logout').incident;
      assert.ok(text.includes(incident.id), text);
      assert.ok(text.includes('the front desk of the shop'), text);
      assert.equal(farewell.status(), 403);
      const headers = await farewell.headersArray();
      const header = (name) => headers.filter((header) => header.name.toLowerCase() === name).map((header) => header.value);
      assert.deepEqual(header('clear-site-data'), ['"cookies", "cache"']);
      assert.ok(header('set-cookie').some((cookie) => /^session=;.*Max-Age=0/.test(cookie)), String(header('set-cookie')));
      assert.deepEqual((await bot.context.cookies()).map((cookie) => cookie.name).filter((name) => name === 'session'), []);

      // The browser kept the catalogue for its back button; what was seen before the logout is gone with it.
      await bot.page.goBack({ waitUntil: 'commit' });
      await bot.page.getByRole('link', { name: 'Log in' }).waitFor();

      await refusedEverywhere([one, two], bot.token, incident.id);
      await until('its streams are cut', () => streams.every((stream) => stream.open === false));
      assert.equal(prices.open, true, "the person's stream");
      prices.close();
      assert.equal((await two.tries(bystander)).script.status, 200);

      const mail = await until('the mail', () => stage.mails.find((mail) => mail.text.includes(incident.id) || mail.text.includes(session)));
      assert.match(Object.fromEntries(mail.headers).Subject, /logout|logged out/i);
      assert.ok(mail.text.includes(session));
      assert.ok(mail.text.includes(new Date(incident.at).toISOString().slice(0, 10)), mail.text);
      assert.match(mail.text, /Score\s+0?\.?\d/);
      assert.match(mail.text, /Why: evidence [\d.]+ over/);
      assert.ok(mail.text.match(/^ {2}- .{20,}/gm)?.length >= 2, mail.text);
      assert.ok(!stage.smtp.out.includes(bot.token));

      // The thief's own browser, elsewhere, with the token it kept.
      const thief = await Visitor.enter(browser, t);
      await thief.context.addCookies([{ name: 'session', value: bot.token, url: two.origin }]);
      const answer = await thief.page.goto(`${two.origin}/account`);
      assert.equal(answer.status(), 403);
      assert.match(await thief.page.innerText('h1'), /logged out/i);

      const row = (await one.incidents(session)).find((row) => row.incident.id === incident.id);
      assert.ok(row.steps.length >= 2);
      await two.pardon(session, 'the test says so');
      for (const gateway of [one, two]) {
        await until('the pardoned token is good again', async () => {
          const { page, script } = await gateway.tries(bot.token);
          return page.status === 200 && script.status === 200;
        });
      }
      await one.revoke(session, 'and not for long');
      await refusedEverywhere([one, two], bot.token);
      t.revoked = bot.token;
    });

    await t.test('what is decided while Redis is away holds at once here and later everywhere', async () => {
      const bot = await scripted(t, one, 'trudy');
      const session = (await until('its session is seen', () => one.sessionOf('trudy'))).identity.session;
      await stage.stopRedis();
      for (const gateway of [one, two]) {
        await until('the outage is noticed', async () => !(await gateway.api('status')).board.connected);
      }
      await bot.logout();
      await refusedEverywhere([one], bot.token);
      assert.equal((await two.tries(bot.token)).script.status, 200, 'the other gateway cannot know yet');
      // Nobody is logged out by the outage, and nobody is let in again.
      assert.equal((await one.tries(await person.token())).page.status, 200);
      assert.equal((await two.tries(bystander)).page.status, 200);
      await refusedEverywhere([one, two], t.revoked);

      await stage.startRedis();
      await refusedEverywhere([two], bot.token);
      await refusedEverywhere([one, two], t.revoked);
      assert.equal((await two.tries(bystander)).page.status, 200);
      assert.ok((await one.incidents(session)).some((row) => row.incident.action === 'logout'));
      // Redis itself knows again what it had forgotten.
      const three = await stage.gateway({ redis: true });
      await refusedEverywhere([three], bot.token);
      await refusedEverywhere([three], t.revoked);
      assert.equal((await three.tries(bystander)).page.status, 200);
    });

    await person.stays();
  });

  test('is logged out by a single gateway too, which remembers that over a restart', async (t) => {
    const stage = await Stage.open(t);
    const gateway = await stage.gateway();
    const person = await atHome(t, gateway, 'bob', 21);
    const bot = await scripted(t, gateway, 'oscar', { stepMs: 12, stepPx: 10, seed: 5 });
    await bot.logout();
    await refusedEverywhere([gateway], bot.token);
    await until('the mail', () => stage.mails.some((mail) => /logged out/.test(mail.text)));
    await person.stays();
    const token = await person.token();
    await gateway.stop();
    await gateway.start();
    await refusedEverywhere([gateway], bot.token);
    assert.equal((await gateway.tries(token)).page.status, 200);
  });

  test('stays while rules only shadow, which is what a fresh installation does', async (t) => {
    const stage = await Stage.open(t);
    const gateway = await stage.gateway({ policy: null });
    const bot = await scripted(t, gateway, 'sybil', { stepMs: 20, stepPx: 16, seed: 9 });
    const session = await until('it would have been challenged or logged out', async () => {
      const session = await gateway.sessionOf('sybil');
      return session?.assessment.bot_evidence >= session?.assessment.bot_threshold && session;
    }, { withinMs: CAUGHT_WITHIN_MS });
    bot.halt();
    const row = await until('the record of it', async () =>
      (await gateway.incidents(session.identity.session)).find((row) => row.incident.action === 'challenge'));
    assert.equal(row.incident.mode, 'shadow');
    assert.ok(!row.steps.some((step) => step.name === 'revoke'));
    assert.ok(session.decisions.length > 0 && session.decisions.every((said) => said.mode === 'shadow'));
    assert.equal(session.refused, null);
    const { page, script } = await gateway.tries(bot.token);
    assert.deepEqual([page.status, script.status], [200, 200]);
    assert.ok(!bot.page.url().includes(PREFIX));
    assert.deepEqual(bot.told, []);
    assert.deepEqual(stage.mails, []);

    const operator = await Visitor.enter(browser, t);
    await signIn(operator, gateway);
    await operator.page.locator('#mode', { hasText: /shadow/i }).waitFor();
    await operator.page.getByRole('link', { name: 'Incidents' }).click();
    await operator.page.locator('#incidents-rows').getByText('would ask for a check').first().waitFor();
  });
});

/** A person who uses the shop until `stays` is called, which also says whether anything was held against them. */
const atHome = async (t, gateway, user, seed) => {
  const visitor = await Visitor.enter(browser, t);
  await visitor.logIn(gateway.origin, user);
  const { page } = visitor;
  const person = await Person.at(page, seed);
  let leaving = false;
  const places = [
    () => page.locator('header a[href="/catalogue"]'), () => page.locator('.card').nth(person.chance.whole(0, 3)),
    () => page.locator('header .brand'), () => page.locator('header a[href="/cart"]'), () => page.locator('header a[href="/account"]'),
  ];
  const day = (async () => {
    while (!leaving) {
      const arrived = page.url();
      assert.ok(!arrived.includes(PREFIX), `seed ${seed}: ${user} was sent to ${arrived}`);
      await person.wander();
      if (!leaving && (await page.locator('textarea').count().catch(() => 0)) && (await person.clickOn(page.locator('textarea').first()))) {
        await person.type('could the lid be green, please');
      }
      if (!leaving && person.chance.random() < 0.6) await person.read();
      if (!leaving) await person.clickOn(person.chance.pick(places)());
      await person.rest();
    }
  })();
  day.catch(() => {});
  visitor.stays = async () => {
    // Long enough to be judged: nothing is proved by somebody nobody looked at.
    const judged = until(`${user} is judged`, async () => (await gateway.sessionOf(user)).assessment.windows >= 3, { withinMs: 60_000 });
    await Promise.race([judged, day]);
    leaving = true;
    await day;
    const session = await gateway.sessionOf(user);
    const { bot_evidence: evidence, bot_threshold: threshold, windows } = session.assessment;
    t.diagnostic(`${user}: evidence ${evidence.toFixed(2)} of ${threshold.toFixed(1)} after ${windows} windows, score ${session.assessment.bot_score}`);
    assert.equal(session.refused, null, `seed ${seed}`);
    assert.ok(windows >= 3, `seed ${seed}: only ${windows} windows were judged`);
    const held = (await gateway.incidents(session.identity.session)).filter((row) => row.incident.mode === 'enforce');
    assert.deepEqual(held.map((row) => `${row.incident.rule}: ${row.incident.reason}`), [], `seed ${seed}`);
    const answer = await page.goto(`${gateway.origin}/account`);
    assert.equal(answer.status(), 200);
    assert.match(await page.innerText('h1'), new RegExp(user));
    assert.deepEqual(visitor.complaints, []);
  };
  return visitor;
};

/** A session driven by a script, on a page it stays on. */
const scripted = async (t, gateway, user, how) => {
  const visitor = await Visitor.enter(browser, t);
  visitor.token = await visitor.logIn(gateway.origin, user);
  const { page } = visitor;
  await page.goto(`${gateway.origin}/catalogue`);
  let halted = false;
  visitor.halt = () => { halted = true; };
  t.after(visitor.halt);
  const began = performance.now();
  const run = new Script(page, how).run(() => halted || page.isClosed() || page.url().includes(PREFIX));
  run.catch(() => {});
  /** Waits until it has gone to the logout page; returns the answer it got there. */
  visitor.logout = async () => {
    const farewell = await page.waitForResponse((response) => new URL(response.url()).pathname === `${PREFIX}/bye`, { timeout: CAUGHT_WITHIN_MS });
    await page.waitForURL(`**${PREFIX}/bye*`);
    t.diagnostic(`${user} was logged out after ${((performance.now() - began) / 1000).toFixed(1)} s`);
    visitor.halt();
    await run.catch(() => {});
    return farewell;
  };
  return visitor;
};

/** Each gateway answers the token with a page for people and a problem document for scripts. */
const refusedEverywhere = async (gateways, token, incident) => {
  for (const gateway of gateways) {
    await until(`${gateway.name} refuses`, async () => (await gateway.tries(token)).script.status === 401);
    const { page, script } = await gateway.tries(token);
    assert.equal(page.status, 403);
    assert.match(page.headers['content-type'], /^text\/html/);
    assert.match(String(page.body), /logged out/i);
    assert.equal(script.status, 401);
    assert.equal(script.headers['content-type'], 'application/problem+json');
    const problem = JSON.parse(script.body);
    assert.equal(problem.status, 401);
    assert.equal(page.headers['clear-site-data'], '"cookies", "cache"');
    assert.equal(script.headers['clear-site-data'], '"cookies"');
    for (const { headers } of [page, script]) {
      assert.ok(headers['set-cookie'].some((cookie) => /^session=;.*Max-Age=0/.test(cookie)));
      assert.equal(headers['cache-control'], 'no-store');
    }
    if (incident) {
      assert.equal(problem.incident, incident);
      assert.ok(String(page.body).includes(incident));
    }
    const upgrade = gateway.prices(token);
    await until('its sockets are refused', () => upgrade.open === false);
    assert.equal(upgrade.upgraded, false);
  }
};
