//! What is asked of a database's catalogue. Every query gives objects in the same columns; numbers
//! of objects come with the table of the catalogue that they are a row of.
//!
//! The columns: class, oid, kind, schema, part of, name, owner, comment, grants (text[]), facts
//! (text[], name and value in turn; a null value leaves the fact out).

/// Rows: kind, and the statement. `{n}` is the schemas that are not the system's.
pub(super) const OBJECTS: &[(&str, &str)] = &[
    ("extensions", "
        SELECT 'pg_extension'::text, e.oid, 'extension'::text, NULL::text, NULL::text,
            e.extname::text, pg_get_userbyid(e.extowner)::text,
            obj_description(e.oid, 'pg_extension'), NULL::text[],
            ARRAY['version', e.extversion, 'schema', n.nspname::text]
        FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace"),
    ("schemas", "
        SELECT 'pg_namespace'::text, n.oid, 'schema'::text, NULL::text, NULL::text,
            n.nspname::text, pg_get_userbyid(n.nspowner)::text,
            obj_description(n.oid, 'pg_namespace'), n.nspacl::text[], NULL::text[]
        FROM {n} n"),
    ("languages", "
        SELECT 'pg_language'::text, l.oid, 'language'::text, NULL::text, NULL::text,
            l.lanname::text, pg_get_userbyid(l.lanowner)::text,
            obj_description(l.oid, 'pg_language'), l.lanacl::text[],
            ARRAY['trusted', l.lanpltrusted::text]
        FROM pg_language l WHERE l.lanispl"),
    ("types", "
        SELECT 'pg_type'::text, t.oid, CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'type' END,
            n.nspname::text, NULL::text, t.typname::text, pg_get_userbyid(t.typowner)::text,
            obj_description(t.oid, 'pg_type'), t.typacl::text[],
            ARRAY['sort', CASE t.typtype WHEN 'e' THEN 'enum' WHEN 'd' THEN 'domain'
                    WHEN 'r' THEN 'range' WHEN 'm' THEN 'multirange' WHEN 'c' THEN 'composite'
                    ELSE 'base' END,
                'labels', (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder)
                    FROM pg_enum WHERE enumtypid = t.oid),
                'base', CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END,
                'not-null', CASE WHEN t.typtype = 'd' AND t.typnotnull THEN 'yes' END,
                'default', t.typdefault,
                'subtype', (SELECT format_type(rngsubtype, NULL) FROM pg_range
                    WHERE rngtypid = t.oid),
                'input', CASE WHEN t.typtype = 'b' THEN t.typinput::regproc::text END]
        FROM pg_type t JOIN {n} n ON n.oid = t.typnamespace
        LEFT JOIN pg_class c ON c.oid = t.typrelid
        WHERE t.typtype IN ('b', 'c', 'd', 'e', 'r')
            AND (t.typrelid = 0 OR c.relkind = 'c')
            AND NOT EXISTS (SELECT FROM pg_type e WHERE e.typarray = t.oid)"),
    ("functions", "
        SELECT 'pg_proc'::text, p.oid,
            CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END,
            n.nspname::text, NULL::text, format('%s(%s)', p.proname, oidvectortypes(p.proargtypes)),
            pg_get_userbyid(p.proowner)::text, obj_description(p.oid, 'pg_proc'),
            p.proacl::text[],
            ARRAY['language', l.lanname::text, 'returns', pg_get_function_result(p.oid),
                'arguments', pg_get_function_arguments(p.oid),
                'definition', CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END,
                'transition', a.aggtransfn::text, 'state', format_type(a.aggtranstype, NULL),
                'final', nullif(a.aggfinalfn::oid, 0)::regproc::text, 'initial', a.agginitval]
        FROM pg_proc p JOIN {n} n ON n.oid = p.pronamespace
        JOIN pg_language l ON l.oid = p.prolang LEFT JOIN pg_aggregate a ON a.aggfnoid = p.oid"),
    ("operators", "
        SELECT 'pg_operator'::text, o.oid, 'operator'::text, n.nspname::text, NULL::text,
            format('%s(%s, %s)', o.oprname, CASE WHEN o.oprleft = 0 THEN 'NONE'
                ELSE format_type(o.oprleft, NULL) END, format_type(o.oprright, NULL)),
            pg_get_userbyid(o.oprowner)::text, obj_description(o.oid, 'pg_operator'), NULL::text[],
            ARRAY['function', o.oprcode::text, 'returns', format_type(o.oprresult, NULL)]
        FROM pg_operator o JOIN {n} n ON n.oid = o.oprnamespace"),
    ("operator classes", "
        SELECT 'pg_opclass'::text, o.oid, 'operator-class'::text, n.nspname::text, NULL::text,
            format('%s using %s', o.opcname, m.amname), pg_get_userbyid(o.opcowner)::text,
            obj_description(o.oid, 'pg_opclass'), NULL::text[],
            ARRAY['type', format_type(o.opcintype, NULL), 'default', o.opcdefault::text]
        FROM pg_opclass o JOIN {n} n ON n.oid = o.opcnamespace
        JOIN pg_am m ON m.oid = o.opcmethod"),
    ("operator families", "
        SELECT 'pg_opfamily'::text, o.oid, 'operator-family'::text, n.nspname::text, NULL::text,
            format('%s using %s', o.opfname, m.amname), pg_get_userbyid(o.opfowner)::text,
            obj_description(o.oid, 'pg_opfamily'), NULL::text[], NULL::text[]
        FROM pg_opfamily o JOIN {n} n ON n.oid = o.opfnamespace
        JOIN pg_am m ON m.oid = o.opfmethod"),
    ("casts", "
        SELECT 'pg_cast'::text, c.oid, 'cast'::text, NULL::text, NULL::text,
            format('%s as %s', format_type(c.castsource, NULL), format_type(c.casttarget, NULL)),
            NULL::text, obj_description(c.oid, 'pg_cast'), NULL::text[],
            ARRAY['function', nullif(c.castfunc, 0)::regprocedure::text,
                'context', c.castcontext::text, 'method', c.castmethod::text]
        FROM pg_cast c WHERE c.oid >= 16384"),
    ("collations", "
        SELECT 'pg_collation'::text, c.oid, 'collation'::text, n.nspname::text, NULL::text,
            c.collname::text, pg_get_userbyid(c.collowner)::text,
            obj_description(c.oid, 'pg_collation'), NULL::text[],
            ARRAY['provider', c.collprovider::text, 'deterministic', c.collisdeterministic::text]
        FROM pg_collation c JOIN {n} n ON n.oid = c.collnamespace"),
    ("text search configurations", "
        SELECT 'pg_ts_config'::text, c.oid, 'text-search'::text, n.nspname::text, NULL::text,
            c.cfgname::text, pg_get_userbyid(c.cfgowner)::text,
            obj_description(c.oid, 'pg_ts_config'), NULL::text[], NULL::text[]
        FROM pg_ts_config c JOIN {n} n ON n.oid = c.cfgnamespace"),
    ("foreign data wrappers", "
        SELECT 'pg_foreign_data_wrapper'::text, f.oid, 'foreign-data-wrapper'::text, NULL::text,
            NULL::text, f.fdwname::text, pg_get_userbyid(f.fdwowner)::text,
            obj_description(f.oid, 'pg_foreign_data_wrapper'), f.fdwacl::text[], NULL::text[]
        FROM pg_foreign_data_wrapper f"),
    // Options of a server or of a user may be secrets: they are in the dump alone.
    ("foreign servers", "
        SELECT 'pg_foreign_server'::text, s.oid, 'foreign-server'::text, NULL::text, NULL::text,
            s.srvname::text, pg_get_userbyid(s.srvowner)::text,
            obj_description(s.oid, 'pg_foreign_server'), s.srvacl::text[],
            ARRAY['wrapper', f.fdwname::text, 'type', s.srvtype, 'version', s.srvversion]
        FROM pg_foreign_server s JOIN pg_foreign_data_wrapper f ON f.oid = s.srvfdw"),
    ("relations", "
        SELECT 'pg_class'::text, c.oid,
            CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned-table'
                WHEN 'f' THEN 'foreign-table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized-view'
                ELSE 'sequence' END,
            n.nspname::text, NULL::text, c.relname::text, pg_get_userbyid(c.relowner)::text,
            obj_description(c.oid, 'pg_class'), c.relacl::text[],
            ARRAY['persistence', CASE c.relpersistence WHEN 'u' THEN 'unlogged' END,
                'options', array_to_string(c.reloptions, ', '),
                'partition-key', CASE WHEN c.relkind = 'p' THEN pg_get_partkeydef(c.oid) END,
                'partition-bound', pg_get_expr(c.relpartbound, c.oid),
                'inherits', (SELECT string_agg(i.inhparent::regclass::text, ', ' ORDER BY inhseqno)
                    FROM pg_inherits i WHERE i.inhrelid = c.oid),
                'definition', CASE WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
                'row-security', CASE WHEN c.relforcerowsecurity THEN 'forced'
                    WHEN c.relrowsecurity THEN 'enabled' END,
                'replica-identity', CASE c.relreplident WHEN 'f' THEN 'full' WHEN 'n' THEN 'nothing'
                    WHEN 'i' THEN 'index' END,
                'access-method', CASE WHEN a.amname <> 'heap' THEN a.amname::text END,
                'tablespace', t.spcname::text,
                'type', format_type(s.seqtypid, NULL), 'start', s.seqstart::text,
                'increment', s.seqincrement::text, 'minimum', s.seqmin::text,
                'maximum', s.seqmax::text, 'cache', s.seqcache::text,
                'cycle', CASE WHEN s.seqcycle THEN 'yes' END,
                'owned-by', CASE WHEN c.relkind = 'S' THEN (
                    SELECT format('%s.%s', d.refobjid::regclass, o.attname) FROM pg_depend d
                    JOIN pg_attribute o ON o.attrelid = d.refobjid AND o.attnum = d.refobjsubid
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                        AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
                    LIMIT 1) END]
        FROM pg_class c JOIN {n} n ON n.oid = c.relnamespace
        LEFT JOIN pg_am a ON a.oid = c.relam LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
        LEFT JOIN pg_sequence s ON s.seqrelid = c.oid
        WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND c.relpersistence <> 't'"),
    ("indexes", "
        SELECT 'pg_class'::text, c.oid, 'index'::text, n.nspname::text, t.relname::text,
            c.relname::text, NULL::text, obj_description(c.oid, 'pg_class'), NULL::text[],
            ARRAY['definition', pg_get_indexdef(c.oid),
                'primary', CASE WHEN i.indisprimary THEN 'yes' END,
                'unique', CASE WHEN i.indisunique THEN 'yes' END,
                'valid', CASE WHEN NOT i.indisvalid THEN 'no' END,
                'clustered', CASE WHEN i.indisclustered THEN 'yes' END,
                'tablespace', s.spcname::text]
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_class t ON t.oid = i.indrelid JOIN {n} n ON n.oid = t.relnamespace
        LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
        WHERE t.relkind IN ('r', 'p', 'm') AND t.relpersistence <> 't'"),
    // From 18 on, each NOT NULL is a constraint as well: the column says it.
    ("constraints", "
        SELECT 'pg_constraint'::text, k.oid, 'constraint'::text, n.nspname::text,
            coalesce(t.relname, d.typname)::text, k.conname::text, NULL::text,
            obj_description(k.oid, 'pg_constraint'), NULL::text[],
            ARRAY['sort', CASE k.contype WHEN 'p' THEN 'primary key' WHEN 'u' THEN 'unique'
                    WHEN 'f' THEN 'foreign key' WHEN 'c' THEN 'check' ELSE 'exclusion' END,
                'definition', pg_get_constraintdef(k.oid),
                'valid', CASE WHEN NOT k.convalidated THEN 'no' END,
                'references', CASE WHEN k.contype = 'f' THEN k.confrelid::regclass::text END]
        FROM pg_constraint k JOIN {n} n ON n.oid = k.connamespace
        LEFT JOIN pg_class t ON t.oid = k.conrelid LEFT JOIN pg_type d ON d.oid = k.contypid
        WHERE k.contype IN ('p', 'u', 'f', 'c', 'x') AND coalesce(t.relpersistence, 'p') <> 't'"),
    ("triggers", "
        SELECT 'pg_trigger'::text, g.oid, 'trigger'::text, n.nspname::text, t.relname::text,
            g.tgname::text, NULL::text, obj_description(g.oid, 'pg_trigger'), NULL::text[],
            ARRAY['definition', pg_get_triggerdef(g.oid), 'function', g.tgfoid::regproc::text,
                'enabled', CASE g.tgenabled WHEN 'D' THEN 'no' WHEN 'R' THEN 'replica'
                    WHEN 'A' THEN 'always' END]
        FROM pg_trigger g JOIN pg_class t ON t.oid = g.tgrelid
        JOIN {n} n ON n.oid = t.relnamespace WHERE NOT g.tgisinternal"),
    ("rules", "
        SELECT 'pg_rewrite'::text, r.oid, 'rule'::text, n.nspname::text, t.relname::text,
            r.rulename::text, NULL::text, obj_description(r.oid, 'pg_rewrite'), NULL::text[],
            ARRAY['definition', pg_get_ruledef(r.oid)]
        FROM pg_rewrite r JOIN pg_class t ON t.oid = r.ev_class
        JOIN {n} n ON n.oid = t.relnamespace WHERE r.rulename <> '_RETURN'"),
    ("policies", "
        SELECT 'pg_policy'::text, p.oid, 'policy'::text, n.nspname::text, t.relname::text,
            p.polname::text, NULL::text, obj_description(p.oid, 'pg_policy'), NULL::text[],
            ARRAY['command', p.polcmd::text,
                'permissive', CASE WHEN NOT p.polpermissive THEN 'no' END,
                'roles', (SELECT string_agg(CASE WHEN r = 0 THEN 'public'
                    ELSE pg_get_userbyid(r)::text END, ', ' ORDER BY r) FROM unnest(p.polroles) r),
                'using', pg_get_expr(p.polqual, p.polrelid),
                'check', pg_get_expr(p.polwithcheck, p.polrelid)]
        FROM pg_policy p JOIN pg_class t ON t.oid = p.polrelid
        JOIN {n} n ON n.oid = t.relnamespace"),
    ("statistics objects", "
        SELECT 'pg_statistic_ext'::text, s.oid, 'statistics'::text, n.nspname::text,
            t.relname::text, s.stxname::text, pg_get_userbyid(s.stxowner)::text,
            obj_description(s.oid, 'pg_statistic_ext'), NULL::text[],
            ARRAY['definition', pg_get_statisticsobjdef(s.oid)]
        FROM pg_statistic_ext s JOIN {n} n ON n.oid = s.stxnamespace
        JOIN pg_class t ON t.oid = s.stxrelid"),
    ("event triggers", "
        SELECT 'pg_event_trigger'::text, e.oid, 'event-trigger'::text, NULL::text, NULL::text,
            e.evtname::text, pg_get_userbyid(e.evtowner)::text,
            obj_description(e.oid, 'pg_event_trigger'), NULL::text[],
            ARRAY['event', e.evtevent::text, 'function', e.evtfoid::regproc::text,
                'tags', array_to_string(e.evttags, ', '),
                'enabled', CASE e.evtenabled WHEN 'D' THEN 'no' END]
        FROM pg_event_trigger e"),
    ("publications", "
        SELECT 'pg_publication'::text, p.oid, 'publication'::text, NULL::text, NULL::text,
            p.pubname::text, pg_get_userbyid(p.pubowner)::text,
            obj_description(p.oid, 'pg_publication'), NULL::text[],
            ARRAY['publishes', concat_ws(', ', CASE WHEN pubinsert THEN 'insert' END,
                    CASE WHEN pubupdate THEN 'update' END, CASE WHEN pubdelete THEN 'delete' END,
                    CASE WHEN pubtruncate THEN 'truncate' END),
                'tables', CASE WHEN p.puballtables THEN 'all' ELSE (
                    SELECT string_agg(r.prrelid::regclass::text, ', ' ORDER BY r.prrelid::regclass::text)
                    FROM pg_publication_rel r WHERE r.prpubid = p.oid) END]
        FROM pg_publication p"),
    // How a subscription connects may hold a password, and is not asked for.
    ("subscriptions", "
        SELECT 'pg_subscription'::text, s.oid, 'subscription'::text, NULL::text, NULL::text,
            s.subname::text, pg_get_userbyid(s.subowner)::text,
            obj_description(s.oid, 'pg_subscription'), NULL::text[],
            ARRAY['publications', array_to_string(s.subpublications, ', '),
                'enabled', s.subenabled::text, 'slot', s.subslotname::text]
        FROM pg_subscription s WHERE s.subdbid = (
            SELECT oid FROM pg_database WHERE datname = current_database())"),
    ("default privileges", "
        SELECT 'pg_default_acl'::text, a.oid, 'default-privileges'::text, n.nspname::text,
            NULL::text, format('%s for %s', CASE a.defaclobjtype WHEN 'r' THEN 'tables'
                WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'functions' WHEN 'T' THEN 'types'
                WHEN 'n' THEN 'schemas' ELSE 'large objects' END, pg_get_userbyid(a.defaclrole)),
            NULL::text, NULL::text, a.defaclacl::text[], NULL::text[]
        FROM pg_default_acl a LEFT JOIN pg_namespace n ON n.oid = a.defaclnamespace"),
];

/// The schemas that are not the system's.
pub(super) const SCHEMAS: &str = "(SELECT * FROM pg_namespace \
     WHERE nspname <> 'information_schema' AND nspname !~ '^pg_(catalog|toast|temp_|toast_temp_)')";

/// Relation or type, name, type, whether it may be null, default, identity, generated, collation,
/// comment, grants; in order.
pub(super) const COLUMNS: &str = "
    SELECT c.oid, nullif(c.reltype, 0), c.relkind = 'c', a.attname::text,
        format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
        pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, a.attgenerated::text,
        CASE WHEN a.attcollation <> t.typcollation THEN (SELECT format('%I.%I', m.nspname, l.collname)
            FROM pg_collation l JOIN pg_namespace m ON m.oid = l.collnamespace
            WHERE l.oid = a.attcollation) END,
        col_description(c.oid, a.attnum), a.attacl::text[]
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    JOIN {n} n ON n.oid = c.relnamespace JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'c')
    ORDER BY c.oid, a.attnum";

/// Relation, estimate of rows, bytes, bytes of indexes, and what happened to it.
pub(super) const SIZES: &str = "
    SELECT c.oid, c.reltuples::float8, coalesce(CASE WHEN c.relkind = 'i'
            THEN pg_relation_size(c.oid) ELSE pg_table_size(c.oid) END, 0),
        coalesce(CASE WHEN c.relkind <> 'i' THEN pg_indexes_size(c.oid) END, 0),
        s.n_tup_ins, s.n_tup_upd, s.n_tup_del, s.n_live_tup, s.n_dead_tup, s.seq_scan,
        coalesce(s.idx_scan, 0), greatest(s.last_vacuum, s.last_autovacuum)::text,
        greatest(s.last_analyze, s.last_autoanalyze)::text
    FROM pg_class c JOIN {n} n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
    WHERE c.relkind IN ('r', 'm', 'i') AND c.relpersistence <> 't'";

/// What stands for another object: class and number of the one, class and number of the other. The
/// rule of a view is the view, the row type of a table is the table, what belongs to an extension is
/// the extension.
pub(super) const ALIASES: &str = "
    SELECT 'pg_rewrite'::text, oid, 'pg_class'::text, ev_class FROM pg_rewrite
        WHERE rulename = '_RETURN' AND ev_class >= 16384
    UNION ALL SELECT 'pg_attrdef', oid, 'pg_class', adrelid FROM pg_attrdef WHERE adrelid >= 16384
    UNION ALL SELECT 'pg_type', t.oid, 'pg_class', t.typrelid FROM pg_type t
        JOIN pg_class c ON c.oid = t.typrelid WHERE c.relkind <> 'c' AND c.oid >= 16384
    UNION ALL SELECT 'pg_class', t.typrelid, 'pg_type', t.oid FROM pg_type t
        JOIN pg_class c ON c.oid = t.typrelid WHERE c.relkind = 'c' AND c.oid >= 16384
    UNION ALL SELECT 'pg_type', a.oid, 'pg_type', t.oid FROM pg_type t
        JOIN pg_type a ON a.oid = t.typarray WHERE t.oid >= 16384
    UNION ALL SELECT classid::regclass::text, objid, 'pg_extension', refobjid FROM pg_depend
        WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass";

/// Who needs whom, and how.
pub(super) const DEPENDENCIES: &str = "
    SELECT DISTINCT classid::regclass::text, objid, refclassid::regclass::text, refobjid,
        deptype::text
    FROM pg_depend WHERE deptype NOT IN ('e', 'p') AND (objid >= 16384 OR refobjid >= 16384)";
