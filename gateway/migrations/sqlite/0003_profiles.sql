-- What is known of each person's hand: sealed counts under a pseudonym. Without a body the person was
-- forgotten, and sessions that still remember them must not write.
CREATE TABLE gaitway_profiles (
    subject TEXT PRIMARY KEY,
    body BLOB CHECK (LENGTH(body) <= 262144),
    updated_ms BIGINT NOT NULL
);
CREATE INDEX gaitway_profiles_updated ON gaitway_profiles (updated_ms);
