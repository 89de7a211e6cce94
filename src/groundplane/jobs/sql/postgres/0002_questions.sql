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
