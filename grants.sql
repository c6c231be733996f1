-- Least privileges for pupsourcing-orchestrator: three roles without a login.
-- Copy it, or run it with psql as the role that owns the tables, after schema.sql
-- and again after each new version of it; it is idempotent. Then hand a role to
-- those who log in. In a database called shop:
--
--     GRANT orchestrator_worker_shop TO my_workers;
--
-- Roles belong to the whole server, so their names end with the name of the database
-- (or, if that would exceed the 63 bytes of a name, with its md5): a worker of one
-- database must not get into the tables of another. Within one database, all replica
-- sets are one trust domain: a worker of one may change the rows of all. Replica sets
-- that must not share that need databases of their own.
--
-- Functions are named with their schema, for the reason that schema.sql gives.

-- This statement needs the right to CREATE ROLE. If the owner of the tables does not
-- have it, run the statement as a role that does, first.
DO $orchestrator$
DECLARE
    kind text;
    name text;
BEGIN
    FOREACH kind IN ARRAY ARRAY['worker', 'operator', 'monitor'] LOOP
        name := pg_catalog.concat(VARIADIC ARRAY['orchestrator_'::text, kind, '_'::text, pg_catalog.current_database()::text]);
        IF pg_catalog.octet_length(name) > 63 THEN
            name := pg_catalog.concat(VARIADIC ARRAY['orchestrator_'::text, kind, '_'::text, pg_catalog.md5(pg_catalog.current_database()::text)]);
        END IF;
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = name::name) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN'::text, VARIADIC ARRAY[name]);
        END IF;
    END LOOP;
END
$orchestrator$;

DO $orchestrator$
DECLARE
    events   constant text := 'events'; -- your events table, with its schema where it needs one
    home     text;   -- the schema of the library's tables
    worker   text;
    operator text;
    monitor  text;
    rule     record;
    grantee  text;
    item     text;
BEGIN
    SELECT n.nspname::text INTO home
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = pg_catalog.to_regclass('orchestrator_schema'::text)::oid;
    IF home IS NULL THEN
        RAISE EXCEPTION 'there is no table orchestrator_schema on the search path: apply schema.sql first';
    END IF;
    FOREACH item IN ARRAY ARRAY['worker', 'operator', 'monitor'] LOOP
        grantee := pg_catalog.concat(VARIADIC ARRAY['orchestrator_'::text, item, '_'::text, pg_catalog.current_database()::text]);
        IF pg_catalog.octet_length(grantee) > 63 THEN
            grantee := pg_catalog.concat(VARIADIC ARRAY['orchestrator_'::text, item, '_'::text, pg_catalog.md5(pg_catalog.current_database()::text)]);
        END IF;
        CASE item WHEN 'worker'::text THEN worker := grantee; WHEN 'operator'::text THEN operator := grantee; ELSE monitor := grantee; END CASE;
        IF NOT pg_catalog.has_schema_privilege(grantee::name, home, 'USAGE'::text) THEN
            EXECUTE pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I'::text, VARIADIC ARRAY[home, grantee]);
        END IF;
    END LOOP;

    -- A role that may CREATE in a schema of the search path can make other roles call
    -- its functions there. Before PostgreSQL 15, every role may do so in public.
    FOREACH item IN ARRAY ARRAY['public', home] LOOP
        IF EXISTS (SELECT FROM pg_catalog.pg_namespace n, pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n'::"char", n.nspowner))) a
                    WHERE n.nspname = item::name AND a.grantee = 0::oid AND a.privilege_type = 'CREATE'::text) THEN
            IF EXISTS (SELECT FROM pg_catalog.pg_namespace n WHERE n.nspname = item::name AND pg_catalog.pg_has_role(n.nspowner, 'USAGE'::text)) THEN
                EXECUTE pg_catalog.format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC'::text, VARIADIC ARRAY[item]);
            ELSE
                RAISE WARNING 'everybody may CREATE in the schema %: let its owner REVOKE CREATE ON SCHEMA % FROM PUBLIC', item, item;
            END IF;
        END IF;
    END LOOP;

    -- A worker reads events, and changes rows of the library's tables. Grant the tables
    -- that its projections write to in addition.
    EXECUTE pg_catalog.format('GRANT SELECT ON %s TO %I'::text, VARIADIC ARRAY[events::regclass::text, worker]);

    -- An operator pauses, resumes, rewinds, drains, and decides about parked events. Each
    -- order opens a generation, and may activate it, as a worker does; so operators need
    -- what a worker needs, except the events. They may read what a monitor may.
    --
    -- A monitor reads. It can't read the events, but the errors of parked events and
    -- reports may quote what your handlers put into them.
    FOR rule IN
        SELECT x.tab, x.workers, x.operators
          FROM (VALUES
               ('orchestrator_schema'::text,            'SELECT'::text,                         'SELECT'::text),
               ('orchestrator_replica_sets'::text,      'SELECT, INSERT, UPDATE'::text,         'SELECT, UPDATE'::text),
               ('orchestrator_projections'::text,       'SELECT, INSERT, UPDATE'::text,         'SELECT, UPDATE'::text),
               ('orchestrator_workers'::text,           'SELECT, INSERT, UPDATE, DELETE'::text, 'SELECT, INSERT, UPDATE, DELETE'::text),
               ('orchestrator_checkpoints'::text,       'SELECT, INSERT, UPDATE, DELETE'::text, 'SELECT, INSERT, UPDATE, DELETE'::text),
               ('orchestrator_history'::text,           'SELECT, INSERT, UPDATE, DELETE'::text, 'SELECT, INSERT, UPDATE, DELETE'::text),
               ('orchestrator_reports'::text,           'SELECT, INSERT, UPDATE, DELETE'::text, 'SELECT'::text),
               ('orchestrator_parked'::text,            'SELECT, INSERT, UPDATE, DELETE'::text, 'SELECT, UPDATE, DELETE'::text),
               ('orchestrator_park_orders'::text,       'SELECT, UPDATE'::text,                 'SELECT, INSERT, UPDATE, DELETE'::text),
               ('orchestrator_status'::text,            NULL::text,                             'SELECT'::text),
               ('orchestrator_status_workers'::text,    NULL::text,                             'SELECT'::text),
               ('orchestrator_status_partitions'::text, NULL::text,                             'SELECT'::text)
               ) AS x (tab, workers, operators)
    LOOP
        IF rule.workers IS NOT NULL THEN
            EXECUTE pg_catalog.format('GRANT %s ON %I.%I TO %I'::text, VARIADIC ARRAY[rule.workers, home, rule.tab, worker]);
        END IF;
        EXECUTE pg_catalog.format('GRANT %s ON %I.%I TO %I'::text, VARIADIC ARRAY[rule.operators, home, rule.tab, operator]);
        EXECUTE pg_catalog.format('GRANT SELECT ON %I.%I TO %I'::text, VARIADIC ARRAY[home, rule.tab, monitor]);
    END LOOP;
END
$orchestrator$;
