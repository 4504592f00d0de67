-- Incidents with what each of them asked for, their steps, and the audit trail.
-- Times are milliseconds since the Unix epoch, identities pseudonyms.
CREATE TABLE gaitway_incidents (
    number BIGSERIAL PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    at_ms BIGINT NOT NULL,
    until_ms BIGINT NOT NULL,
    session TEXT NOT NULL,
    subject TEXT,
    token TEXT,
    action TEXT NOT NULL,
    mode TEXT NOT NULL,
    -- 'revoke', 'pardon' or 'none': what carrying it out means for the board.
    effect TEXT NOT NULL,
    who TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- The whole incident as JSON.
    body TEXT NOT NULL
);
CREATE INDEX gaitway_incidents_session ON gaitway_incidents (session, at_ms);
CREATE INDEX gaitway_incidents_at ON gaitway_incidents (at_ms);
CREATE INDEX gaitway_incidents_force ON gaitway_incidents (until_ms) WHERE effect = 'revoke';
CREATE INDEX gaitway_incidents_pardoned ON gaitway_incidents (subject, at_ms) WHERE effect = 'pardon';

CREATE TABLE gaitway_steps (
    incident TEXT NOT NULL REFERENCES gaitway_incidents (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    position BIGINT NOT NULL,
    state TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    retry_at_ms BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (incident, name)
);
CREATE INDEX gaitway_steps_pending ON gaitway_steps (retry_at_ms) WHERE state = 'pending';

CREATE TABLE gaitway_audit (
    number BIGSERIAL PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    who TEXT NOT NULL,
    what TEXT NOT NULL,
    session TEXT,
    incident TEXT,
    why TEXT NOT NULL
);
CREATE INDEX gaitway_audit_at ON gaitway_audit (at_ms);
