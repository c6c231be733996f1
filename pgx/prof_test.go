package orchestratorpgx_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	orchestratorpgx "github.com/getpup/pupsourcing-orchestrator/pgx"
)

const fill = `
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, correlation_id, metadata)
SELECT 'bench', 'thing', 'a' || i % 1000, i / 1000 + 1,
       gen_random_uuid(), 'happened', decode(repeat(md5(i::text), 64), 'hex'), md5(i::text), '{"user": "u1"}'
  FROM generate_series(0, $1::bigint - 1) AS i`

func BenchmarkRead(b *testing.B) {
	db, url := pgtest.Database(b)
	db.Exec(eventtable.Layout)
	db.Exec(fill, 50000)
	pool, err := pgxpool.New(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	events, _ := orchestratorpgx.NewEventTable(pool, "")
	events.Read(b.Context(), orchestrator.ReadRequest{Limit: 100})
	b.ReportAllocs()
	b.ResetTimer()
	after := int64(0)
	n := 0
	for b.Loop() {
		p, err := events.Read(b.Context(), orchestrator.ReadRequest{After: after, Limit: 2000})
		if err != nil {
			b.Fatal(err)
		}
		n += len(p.Records)
		after = p.Through
		if after >= 50000 {
			after = 0
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}
