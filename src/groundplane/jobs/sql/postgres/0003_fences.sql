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
