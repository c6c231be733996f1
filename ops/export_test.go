package ops

import (
	"context"
	"database/sql"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// StatusQueries returns the queries of Status for a set.
func StatusQueries(set string) (queries []string) {
	for _, statement := range []sqltext.Statement{statusReportsSQL, statusWorkersSQL, statusParkedSQL, statusPartitionsSQL, statusRebuildsSQL} {
		query, _ := sqltext.Names{Schema: "public", Literals: true}.Bind(statement, sqltext.Values{"set": set})
		queries = append(queries, query)
	}
	return queries
}

// HoldForTest holds a projection, as Promote does.
func HoldForTest(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, projection string) (generation int64, err error) {
	return orderOf(ctx, store.Tables{DB: db}, set, protocol.Order{Kind: protocol.OrderHold, Projection: projection})
}
