package sqltext

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
)

// LibPQ reports whether a database is reached by lib/pq, which sends a statement
// without arguments in one round trip. The driver is known by its type's name, so that
// this module does not link it.
func LibPQ(db *sql.DB) bool {
	t := reflect.TypeOf(db.Driver())
	return t != nil && t.Kind() == reflect.Pointer && t.Elem().PkgPath() == "github.com/lib/pq" && t.Elem().Name() == "Driver"
}

// findSQL lists the schemas that have a relation of a name, and the search path
// twice: as it is, and as the session began (reset_val). What was set since, by
// a handler perhaps, does not change the latter; ALTER ROLE, ALTER DATABASE and
// the connection string are in it.
var findSQL = New(`
SELECT current_setting('search_path'), (SELECT reset_val FROM pg_settings WHERE name = 'search_path'),
       current_user::text, session_user::text,
       coalesce((
           SELECT jsonb_agg(n.nspname::text) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relname = {table}::name AND c.relkind = ANY ('{r,p,v,m,f,S}') AND c.relpersistence <> 't'
              AND (has_schema_privilege(session_user, n.oid, 'USAGE') OR has_schema_privilege(n.oid, 'USAGE'))), '[]'),
       EXISTS (SELECT FROM pg_class WHERE relname = {table}::name AND relnamespace = pg_my_temp_schema())`)

// An AmbiguousError is returned if there are two tables of a name, and the search path was
// changed from one to the other.
type AmbiguousError struct{ Table, Began, Now string }

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("table %q is in schema %q by the search path with which the connection began, and in %q by its present one: "+
		"the program has run SET search_path on a connection of the pool; use SET LOCAL, or put search_path into the connection string", e.Table, e.Began, e.Now)
}

// Find returns the schema that has a table, by the search path; "" if there is none. It
// is never pg_temp: a table there is one session's, and hides all others. temporary is
// whether there is such a table.
//
// A session's path may have been changed by an earlier user of the connection,
// so the path with which the session began counts. If that does not lead to a table,
// the present one counts: some programs set it on each connection that they
// open. If both lead to a table, and not to the same one, it is not known
// which was meant, and the error is an *AmbiguousError.
func Find(ctx context.Context, db dbconn.Querier, table string) (schema string, temporary bool, err error) {
	query, args := Names{Literals: true}.Bind(findSQL, Values{"table": table})
	var now, began, user, login, list string
	var schemas []string
	err = dbconn.ScanOn(ctx, db, query, args, &now, &began, &user, &login, &list, &temporary)
	if err == nil {
		err = json.Unmarshal([]byte(list), &schemas)
	}
	if err != nil {
		return "", false, fmt.Errorf("look for table %s: %w", table, err)
	}
	at := func(path, user string) string {
		for _, s := range searchPath(path, user) {
			if slices.Contains(schemas, s) {
				return s
			}
		}
		return ""
	}
	first, current := at(began, login), at(now, user)
	switch {
	case first == "":
		return current, temporary, nil
	case current != "" && current != first:
		return "", temporary, &AmbiguousError{table, first, current}
	}
	return first, temporary, nil
}

// searchPath returns the schemas that a search_path names.
func searchPath(path, user string) (schemas []string) {
	for len(path) > 0 {
		var name strings.Builder
		quoted, inside := false, false
		i := 0
		for ; i < len(path) && (inside || path[i] != ','); i++ {
			switch c := path[i]; {
			case c == '"' && inside && i+1 < len(path) && path[i+1] == '"':
				name.WriteByte('"')
				i++
			case c == '"':
				quoted, inside = true, !inside
			case inside:
				name.WriteByte(c)
			case c >= 'A' && c <= 'Z':
				name.WriteByte(c - 'A' + 'a')
			case !strings.ContainsRune(" \t\n\r\f\v", rune(c)):
				name.WriteByte(c)
			}
		}
		path = path[min(i+1, len(path)):]
		switch s := name.String(); {
		case s == "$user":
			schemas = append(schemas, user)
		case s != "" || quoted:
			schemas = append(schemas, s)
		}
	}
	return schemas
}

// Plain returns a name without its quotes, as the server reads it; ok is false if it
// is not one name: it has a schema, or there is none.
func Plain(name string) (plain string, ok bool) {
	inside := false
	for _, c := range name {
		switch {
		case c == '"':
			inside = !inside
		case c == '.' && !inside:
			return "", false
		}
	}
	names := searchPath(name, "$user")
	if len(names) != 1 {
		return "", false
	}
	return names[0], true
}
