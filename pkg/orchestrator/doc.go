// Package orchestrator shares the event stream of a pupsourcing event store
// among any number of worker processes, coordinated through PostgreSQL alone.
//
//	if err := orchestrator.RunMigrations(db); err != nil { … }
//	eventStore := postgres.NewStore(postgres.DefaultStoreConfig())
//	orch, err := orchestrator.New(orchestrator.Config{
//		DB: db, EventStore: eventStore, ReplicaSet: "main-projections",
//	})
//	…
//	err = orch.Run(ctx, []projection.Projection{&UserProjection{}})
//
// It is [github.com/getpup/pupsourcing-orchestrator] for pupsourcing's types;
// what that package promises, and what it costs, is said there. What a program
// needs of it has the same name here.
//
// Projections are pupsourcing's, as they are. A projection.ScopedProjection
// gets the events of its scope only; see also [TransactionalProjection] and
// [BatchProjection].
//
// # The events table
//
// Events are appended through the store, and not read through it: its
// ReadEvents passes a position whose transaction has yet to commit, and who
// reads on from there never sees that event. They are read from the events
// table itself, gap-safe. A store does not tell which table that is, so a store
// with a StoreConfig.EventsTable of its own wants the same in
// [Config].EventsTable. All Orchestrators of a process that have the same DB and
// name the same table read it together, once.
//
// # From processors
//
// [ImportCheckpoints] takes over what processors (postgres.NewProcessor) have
// done, without handling an event again.
package orchestrator
