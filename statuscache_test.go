package orchestrator

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pass has time pass, by the fake clock of a bubble: it takes none.
func pass(d time.Duration) { time.Sleep(d) }

// A hundred who look read the database as often as one does.
func TestStatusCacheShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0 // one at a time, or the race detector says so
		answer := make(chan struct{})
		c := &statusCache{read: func(context.Context) ([]setKnown, error) {
			reads++
			<-answer
			return []setKnown{{ReplicaSetStatus: ReplicaSetStatus{Generation: int64(reads)}}}, nil
		}}
		var viewers sync.WaitGroup
		for range 100 {
			viewers.Go(func() {
				for range 5 {
					if k, err := c.get(t.Context()); err != nil || k.code != 200 {
						t.Errorf("got %+v, %v", k, err)
					}
				}
			})
		}
		synctest.Wait() // all of them wait for the first reading
		close(answer)
		viewers.Wait()
		if reads != 1 {
			t.Errorf("%d reads for 100 viewers within a second", reads)
		}
		pass(statusFresh)
		if k, err := c.get(t.Context()); err != nil || k.ReplicaSets[0].Generation != 2 {
			t.Errorf("a second later: %+v, %v; want a new reading", k, err)
		}
	})
}

// Who asks after an order is not told of a reading that began before it:
//
//  1. a reading begins
//  2. an order is carried out
//  3. somebody asks, and the reading is still on its way
func TestStatusCacheForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		generation := int64(1)
		answer := make(chan struct{})
		c := &statusCache{read: func(context.Context) ([]setKnown, error) {
			read := generation
			<-answer
			return []setKnown{{ReplicaSetStatus: ReplicaSetStatus{Generation: read}}}, nil
		}}
		go c.get(t.Context())
		synctest.Wait() // it is on its way
		generation = 2
		c.forget()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			if k, err := c.get(t.Context()); err != nil || k.ReplicaSets[0].Generation != 2 {
				t.Errorf("got %+v, %v; want what is so after the order", k, err)
			}
		}()
		synctest.Wait() // somebody has asked, and it still is
		close(answer)
		<-asked
	})
}

// A viewer who goes away takes the reading from nobody, and a database that is
// silent holds nobody up for longer than statusPatience.
func TestStatusCacheBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := make(chan struct{})
		c := &statusCache{read: func(context.Context) ([]setKnown, error) {
			<-silent // and no heed of its context
			return nil, errors.New("late")
		}}
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			_, err := c.get(ctx)
			left <- err
		}()
		synctest.Wait()
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("a viewer who has left got %v", err)
		}
		began := time.Now()
		k, err := c.get(t.Context())
		if err != nil || k.code != 503 || k.AwaySince == nil || k.Error == "" {
			t.Errorf("got %+v, %v", k, err)
		}
		if waited := time.Since(began); waited > statusPatience+time.Second { // by a fake clock
			t.Errorf("waited %v", waited)
		}
		since := *k.AwaySince
		pass(statusFresh)
		k, _ = c.get(t.Context())
		if !k.AwaySince.Equal(since) {
			t.Errorf("away since %v, and then since %v", since, k.AwaySince)
		}
		close(silent)
	})
}
