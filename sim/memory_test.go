package sim

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
	"github.com/getpup/pupsourcing-orchestrator/internal/storetest"
)

// The model passes the suite of the store, whether its calls wait or are
// refused.
func TestMemoryIsAStore(t *testing.T) {
	for name, rules := range map[string]memoryRules{"waiting": {}, "refusing": {noWait: true}} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) storetest.World { return newMemoryWorld(rules) })
		})
	}
}

// A memoryWorld lends a memory to goroutines: its clock stands still until it is
// told, its timers run in real time, and its calls block.
type memoryWorld struct {
	mu      sync.Mutex // of all that follows
	m       *memory
	time    time.Time
	pending int // calls that are not done
}

func newMemoryWorld(r memoryRules) *memoryWorld {
	w := &memoryWorld{time: epoch}
	w.m = newMemory(w, r)
	return w
}

func (w *memoryWorld) now() time.Time { return w.time }

func (w *memoryWorld) after(d time.Duration, f func()) (stop func()) {
	stopped := false
	timer := time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !stopped {
			f()
		}
	})
	return func() {
		stopped = true
		timer.Stop()
	}
}

// call makes a call and waits until it is done.
func (w *memoryWorld) call(start func(done func())) {
	ended := make(chan struct{})
	w.mu.Lock()
	w.pending++
	start(func() {
		w.pending--
		close(ended)
	})
	w.mu.Unlock()
	<-ended
}

func (w *memoryWorld) Open(set string, lease time.Duration) storetest.Store {
	return memoryStore{w, w.m.open(set, store.BoundsOf(lease))}
}

func (w *memoryWorld) Advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.time = w.time.Add(d)
}

func (w *memoryWorld) Waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pending
}

func (w *memoryWorld) Delete(projection string, partitions ...int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range partitions {
		w.m.projection(projection).checkpoints[k].committed = nil
	}
}

type memoryStore struct {
	w  *memoryWorld
	db database
}

func (s memoryStore) Sync(_ context.Context, r protocol.Request, projections []string) (result store.Result, err error) {
	s.w.call(func(done func()) {
		c := s.db.connect()
		c.sync(r, projections, false, func(r store.Result, e error) {
			result, err = r, e
			c.close()
			done()
		})
	})
	return result, err
}

func (s memoryStore) Find(_ context.Context, l store.Lane) (found protocol.Found, err error) {
	s.w.call(func(done func()) {
		c := s.db.connect()
		c.find(l, func(f protocol.Found, e error) {
			found, err = f, e
			c.close()
			done()
		})
	})
	return found, err
}

func (s memoryStore) Write(_ context.Context, l store.Lane, from, to protocol.Checkpoint) (_ storetest.Tx, err error) {
	tx := memoryTx{w: s.w}
	s.w.call(func(done func()) {
		tx.conn = s.db.connect()
		tx.conn.write(l, from, to, func(e error) {
			err = e
			if err != nil {
				tx.conn.close()
			}
			done()
		})
	})
	return tx, err
}

type memoryTx struct {
	w    *memoryWorld
	conn connection
}

func (tx memoryTx) Commit() (err error) {
	tx.w.call(func(done func()) {
		tx.conn.commit(func(e error) {
			err = e
			tx.conn.close()
			done()
		})
	})
	return err
}

func (tx memoryTx) Rollback() error {
	tx.w.call(func(done func()) {
		tx.conn.close()
		done()
	})
	return nil
}
