package orchestrator

import (
	"context"
	"database/sql"
	"net/http"

	root "github.com/getpup/pupsourcing-orchestrator"
)

// Operating replica sets: what there is to see, and to order.
type (
	// A ReplicaSetStatus is what is known of a replica set. See
	// [root.ReplicaSetStatus].
	ReplicaSetStatus = root.ReplicaSetStatus
	// A WorkerStatus is one worker of a replica set.
	WorkerStatus = root.WorkerStatus
	// A PartitionStatus is one projection on one partition.
	PartitionStatus = root.PartitionStatus
	// A Wait is a reason why something stands still.
	Wait = root.Wait
	// A GenerationRecord is an entry in the history of a replica set.
	GenerationRecord = root.GenerationRecord
	// A ParkedError says that events which somebody waits for are parked.
	ParkedError = root.ParkedError
	// A StatusOption is one of StatusHandler.
	StatusOption = root.StatusOption
)

// AllProjections, in the place of a projection's name, stands for all of a
// replica set.
const AllProjections = root.AllProjections

// The errors say in the root package when they happen and what to do.
var (
	ErrNoReplicaSet = root.ErrNoReplicaSet
	ErrOrder        = root.ErrOrder
)

// ReplicaSets returns the names of all replica sets of which workers have run.
func ReplicaSets(ctx context.Context, db *sql.DB) ([]ReplicaSetName, error) {
	return root.ReplicaSets(ctx, db)
}

// Status returns what is known of a replica set. See [root.Status].
func Status(ctx context.Context, db *sql.DB, set ReplicaSetName) (ReplicaSetStatus, error) {
	return root.Status(ctx, db, set)
}

// History returns the latest generations of a replica set, the newest first.
func History(ctx context.Context, db *sql.DB, set ReplicaSetName, limit int) ([]GenerationRecord, error) {
	return root.History(ctx, db, set, limit)
}

// StatusHandler serves the status page. See [root.StatusHandler].
func StatusHandler(db *sql.DB, options ...StatusOption) http.Handler {
	return root.StatusHandler(db, options...)
}

// AllowActions lets the status page give orders. See [root.AllowActions].
func AllowActions(origins ...string) StatusOption { return root.AllowActions(origins...) }

// Pause has a projection, or AllProjections, not run. See [root.Pause].
func Pause(ctx context.Context, db *sql.DB, set ReplicaSetName, projection string) (generation int64, err error) {
	return root.Pause(ctx, db, set, projection)
}

// Resume has what was paused run again. See [root.Resume].
func Resume(ctx context.Context, db *sql.DB, set ReplicaSetName, projection string) (generation int64, err error) {
	return root.Resume(ctx, db, set, projection)
}

// Rewind sets a projection to a position, back or forward. See [root.Rewind].
func Rewind(ctx context.Context, db *sql.DB, set ReplicaSetName, projection string, position int64) (generation int64, err error) {
	return root.Rewind(ctx, db, set, projection, position)
}

// DrainWorker takes a worker's partitions away from it. See [root.DrainWorker].
func DrainWorker(ctx context.Context, db *sql.DB, set ReplicaSetName, worker string) (generation int64, err error) {
	return root.DrainWorker(ctx, db, set, worker)
}

// UndrainWorker lets a worker that was drained have partitions again.
func UndrainWorker(ctx context.Context, db *sql.DB, set ReplicaSetName, worker string) (generation int64, err error) {
	return root.UndrainWorker(ctx, db, set, worker)
}

// AwaitGeneration waits until a generation, or a newer one, is active. See
// [root.AwaitGeneration].
func AwaitGeneration(ctx context.Context, db *sql.DB, set ReplicaSetName, generation int64) error {
	return root.AwaitGeneration(ctx, db, set, generation)
}

// WaitFor waits until a projection has handled every event up to a position. See
// [root.WaitFor].
func WaitFor(ctx context.Context, db *sql.DB, projection string, position int64) error {
	return root.WaitFor(ctx, db, projection, position)
}
