package orchestrator

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A projection that is rebuilt beside the live one, to take its place:
// internal/protocol/follow.go has how the two share the stream, and ops.Promote the switch.

// RebuildProjection is a Projection that is a new version of another one, the live version.
// For the projections of the constructors there is WithRebuildOf.
//
// It has its own name and read model, which it builds from the first event on, in the live
// version's replica set or in another one. It never handles an event that the live version has
// not handled. So each event is a replay: Delivery.Replay is ReplayRebuild, and the handler
// must leave out effects beyond the read model. ops.Promote makes it the live version: from
// then on its events are new.
//
// RebuildOf counts when the first worker runs the projection. Run returns ErrInvalidConfig
// if the live version has never run, was retired or is not live.
type RebuildProjection[E any] interface {
	Projection[E]
	// RebuildOf returns the name of the live version; "": it is not a rebuild.
	RebuildOf() string
}

// rebuildOf returns what a projection is a rebuild of, or why it can't be.
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

// followers are the progress of the live versions that a worker's lanes follow, for one
// generation. One statement serves all lanes of a projection.
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

// followSoon is how long lanes use each other's answer. An old answer is safe: it allows less.
const followSoon = 50 * time.Millisecond

// liveProgress returns the progress of the live version of a projection. If fresh is set, it
// reads it, and does not use the answer of another lane.
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

// versions are the live versions that a worker's projections follow. With them each change is
// logged once.
type versions struct {
	mu   sync.Mutex
	live map[string]string // by the projection that follows it
}

// seen logs it if the version that a projection follows has changed; "": it is the live one.
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
