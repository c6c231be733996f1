package orchestrator

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A projection that is built anew beside the live one, to take its place: see
// internal/protocol/follow.go for how the two share the stream, and ops.Promote for the
// change over.

// A RebuildProjection is a Projection that is a new version of another one, which is live.
// The constructors' projections take WithRebuildOf.
//
// It has a name, and a read model, of its own, and builds that from the first event on,
// in the live one's replica set or in another one. It goes as far as the live one has
// handled the stream, and no further, so each event that it is called with is a replay:
// Delivery.Replay is ReplayRebuild, and its handler leaves out what goes beyond the read
// model. Then ops.Promote lets it take the live one's place: the new one handles what the
// live one has not, as new.
//
// It counts once, when the first worker comes with the projection. Run returns
// ErrInvalidConfig where the live one has never run, has been retired, or is not live.
type RebuildProjection[E any] interface {
	Projection[E]
	// RebuildOf returns the name of the live projection; "": it is a projection of its own.
	RebuildOf() string
}

// rebuildOf returns what a projection is a rebuild of, or what is wrong with that.
func rebuildOf[E any](p Projection[E], name string) (live string, err error) {
	r, ok := p.(RebuildProjection[E])
	if !ok {
		return "", nil
	}
	if live, err = apart("RebuildOf", func() (string, error) { return r.RebuildOf(), nil }); err != nil {
		return "", fmt.Errorf("%w: RebuildOf of projection %q failed: %w", ErrInvalidConfig, name, err)
	}
	if live == "" {
		return "", nil
	}
	problem := store.NameProblem(live)
	switch {
	case problem != "":
		return "", fmt.Errorf("%w: projection %q: the name that RebuildOf returned %s", ErrInvalidConfig, name, problem)
	case live == name:
		return "", fmt.Errorf("%w: projection %q can't be a rebuild of itself; give the new version a name of its own", ErrInvalidConfig, name)
	}
	return live, nil
}

// followers are what a worker's lanes know of the live versions that they follow, for one
// generation. One statement is for all lanes of a projection.
type followers struct {
	mu sync.Mutex
	of map[string]*follower
}

type follower struct {
	mu   sync.Mutex
	seen protocol.Followed
	err  error
	at   time.Time
}

// followSoon is for how long lanes take each other's answer. An old one allows less.
const followSoon = 50 * time.Millisecond

// liveProgress returns how far the live version of a projection is.
// fresh: not what another lane has read before.
func (f *followers) liveProgress(projection string, fresh bool, read func() (protocol.Followed, error)) (protocol.Followed, error) {
	f.mu.Lock()
	if f.of == nil {
		f.of = map[string]*follower{}
	}
	one := f.of[projection]
	if one == nil {
		one = &follower{}
		f.of[projection] = one
	}
	f.mu.Unlock()
	one.mu.Lock()
	defer one.mu.Unlock()
	if !fresh && !one.at.IsZero() && time.Since(one.at) < followSoon {
		return one.seen, one.err
	}
	one.seen, one.err = read()
	one.at = time.Now()
	return one.seen, one.err
}

// versions are the live versions that a worker's projections follow, so that each change is
// logged once.
type versions struct {
	mu   sync.Mutex
	live map[string]string // by the projection that follows it
}

// seen takes in which version a projection follows; "": it is the live one itself.
func (v *versions) seen(log *slog.Logger, projection, live string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch before := v.live[projection]; {
	case live == before:
		return
	case live == "":
		delete(v.live, projection)
		log.Info("promoted to live version", "projection", projection, "replaced", before)
		return
	case v.live == nil:
		v.live = map[string]string{}
	}
	v.live[projection] = live
	log.Info("following the live version", "projection", projection, "live", live)
}
