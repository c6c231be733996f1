package ops

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// ErrRejected is returned for an order that can't be carried out: the replica set or worker
// does not exist, the projection belongs to another set, a name is invalid, a position is
// negative, or no worker would be left to run the partitions. Nothing was changed.
var ErrRejected = store.ErrRejected

// Pause stops a projection on all workers until Resume is called, also across restarts and
// rebalances. It opens a generation and returns its number. When that generation is active
// (AwaitGeneration), no handler of the projection runs anywhere; the other projections go on.
// Pausing a paused projection changes nothing and returns the current generation.
//
// The order belongs to the replica set: if another set takes the projection over, the
// projection runs there.
//
// A projection that has never run can be paused: it stays paused when a worker brings it. So
// a mistyped name is not an error. Call HasRun first to notice one, as the command and the status
// page do. Status lists such a projection in Paused.
//
// Pause returns ErrRejected if the order can't be carried out, ErrSchema if the tables are
// missing or too old, and otherwise the database's error or the context's.
func Pause(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, projection string, options ...orchestrator.TablesOption) (generation int64, err error) {
	return orderOf(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderPause, Projection: projection})
}

// PauseAll stops all projections of a replica set, including those that workers bring later,
// until ResumeAll is called. See Pause.
func PauseAll(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, options ...orchestrator.TablesOption) (generation int64, err error) {
	return order(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderPause, Projection: protocol.All})
}

// Resume restarts a paused projection from its checkpoint. See Pause.
func Resume(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, projection string, options ...orchestrator.TablesOption) (generation int64, err error) {
	return orderOf(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderResume, Projection: projection})
}

// ResumeAll restarts all projections of a replica set, including those that Pause stopped
// one by one. See Pause.
func ResumeAll(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, options ...orchestrator.TablesOption) (generation int64, err error) {
	return order(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderResume, Projection: protocol.All})
}

// Rewind sets the checkpoint of a projection to a position, back or forward. The projection
// then handles the events above the position; 0 means all events. Rewind opens a generation and
// returns its number. The checkpoints are set when that generation is activated, so
// nothing in flight can move them afterwards. If no worker runs, that is when the next one
// joins. Parked events above the position leave the dead-letter queue, since they come
// again. If the position is beyond the end of the stream, events still to come are
// skipped up to it.
//
// A projection that has never run can be rewound: it starts at the position when a worker
// brings it, whatever its own Start says. So a mistyped name is not an error. Call HasRun
// first to notice one, as the command and the status page do.
//
// Rewind does not touch the read model. To rebuild a read model in place: Pause,
// AwaitGeneration, empty the read model, Rewind to 0, Resume. The errors are those of Pause.
func Rewind(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, projection string, position int64, options ...orchestrator.TablesOption) (generation int64, err error) {
	if position < 0 {
		return 0, fmt.Errorf("%w: rewind of %s to %d: the position must be at least 0", ErrRejected, projection, position)
	}
	return orderOf(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderRewind, Projection: projection, Position: position})
}

// HasRun reports whether a generation with the projection was ever active. Call it before
// Pause and Rewind to notice a mistyped name: a rewind adds the name to the set's
// projections. It returns ErrRejected for an invalid name, and otherwise the database's error.
func HasRun(ctx context.Context, db *sql.DB, projection string, options ...orchestrator.TablesOption) (bool, error) {
	if problem := store.NameProblem(projection); problem != "" {
		return false, fmt.Errorf("%w: the name of the projection %s", ErrRejected, problem)
	}
	has, err := store.HasRun(ctx, store.TablesOf(db, options), projection)
	return has, redact.Error(err)
}

// DrainWorker takes a worker's partitions away, for maintenance. The worker stays a member, as a
// standby, until UndrainWorker is called or its program ends. A worker that is removed because
// its lease expired, and that rejoins, is no longer drained. The last worker that can have
// partitions can't be drained: that returns ErrRejected. See Pause.
func DrainWorker(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, worker string, options ...orchestrator.TablesOption) (generation int64, err error) {
	return order(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderDrain, Worker: protocol.WorkerID(worker)})
}

// UndrainWorker lets a drained worker have partitions again. See Pause.
func UndrainWorker(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, worker string, options ...orchestrator.TablesOption) (generation int64, err error) {
	return order(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderUndrain, Worker: protocol.WorkerID(worker)})
}

// orderLease is the lease from which the time limits of an order's transaction are derived. It
// is short: no worker of the set may lose its lease because a program hangs while it has the
// set's row locked.
const orderLease = 4 * time.Second

// orderOf carries out an order about one named projection.
func orderOf(ctx context.Context, t store.Tables, set orchestrator.ReplicaSetName, o protocol.Order) (generation int64, err error) {
	if o.Projection == "" {
		return 0, fmt.Errorf("%w: the name of the projection is empty; for all projections of a replica set, call PauseAll or ResumeAll", ErrRejected)
	}
	return order(ctx, t, set, o)
}

// order carries out an order. It tries again while the set's rows are locked.
func order(ctx context.Context, t store.Tables, set orchestrator.ReplicaSetName, o protocol.Order) (generation int64, err error) {
	if problem := orderProblem(set, o); problem != "" {
		return 0, fmt.Errorf("%w: %s", ErrRejected, problem)
	}
	s := store.New(t.DB, string(set), store.Options{Schema: t.Schema, Bounds: store.BoundsOf(orderLease)})
	if err := s.Check(ctx); err != nil {
		return 0, redact.Error(err)
	}
	backoff := protocol.RetryOrder.Backoff()
	for failures := 1; ; failures++ {
		result, err := s.Sync(ctx, protocol.Request{Order: &o}, nil)
		switch {
		case err == nil:
			return result.Group.Generation, nil
		case store.Unstorable(err) && !storable(ctx, t.DB, string(set), o.Projection, string(o.Worker)):
			return 0, fmt.Errorf("%s in replica set %q: %w: this database can't store such a name: %w", o, set, ErrRejected, err)
		case errors.Is(err, ErrRejected) || !store.LockTimeout(err):
			return 0, redact.Error(fmt.Errorf("%s in replica set %q: %w", o, set, err))
		case !calls.Sleep(ctx, backoff.Delay(failures, 0)):
			return 0, fmt.Errorf("%s in replica set %q: %w", o, set, errors.Join(ctx.Err(), redact.Error(err)))
		}
	}
}

// orderProblem returns what is wrong with a name in an order, or "".
func orderProblem(set orchestrator.ReplicaSetName, o protocol.Order) string {
	if problem := store.NameProblem(string(set)); problem != "" {
		return "the name of the replica set " + problem
	}
	if problem := store.NameProblem(o.Projection); problem != "" && o.Projection != protocol.All {
		return "the name of the projection " + problem
	}
	worker := o.Kind == protocol.OrderDrain || o.Kind == protocol.OrderUndrain
	if problem := store.NameProblem(string(o.Worker)); problem != "" && worker {
		return "the name of the worker " + problem
	}
	return ""
}

// storable reports whether the database's encoding can store all of the texts.
func storable(ctx context.Context, db *sql.DB, texts ...string) bool {
	for _, text := range texts {
		if store.Unstorable(store.Holds(ctx, db, text)) {
			return false
		}
	}
	return true
}

var activeSQL = sqltext.New(`SELECT generation >= {generation} AND phase = 'active' FROM orchestrator_replica_sets WHERE name = {set}`)

// AwaitGeneration waits until a generation, or a newer one, is active. From then on nothing that
// ran under an older generation can have an effect. It also waits while no worker runs. It
// returns ErrNoReplicaSet if there is no such set, and the context's cause if ctx ends first.
func AwaitGeneration(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, generation int64, options ...orchestrator.TablesOption) error {
	if problem := store.NameProblem(string(set)); problem != "" {
		return fmt.Errorf("wait for generation %d: %w: its name %s", generation, ErrNoReplicaSet, problem)
	}
	t := store.TablesOf(db, options)
	return calls.Await(ctx, func() (active bool, err error) {
		tables, err := t.Locate(ctx)
		if err == nil {
			query, args := tables.Bind(activeSQL, sqltext.Values{"set": string(set), "generation": generation})
			err = dbconn.QueryRow(ctx, t.DB, query, args...).Scan(&active)
		}
		if errors.Is(err, sql.ErrNoRows) || store.Unstorable(err) {
			err = ErrNoReplicaSet
		}
		if err != nil {
			err = fmt.Errorf("wait for generation %d of replica set %q: %w", generation, set, err)
		}
		return active, err
	})
}
