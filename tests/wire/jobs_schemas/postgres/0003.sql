CREATE TABLE groundplane_schema (
  component text NOT NULL, version integer NOT NULL, name text NOT NULL, checksum text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (component, version));
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

-- Questions that a job waits for. A job with open questions is paused; the last answer lets it go on.
-- Schema, parameters and content are MessagePack. Replicas of the release before go on with these tables.

ALTER TABLE jobs
  ADD COLUMN open_questions bigint NOT NULL DEFAULT 0 CHECK (open_questions >= 0),
  -- Whether the job is paused by a person as well, so that it does not go on with the last answer.
  ADD COLUMN stays_paused boolean NOT NULL DEFAULT FALSE,
  ADD CONSTRAINT jobs_wait_for_questions CHECK (open_questions = 0 OR state = 'paused'),
  ADD CONSTRAINT jobs_stay_paused CHECK (NOT stays_paused OR open_questions > 0);

CREATE TABLE job_questions (
  job         bigint NOT NULL,
  question_id text NOT NULL CHECK (question_id <> ''),
  number      bigint NOT NULL,                     -- the order in which the job's questions were asked
  kind        text NOT NULL CHECK (kind IN ('elicit', 'sample', 'roots')),
  state       text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'answered', 'closed')),
  message     text NOT NULL,
  schema      bytea,
  params      bytea NOT NULL,
  actor       text NOT NULL,
  envelope_id text NOT NULL,
  asked_at    bigint NOT NULL,
  answered_at bigint,
  action      text CHECK (action IN ('accept', 'decline', 'cancel')),
  content     bytea,
  answered_by text,
  PRIMARY KEY (job, question_id),
  UNIQUE (job, number),
  CHECK ((answered_at IS NOT NULL) = (state = 'answered')),
  CHECK ((action IS NOT NULL) = (state = 'answered')),
  CHECK ((answered_by IS NOT NULL) = (state = 'answered')),
  CHECK (content IS NULL OR (state = 'answered' AND action = 'accept'))
) WITH (fillfactor = 80);

CREATE TRIGGER job_questions_begin_open BEFORE INSERT ON job_questions FOR EACH ROW
WHEN (NEW.state <> 'open')
EXECUTE FUNCTION job_refused('a question begins as open');

CREATE TRIGGER job_questions_end_once BEFORE UPDATE ON job_questions FOR EACH ROW
WHEN (OLD.state <> 'open')
EXECUTE FUNCTION job_refused('a question that was answered or closed does not change');

CREATE TRIGGER job_questions_keep_their_words BEFORE UPDATE OF
  job, question_id, number, kind, message, schema, params, actor, envelope_id, asked_at ON job_questions FOR EACH ROW
EXECUTE FUNCTION job_refused('the words of a question do not change');

-- The highest term that was shown for each leadership: a job that is made under an older one is refused.
-- Replicas of the release before go on with these tables; they show no terms.

CREATE TABLE job_fences (
  namespace bigint NOT NULL,
  name      text NOT NULL,
  term      bigint NOT NULL CHECK (term > 0),
  PRIMARY KEY (namespace, name)
) WITH (fillfactor = 70);

CREATE TRIGGER job_fences_only_rise BEFORE UPDATE ON job_fences FOR EACH ROW
WHEN (NEW.term < OLD.term)
EXECUTE FUNCTION job_refused('the term of a fence never falls');

ALTER TABLE groundplane_schema DISABLE TRIGGER USER;
INSERT INTO groundplane_schema (component, version, name, checksum, applied_at) OVERRIDING SYSTEM VALUE VALUES ('jobs', 1, 'jobs', '30477793b5c4e7777985373a212d3486557ef8f7ac3fb5f1915a77eb0f2604e3', '2026-11-22 15:36:35.773860+00:00'::timestamptz);
INSERT INTO groundplane_schema (component, version, name, checksum, applied_at) OVERRIDING SYSTEM VALUE VALUES ('jobs', 2, 'questions', '55e50eba8810eafd4df128318a352cec724d4583bfc47e85506cc9ee8b1f445d', '2026-11-22 15:36:35.773860+00:00'::timestamptz);
INSERT INTO groundplane_schema (component, version, name, checksum, applied_at) OVERRIDING SYSTEM VALUE VALUES ('jobs', 3, 'fences', 'cdd71c4976eb492fff63671f5846131157e2c487463087d5da17b31a7856acff', '2026-11-22 15:36:35.773860+00:00'::timestamptz);
ALTER TABLE groundplane_schema ENABLE TRIGGER USER;
ALTER TABLE job_branches DISABLE TRIGGER USER;
INSERT INTO job_branches (job, envelope_id, parent, position, total, state, progress, heard, aborted, result, error) OVERRIDING SYSTEM VALUE VALUES (7, 'c0', 'e', 0, 2, 'live', 0.0, false, false, NULL, NULL);
INSERT INTO job_branches (job, envelope_id, parent, position, total, state, progress, heard, aborted, result, error) OVERRIDING SYSTEM VALUE VALUES (7, 'c1', 'e', 1, 2, 'done', 100.0, true, false, '\xa36f6e65'::bytea, NULL);
INSERT INTO job_branches (job, envelope_id, parent, position, total, state, progress, heard, aborted, result, error) OVERRIDING SYSTEM VALUE VALUES (7, 'e', NULL, 0, 1, 'split', 50.0, false, false, NULL, NULL);
ALTER TABLE job_branches ENABLE TRIGGER USER;
ALTER TABLE job_events DISABLE TRIGGER USER;
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 1, 1, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795886);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 2, 2, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795892);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 3, 3, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795900);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 4, 4, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795902);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 5, 5, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795904);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 6, 6, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795907);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 7, 7, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795909);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 8, 8, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795911);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 9, 9, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795913);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 10, 2, 'progress', false, '{"state":"running","progress":25.0,"message":"half","actor":"a","steps_completed":0,"total_steps":2,"envelope_id":"e","hop":0,"attempt":1}', 1795361795918);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 11, 4, 'succeeded', true, '{"state":"succeeded","progress":100.0,"message":"","actor":"","steps_completed":2,"total_steps":2}', 1795361795918);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 12, 5, 'failed', true, '{"state":"failed","progress":0.0,"message":"it broke","actor":"","steps_completed":0,"total_steps":2,"error":{"code":"internal","reason":"processing_error","message":"it broke","type":""}}', 1795361795918);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 13, 7, 'split', false, '{"state":"running","progress":0.0,"message":"","actor":"","steps_completed":0,"total_steps":2,"envelope_id":"e","total":2,"children":["c0","c1"]}', 1795361795918);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 14, 7, 'branch', false, '{"state":"running","progress":50.0,"message":"","actor":"","steps_completed":0,"total_steps":2,"envelope_id":"c1","parent_id":"e","index":1,"total":2,"outcome":"done","aborted":false}', 1795361795918);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 15, 6, 'cancelled', true, '{"state":"cancelled","progress":0.0,"message":"enough","actor":"","steps_completed":0,"total_steps":2}', 1795361795936);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 16, 3, 'paused', false, '{"state":"paused","progress":0.0,"message":"","actor":"","steps_completed":0,"total_steps":2,"deadline_at":4102444800000}', 1795361795941);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 17, 3, 'parked', false, '{"state":"paused","envelope_id":"e-paused","actor":"a"}', 1795361795956);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 18, 10, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795959);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 19, 10, 'paused', false, '{"state":"paused","progress":0.0,"message":"","actor":"","steps_completed":0,"total_steps":2,"deadline_at":4102444800000,"reason":"question"}', 1795361795960);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 20, 10, 'asked', false, '{"state":"paused","question_id":"answered","kind":"elicit","message":"Sure?","schema":null,"params":{},"actor":"","envelope_id":"e-asking"}', 1795361795960);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 21, 10, 'asked', false, '{"state":"paused","question_id":"open","kind":"elicit","message":"Sure?","schema":null,"params":{},"actor":"","envelope_id":"e-asking"}', 1795361795960);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 22, 10, 'parked', false, '{"state":"paused","envelope_id":"e-asking","actor":"a"}', 1795361795960);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 23, 10, 'answered', false, '{"state":"paused","question_id":"answered","action":"accept","by":"me"}', 1795361795968);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 24, 11, 'created', false, '{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}', 1795361795986);
INSERT INTO job_events (namespace, id, job, kind, final, data, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 25, 8, 'timed_out', true, '{"state":"timed_out","progress":0.0,"message":"The job did not end by its deadline, 1970-01-01T00:00:00.001Z.","actor":"","steps_completed":0,"total_steps":2,"error":{"code":"deadline_exceeded","reason":"deadline_exceeded","message":"The job did not end by its deadline, 1970-01-01T00:00:00.001Z.","type":""}}', 1795361795990);
ALTER TABLE job_events ENABLE TRIGGER USER;
ALTER TABLE job_fences DISABLE TRIGGER USER;
INSERT INTO job_fences (namespace, name, term) OVERRIDING SYSTEM VALUE VALUES (1, 'planner', 41);
ALTER TABLE job_fences ENABLE TRIGGER USER;
ALTER TABLE job_namespaces DISABLE TRIGGER USER;
INSERT INTO job_namespaces (id, name, last_event, trimmed_to) OVERRIDING SYSTEM VALUE VALUES (1, 'released', 25, 0);
SELECT setval(pg_get_serial_sequence('job_namespaces', 'id'), (SELECT max(id) FROM job_namespaces));
ALTER TABLE job_namespaces ENABLE TRIGGER USER;
ALTER TABLE job_outbox DISABLE TRIGGER USER;
INSERT INTO job_outbox (id, namespace, parked_for, held, leased_until, queue, message_id, payload, headers, dedup_key) OVERRIDING SYSTEM VALUE VALUES (1, 1, NULL, false, 0, 'a', 'e-waiting', '\x80'::bytea, '\x81a16ba176'::bytea, 'e-waiting:0');
INSERT INTO job_outbox (id, namespace, parked_for, held, leased_until, queue, message_id, payload, headers, dedup_key) OVERRIDING SYSTEM VALUE VALUES (2, 1, 3, true, 0, 'a', 'e-paused', '\x80'::bytea, '\x81a16ba176'::bytea, 'e-paused:0:resume-1');
INSERT INTO job_outbox (id, namespace, parked_for, held, leased_until, queue, message_id, payload, headers, dedup_key) OVERRIDING SYSTEM VALUE VALUES (3, 1, 10, true, 0, 'a', 'e-asking', '\x80'::bytea, '\x81a16ba176'::bytea, 'e-asking:0:resume-1');
SELECT setval(pg_get_serial_sequence('job_outbox', 'id'), (SELECT max(id) FROM job_outbox));
ALTER TABLE job_outbox ENABLE TRIGGER USER;
ALTER TABLE job_questions DISABLE TRIGGER USER;
INSERT INTO job_questions (job, question_id, number, kind, state, message, schema, params, actor, envelope_id, asked_at, answered_at, action, content, answered_by) OVERRIDING SYSTEM VALUE VALUES (10, 'open', 1, 'elicit', 'open', 'Sure?', NULL, '\x80'::bytea, '', 'e-asking', 1795361795960, NULL, NULL, NULL, NULL);
INSERT INTO job_questions (job, question_id, number, kind, state, message, schema, params, actor, envelope_id, asked_at, answered_at, action, content, answered_by) OVERRIDING SYSTEM VALUE VALUES (10, 'answered', 0, 'elicit', 'answered', 'Sure?', NULL, '\x80'::bytea, '', 'e-asking', 1795361795960, 1795361795968, 'accept', '\x81a473757265c3'::bytea, 'me');
ALTER TABLE job_questions ENABLE TRIGGER USER;
ALTER TABLE job_uncrashed DISABLE TRIGGER USER;
INSERT INTO job_uncrashed (namespace) OVERRIDING SYSTEM VALUE VALUES (1);
ALTER TABLE job_uncrashed ENABLE TRIGGER USER;
ALTER TABLE jobs DISABLE TRIGGER USER;
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (1, 1, 'pending', 't', 'me', 'key pending', 'h', 'pending', 0.0, '', '', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a770656e64696e67a2c3a4c0'::bytea, NULL, NULL, NULL, false, false, NULL, 0, 1795361795886, 1795361795886, NULL, 4102444800000, NULL, '', '', 0, 0, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (2, 1, 'running', 't', 'me', 'key running', 'h', 'running', 25.0, 'half', 'a', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a772756e6e696e67a2c3a4c0'::bytea, NULL, NULL, NULL, false, false, NULL, 0, 1795361795892, 1795361795918, NULL, 4102444800000, NULL, '', '', 0, 0, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (3, 1, 'paused', 't', 'me', 'key paused', 'h', 'paused', 0.0, '', '', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a6706175736564a2c3a4c0'::bytea, NULL, NULL, NULL, false, false, NULL, 1, 1795361795900, 1795361795941, NULL, 4102444800000, 1795361795941, '', '', 0, 0, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (4, 1, 'succeeded', 't', 'me', 'key succeeded', 'h', 'succeeded', 100.0, '', '', 2, 2, '\x92a161a162'::bytea, '\x82a46e616d65a9737563636565646564a2c3a4c0'::bytea, '\x81a6616e737765729319c0c40100'::bytea, NULL, 'r', false, false, 'e', 0, 1795361795902, 1795361795918, 1795361795918, 4102444800000, NULL, '', '', 0, 0, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (5, 1, 'failed', 't', 'me', 'key failed', 'h', 'failed', 0.0, 'it broke', '', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a66661696c6564a2c3a4c0'::bytea, NULL, '\x83a4636f6465a8696e7465726e616ca76d657373616765a869742062726f6b65a6726561736f6eb070726f63657373696e675f6572726f72'::bytea, NULL, false, false, 'e', 0, 1795361795904, 1795361795918, 1795361795918, 4102444800000, NULL, '', '', 0, 0, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (6, 1, 'cancelled', 't', 'me', 'key cancelled', 'h', 'cancelled', 0.0, 'enough', '', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a963616e63656c6c6564a2c3a4c0'::bytea, NULL, NULL, NULL, false, false, NULL, 0, 1795361795907, 1795361795936, 1795361795936, 4102444800000, NULL, '', '', 0, 0, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (7, 1, 'fan-out', 't', 'me', 'key fan-out', 'h', 'running', 50.0, '', '', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a766616e2d6f7574a2c3a4c0'::bytea, NULL, NULL, NULL, false, true, NULL, 0, 1795361795909, 1795361795918, NULL, 4102444800000, NULL, '', '', 0, 0, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (8, 1, 'timed_out', 't', '', NULL, 'h', 'timed_out', 0.0, 'The job did not end by its deadline, 1970-01-01T00:00:00.001Z.', '', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a974696d65645f6f7574a2c3a4c0'::bytea, NULL, '\x83a4636f6465b1646561646c696e655f6578636565646564a76d657373616765d93e546865206a6f6220646964206e6f7420656e642062792069747320646561646c696e652c20313937302d30312d30315430303a30303a30302e3030315a2ea6726561736f6eb1646561646c696e655f6578636565646564'::bytea, NULL, false, false, NULL, 0, 1795361795911, 1795361795990, 1795361795990, 1, NULL, '', '', 0, 0, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (9, 1, 'waiting', 't', '', NULL, 'h', 'pending', 0.0, '', '', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a777616974696e67a2c3a4c0'::bytea, NULL, NULL, NULL, false, false, NULL, 0, 1795361795913, 1795361795913, NULL, NULL, NULL, '', '', 0, 0, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (10, 1, 'asking', 't', '', NULL, 'h', 'paused', 0.0, '', '', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a661736b696e67a2c3a4c0'::bytea, NULL, NULL, NULL, false, false, NULL, 1, 1795361795959, 1795361795968, NULL, 4102444800000, 1795361795960, '', '', 0, 1, false);
INSERT INTO jobs (seq, namespace, job_id, tool, owner, idempotency_key, arguments_hash, state, progress, message, actor, steps_completed, total_steps, route, arguments, result, error, result_key, aborted, fan_out, finished_by, pauses, created_at, updated_at, finished_at, deadline_at, paused_at, token_hash, trace, trimmed_to, open_questions, stays_paused) OVERRIDING SYSTEM VALUE VALUES (11, 1, 'fenced', 't', '', NULL, 'h', 'pending', 0.0, '', '', 0, 2, '\x92a161a162'::bytea, '\x82a46e616d65a666656e636564a2c3a4c0'::bytea, NULL, NULL, NULL, false, false, NULL, 0, 1795361795986, 1795361795986, NULL, NULL, NULL, '', '', 0, 0, false);
SELECT setval(pg_get_serial_sequence('jobs', 'seq'), (SELECT max(seq) FROM jobs));
ALTER TABLE jobs ENABLE TRIGGER USER;
