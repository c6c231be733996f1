package layouttest

import (
	"strings"

	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// columnLayouts are pupsourcing's table with an aggregate id that is not a text. A driver's
// value of such a column and PostgreSQL's text of it may differ.
var columnLayouts = []layout{
	column("char(36)", `'a{i}'`, ``),
	column("varchar(40)", `'{stream}'`, ``),
	column("uuid", `'{stream}'`, ``),
	column("bytea", `decode(md5('{i}'), 'hex')`, ``),
	column("bigint", `{i}`, ``),
	column("numeric", `{i}.50`, ``),
	column("text[]", `'{shop,a{i}}'`, ``),
	column("an enum", `('a' || {i} % 3)::thing`, `CREATE TYPE thing AS ENUM ('a0', 'a1', 'a2')`, "thing"),
	column("a domain", `'a{i}'`, `CREATE DOMAIN name_of_order AS char(20)`, "name_of_order"),
	column("citext", `CASE WHEN {version} % 2 = 0 THEN 'order-{i}' ELSE 'order-{i}' END`, `CREATE EXTENSION citext`, "citext"),
}

// column returns the layout with an aggregate id of a type. name is the type's name in SQL if it
// is not given, and value is an example.
func column(name, value, before string, types ...string) layout {
	kind := append(types, name)[0]
	l := pupsourcingLayouts[0]
	l.name = "aggregate id: " + name
	l.ddl = before + ";" + strings.Replace(eventtable.Layout, "aggregate_id      text ", "aggregate_id "+kind, 1)
	l.insert = strings.Replace(l.insert, "'{stream}'", value, 1)
	if name == "an enum" { // three values: the version can't distinguish the events of one
		l.ddl = strings.Replace(l.ddl, ", aggregate_version)", ", aggregate_version, event_id)", 1)
	}
	l.events = `SELECT global_position AS position, aggregate_id::text AS aggregate FROM events`
	return l
}
