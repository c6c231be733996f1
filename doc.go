// Package orchestrator runs projections of one PostgreSQL event stream in any number of worker
// processes. The workers divide the events among themselves, and coordinate through PostgreSQL
// alone.
//
// This is a complete program. Start as many copies of it as you like:
//
//	func main() {
//		db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
//		must(err)
//		must(orchestrator.RunMigrations(db))
//		events, err := orchestrator.NewEventTable(db, "events")
//		must(err)
//		o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
//			DB: db, EventStore: events, ReplicaSet: "read-models",
//		})
//		must(err)
//		users := orchestrator.Transactional("users", func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
//			_, err := tx.ExecContext(ctx, `INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING`, e.AggregateID)
//			return err
//		}, orchestrator.WithScope(orchestrator.Scope{EventTypes: []string{"UserRegistered"}}))
//		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
//		defer stop()
//		must(o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{users}))
//	}
//
// [NewEventTable] reads an events table of the standard layout, which is pupsourcing's;
// [NewTable] reads other tables, and an [EventStore] of your own anything else.
//
// # Kinds of projections
//
//   - [Transactional] and [Batch] write through a transaction that also commits the
//     checkpoint: one event, or many, in one call.
//   - [Plain] and [PlainBatch] have no transaction: for mail, brokers, search indexes.
//
// # Guarantees
//
//   - Nothing is lost: every event that is committed is handled, whatever workers join,
//     leave or crash, and in whatever order transactions commit.
//   - What Transactional and Batch write through their transaction is committed exactly
//     once. Plain and PlainBatch handle an event at least once.
//   - The events of one aggregate are handled in order.
//   - No two workers handle the same partition of a projection at the same time. There are two
//     exceptions: a process that was frozen for longer than its lease, and a handler that
//     continues after its context was cancelled. Neither can commit its transaction.
//
// # Generations
//
// A replica set is a named group of projections that scale together (elsewhere called a
// consumer group). A generation is one assignment of partitions to its workers. Its number
// only grows, and is a fencing token: no worker can commit under an older one.
//
//	           a worker joins, leaves or expires
//	  ┌───────────────────────────────────────────────────┐
//	  │                                                   ▼
//	active g ◀──── all workers of older ──────── draining g+1
//	               generations have stopped             │ ▲
//	               or are dead                          └─┘ another change: g+2
//
// While a generation drains, workers finish the events in hand, commit and stop. The
// transaction that activates it also hands the checkpoints over to the new partitions, so that
// each continues exactly where its events were left.
//
// # Who is authoritative
//
//   - Membership and generations: the rows of the replica set, changed under its lock by
//     any worker. There is no leader.
//   - Whether a worker may continue: its own monotonic clock. It gives up its lease before
//     others may remove it.
//   - Progress: the checkpoint row. A commit names the generation and the position that
//     it starts from; if either has changed, all of it is rolled back.
//   - Which events are safe to read: the locks on the events table. See [Table].
//
// # What happens when
//
//   - A worker is asked to stop: it finishes the events in hand, commits and leaves. The
//     others re-partition within a second; with Config.Notifier, at once.
//   - A worker crashes: its dedicated connection ends, and the others take over within two
//     seconds. Under Config.LeaseOnly they take over when its lease ends. What it had not
//     committed is handled again.
//   - A worker cannot reach the database: it cancels its handlers after 0.65s (under LeaseOnly
//     after four fifths of its lease). When the database answers again, the worker continues,
//     or joins as a new worker.
//   - A process is frozen for longer than its lease: when it continues, it can commit
//     nothing of what it was doing.
//   - A handler does not return: after CoordinationTimeout its worker's Run returns
//     [ErrCoordinationTimeout]. The others wait for its lease to end.
//   - A reply to COMMIT is lost: the checkpoint row says whether it was committed.
//   - The database does not answer: all workers wait, and continue when it answers.
//
// # More
//
// docs/getting-started.md begins with an empty database, docs/concepts.md explains each word,
// docs/projections.md each kind and failure rule, docs/event-stores.md what is assumed of an
// events table, docs/operations.md what to do at 3 a.m., and docs/messages.md every log line
// and error. Package ops has status and orders, package importer takes over the progress of
// processors with fixed partitions. ARCHITECTURE.md has the reasons.
package orchestrator
