-- Jobs, their event log, their outbox, and the branches of their fan-outs. Times are Unix milliseconds.
-- Values of users are MessagePack (arguments, route, result, error, headers); the data of events is JSON.
-- Names are looked up in the schema of the store while this runs; later every statement names the schema.

CREATE TABLE job_namespaces (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name       text NOT NULL UNIQUE,
  last_event bigint NOT NULL DEFAULT 0,   -- locked last in a transaction: ids of events rise in the order of commit
  trimmed_to bigint NOT NULL DEFAULT 0    -- no event up to this id is left but final ones
) WITH (fillfactor = 10);

-- Emptied by a crash of the server, which may take events that were seen: their ids are not given again.
CREATE UNLOGGED TABLE job_uncrashed (namespace bigint PRIMARY KEY);

CREATE TABLE jobs (
  seq             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  namespace       bigint NOT NULL,
  job_id          text NOT NULL CHECK (job_id <> ''),
  tool            text NOT NULL,
  owner           text NOT NULL,
  idempotency_key text,
  arguments_hash  text NOT NULL,
  state           text NOT NULL DEFAULT 'pending' CHECK (state IN
    ('pending', 'running', 'paused', 'succeeded', 'failed', 'cancelled', 'timed_out')),
  progress        double precision NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
  message         text NOT NULL DEFAULT '',
  actor           text NOT NULL DEFAULT '',
  steps_completed bigint NOT NULL DEFAULT 0 CHECK (steps_completed BETWEEN 0 AND total_steps),
  total_steps     bigint NOT NULL CHECK (total_steps > 0),
  route           bytea NOT NULL,
  arguments       bytea NOT NULL,
  result          bytea,
  error           bytea,
  result_key      text,
  aborted         boolean NOT NULL DEFAULT FALSE,
  fan_out         boolean NOT NULL DEFAULT FALSE,   -- whether job_branches has rows
  finished_by     text,                             -- the envelope whose end ended the job
  pauses          bigint NOT NULL DEFAULT 0,
  created_at      bigint NOT NULL,
  updated_at      bigint NOT NULL,
  finished_at     bigint,
  deadline_at     bigint,
  paused_at       bigint,
  token_hash      text NOT NULL DEFAULT '',
  trace           text NOT NULL DEFAULT '',
  trimmed_to      bigint NOT NULL DEFAULT 0,        -- events up to this id were deleted
  CHECK ((progress = 100) = (state = 'succeeded')),
  CHECK ((paused_at IS NOT NULL) = (state = 'paused')),
  CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled', 'timed_out'))),
  CHECK ((result IS NOT NULL) = (state = 'succeeded')),
  CHECK ((error IS NOT NULL) = (state IN ('failed', 'timed_out'))),
  UNIQUE (namespace, job_id)
) WITH (fillfactor = 75);

CREATE UNIQUE INDEX jobs_idempotency ON jobs (namespace, owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_deadline ON jobs (namespace, deadline_at)
  WHERE deadline_at IS NOT NULL AND state IN ('pending', 'running');
CREATE INDEX jobs_finished ON jobs (namespace, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_of_namespace ON jobs (namespace, seq);
CREATE INDEX jobs_of_owner ON jobs (namespace, owner, seq);
CREATE INDEX jobs_live ON jobs (namespace, owner, seq) WHERE finished_at IS NULL;

CREATE FUNCTION job_refused() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = TG_NAME;
END $$;

CREATE TRIGGER jobs_begin_pending BEFORE INSERT ON jobs FOR EACH ROW
WHEN (NEW.state <> 'pending' OR NEW.progress <> 0)
EXECUTE FUNCTION job_refused('a job begins as pending, at 0');

CREATE TRIGGER jobs_move_as_allowed BEFORE UPDATE OF state ON jobs FOR EACH ROW
WHEN (NEW.state <> OLD.state AND (OLD.state, NEW.state) NOT IN (
  ('pending', 'running'), ('pending', 'paused'),
  ('pending', 'succeeded'), ('pending', 'failed'), ('pending', 'cancelled'), ('pending', 'timed_out'),
  ('running', 'paused'),
  ('running', 'succeeded'), ('running', 'failed'), ('running', 'cancelled'), ('running', 'timed_out'),
  ('paused', 'pending'), ('paused', 'running'),
  ('paused', 'succeeded'), ('paused', 'failed'), ('paused', 'cancelled')))
EXECUTE FUNCTION job_refused('the state of a job does not change like that');

CREATE TRIGGER jobs_never_go_back BEFORE UPDATE OF progress ON jobs FOR EACH ROW
WHEN (NEW.progress < OLD.progress)
EXECUTE FUNCTION job_refused('the progress of a job never decreases');

CREATE TRIGGER jobs_end_once BEFORE UPDATE OF
  state, progress, steps_completed, total_steps, result, error, aborted, finished_at, finished_by ON jobs FOR EACH ROW
WHEN (OLD.finished_at IS NOT NULL)
EXECUTE FUNCTION job_refused('a job that has ended does not change');

CREATE TRIGGER jobs_are_filed_once BEFORE UPDATE OF result_key ON jobs FOR EACH ROW
WHEN (OLD.finished_at IS NOT NULL AND (OLD.result_key IS NOT NULL OR OLD.finished_by IS NULL))
EXECUTE FUNCTION job_refused('the outcome of a job is filed once');

CREATE TABLE job_events (
  namespace  bigint NOT NULL,
  id         bigint NOT NULL,
  job        bigint NOT NULL,
  kind       text NOT NULL,
  final      boolean NOT NULL DEFAULT FALSE,
  data       text NOT NULL,
  created_at bigint NOT NULL,
  PRIMARY KEY (namespace, id)
);

CREATE INDEX job_events_of_job ON job_events (job, id);
CREATE UNIQUE INDEX job_events_final ON job_events (job) WHERE final;
CREATE INDEX job_events_ends ON job_events (namespace, id) WHERE final;

CREATE TRIGGER job_events_are_append_only BEFORE UPDATE ON job_events FOR EACH ROW
EXECUTE FUNCTION job_refused('the event log is append-only');

CREATE TABLE job_outbox (
  id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  namespace    bigint NOT NULL,
  parked_for   bigint,                             -- the job (seq) for which an envelope was parked
  held         boolean NOT NULL DEFAULT FALSE,
  leased_until bigint NOT NULL DEFAULT 0,
  queue        text NOT NULL,
  message_id   text NOT NULL,
  payload      bytea NOT NULL,
  headers      bytea NOT NULL,
  dedup_key    text NOT NULL,
  CHECK (NOT held OR parked_for IS NOT NULL)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);

CREATE INDEX job_outbox_due ON job_outbox (namespace, id) WHERE NOT held;
CREATE UNIQUE INDEX job_outbox_parked ON job_outbox (parked_for, dedup_key) WHERE parked_for IS NOT NULL;

CREATE TABLE job_branches (
  job         bigint NOT NULL,
  envelope_id text NOT NULL,
  parent      text,                                -- NULL for the root of the tree
  position    bigint NOT NULL,                     -- the index among the children of the parent
  total       bigint NOT NULL CHECK (total > 0),   -- how many children the parent has
  state       text NOT NULL CHECK (state IN ('live', 'split', 'done', 'failed', 'held', 'joined')),
  progress    double precision NOT NULL CHECK (progress BETWEEN 0 AND 100.001),
  heard       boolean NOT NULL DEFAULT FALSE,      -- whether it has reported anything itself
  aborted     boolean NOT NULL DEFAULT FALSE,
  result      bytea,
  error       bytea,
  PRIMARY KEY (job, envelope_id),
  CHECK (state <> 'done' OR error IS NULL)
) WITH (fillfactor = 80);

CREATE INDEX job_branches_children ON job_branches (job, parent, position);
CREATE INDEX job_branches_live ON job_branches (job) WHERE state = 'live';
