// Package orchestrator runs pupsourcing projections in any number of worker processes, which
// split the event stream between them. PostgreSQL coordinates the workers.
//
//	if err := orchestrator.RunMigrations(db); err != nil { … }
//	eventStore := postgres.NewStore(postgres.DefaultStoreConfig())
//	orch, err := orchestrator.New(orchestrator.Config{
//		DB: db, EventStore: eventStore, ReplicaSet: "main-projections",
//	})
//	…
//	err = orch.Run(ctx, []projection.Projection{&UserProjection{}})
//
// It is the root package, [github.com/getpup/pupsourcing-orchestrator], for pupsourcing's
// types. The root package documents the guarantees and their price. The types and errors that
// a worker's program needs have the same names here. Use the rest from its own package:
// HealthHandler and DeliveryFrom from the root package, Status and Pause from package ops.
//
// # Projections
//
// Projections of every v1 of pupsourcing run unchanged. If Handle takes a *sql.Tx (since
// v1.2), the projection writes in the transaction that commits its checkpoint: each event is
// applied exactly once. If Handle takes only the event, the projection may see an event again
// after a crash (at least once). A projection.ScopedProjection gets only the events of its
// scope. For more kinds see [TransactionalProjection], [BatchProjection],
// [PlainBatchProjection], [StartingProjection] and [RebuildProjection].
//
// # The events table
//
// The library does not read events through the store: its ReadEvents can skip a position
// whose transaction commits later, and the event would be lost. It reads the events table
// itself, without gaps. The name of that table can't be read from a store. If the store has a
// StoreConfig.EventsTable of its own, set [Config].EventsTable to the same name. All
// Orchestrators of a process with the same DB and the same table share their reads.
//
// # Coming from processors
//
// importer.Import takes over the checkpoints of processors (postgres.NewProcessor), so that
// no event is handled again.
package orchestrator
