-- What a program of version 2 sends: see worker_v1.sql. It also writes reports,
-- parks an event, and takes it back.

-- # join
BEGIN;
SELECT generation, phase, total, reason, max_partitions, join_window_us, paused, rewinds
  FROM orchestrator_replica_sets
 WHERE name = 'set'
   AND (SELECT set_config('idle_in_transaction_session_timeout', '5000ms', true) || set_config('lock_timeout', '1000ms', true)) <> ''
   FOR UPDATE;
INSERT INTO orchestrator_replica_sets (name) VALUES ('set') ON CONFLICT DO NOTHING;
SELECT id, joined_at, lease_us, lease_until, wants, drained, partitions, holds, presence_key, presence_number
  FROM orchestrator_workers WHERE replica_set = 'set' ORDER BY seq FOR UPDATE;
SELECT clock_timestamp(), coalesce(max(abs(generation)), 0) FROM orchestrator_checkpoints WHERE replica_set = 'set';
INSERT INTO orchestrator_projections (name, replica_set)
SELECT name, 'set' FROM jsonb_array_elements_text('["transactional"]'::jsonb) WITH ORDINALITY AS x (name, i) ORDER BY i
    ON CONFLICT DO NOTHING;
SELECT name, replica_set FROM orchestrator_projections
 WHERE name IN (SELECT jsonb_array_elements_text('["transactional"]'::jsonb)) ORDER BY name FOR UPDATE;
WITH set AS (
    UPDATE orchestrator_replica_sets
       SET generation = 1, phase = 'active', total = 1, reason = 'first worker', max_partitions = 0,
           join_window_us = 500000, step_at = NULL::timestamptz, paused = '[]'::jsonb, rewinds = '{}'::jsonb,
           opened_at = CASE WHEN true THEN '2026-11-29T04:23:07Z'::timestamptz ELSE opened_at END,
           activated_at = CASE WHEN true THEN '2026-11-29T04:23:07Z'::timestamptz WHEN true THEN NULL ELSE activated_at END
     WHERE name = 'set'
       AND (generation, phase, total, reason, max_partitions, join_window_us, step_at, paused, rewinds)
           IS DISTINCT FROM (1, 'active', 1, 'first worker', 0, 500000, NULL::timestamptz, '[]'::jsonb, '{}'::jsonb)),
opened AS (
    INSERT INTO orchestrator_history (replica_set, generation, reason, total, members, opened_at, activated_at, waited_for)
    SELECT 'set', 1, 'first worker', 1, '{"old": [0]}'::jsonb, '2026-11-29T04:23:07Z'::timestamptz, CASE WHEN true THEN '2026-11-29T04:23:07Z'::timestamptz END, '[]'::jsonb
     WHERE true),
activated AS (
    UPDATE orchestrator_history SET activated_at = '2026-11-29T04:23:07Z'::timestamptz
     WHERE replica_set = 'set' AND generation = 1 AND true AND NOT true
 RETURNING opened_at, waited_for),
pruned AS (
    DELETE FROM orchestrator_history
     WHERE replica_set = 'set' AND generation <= 1 - 1000 AND true),
removed AS (
    DELETE FROM orchestrator_workers
     WHERE replica_set = 'set' AND id IN (SELECT jsonb_array_elements_text('[]'::jsonb))),
unreported AS (
    DELETE FROM orchestrator_reports
     WHERE replica_set = 'set' AND worker IN (SELECT jsonb_array_elements_text('[]'::jsonb))),
updated AS (
    UPDATE orchestrator_workers w
       SET lease_us = x.lease_us, lease_until = x.lease_until, partitions = x.partitions, holds = x.holds,
           presence_key = x.presence_key, presence_number = x.presence_number, drained = x.drained,
           generation = 1, total = 1, paused = '[]'::jsonb
      FROM jsonb_to_recordset('[]'::jsonb) AS x (id text, lease_us bigint, lease_until timestamptz, drained boolean, partitions jsonb,
                                                 holds bigint, presence_key integer, presence_number integer)
     WHERE w.replica_set = 'set' AND w.id = x.id
       AND (w.lease_us, w.lease_until, w.drained, w.partitions, w.holds, w.presence_key, w.presence_number, w.generation, w.total, w.paused)
           IS DISTINCT FROM (x.lease_us, x.lease_until, x.drained, x.partitions, x.holds, x.presence_key, x.presence_number, 1, 1, '[]'::jsonb)),
added AS (
    INSERT INTO orchestrator_workers
           (replica_set, id, joined_at, lease_us, lease_until, wants, drained, partitions, holds, presence_key, presence_number,
            generation, total, paused, projections)
    SELECT 'set', x.id, x.joined_at, x.lease_us, x.lease_until, x.wants, x.drained, x.partitions, x.holds, x.presence_key, x.presence_number,
           1, 1, '[]'::jsonb, '["transactional"]'::jsonb
      FROM jsonb_to_recordset('[{"id":"old","joined_at":"2026-11-29T04:23:07Z","lease_us":30000000,"lease_until":"2026-11-29T04:23:37Z","wants":1,"drained":false,"partitions":[0],"holds":1,"presence_key":0,"presence_number":0}]'::jsonb)
           AS x (id text, joined_at timestamptz, lease_us bigint, lease_until timestamptz, wants integer, drained boolean, partitions jsonb,
                 holds bigint, presence_key integer, presence_number integer))
SELECT a.opened_at, a.waited_for,
       CASE WHEN (true OR true) AND pg_notification_queue_usage() < 0.5 THEN pg_notify('pupsourcing_orchestrator', 'set') END
  FROM (SELECT) one LEFT JOIN activated a ON true;
SELECT name FROM orchestrator_projections WHERE replica_set = 'set' ORDER BY name FOR SHARE;
SELECT projection, partition, total, position, ahead
  FROM orchestrator_checkpoints WHERE replica_set = 'set' ORDER BY projection, partition FOR UPDATE;
WITH dropped AS (DELETE FROM orchestrator_checkpoints WHERE replica_set = 'set' AND partition >= 1)
INSERT INTO orchestrator_checkpoints
       (replica_set, generation, total, projection, partition, position, ahead, updated_at)
SELECT 'set', 1, 1, x.projection, x.partition, x.position, x.ahead, clock_timestamp()
  FROM jsonb_to_recordset('[{"projection":"transactional","partition":0,"position":0,"ahead":null}]'::jsonb) AS x (projection text, partition integer, position bigint, ahead jsonb)
    ON CONFLICT (projection, partition) DO UPDATE
   SET generation = excluded.generation, total = excluded.total, position = excluded.position, ahead = excluded.ahead;
COMMIT;

-- # beat
WITH beat AS (
    UPDATE orchestrator_workers
       SET lease_us = 30000000, lease_until = clock_timestamp() + 30000000 * interval '1 microsecond',
           presence_key = CASE WHEN presence_number < 1 THEN 7 ELSE presence_key END,
           presence_number = greatest(presence_number, 1), -- as in protocol.Apply
           holds = CASE WHEN holds <= 0 THEN 0 ELSE holds END
     WHERE replica_set = 'set' AND id = 'old'
 RETURNING generation, total, partitions, paused, holds),
report AS (
    INSERT INTO orchestrator_reports (replica_set, worker, reported_at, report)
    SELECT 'set', 'old', clock_timestamp(), '{"state":"running","generation":1,"head":100,"lanes":[{"projection":"transactional","partition":0,"total_partitions":1,"position":40,"behind":60,"behind_seconds":0,"state":"handling","since":"2026-11-29T04:23:37Z","parked":0}]}'::jsonb FROM beat
        ON CONFLICT (replica_set, worker) DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report)

SELECT clock_timestamp(),
       coalesce(s.phase = 'draining' AND coalesce(b.holds, 0) = 0 AND NOT coalesce(o.held, false), false),
       s.step_at, o.lease_until, b.generation, b.total, b.partitions, b.paused, b.holds
  FROM (SELECT min(CASE WHEN lease_until > clock_timestamp() + lease_us * interval '1 microsecond'
                        THEN clock_timestamp() ELSE lease_until END) AS lease_until, -- as in protocol.Group.View
               bool_or(holds <> 0) AS held
          FROM orchestrator_workers WHERE replica_set = 'set' AND id <> 'old') o
  LEFT JOIN orchestrator_replica_sets s ON s.name = 'set'
  LEFT JOIN beat b ON true;

-- # commit to 40
BEGIN;
INSERT INTO effects (projection, position, aggregate, generation, partition, total)
SELECT 'transactional', global_position, aggregate_id, 1, 0, 1 FROM events WHERE global_position BETWEEN 1 AND 40 ORDER BY global_position;
WITH bound AS MATERIALIZED (SELECT set_config('idle_in_transaction_session_timeout', '5000ms', true))
UPDATE orchestrator_checkpoints
   SET position = 40, ahead = NULL, updated_at = clock_timestamp()
  FROM bound
 WHERE replica_set = 'set' AND projection = 'transactional' AND partition = 0 AND generation = 1 AND position = 0;
COMMIT;

-- # commit to 60
BEGIN;
INSERT INTO effects (projection, position, aggregate, generation, partition, total)
SELECT 'transactional', global_position, aggregate_id, 1, 0, 1 FROM events WHERE global_position BETWEEN 41 AND 60 ORDER BY global_position;
WITH bound AS MATERIALIZED (SELECT set_config('idle_in_transaction_session_timeout', '5000ms', true))
UPDATE orchestrator_checkpoints
   SET position = 60, ahead = NULL, updated_at = clock_timestamp()
  FROM bound
 WHERE replica_set = 'set' AND projection = 'transactional' AND partition = 0 AND generation = 1 AND position = 40;
COMMIT;

-- # park 61
WITH moved AS (
    UPDATE orchestrator_checkpoints SET position = 61, ahead = NULL, updated_at = clock_timestamp()
     WHERE replica_set = 'set' AND projection = 'transactional' AND partition = 0 AND generation = 1 AND position = 60
 RETURNING projection),
added AS (
    INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at)
    SELECT moved.projection, x.position, x.slot, x.aggregate_id, x.error, x.attempts, clock_timestamp()
      FROM moved, jsonb_to_recordset('[{"position":61,"slot":0,"aggregate_id":"a","error":"no","attempts":5}]'::jsonb) AS x (position bigint, slot integer, aggregate_id text, error text, attempts integer)
        ON CONFLICT DO NOTHING)
SELECT count(*) FROM moved;

-- # note 61
WITH fence AS MATERIALIZED (
    SELECT projection FROM orchestrator_checkpoints
     WHERE replica_set = 'set' AND projection = 'transactional' AND partition = 0 AND generation = 1 FOR UPDATE),
noted AS (
    UPDATE orchestrator_parked p SET attempts = 6, error = 'no again', request = nullif(request, 'retry')
      FROM fence WHERE p.projection = fence.projection AND p.position = 61 AND p.attempts = 6 - 1)
SELECT count(*) FROM fence;

-- # handle 61
INSERT INTO effects (projection, position, aggregate, generation, partition, total)
SELECT 'transactional', global_position, aggregate_id, 1, 0, 1 FROM events WHERE global_position = 61;
WITH fence AS MATERIALIZED (
    SELECT projection FROM orchestrator_checkpoints
     WHERE replica_set = 'set' AND projection = 'transactional' AND partition = 0 AND generation = 1 FOR UPDATE),
gone AS (
    DELETE FROM orchestrator_parked p USING fence WHERE p.projection = fence.projection AND p.position = 61)
SELECT count(*) FROM fence;

-- # leave
BEGIN;
SELECT generation, phase, total, reason, max_partitions, join_window_us, paused, rewinds
  FROM orchestrator_replica_sets
 WHERE name = 'set'
   AND (SELECT set_config('idle_in_transaction_session_timeout', '5000ms', true) || set_config('lock_timeout', '1000ms', true)) <> ''
   FOR UPDATE;
SELECT id, joined_at, lease_us, lease_until, wants, drained, partitions, holds, presence_key, presence_number
  FROM orchestrator_workers WHERE replica_set = 'set' ORDER BY seq FOR UPDATE;
SELECT clock_timestamp(), coalesce(max(abs(generation)), 0) FROM orchestrator_checkpoints WHERE replica_set = 'set';
WITH set AS (
    UPDATE orchestrator_replica_sets
       SET generation = 2, phase = 'active', total = 0, reason = 'left: old', max_partitions = 0,
           join_window_us = 500000, step_at = NULL::timestamptz, paused = '[]'::jsonb, rewinds = '{}'::jsonb,
           opened_at = CASE WHEN true THEN '2026-11-29T04:23:07Z'::timestamptz ELSE opened_at END,
           activated_at = CASE WHEN true THEN '2026-11-29T04:23:07Z'::timestamptz WHEN true THEN NULL ELSE activated_at END
     WHERE name = 'set'
       AND (generation, phase, total, reason, max_partitions, join_window_us, step_at, paused, rewinds)
           IS DISTINCT FROM (2, 'active', 0, 'left: old', 0, 500000, NULL::timestamptz, '[]'::jsonb, '{}'::jsonb)),
opened AS (
    INSERT INTO orchestrator_history (replica_set, generation, reason, total, members, opened_at, activated_at, waited_for)
    SELECT 'set', 2, 'left: old', 0, '{}'::jsonb, '2026-11-29T04:23:07Z'::timestamptz, CASE WHEN true THEN '2026-11-29T04:23:07Z'::timestamptz END, '[]'::jsonb
     WHERE true),
activated AS (
    UPDATE orchestrator_history SET activated_at = '2026-11-29T04:23:07Z'::timestamptz
     WHERE replica_set = 'set' AND generation = 2 AND true AND NOT true
 RETURNING opened_at, waited_for),
pruned AS (
    DELETE FROM orchestrator_history
     WHERE replica_set = 'set' AND generation <= 2 - 1000 AND true),
removed AS (
    DELETE FROM orchestrator_workers
     WHERE replica_set = 'set' AND id IN (SELECT jsonb_array_elements_text('["old"]'::jsonb))),
unreported AS (
    DELETE FROM orchestrator_reports
     WHERE replica_set = 'set' AND worker IN (SELECT jsonb_array_elements_text('["old"]'::jsonb))),
updated AS (
    UPDATE orchestrator_workers w
       SET lease_us = x.lease_us, lease_until = x.lease_until, partitions = x.partitions, holds = x.holds,
           presence_key = x.presence_key, presence_number = x.presence_number, drained = x.drained,
           generation = 2, total = 0, paused = '[]'::jsonb
      FROM jsonb_to_recordset('[]'::jsonb) AS x (id text, lease_us bigint, lease_until timestamptz, drained boolean, partitions jsonb,
                                                 holds bigint, presence_key integer, presence_number integer)
     WHERE w.replica_set = 'set' AND w.id = x.id
       AND (w.lease_us, w.lease_until, w.drained, w.partitions, w.holds, w.presence_key, w.presence_number, w.generation, w.total, w.paused)
           IS DISTINCT FROM (x.lease_us, x.lease_until, x.drained, x.partitions, x.holds, x.presence_key, x.presence_number, 2, 0, '[]'::jsonb)),
added AS (
    INSERT INTO orchestrator_workers
           (replica_set, id, joined_at, lease_us, lease_until, wants, drained, partitions, holds, presence_key, presence_number,
            generation, total, paused, projections)
    SELECT 'set', x.id, x.joined_at, x.lease_us, x.lease_until, x.wants, x.drained, x.partitions, x.holds, x.presence_key, x.presence_number,
           2, 0, '[]'::jsonb, '[]'::jsonb
      FROM jsonb_to_recordset('[]'::jsonb)
           AS x (id text, joined_at timestamptz, lease_us bigint, lease_until timestamptz, wants integer, drained boolean, partitions jsonb,
                 holds bigint, presence_key integer, presence_number integer))
SELECT a.opened_at, a.waited_for,
       CASE WHEN (true OR true) AND pg_notification_queue_usage() < 0.5 THEN pg_notify('pupsourcing_orchestrator', 'set') END
  FROM (SELECT) one LEFT JOIN activated a ON true;
COMMIT;
