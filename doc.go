// Package orchestrator shares one event stream among any number of worker
// processes, coordinated through PostgreSQL alone.
//
// A replica set is a named group of projections that scale together. Start as
// many copies of a program as you like; each calls [Orchestrator.Run]:
//
//	events, err := orchestrator.NewEventTable(db, "events")
//	…
//	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
//		DB: db, EventStore: events, ReplicaSet: "main-projections",
//	})
//	…
//	err = o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{&UserProjection{}})
//
// [NewEventTable] reads pupsourcing's events table, and [NewTable] any other whose
// positions come from a sequence (or identity) that the inserting transaction itself
// uses. docs/event-tables.md has the layouts that are known to work.
//
// The copies find each other, share the stream out as partitions, notice who
// joins, leaves, crashes or hangs, pause, re-partition and go on together (the
// Recreate strategy). No event is lost, what a [TransactionalProjection]
// writes is committed exactly once, and no two workers hold one partition.
//
// # Generations
//
// A generation is one partition layout: a number, how many partitions, who has
// which. The number only grows.
//
//	           a member joins, leaves or expires
//	  ┌───────────────────────────────────────────────────┐
//	  │                                                   ▼
//	active g ◀──── everyone who had part in an ──── draining g+1
//	               older generation has stopped           │ ▲
//	               or is dead: hand-over                  └─┘ another change: g+2
//
// While a generation drains, workers finish the event in hand, commit and
// report. The last report activates it, and the same transaction hands the
// checkpoints over: what was handled up to where, by hash slot, goes exactly
// to the new partitions, whatever the two totals are.
//
// # Who is authoritative
//
//   - Membership and generations: the replica set's rows, changed under its
//     lock by whichever worker has a reason to. There is no leader.
//   - Whether a worker may go on: its own monotonic clock. It gives up its
//     lease before anybody else may count it as dead.
//   - Progress: the checkpoint row. A commit names the generation and the
//     position that it starts from; if either has changed, all of it is rolled
//     back.
//   - What can be read: the locks on the events table. See [Table]. A process
//     reads it once for all that stand near each other, whatever they own.
//
// # What happens when
//
//   - a worker is asked to stop: it finishes the event in hand, commits and
//     leaves; the others re-partition within a second, or at once where
//     they listen (Config.Notifier);
//   - a worker crashes: its own connection ends, and the others take over within
//     two seconds, or where that can't be seen (Config.LeaseOnly), when its lease
//     is over; what it had not committed is done again;
//   - a worker can't reach the database: it cancels its handlers after 0.65s
//     (under LeaseOnly, when four fifths of its lease are over), and goes on, or
//     joins again as a new worker, when it can;
//   - a process is frozen past its lease: awake again, it can commit nothing
//     of what it was doing;
//   - a handler does not return: after CoordinationTimeout its worker gives up
//     with [ErrCoordinationTimeout]; the others wait for its lease to end;
//   - a reply to COMMIT is lost: the checkpoint row says whether it happened;
//   - the database is away: everybody waits and goes on.
//
// The folder examples has whole programs, ARCHITECTURE.md the reasons, and
// internal/protocol/testdata the stories, step by step. importer.Import is the
// way here from processors that are run by hand.
package orchestrator
