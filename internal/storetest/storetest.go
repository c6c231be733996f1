// Package storetest is the conformance suite of stores: [Run] tests a store of groups and
// checkpoints, and [Errors] a driver for PostgreSQL. To the protocol, PostgreSQL through lib/pq,
// PostgreSQL through pgx, and a store in memory must behave the same.
package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A World is an empty database with a clock of its own.
type World interface {
	// Open returns the store of a replica set. The limits of its transactions follow from the
	// lease: see store.BoundsOf.
	Open(set string, lease time.Duration) Store
	// Advance moves the database's clock, which otherwise does not move.
	Advance(d time.Duration)
	// Waiting returns how many calls wait for a transaction to end. A store that never waits
	// returns 0. Its calls return an error for which store.LockTimeout is true.
	Waiting() int
	// Delete deletes rows of checkpoints, as an operator might by hand.
	Delete(projection string, partitions ...int)
}

// A Store is the store of one replica set, such as store.Store.
type Store interface {
	Sync(ctx context.Context, r protocol.Request, projections []string) (store.Result, error)
	Load(ctx context.Context, l store.Lane) (protocol.Found, error)
	Find(ctx context.Context, l store.Lane) (protocol.Found, error)
	// Write begins a transaction and moves a checkpoint in it.
	Write(ctx context.Context, l store.Lane, from, to protocol.Checkpoint) (Tx, error)
	// Save moves a checkpoint without a transaction of the caller.
	Save(ctx context.Context, l store.Lane, from, to protocol.Checkpoint) error

	Parked(ctx context.Context, l store.Lane) ([]protocol.Parked, error)
	Park(ctx context.Context, l store.Lane, from, to protocol.Checkpoint, parked []protocol.Parked, failure string) error
	// Take begins a transaction and deletes the row of a parked event in it.
	Take(ctx context.Context, l store.Lane, position int64) (Tx, error)
	Drop(ctx context.Context, l store.Lane, position int64) error
	Note(ctx context.Context, l store.Lane, position int64, attempts int, failure string) error
	// Request makes an operator's request for one parked event.
	Request(ctx context.Context, projection string, position int64, r protocol.ParkRequest) (n int, err error)

	// OrderPark gives an order to park an event. Outcome returns what became of it.
	OrderPark(ctx context.Context, projection string, position int64, by string) (number int64, err error)
	Outcome(ctx context.Context, number int64) (string, error)
	Locate(ctx context.Context, l store.Lane, number int64, slot int) error
	Lapse(ctx context.Context, l store.Lane, number int64, why string) error

	// Versions of a projection. Those in Rebuilds are rebuilds.
	Followed(ctx context.Context, projection string) (protocol.Followed, error)
	Promote(ctx context.Context, projection, live, script string) (parked int, err error)
	Retire(ctx context.Context, projection string) error
}

// A Tx is a transaction that has moved a checkpoint. It keeps its locks until Commit or
// Rollback, or until the limit for idle transactions ends it.
type Tx interface {
	Commit() error
	Rollback() error
}

// Run runs the suite. open is called once per test.
func Run(t *testing.T, open func(t *testing.T) World) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, w World)
	}{
		{"first worker", testFirstWorker},
		{"join repeated", testJoinRepeated},
		{"stop report repeated", testStopRepeated},
		{"reports by heartbeat", testReportsByHeartbeat},
		{"leave repeated", testLeaveRepeated},
		{"replaced incarnation", testReplaced},
		{"request of a stranger", testStranger},
		{"heartbeat shows what a request shows", testHeartbeat},
		{"heartbeat reads in one piece", testOnePiece},
		{"look changes nothing", testLook},
		{"report", testReport},
		{"look shows checkpoints", testLookShowsCheckpoints},
		{"request that yields", testYield},
		{"several partitions", testSeveralPartitions},
		{"presence", testPresence},
		{"standby", testStandby},
		{"join window", testJoinWindow},
		{"leases by the database's clock", testLeases},
		{"expiry needs a watch", testExpiry},
		{"generation only grows", testGenerationGrows},
		{"sets are apart", testSetsApart},
		{"concurrent joins", testConcurrentJoins},

		{"vacancy", testVacancy},
		{"vacancy ends", testVacancyEnds},
		{"late requests to a vacancy", testVacancyLate},
		{"vacancy in a change", testVacancyInAChange},
		{"all vacant", testAllVacant},
		{"vacancy and a new projection", testVacancyWithANewProjection},
		{"vacancy and a standby", testVacancyForAStandby},
		{"vacancy holds no projection", testVacancyHoldsNoProjection},

		{"pause", testPause},
		{"rewind", testRewind},
		{"rewind of a projection that moved", testRewindOfAMovedProjection},
		{"drained worker", testDrained},
		{"order refused", testOrderRefused},
		{"order for a projection that is to come", testOrderAhead},

		{"hold", testHold},
		{"promote", testPromote},
		{"promote fences what is replaced", testPromoteFences},
		{"retire", testRetire},
		{"rebuild refused", testRebuildRefused},

		{"commit and find", testCommit},
		{"marks", testMarks},
		{"fence", testFence},
		{"find waits for a commit", testFindWaits},
		{"hand-over of uneven checkpoints", testHandOver},
		{"activation waits for a commit", testActivationWaits},
		{"activation goes past a frozen commit", testFrozen},
		{"commit waits for an activation", testCommitWaits},
		{"save waits for an activation", testSaveWaits},
		{"rows deleted by hand", testDeleted},

		{"park", testPark},
		{"fence of what is parked", testParkFence},
		{"park waits for an activation", testParkWaits},
		{"parked events after a hand-over", testParkedHandOver},
		{"unpark", testUnpark},
		{"activation waits for an unpark", testUnparkWaits},
		{"requests", testRequests},
		{"a request waits for an unpark", testRequestWaits},
		{"order to park", testOrderPark},
		{"order to park that lapses", testOrderParkLapses},
		{"order to park that is refused", testOrderParkRefused},
		{"order to park before a rewind", testOrderParkRewind},

		{"projection taken", testTaken},
		{"take-over after a leave", testTakeOver},
		{"take-over from the dead", testTakeOverDead},
		{"take-over of all that a set runs", testTakeOverAll},
		{"take-over between equal generations", testSameNumber},
		{"take-overs and outside fences", testFenceOutside},
		{"take-over by a standby", testStandbyTakesOver},
		{"claims at once", testClaims},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

const lease = time.Minute // except in tests in which a limit must pass

var start = protocol.Checkpoint{} // of a new projection

func at(position int64, marks ...protocol.Mark) protocol.Checkpoint {
	return protocol.Checkpoint{Position: position, Ahead: marks}
}

// A set is a replica set and the settings that its workers send.
type set struct {
	t           *testing.T
	w           World
	store       Store
	lease       time.Duration
	window      time.Duration
	limit       int
	projections []string
	saves       bool // see commit
}

func newSet(t *testing.T, w World, name string, projections ...string) *set {
	return &set{t: t, w: w, store: w.Open(name, lease), lease: lease, projections: projections}
}

// try sends a request, and repeats it while a lock is not available.
func (s *set) try(r protocol.Request) (store.Result, error) {
	r.Lease = s.lease
	if r.Join {
		r.MaxPartitions, r.JoinWindow = s.limit, s.window
	}
	for {
		result, err := s.store.Sync(s.t.Context(), r, s.projections)
		if err == nil || !store.LockTimeout(err) {
			return result, err
		}
	}
}

func (s *set) sync(r protocol.Request) store.Result {
	s.t.Helper()
	result, err := s.try(r)
	if err != nil {
		s.t.Fatalf("sync %+v: %v", r, err)
	}
	return result
}

func (s *set) join(id protocol.WorkerID) store.Result {
	s.t.Helper()
	return s.sync(protocol.Request{Worker: id, Join: true})
}

// look sends a full request without a report.
func (s *set) look(id protocol.WorkerID) store.Result {
	s.t.Helper()
	return s.sync(protocol.Request{Worker: id})
}

func (s *set) stopped(id protocol.WorkerID, generation int64) store.Result {
	s.t.Helper()
	return s.sync(protocol.Request{Worker: id, Stopped: generation})
}

func (s *set) leave(id protocol.WorkerID) store.Result {
	s.t.Helper()
	return s.sync(protocol.Request{Worker: id, Leave: true})
}

func (s *set) beat(id protocol.WorkerID) protocol.View {
	s.t.Helper()
	return s.sync(protocol.Request{Worker: id, Heartbeat: true}).View
}

// settle lets all workers stop until the newest generation is active.
func (s *set) settle(id protocol.WorkerID) protocol.Group {
	s.t.Helper()
	r := s.look(id)
	for _, holder := range r.Decision.WaitsFor {
		r = s.stopped(holder, r.Group.Generation-1)
	}
	if r.Group.Phase != protocol.Active {
		s.t.Fatalf("after everybody has stopped: %s", r.Group)
	}
	return r.Group
}

func lane(projection string, generation int64, partition, total int) store.Lane {
	return store.Lane{Projection: projection, Assignment: protocol.Assignment{Generation: generation, Partition: partition, Total: total}}
}

func (s *set) write(l store.Lane, from, to protocol.Checkpoint) Tx {
	s.t.Helper()
	tx, err := s.store.Write(s.t.Context(), l, from, to)
	if err != nil {
		s.t.Fatalf("write %s from %s to %s: %v", l, from, to, err)
	}
	return tx
}

// commit moves a checkpoint, alternately in a transaction and without one: the result must be
// the same.
func (s *set) commit(l store.Lane, from, to protocol.Checkpoint) {
	s.t.Helper()
	var err error
	if s.saves = !s.saves; s.saves {
		err = s.store.Save(s.t.Context(), l, from, to)
	} else {
		err = s.write(l, from, to).Commit()
	}
	if err != nil {
		s.t.Fatalf("commit %s from %s to %s: %v", l, from, to, err)
	}
}

// refused fails the test if a commit is not refused as superseded, in both ways.
func (s *set) refused(why string, l store.Lane, from, to protocol.Checkpoint) {
	s.t.Helper()
	tx, err := s.store.Write(s.t.Context(), l, from, to)
	if err == nil {
		err = tx.Commit()
	}
	if !errors.Is(err, store.ErrSuperseded) {
		s.t.Errorf("%s: commit %s from %s to %s: %v, want ErrSuperseded", why, l, from, to, err)
	}
	if err := s.store.Save(s.t.Context(), l, from, to); !errors.Is(err, store.ErrSuperseded) {
		s.t.Errorf("%s: save %s from %s to %s: %v, want ErrSuperseded", why, l, from, to, err)
	}
}

func (s *set) find(l store.Lane) protocol.Found {
	s.t.Helper()
	found, err := s.store.Find(s.t.Context(), l)
	if err != nil {
		s.t.Fatalf("find %s: %v", l, err)
	}
	loaded, err := s.store.Load(s.t.Context(), l)
	if err != nil {
		s.t.Fatalf("load %s: %v", l, err)
	}
	loaded.NoneParked, loaded.Follows = false, false // only Load sets them; see parked
	if diff := cmp.Diff(found, loaded); diff != "" {
		s.t.Errorf("%s, -found +loaded:\n%s", l, diff)
	}
	return found
}

// expect fails the test if Find returns something else for a lane, under the lane's generation.
func (s *set) expect(l store.Lane, want protocol.Checkpoint) {
	s.t.Helper()
	found := s.find(l)
	if !found.Exists || found.Generation != l.Assignment.Generation || !found.Checkpoint.Equal(want) {
		s.t.Errorf("find %s: %+v, want %s", l, found, want)
	}
}

// absent fails the test if the set has a checkpoint for a lane.
func (s *set) absent(l store.Lane) {
	s.t.Helper()
	if found := s.find(l); found.Exists {
		s.t.Errorf("find %s: %+v, want none", l, found)
	}
}

func expectGroup(t *testing.T, g protocol.Group, want string) {
	t.Helper()
	if g.String() != want {
		t.Errorf("group is  %s\nwant      %s", g, want)
	}
}

// patience ends a broken test. It is not a limit for slow tests.
const patience = time.Minute

// A call is a call that is expected to wait.
type call[T any] struct {
	t       *testing.T
	done    chan struct{}
	result  T
	err     error
	refused chan struct{} // receives while the store refuses instead of waiting
}

// begin starts a call, and repeats it while a lock is not available.
func begin[T any](t *testing.T, f func() (T, error)) *call[T] {
	c := &call[T]{t: t, done: make(chan struct{}), refused: make(chan struct{}, 1)}
	go func() {
		defer close(c.done)
		for {
			c.result, c.err = f()
			if c.err == nil || !store.LockTimeout(c.err) || t.Context().Err() != nil {
				return
			}
			select {
			case c.refused <- struct{}{}:
			default:
			}
		}
	}()
	return c
}

// waiting waits until n calls wait, and checks that this one is among them.
func (c *call[T]) waiting(w World, n int) {
	c.t.Helper()
	pgtest.Eventually(c.t, "a call waits for a transaction", func() bool {
		select {
		case <-c.done:
			c.t.Fatalf("a call returned that had to wait: %+v, %v", c.result, c.err)
		case <-c.refused:
			return true
		default:
		}
		return w.Waiting() >= n
	})
}

func (c *call[T]) wait() T {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		c.t.Fatal("a call did not return")
	}
	if c.err != nil {
		c.t.Fatal(c.err)
	}
	return c.result
}
