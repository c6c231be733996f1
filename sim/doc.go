// Package sim plays worlds in which everything goes wrong that the library must
// survive, each from a seed, and demands the library's promises of each. A
// [Harness] does it with a projection of yours.
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
// A world is deterministic: one thread, a fake clock, and virtual workers around
// the code that decides in production. Whatever happens in it follows from its
// seed, so a failure can be had again, and is told in a few lines and in a page
// that shows it. The method is that of FoundationDB and TigerBeetle.
//
// The package's own tests play worlds without a projection of anybody's:
//
//	go test ./sim -run 'TestSeeds$' -sim.seed=8347
//	go test ./sim -run 'TestSeeds$' -sim.seeds=10000 -sim.store=postgres
//	go test ./sim -run 'TestSeeds$' -sim.seed=1 -sim.timeline=page.html
//	make sim SIMTIME=1h
package sim
