-- Which policy decided, where a rule or a limit did and not a person.
ALTER TABLE gaitway_audit ADD COLUMN policy_version TEXT;
