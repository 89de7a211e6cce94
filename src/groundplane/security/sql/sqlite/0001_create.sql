CREATE TABLE security_keys (
    namespace    TEXT    NOT NULL,
    key_id       TEXT    NOT NULL,
    digest       BLOB    NOT NULL CHECK (length(digest) = 32),
    name         TEXT    NOT NULL,
    principal    TEXT    NOT NULL CHECK (principal <> ''),
    scopes       TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER,
    revoked_at   INTEGER,
    PRIMARY KEY (namespace, key_id)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX security_keys_name ON security_keys (namespace, name) WHERE revoked_at IS NULL;

CREATE TABLE security_audit (
    entry_id  INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT    NOT NULL,
    at        INTEGER NOT NULL,
    action    TEXT    NOT NULL,
    outcome   TEXT    NOT NULL CHECK (outcome IN ('done', 'refused', 'failed')),
    principal TEXT    NOT NULL,
    caller    TEXT    NOT NULL,
    kind      TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    resource  TEXT    NOT NULL,
    detail    TEXT    NOT NULL,
    count     INTEGER NOT NULL CHECK (count > 0)
) STRICT;

CREATE INDEX security_audit_namespace ON security_audit (namespace, entry_id);
CREATE TRIGGER security_audit_stays BEFORE UPDATE ON security_audit
BEGIN SELECT RAISE(ABORT, 'entries of the audit log do not change'); END;

CREATE TABLE security_sessions (
    namespace  TEXT    NOT NULL,
    digest     BLOB    NOT NULL CHECK (length(digest) = 32),
    owner      TEXT    NOT NULL,
    data       BLOB    NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, digest)
) STRICT, WITHOUT ROWID;

CREATE INDEX security_sessions_owner ON security_sessions (namespace, owner);
CREATE INDEX security_sessions_expiry ON security_sessions (expires_at);

CREATE TABLE security_secrets (
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    value     BLOB NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;
