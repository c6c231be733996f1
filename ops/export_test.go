package ops

import "github.com/getpup/pupsourcing-orchestrator/internal/sqltext"

// StatusQueries are what Status asks of the server, for a set.
func StatusQueries(set string) (queries []string) {
	for _, statement := range []sqltext.Statement{statusReportsSQL, statusWorkersSQL, statusParkedSQL, statusPartitionsSQL} {
		query, _ := sqltext.Names{Schema: "public", Literals: true}.Bind(statement, sqltext.Values{"set": set})
		queries = append(queries, query)
	}
	return queries
}
