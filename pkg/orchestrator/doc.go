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
// It is the package [github.com/getpup/pupsourcing-orchestrator], the root package, for
// pupsourcing's types. What the root promises, and what it costs, is said there. Types
// and errors that a worker's program needs have the same names here. Everything else is
// used as it is: HealthHandler and DeliveryFrom from the root package, Status and Pause
// from its package ops.
//
// Projections are pupsourcing's, as they are, of every v1. One whose Handle takes a
// *sql.Tx, as since v1.2, writes in the transaction that also commits its progress:
// each event is applied exactly once. One whose Handle takes the event alone may see an
// event again after a crash. A projection.ScopedProjection gets the events of its scope
// only. See also [TransactionalProjection], [BatchProjection], [PlainBatchProjection],
// [StartingProjection] and [RebuildProjection].
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
// importer.Import takes over what processors (postgres.NewProcessor) have
// done, without handling an event again.
package orchestrator
