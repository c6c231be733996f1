// Package sim tests a projection in simulated worlds: workers join and leave, crash,
// freeze, lose connections and hand partitions over. Each world follows from a seed. A
// [Harness] runs a projection in such worlds and compares its read model with the one
// of a run without faults.
//
//	func TestBalancesSurvive(t *testing.T) {
//		sim.Harness[Event]{
//			New:         func(db *sql.DB) orchestrator.Projection[Event] { return &Balances{db} },
//			Setup:       createTables,
//			Events:      events,
//			AggregateID: func(e Event) string { return e.Account },
//		}.Test(t)
//	}
//
// A world is deterministic: it has one thread, a fake clock, and virtual workers around
// the code that makes the decisions in production. The same seed gives the same run, so
// a failure can be reproduced. Its report has a few lines, and a timeline page shows the
// run. FoundationDB and TigerBeetle are tested with the same method.
//
// The package's own tests play worlds without a user's projection, and check the
// library's promises:
//
//	go test ./sim -run 'TestSeeds$' -sim.seed=8347
//	go test ./sim -run 'TestSeeds$' -sim.seeds=10000 -sim.store=postgres
//	go test ./sim -run 'TestSeeds$' -sim.seed=1 -sim.timeline=page.html
//	make sim SIMTIME=1h
package sim
