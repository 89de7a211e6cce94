CREATE TABLE security_keys (
    namespace    text        NOT NULL,
    key_id       text        NOT NULL,
    digest       bytea       NOT NULL CHECK (length(digest) = 32),
    name         text        NOT NULL,
    principal    text        NOT NULL CHECK (principal <> ''),
    scopes       text        NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    last_used_at timestamptz,
    revoked_at   timestamptz,
    PRIMARY KEY (namespace, key_id)
);

CREATE UNIQUE INDEX security_keys_name ON security_keys (namespace, name) WHERE revoked_at IS NULL;

CREATE TABLE security_audit (
    entry_id  bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text        NOT NULL,
    at        timestamptz NOT NULL DEFAULT now(),
    action    text        NOT NULL,
    outcome   text        NOT NULL CHECK (outcome IN ('done', 'refused', 'failed')),
    principal text        NOT NULL,
    caller    text        NOT NULL,
    kind      text        NOT NULL,
    key_id    text        NOT NULL,
    resource  text        NOT NULL,
    detail    text        NOT NULL,
    count     integer     NOT NULL CHECK (count > 0)
);

CREATE INDEX security_audit_namespace ON security_audit (namespace, entry_id);

CREATE FUNCTION security_audit_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'entries of the audit log do not change'; END $$;
CREATE TRIGGER security_audit_stays BEFORE UPDATE ON security_audit
FOR EACH ROW EXECUTE FUNCTION security_audit_stays();

CREATE TABLE security_sessions (
    namespace  text        NOT NULL,
    digest     bytea       NOT NULL CHECK (length(digest) = 32),
    owner      text        NOT NULL,
    data       bytea       NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (namespace, digest)
);

CREATE INDEX security_sessions_owner ON security_sessions (namespace, owner);
CREATE INDEX security_sessions_expiry ON security_sessions (expires_at);

CREATE TABLE security_secrets (
    namespace text  NOT NULL,
    name      text  NOT NULL,
    value     bytea NOT NULL,
    PRIMARY KEY (namespace, name)
);
