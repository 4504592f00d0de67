-- Security events that wait until their receiver fetches them. What they say is sealed.
CREATE TABLE gaitway_signals (
    stream TEXT NOT NULL,
    jti TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    sealed TEXT NOT NULL,
    PRIMARY KEY (stream, jti)
);
CREATE INDEX gaitway_signals_at ON gaitway_signals (stream, at_ms);
