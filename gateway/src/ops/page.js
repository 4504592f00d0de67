// The operators' page. Shows what the API says, in plain words, and sends two wishes: log out, pardon.
//
// Every text from outside goes through textContent; the policy of the page forbids anything else.
// Must not know: how a decision is made.

// ---- words ---------------------------------------------------------------------------------------

const TELEMETRY = {
  unexpected: ['No page yet', 'No page with the collector was served to this session yet.'],
  missing: ['None', 'A page was served, but nothing arrives: a blocker, or scripts are off. Never held against anyone.'],
  gathering: ['Gathering', 'Too little input so far to judge.'],
  sufficient: ['Enough', 'Enough input has been seen to judge.'],
  damaged: ['With gaps', 'Some of what the browser sent is missing or repeated.'],
};
const MODALITY = {none: '–', mouse: 'Mouse', touch: 'Touch', keyboard: 'Keyboard', mixed: 'Mixed'};
// Action: what happened, what would have happened, how grave.
const ACTION = {
  allow: ['let through', 'would let through', ''],
  log: ['noted', 'would note', ''],
  tag: ['tagged for the app', 'would tag for the app', ''],
  throttle: ['slowed down', 'would slow down', 'warn'],
  challenge: ['asked for a check', 'would ask for a check', 'warn'],
  'step-up': ['asked to sign in again', 'would ask to sign in again', 'warn'],
  logout: ['logged out', 'would log out', 'bad'],
  'logout-everywhere': ['logged out everywhere', 'would log out everywhere', 'bad'],
  deny: ['refused', 'would refuse', 'bad'],
  tarpit: ['refused slowly', 'would refuse slowly', 'bad'],
  pardon: ['pardoned', 'would pardon', 'good'],
  // In shadow mode it concerns one account only.
  'budget-trip': ['switched enforcement off', 'spared one account', 'bad'],
};
const SHUTS_OUT = ['logout', 'logout-everywhere', 'deny', 'tarpit'];
const WHAT = {
  login: 'signed in', logout: 'signed out', forget: 'had a person forgotten', revoke: 'logged out', pardon: 'pardoned', 'budget-reset': 'let rules enforce again',
  'budget-trip': 'found the budget of logouts used up', limit: 'refused requests', 'would-limit': 'would refuse requests',
};
const CAP = {
  per_minute: 'more people would have been logged out in a minute than the policy’s budget allows',
  share_of_sessions: 'a larger share of sessions would have been logged out than the policy’s budget allows',
  per_user_per_day: 'one person would have been logged out too often in a day',
};
const STEP = {revoke: 'login ended', pardon: 'let in again', log: 'log line', mail: 'mail'};

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const plural = (count, one, many = `${one}s`) => `${count.toLocaleString('en')} ${count === 1 ? one : many}`;
const short = (id) => (id.length > 14 ? `${id.slice(0, 12)}…` : id);

/** A number with as many digits as one wants to read. */
const figure = (value) => {
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return Number(value.toFixed(digits)).toLocaleString('en', {maximumFractionDigits: 3});
};

const span = (ms) => {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} days`;
};
const ago = (at, now) => (now - at < 2000 ? 'just now' : `${span(now - at)} ago`);
const moment = (at) => new Date(at).toLocaleString();

// ---- building ------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

/** An element; children are elements or texts, attributes are set as such, never parsed as markup. */
const el = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'on') for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else if (name === 'width') element.style.width = value;
    else if (name === 'left') element.style.left = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map(readable));
  return element;
};

/** Text without marks that turn the direction of what follows or take no room: it reads as it is. */
const readable = (child) => (typeof child === 'string' ? child.replace(/[\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g, '\ufffd') : child);

const time = (at, now) => el('time', {datetime: new Date(at).toISOString(), title: moment(at)}, ago(at, now));

const cell = (label, wide, ...children) =>
  el('td', {role: 'cell', 'data-label': label, class: wide ? 'wide' : undefined}, ...children);

const badge = (action, mode) => {
  const words = ACTION[action] || [action, `would ${action}`, ''];
  // To note is done in shadow too.
  if (mode === 'shadow' && action !== 'log') {
    return el('span', {class: `badge would ${words[2] ? '' : 'slight'}`, title: 'Shadow: only noted, nothing was done'}, words[1]);
  }
  return el('span', {class: `badge ${words[2]}`}, words[0]);
};

/**
 * Brings a list on the page up to date without rebuilding what did not change, so that the focus, a
 * selection and a screen reader's place survive.
 */
const keyed = (container, items, key, signature, build) => {
  const old = new Map([...container.children].map((child) => [child.dataset.key, child]));
  const focused = document.activeElement;
  let place = container.firstElementChild;
  for (const item of items) {
    const id = key(item);
    const sign = signature(item);
    let row = old.get(id);
    old.delete(id);
    if (row && row.dataset.sign !== sign) {
      const fresh = build(item);
      const held = row.contains(focused) ? focused.dataset.role : null;
      row.replaceChildren(...fresh.children);
      if (held) row.querySelector(`[data-role="${held}"]`)?.focus({preventScroll: true});
    } else if (!row) {
      row = build(item);
    }
    row.dataset.key = id;
    row.dataset.sign = sign;
    if (row === place) place = place.nextElementSibling;
    else container.insertBefore(row, place);
  }
  for (const row of old.values()) row.remove();
  if (focused && focused.isConnected && document.activeElement !== focused && container.contains(focused)) {
    focused.focus({preventScroll: true});
  }
};

// ---- talking to the gateway ----------------------------------------------------------------------

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const call = async (path, body) => {
  const headers = {'X-Gaitway-Page': localStorage.getItem('gaitway.page') || ''};
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const response = await fetch(`/api/${path}`, {
    method: body === undefined ? 'GET' : 'POST',
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal: AbortSignal.timeout(10000),
  });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer.error || 'The gateway refused without a reason.');
  return answer;
};

const toast = (text, silent = false) => {
  // Beside an open dialog everything else is hidden from screen readers, so the note moves into it; and
  // a note that has just been moved must rest a moment before its change is told.
  const home = $('detail').open ? $('detail') : document.body;
  if ($('toast').parentElement !== home) home.append($('toast'));
  $('toast').className = silent ? 'toast silent' : 'toast';
  clearTimeout(toast.timer);
  clearTimeout(toast.soon);
  toast.soon = setTimeout(() => { $('toast').textContent = text; }, 100);
  toast.timer = setTimeout(() => { $('toast').textContent = ''; }, 8000);
};

// ---- state ---------------------------------------------------------------------------------------

const VIEWS = ['sessions', 'incidents', 'audit'];
const state = {
  view: 'sessions', status: null, sessions: [], more: false, incidents: [], records: [],
  now: Date.now(), paused: false, detail: null, detailData: null, signedIn: false,
};

/** Evidence from which the model calls this session a bot; 0 while it has none to say. */
const threshold = ({assessment: {bot_threshold: mark}}) => (mark > 0 && mark < 1e6 ? mark : 0);
const isOut = (session) => session.refused !== null || ['deny', 'tarpit'].includes(session.standing.standing);
const isPardoned = (session) => session.pardoned_until !== null && session.pardoned_until > state.now;
const isPast = (session) => threshold(session) > 0 && session.assessment.bot_evidence >= threshold(session);
const needsLook = (session) => !isPardoned(session) &&
  (isOut(session) || isPast(session) || session.decisions.some((d) => SHUTS_OUT.includes(d.action)));

// ---- pieces --------------------------------------------------------------------------------------

const standing = (session) => {
  if (isOut(session)) return el('span', {class: 'badge bad'}, 'Logged out');
  if (isPardoned(session)) return el('span', {class: 'badge good'}, 'Pardoned');
  const now = session.standing;
  switch (now.standing) {
    case 'throttle': return el('span', {class: 'badge warn'}, `At most ${now.requests_per_minute} a minute`);
    case 'challenge': return el('span', {class: 'badge warn'}, 'Asked for a check');
    case 'stepup': return el('span', {class: 'badge warn'}, 'Asked to sign in again');
    case 'tag': return el('span', {class: 'badge'}, 'Tagged for the app');
    default: return el('span', {class: 'badge'}, 'Allowed');
  }
};

const evidence = (session) => (session.assessment.windows
  ? meter(session.assessment.bot_evidence, threshold(session), 'From here the model calls it a bot')
  : el('span', {class: 'quiet'}, 'Not judged'));

/** Evidence as a bar with its mark, if there is one, and in figures. */
const meter = (found, mark, title) => {
  const top = Math.max(mark * 1.25, found, 1);
  const percent = (value) => `${Math.min(100, Math.max(0, (100 * value) / top)).toFixed(1)}%`;
  const text = mark ? `${figure(found)} of ${figure(mark)}` : figure(found);
  const grade = !mark ? '' : found >= mark ? 'past' : found >= mark / 2 ? 'near' : '';
  return el('div', {},
    el('div', {class: `meter ${grade}`, 'aria-hidden': 'true'},
      el('i', {width: percent(found)}), mark ? el('b', {left: percent(mark), title}) : null),
    el('span', {class: 'evidence'}, text, grade === 'past' ? ' – past the mark' : ''));
};

const score = (session) => {
  const value = session.assessment.bot_score;
  return value === null ? el('span', {class: 'quiet'}, '–') : el('span', {class: 'score'}, `${Math.round(value * 100)} %`);
};

const decision = (session) => {
  const last = session.decisions[0];
  if (!last) return el('span', {class: 'quiet'}, 'Nothing');
  return el('div', {}, badge(last.action, last.mode), el('span', {class: 'more'}, last.rule));
};

// ---- sessions ------------------------------------------------------------------------------------

const sessionRow = (session) => {
  const id = session.identity.session;
  const telemetry = TELEMETRY[session.assessment.telemetry] || [session.assessment.telemetry, ''];
  return el('tr', {role: 'row'},
    cell('Session', false,
      el('button', {type: 'button', class: 'link id', 'data-role': 'open', title: id, on: {click: () => openDetail(id)}}, short(id)),
      el('span', {class: 'more'}, session.identity.subject ? 'signed in' : 'visitor')),
    cell('Standing', false, standing(session)),
    cell('Evidence for a bot', true, evidence(session)),
    cell('Latest score', false, score(session)),
    cell('Input', false, MODALITY[session.assessment.modality] || session.assessment.modality),
    cell('Telemetry', false, el('span', {title: telemetry[1]}, telemetry[0])),
    cell('What the rules said', false, decision(session)),
    cell('Last seen', false, time(session.last_seen, state.now)));
};

const contains = (search, ...texts) => {
  const wanted = search.trim().toLowerCase();
  return !wanted || texts.some((text) => text && text.toLowerCase().includes(wanted));
};

/** Rows on the page at once; more is slow to draw and nobody reads it. The search looks at all. */
const ROWS_MAX = 200;

const ORDER = {
  evidence: (a, b) => needsLook(b) - needsLook(a) || b.assessment.bot_evidence - a.assessment.bot_evidence || b.opened - a.opened,
  seen: (a, b) => b.last_seen - a.last_seen,
  opened: (a, b) => b.opened - a.opened,
};

const showSessions = () => {
  const search = $('sessions-search').value;
  const show = $('sessions-show').value;
  const found = state.sessions.filter((session) => {
    if (show === 'attention' && !needsLook(session)) return false;
    if (show === 'out' && !isOut(session)) return false;
    if (show === 'pardoned' && !isPardoned(session)) return false;
    if (show === 'blind' && session.assessment.telemetry !== 'missing') return false;
    return contains(search, session.identity.session, session.identity.subject, session.refused?.incident,
      ...session.decisions.flatMap((d) => [d.rule, d.reason]), ...session.assessment.reasons.map((r) => r.text));
  }).sort(ORDER[$('sessions-order').value]);
  const age = (session) => ago(session.last_seen, state.now);
  const shown = found.slice(0, ROWS_MAX);
  keyed($('sessions-rows'), shown, (session) => session.identity.session,
    (session) => JSON.stringify([session, age(session), isPardoned(session)]), sessionRow);
  const total = state.more ? `more than ${plural(state.sessions.length, 'session')}` : plural(state.sessions.length, 'session');
  const part = found.length === state.sessions.length ? total : `${found.length} of ${total}`;
  $('sessions-count').textContent = shown.length < found.length ? `${part}, the first ${ROWS_MAX} below` : part;
  const none = $('sessions-empty');
  none.hidden = found.length > 0;
  none.textContent = state.sessions.length ? 'No session fits the search.' : 'Nobody is here yet. Sessions appear with their first request.';
};

// ---- incidents -----------------------------------------------------------------------------------

const isInForce = (row) => row.incident.mode === 'enforce' && SHUTS_OUT.includes(row.incident.action) &&
  !row.pardoned && row.incident.until > state.now;

const steps = (row) => {
  if (!row.steps.length) return el('span', {class: 'quiet'}, 'nothing to do');
  return el('div', {}, ...row.steps.map((step) => {
    const name = STEP[step.name] || step.name;
    const [mark, words] = {done: ['✓', 'done'], pending: ['…', 'waiting'], failed: ['✕', 'failed']}[step.state] || ['', step.state];
    const note = step.state === 'done' ? '' : ` – ${words}${step.outcome ? `: ${step.outcome}` : ''}`;
    return el('span', {class: step.state === 'failed' ? 'more error' : 'more', title: step.outcome || words},
      el('span', {'aria-hidden': 'true'}, `${mark} `), `${name}${note}`);
  }));
};

const pardonNote = (row) => row.pardoned
  ? el('span', {class: 'more'}, `Pardoned by ${row.pardoned.who} ${ago(row.pardoned.at, state.now)}: ${row.pardoned.why}`) : null;

const incidentRow = (row) => {
  const {incident} = row;
  const session = incident.identity.session;
  return el('tr', {role: 'row'},
    cell('Number', false, el('span', {class: 'id'}, incident.id)),
    cell('What happened', false, badge(incident.action, incident.mode),
      el('span', {class: 'more'}, incident.by === 'policy' ? `rule ${incident.rule}` : `by ${incident.by}`)),
    cell('Why', true, incident.reason, pardonNote(row)),
    cell('Session', false, el('button', {type: 'button', class: 'link id', 'data-role': 'open', title: session, on: {click: () => openDetail(session)}}, short(session))),
    cell('Carried out', false, steps(row)),
    cell('When', false, time(incident.at, state.now)),
    cell('', false, isInForce(row)
      ? el('button', {type: 'button', 'data-role': 'pardon', 'aria-label': `Pardon incident ${incident.id}`,
        on: {click: () => confirmPardon(`incidents/${encodeURIComponent(incident.id)}/pardon`, incident.id)}}, 'Pardon…') : null));
};

const showIncidents = () => {
  const search = $('incidents-search').value;
  const show = $('incidents-show').value;
  const found = state.incidents.filter((row) => {
    if (show === 'force' && !isInForce(row)) return false;
    if (show === 'shadow' && row.incident.mode !== 'shadow') return false;
    if (show === 'pardoned' && !row.pardoned) return false;
    const {incident} = row;
    return contains(search, incident.id, incident.identity.session, incident.identity.subject, incident.rule, incident.by, incident.reason);
  });
  keyed($('incidents-rows'), found, (row) => row.incident.id,
    (row) => JSON.stringify([row.steps, row.pardoned, ago(row.incident.at, state.now), isInForce(row)]), incidentRow);
  const total = plural(state.incidents.length, 'incident');
  $('incidents-count').textContent = found.length === state.incidents.length ? total : `${found.length} of ${total}`;
  const none = $('incidents-empty');
  none.hidden = found.length > 0;
  none.textContent = state.incidents.length ? 'No incident fits the search.' : 'No rule has matched yet.';
};

// ---- audit ---------------------------------------------------------------------------------------

const auditRow = (record) => el('tr', {role: 'row'},
  cell('When', false, el('time', {datetime: new Date(record.at).toISOString()}, moment(record.at))),
  cell('Who', false, record.who === 'policy' ? el('span', {class: 'quiet'}, 'the policy') : record.who),
  cell('What', false, deed(record.what)),
  cell('About', false,
    record.session ? el('button', {type: 'button', class: 'link id', 'data-role': 'open', title: record.session, on: {click: () => openDetail(record.session)}}, short(record.session)) : null,
    record.incident ? el('span', {class: 'more id'}, record.incident) : null),
  cell('Why', true, record.why, record.policy_version ? el('span', {class: 'more'}, `policy ${record.policy_version.slice(0, 8)}`) : null));

/** What was done; what was only noted in shadow looks as it does elsewhere. */
const deed = (what) => {
  const words = WHAT[what] || ACTION[what.replace('would-', '')]?.[1] || what;
  return what.startsWith('would-') ? el('span', {class: 'badge would', title: 'Shadow: only noted, nothing was done'}, words) : words;
};

const showAudit = () => {
  // Records have no number of their own; alike ones are told apart by counting from the oldest.
  const seen = new Map();
  const keys = new Map();
  for (const record of [...state.records].reverse()) {
    const text = JSON.stringify(record);
    seen.set(text, (seen.get(text) || 0) + 1);
    keys.set(record, `${seen.get(text)} ${text}`);
  }
  keyed($('audit-rows'), state.records, (record) => keys.get(record), () => '', auditRow);
  $('audit-empty').hidden = state.records.length > 0;
  $('audit-empty').textContent = 'Nobody has done anything yet.';
};

// ---- one session ---------------------------------------------------------------------------------

const reason = (found) => {
  const own = found.person;
  const low = Math.min(found.usual_low, found.value, own?.low ?? Infinity);
  const high = Math.max(found.usual_high, found.value, own?.high ?? -Infinity);
  const room = (high - low) * 0.12 || 1;
  const place = (value) => (100 * (value - low + room)) / (high - low + 2 * room);
  const span = (from, to) => ({left: `${place(from)}%`, width: `${Math.max(1, place(to) - place(from))}%`});
  const usual = found.value >= found.usual_low && found.value <= found.usual_high;
  const unit = found.unit ? ` ${found.unit}` : '';
  return el('li', {},
    el('p', {}, found.text || found.feature),
    el('div', {class: 'range', 'aria-hidden': 'true'},
      el('i', span(found.usual_low, found.usual_high)),
      own ? el('i', {class: 'own', ...span(own.low, own.high)}) : null,
      el('b', {class: usual ? 'usual' : '', left: `${place(found.value)}%`})),
    el('p', {class: 'quiet'}, found.text ? '' : `Here ${figure(found.value)}${unit}; usual for people: ${figure(found.usual_low)} to ${figure(found.usual_high)}${unit}. `,
      own ? `For this person, the thin line: ${figure(own.low)} to ${figure(own.high)}${unit} in ${own.sessions} sessions. ` : '',
      found.contribution >= 0 ? `Raised the score by ${figure(found.contribution * 100)} points.` : `Lowered the score by ${figure(-found.contribution * 100)} points.`));
};

const section = (title, ...children) => el('section', {}, el('h3', {}, title), ...children);

const facts = (pairs) => el('dl', {class: 'facts'},
  ...pairs.filter((pair) => pair && pair[1] !== null).flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)]));

const verdict = (session) => {
  const {bot_evidence: found, windows, telemetry, calibrated} = session.assessment;
  if (telemetry === 'missing') return 'Nothing arrives from this browser. That is no sign of anything, and no rule counts it as one.';
  if (!windows) return 'There is too little input to say anything yet.';
  const learnt = calibrated ? '' : ' The model knows too few people of this site, so it shows and logs nobody out by itself.';
  if (isPast(session)) return `The evidence is past the mark at which the model calls a session a bot.${learnt}`;
  return `${threshold(session) && found > threshold(session) / 2 ? 'Some evidence for a bot, but not enough to call it one.' : 'Looks like a person so far.'}${learnt}`;
};

/** What a candidate model says, where one is watched beside the one in force. */
const beside = ({candidate}) => !candidate ? [] : [section('The candidate model', el('p', {class: 'quiet'}, candidate.windows
  ? `${candidate.bot_evidence.toFixed(1)} of ${candidate.bot_threshold.toFixed(1)} nats; it would ${candidate.bot_evidence >= candidate.bot_threshold ? '' : 'not '}call this session a bot. It decides nothing.`
  : 'It has not judged this session yet. It decides nothing.'))];

/** Whether the hand is the account owner's, where profiles of people are kept. */
const owner = ({assessment: {profile, owner_score: latest, owner_evidence: found, owner_threshold: mark}}) => {
  if (!profile || profile === 'off') return [];
  const words = profile === 'learning' ? 'Too little is known of this person on this device. Nobody is doubted.'
    : latest === null ? 'The person is known. Too little has moved yet to compare.'
    : `The latest block is ${Math.round(latest * 100)} % likely somebody else’s, at even odds.`;
  return [section('Evidence for somebody else than the owner',
    profile === 'ready' ? meter(found, mark > 0 && mark < 1e6 ? mark : 0, 'From here the model doubts that it is the owner') : null,
    el('p', {}, words))];
};

const judged = (session) => {
  const {assessment} = session;
  const out = session.refused?.incident || session.standing.incident;
  return [
    el('div', {class: `note ${isOut(session) ? 'bad' : isPardoned(session) ? 'good' : ''}`},
      standing(session),
      out ? ` Incident ${out}${session.refused ? `, until ${moment(session.refused.until)}` : ''}.` : '',
      isPardoned(session) ? ` No rule touches it until ${moment(session.pardoned_until)}.` : ''),
    section('Evidence for a bot', evidence(session), el('p', {}, verdict(session))),
    ...owner(session),
    ...beside(session),
    section('What stood out', assessment.reasons.length
      ? el('ul', {class: 'list'}, ...assessment.reasons.map(reason)) : el('p', {class: 'quiet'}, 'Nothing so far.')),
    section('What the rules said', session.decisions.length
      ? el('ul', {class: 'list'}, ...session.decisions.map((said) => el('li', {class: said.mode},
        el('p', {}, badge(said.action, said.mode), ' ', el('b', {}, said.rule), ' ', el('span', {class: 'quiet'}, ago(said.at, state.now))),
        el('p', {}, said.reason),
        said.mode === 'shadow' ? el('p', {class: 'quiet'}, 'In shadow: only noted, nothing was done.') : null)))
      : el('p', {class: 'quiet'}, 'No rule has matched.')),
    section('Facts', facts([
      ['Latest score', assessment.bot_score === null ? 'none yet' : `${Math.round(assessment.bot_score * 100)} % likely a bot, in the latest of ${plural(assessment.windows, 'window')}`],
      ['Input', `${MODALITY[assessment.modality] || assessment.modality}, ${plural(assessment.evidence.events, 'event')} in ${figure(assessment.evidence.seconds)} s of activity`],
      session.replay_match ? ['Seen before', `${Math.round(session.replay_match * 100)} % of the latest movement (${session.replay_kind || 'exact'})`] : null,
      ['Telemetry', (TELEMETRY[assessment.telemetry] || ['', assessment.telemetry])[1]],
      assessment.automation ? ['Browser', 'says of itself that a program drives it (navigator.webdriver)'] : null,
      ['First seen', `${moment(session.opened)} (${ago(session.opened, state.now)})`],
      ['Last seen', `${moment(session.last_seen)} (${ago(session.last_seen, state.now)})`],
      ['Requests', session.requests.toLocaleString('en')],
      ['Person', session.identity.subject ? el('span', {class: 'id'}, session.identity.subject) : 'not signed in'],
      session.identity.groups.length ? ['Groups', session.identity.groups.join(', ')] : null,
      assessment.model ? ['Model', el('span', {class: 'id'}, assessment.model)] : null,
    ])),
  ];
};

const showDetail = () => {
  const data = state.detailData;
  if (!data) return;
  const {session, incidents, explained} = data;
  const parts = session ? judged(session) : [el('p', {class: 'note'}, 'This session is no longer live. What is known of it:')];
  if (incidents.length) {
    parts.push(section('Incidents', el('ul', {class: 'list'}, ...incidents.map((row) => el('li', {class: row.incident.mode},
      el('p', {}, badge(row.incident.action, row.incident.mode), ' ', el('span', {class: 'id'}, row.incident.id), ' ', el('span', {class: 'quiet'}, ago(row.incident.at, state.now))),
      el('p', {}, row.incident.reason), steps(row), pardonNote(row))))));
  }
  if (explained) {
    const said = explained.rule ? `Now: ${explained.decision} by rule ${explained.rule} (${explained.mode}).` : 'Now no rule holds.';
    parts.push(section('Every rule', el('p', {}, `${said} Policy ${explained.policy_version}.`),
      el('pre', {class: 'rules'}, explained.rules.join('\n'))));
  }
  const body = $('detail-body');
  const top = body.scrollTop;
  body.replaceChildren(...parts);
  body.scrollTop = top;
  const out = session ? isOut(session) : incidents.some(isInForce);
  $('detail-revoke').hidden = out;
  $('detail-pardon').hidden = session ? isPardoned(session) : !out;
};

const openDetail = async (id) => {
  state.detail = id;
  state.detailData = null;
  $('detail-id').textContent = id;
  $('detail-body').replaceChildren(el('p', {class: 'quiet'}, 'Loading …'));
  $('detail-revoke').hidden = true;
  $('detail-pardon').hidden = true;
  if (!$('detail').open) $('detail').showModal();
  await loadDetail();
};

const loadDetail = async () => {
  const id = state.detail;
  if (!id) return;
  try {
    const data = await call(`sessions/${encodeURIComponent(id)}`);
    const explained = data.session ? await call(`sessions/${encodeURIComponent(id)}/explain`).catch(() => null) : null;
    if (state.detail !== id) return;
    state.detailData = {...data, explained};
    showDetail();
  } catch (error) {
    if (!signedOut(error) && state.detail === id && !state.detailData) {
      $('detail-body').replaceChildren(el('p', {class: 'error'}, error.message));
    }
  }
};

// ---- logging out and pardoning -------------------------------------------------------------------

let wish = null;

const confirm = (title, text, button, danger, path, done) => {
  wish = {path, done};
  $('confirm-title').textContent = title;
  $('confirm-text').textContent = text;
  $('confirm-go').textContent = button;
  $('confirm-go').className = danger ? 'primary danger' : 'primary';
  $('confirm-why').value = '';
  $('confirm-error').textContent = '';
  $('confirm').showModal();
  $('confirm-why').focus();
};

const confirmPardon = (path, about) => confirm(`Pardon ${about}?`,
  'The person gets in again at once, and no rule touches this session for a while.',
  'Pardon', false, path, 'Pardoned');

$('detail-revoke').addEventListener('click', () => confirm(`Log out ${short(state.detail)}?`,
  'The session ends at once, everywhere: its token is refused, its connections are cut. Whoever it is sees the logout page with the incident’s number and has to sign in again.',
  'Log out', true, `sessions/${encodeURIComponent(state.detail)}/revoke`, 'Logged out'));
$('detail-pardon').addEventListener('click', () =>
  confirmPardon(`sessions/${encodeURIComponent(state.detail)}/pardon`, short(state.detail)));
$('tripped-reset').addEventListener('click', () => confirm('Let rules enforce again?',
  'The budget starts anew. If whatever used it up goes on, it will be used up again.',
  'Enforce again', false, 'budget/reset', 'Rules enforce again'));
$('confirm-cancel').addEventListener('click', () => $('confirm').close());
$('confirm-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  $('confirm-go').disabled = true;
  try {
    const acted = await call(wish.path, {why: $('confirm-why').value});
    $('confirm').close();
    const late = acted.done === false ? ' It is recorded late; watch “Carried out” in the list of incidents.' : '';
    toast(acted.session ? `${wish.done}: ${short(acted.session)} (incident ${acted.incident}).${late}` : `${wish.done}.`);
    await refresh();
  } catch (error) {
    if (!signedOut(error)) $('confirm-error').textContent = error.message;
  } finally {
    $('confirm-go').disabled = false;
  }
});

$('detail-close').addEventListener('click', () => $('detail').close());
$('detail').addEventListener('close', () => { state.detail = null; state.detailData = null; });
// A click beside the drawer closes it.
$('detail').addEventListener('click', (event) => { if (event.target === $('detail')) $('detail').close(); });

// ---- the strip -----------------------------------------------------------------------------------

const percent = (share) => `${figure(100 * share)} %`;

/** How far the people who come have moved from those who taught a model, in a few words. */
const drift = ({state: found, windows, left_out_share: out}) => {
  const words = {steady: 'its people still come', drifting: 'its people have moved'}[found] ||
    (windows > 0 ? 'too little seen to tell drift' : '');
  return out > 0.2 ? `${words || 'drift not known'}; ${percent(out)} left out as bots` : words;
};

/** What has moved, and by how much. */
const moved = ({strata, unknown_share: share, unknown_share_learnt: learnt, unknown_share_limit: limit}) => [
  ...strata.filter((stratum) => stratum.moved)
    .map(({input, psi, limit: much}) => `People who come score otherwise than those who taught the model (${input}: index ${figure(psi)}; above ${figure(much)} is much).`),
  share > limit ? `${percent(share)} of what is seen comes from devices or input that nobody taught (${percent(learnt)} when it learnt); the model says nothing of them.` : '',
].filter(Boolean).join(' ') || 'It is less than it was, and not over yet.';

const showStatus = () => {
  const {status} = state;
  // Rules that only let through or note do nothing to anybody, whatever their mode.
  const rules = status.in_force.rules.filter((rule) => rule.action !== 'allow' && rule.action !== 'log');
  const enforced = rules.filter((rule) => rule.mode === 'enforce').length;
  const mode = $('mode');
  mode.className = enforced ? 'mode enforce' : 'mode';
  mode.replaceChildren(enforced ? 'Enforcing' : 'Shadow', el('small', {},
    enforced === rules.length ? `all ${plural(rules.length, 'rule')} that act` : enforced ? `${enforced} of ${plural(rules.length, 'rule')} that act; the rest only note` : 'rules only note what they would do'));
  const counts = status.sessions;
  const tripped = status.budget.tripped;
  $('tripped').hidden = !tripped;
  if (tripped) {
    $('tripped-text').textContent = `Since ${moment(tripped.since)} nothing is enforced: ${CAP[tripped.cap] || tripped.cap}. Look at the incidents before you let rules enforce again.`;
    mode.className = 'mode';
    mode.replaceChildren('Shadow', el('small', {}, 'the budget of logouts is used up'));
  }
  $('moved').hidden = status.drift.state !== 'drifting';
  if (!$('moved').hidden) $('moved-text').textContent = `${moved(status.drift)} Nobody is judged otherwise because of it, but the model’s promise holds only for people like those it learnt.`;
  const board = status.board;
  const items = [
    ['Sessions', `${counts.live.toLocaleString('en')} live`, `${counts.judged.toLocaleString('en')} with enough input`, false],
    ['Telemetry', counts.expected ? `${Math.round((100 * counts.seen) / counts.expected)} % send it` : 'none expected yet', counts.expected ? 'of sessions that got a page' : '', false],
    ['Revocations', board.entries.toLocaleString('en'), board.backend === 'embedded' ? 'kept in this process' : board.connected ? 'shared through Redis' : 'Redis is away; this replica goes on alone', !board.connected],
    ['Model', status.in_force.model.calibrated ? 'knows this site' : 'knows too few people here', [status.in_force.model.hash.slice(0, 8), drift(status.drift)].filter(Boolean).join(' · '), false],
    ['Policy', status.in_force.policy_version.slice(0, 8) || '–', status.in_force.reload_error ? 'the changed file has mistakes; the old policy holds' : status.in_force.policy_from.split('/').pop(), Boolean(status.in_force.reload_error)],
  ];
  if (status.candidate_drift) items.push(['Candidate model', status.in_force.candidate.hash.slice(0, 8), drift(status.candidate_drift), false]);
  if (board.queued) items.push(['Waiting for Redis', plural(board.queued, 'change'), '', true]);
  if (status.steps_pending === null) items.push(['Store', 'does not answer', 'incidents wait', true]);
  else if (status.steps_pending) items.push(['To be done', plural(status.steps_pending, 'step'), 'of incidents', false]);
  $('version').textContent = status.version;
  keyed($('states'), items, (item) => item[0], (item) => JSON.stringify(item), ([name, value, note, trouble]) => {
    const item = el('div', {}, el('dt', {}, name), el('dd', {}, value, ' ', note ? el('small', {}, note) : null));
    return item;
  });
  for (const [name, , , trouble] of items) {
    [...$('states').children].find((child) => child.dataset.key === name)?.classList.toggle('trouble', trouble);
  }
};

/** Tells screen readers what changed, and only that. */
const announce = () => {
  const out = state.sessions.filter(isOut).length;
  const would = state.sessions.filter((session) => !isOut(session) && needsLook(session)).length;
  const text = `${plural(out, 'session')} logged out, ${would} more ${would === 1 ? 'needs' : 'need'} a look.`;
  if (announce.last !== undefined && announce.last !== text && !$('toast').textContent) toast(text, true);
  announce.last = text;
};

// ---- charts --------------------------------------------------------------------------------------

const shape = (tag, attributes, ...children) => {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

const CHART = {width: 480, height: 96, buckets: 48};

/** A figure with a plot of one or two rows of numbers; the caption says in words what it shows. */
const chart = (title, words, rows, from, to) => {
  const top = Math.max(1, ...rows.flatMap((row) => row.points.map(([, value]) => value)));
  const x = (at) => (CHART.width * (at - from)) / (to - from);
  const y = (value) => CHART.height - ((CHART.height - 8) * value) / top;
  const drawn = rows.flatMap((row) => {
    if (!row.points.length) return [];
    if (row.bars) {
      const wide = CHART.width / CHART.buckets - 1.5;
      return row.points.filter(([, value]) => value > 0).map(([at, value]) =>
        shape('rect', {class: row.kind, x: x(at).toFixed(1), y: y(value).toFixed(1), width: wide.toFixed(1), height: (CHART.height - y(value)).toFixed(1)}));
    }
    const line = row.points.map(([at, value]) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join('L');
    return [shape('path', {class: row.kind, d: `M${line}`})];
  });
  return el('figure', {class: 'card chart'},
    el('figcaption', {}, el('b', {}, title), ' ', el('span', {class: 'quiet'}, words)),
    shape('svg', {viewBox: `0 -6 ${CHART.width} ${CHART.height + 8}`, role: 'img', 'aria-label': `${title}: ${words}`, preserveAspectRatio: 'none'},
      shape('path', {class: 'axis', d: `M0 ${CHART.height}H${CHART.width}`}), ...drawn),
    el('p', {class: 'quiet scale'}, el('span', {}, `${span(to - from)} ago`), el('span', {}, `at most ${top.toLocaleString('en')}`), el('span', {}, 'now')),
    rows.length > 1 ? el('p', {class: 'legend'}, ...rows.map((row) => el('span', {class: row.kind}, row.name))) : null);
};

const showHistory = ({now, moments: past, incidents}) => {
  // What is kept is up to a minute old; the line ends with what the strip above says now.
  const {live, judged: judgedNow} = state.status.sessions;
  const moments = [...past, {at: now, live, judged: judgedNow, past: state.sessions.filter(isPast).length}];
  // As long as there is anything to see, half an hour at least, a day at most.
  const oldest = Math.min(moments[0].at, ...incidents.map((mark) => mark.at));
  const from = Math.max(now - 24 * 3600e3, Math.min(oldest, now - 1800e3));
  const wide = (now - from) / CHART.buckets;
  const counted = (wanted) => {
    const buckets = Array.from({length: CHART.buckets}, (_, index) => [from + index * wide, 0]);
    for (const mark of incidents.filter(wanted)) buckets[Math.min(CHART.buckets - 1, Math.max(0, Math.floor((mark.at - from) / wide)))][1] += 1;
    return buckets;
  };
  const ends = (mark) => SHUTS_OUT.includes(mark.action);
  const done = incidents.filter((mark) => ends(mark) && mark.mode === 'enforce').length;
  const would = incidents.filter((mark) => ends(mark) && mark.mode === 'shadow').length;
  const values = (name) => moments.map((at) => [at.at, at[name]]);
  const last = moments[moments.length - 1];
  const lines = (name, kind, label) => ({points: values(name), kind, name: label});
  $('charts').replaceChildren(
    chart('Sessions', `${last.live.toLocaleString('en')} live, ${last.judged.toLocaleString('en')} with enough input to judge`,
      [lines('live', 'line', 'live'), lines('judged', 'line second', 'enough input')], from, now),
    chart('Logouts', `${done.toLocaleString('en')} done, ${would.toLocaleString('en')} that would have been, in shadow`,
      [{points: counted((mark) => ends(mark) && mark.mode === 'shadow'), kind: 'would', name: 'would have been', bars: true},
        {points: counted((mark) => ends(mark) && mark.mode === 'enforce'), kind: 'done', name: 'done', bars: true}], from, now),
    chart('Past the mark', `${last.past.toLocaleString('en')} live with evidence that the model calls a bot’s`, [lines('past', 'line bad', 'past the mark')], from, now));
  $('charts').hidden = false;
};

/** Charts move by the minute: asking every ten seconds is enough. */
const loadHistory = async () => {
  if (state.view !== 'sessions' || Date.now() - (loadHistory.last || 0) < 10000) return;
  loadHistory.last = Date.now();
  showHistory(await call('history'));
};

// ---- the round -----------------------------------------------------------------------------------

const SHOW = {sessions: showSessions, incidents: showIncidents, audit: showAudit};

const refresh = async () => {
  const view = state.view;
  const status = call('status');
  const answer = await call(view === 'sessions' ? 'sessions?limit=1000' : view);
  state.status = await status;
  state.now = answer.now;
  if (view === 'sessions') {
    state.sessions = answer.sessions;
    state.more = answer.more;
    announce();
  } else if (view === 'incidents') {
    state.incidents = answer.incidents;
  } else {
    state.records = answer.records;
  }
  showStatus();
  if (view === state.view) SHOW[view]();
  await loadHistory();
  await loadDetail();
};

const EVERY_MS = 2000;
let failures = 0;

const round = async () => {
  if (state.signedIn && !document.hidden && !state.paused) {
    try {
      await refresh();
      if (failures > 2) toast('The gateway answers again.');
      failures = 0;
    } catch (error) {
      failures += 1;
      if (!signedOut(error) && failures === 3) toast('The gateway does not answer; trying again.');
    }
  }
  // When it does not answer, ask less often.
  setTimeout(round, EVERY_MS * Math.min(8, 1 + failures));
};

const signedOut = (error) => {
  if (error.status !== 401) return false;
  showLogin();
  return true;
};

const showLogin = () => {
  state.signedIn = false;
  for (const dialog of ['confirm', 'detail']) if ($(dialog).open) $(dialog).close();
  for (const view of VIEWS) $(`view-${view}`).hidden = true;
  for (const part of ['nav', 'me', 'strip', 'tripped']) $(part).hidden = true;
  $('view-login').hidden = false;
  document.title = 'Sign in – Gaitway';
  $('login-name').value = localStorage.getItem('gaitway.name') || '';
  ($('login-name').value ? $('login-password') : $('login-name')).focus();
};

const showView = () => {
  if (!state.signedIn) return;
  const wanted = location.hash.slice(1);
  state.view = VIEWS.includes(wanted) ? wanted : 'sessions';
  $('view-login').hidden = true;
  for (const part of ['nav', 'me', 'strip']) $(part).hidden = false;
  for (const view of VIEWS) $(`view-${view}`).hidden = view !== state.view;
  for (const link of $('nav').children) {
    if (link.hash === `#${state.view}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = `${$(`${state.view}-title`).textContent} – Gaitway`;
};

$('login').addEventListener('submit', async (event) => {
  event.preventDefault();
  $('login-error').textContent = '';
  try {
    const name = $('login-name').value;
    const login = await call('login', {name, password: $('login-password').value});
    localStorage.setItem('gaitway.page', login.page);
    localStorage.setItem('gaitway.name', login.who);
    $('login-password').value = '';
    await start();
    $('main').focus();
  } catch (error) {
    $('login-error').textContent = error.message;
    $('login-password').select();
  }
});
$('sign-out').addEventListener('click', async () => {
  await call('logout', {}).catch(() => {});
  localStorage.removeItem('gaitway.page');
  showLogin();
});
$('pause').addEventListener('click', () => {
  state.paused = !state.paused;
  $('pause').setAttribute('aria-pressed', String(state.paused));
  $('pause').textContent = state.paused ? 'Paused' : 'Pause';
});
$('skip').addEventListener('click', (event) => { event.preventDefault(); $('main').focus(); });
for (const id of ['sessions-search', 'sessions-show', 'sessions-order']) $(id).addEventListener('input', showSessions);
for (const id of ['incidents-search', 'incidents-show']) $(id).addEventListener('input', showIncidents);
addEventListener('hashchange', () => {
  showView();
  if (state.signedIn) refresh().catch(signedOut);
});

const start = async () => {
  state.signedIn = true;
  $('who').textContent = localStorage.getItem('gaitway.name') || 'operator';
  showView();
  await refresh();
  // A link from an alert.
  const linked = location.pathname.match(/^\/sessions\/(s_[0-9a-f]{32})$/);
  if (linked) {
    history.replaceState(null, '', '/#sessions');
    await openDetail(linked[1]);
  }
};

if (localStorage.getItem('gaitway.page')) start().catch((error) => signedOut(error) || toast(error.message));
else showLogin();
round();
