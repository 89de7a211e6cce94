CREATE TABLE ledger_effects (
    namespace  text        NOT NULL,
    key        text        NOT NULL,
    done       boolean     NOT NULL DEFAULT false,
    value      bytea,
    written_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (namespace, key)
);

CREATE TABLE ledger_joins (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace  text        NOT NULL,
    parent_id  text        NOT NULL,
    hop        integer     NOT NULL,
    actor      text        NOT NULL,
    total      integer     NOT NULL,
    arrived    integer     NOT NULL DEFAULT 0,
    released   boolean     NOT NULL DEFAULT false,
    written_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (namespace, parent_id, hop, actor)
);

CREATE TABLE ledger_children (
    join_id bigint  NOT NULL REFERENCES ledger_joins (id) ON DELETE CASCADE,
    child   integer NOT NULL,
    payload bytea   NOT NULL,
    PRIMARY KEY (join_id, child)
);

-- Deliveries that were handled, where the queues do not drop repeats themselves. A key is a hash over namespace and key.
CREATE TABLE ledger_handled (
    key        uuid        NOT NULL PRIMARY KEY,
    handled_at timestamptz NOT NULL
);

CREATE INDEX ledger_handled_age ON ledger_handled (handled_at);
