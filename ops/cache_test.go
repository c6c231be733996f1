package ops

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// pass lets time pass by the fake clock of a bubble, without waiting.
func pass(d time.Duration) { time.Sleep(d) }

// answers is a check that succeeds.
func answers(context.Context) error { return nil }

// A hundred concurrent requests cause as many reads of the database as one.
func TestStatusCacheShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0 // one at a time, or the race detector complains
		answer := make(chan struct{})
		c := &statusCache{check: answers, read: func(context.Context) ([]setKnown, error) {
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
		synctest.Wait() // all requests wait for the first read
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

// A request after an order does not get the result of a read that started before the order:
//
//  1. a reading begins
//  2. an order is carried out
//  3. a request comes, and the read is still under way
func TestStatusCacheReadsAgainAfterAnOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		generation := int64(1)
		answer := make(chan struct{})
		c := &statusCache{check: answers, read: func(context.Context) ([]setKnown, error) {
			read := generation
			<-answer
			return []setKnown{{ReplicaSetStatus: ReplicaSetStatus{Generation: read}}}, nil
		}}
		go c.get(t.Context())
		synctest.Wait() // the read is under way
		generation = 2
		c.invalidate()
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			if k, err := c.get(t.Context()); err != nil || k.ReplicaSets[0].Generation != 2 {
				t.Errorf("got %+v, %v; want what is so after the order", k, err)
			}
		}()
		synctest.Wait() // a request has come, and the read is still under way
		close(answer)
		<-asked
	})
}

// Several orders in a row delay no request: it gets the result of a read that started after the
// request, even if more orders follow.
func TestStatusCacheUnderOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		c := &statusCache{check: answers, read: func(context.Context) ([]setKnown, error) {
			pass(300 * time.Millisecond)
			reads++
			return []setKnown{}, nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for ctx.Err() == nil {
				c.invalidate()
				pass(20 * time.Millisecond)
			}
		}()
		pass(time.Second)
		began := time.Now()
		if _, err := c.get(ctx); err != nil || time.Since(began) > time.Second {
			t.Errorf("an answer after %v, %v", time.Since(began), err)
		}
		if reads > 2 {
			t.Errorf("%d readings for one who asks", reads)
		}
		cancel()
		synctest.Wait()
		pass(time.Second)
	})
}

// If the database answers, but reading takes long, it does not count as unreachable: a request
// is told so. The read goes on, and a later request gets its result.
func TestStatusCacheSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		takes := 8 * time.Second
		reads := 0
		c := &statusCache{check: answers, read: func(ctx context.Context) ([]setKnown, error) {
			reads++
			select {
			case <-time.After(takes):
				return []setKnown{{}}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
		k, err := c.get(t.Context())
		if err != nil || !k.Slow || k.code != 503 || k.AwaySince == nil {
			t.Errorf("got %+v, %v; want that it is slow", k, err)
		}
		if again := c.late(); again != k {
			t.Error("two who wait have a copy each")
		}
		k, err = c.get(t.Context())
		if err != nil || k.Slow || k.code != 200 || len(k.ReplicaSets) != 1 || reads != 1 {
			t.Errorf("got %+v, %v after %d readings; want what the first has read", k, err, reads)
		}
		// After a slow read, the next one comes later and may take longer.
		pass(15 * time.Second)
		if _, err := c.get(t.Context()); err != nil || reads != 1 {
			t.Errorf("%d readings, %v", reads, err)
		}
		pass(2 * time.Second)
		takes = 30 * time.Second // four times 8 s is allowed
		for range 10 {
			if k, err = c.get(t.Context()); err == nil && k.code == 200 {
				break
			}
		}
		if k.code != 200 || reads != 2 {
			t.Errorf("got %+v after %d readings", k, reads)
		}
	})
}

// A refused order causes no new read.
func TestStatusRefusedOrders(t *testing.T) {
	h := StatusHandler(nil, AllowActions()).(*statusHandler)
	for _, body := range []string{`{"action":"nonsense"}`, `nonsense`, `{"action":"pause"}`, `{"action":"retry","projection":"p","position":"x"}`} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != 400 || h.known.need != 0 {
			t.Errorf("%s: %d, and readings from %d on count", body, w.Code, h.known.need)
		}
	}
}

// All requests get the same encoded answer.
func TestStatusEncodedOnce(t *testing.T) {
	k := &statusKnown{ReplicaSets: []setKnown{{ReplicaSetStatus: ReplicaSetStatus{ReplicaSet: "a"}}, {ReplicaSetStatus: ReplicaSetStatus{ReplicaSet: "b"}}}}
	for _, c := range []struct {
		set orchestrator.ReplicaSetName
		one bool
	}{{"", false}, {"a", true}} {
		first, ok := k.body(c.set, c.one)
		second, _ := k.body(c.set, c.one)
		if !ok || &first[0] != &second[0] {
			t.Errorf("%+v is encoded twice", c)
		}
	}
	if _, ok := k.body("c", true); ok {
		t.Error("a set that is not there has a body")
	}
	if body, _ := k.body("a", true); strings.Contains(string(body), `"b"`) {
		t.Errorf("one set is %s", body)
	}
}

// A client that goes away does not end the read for the others. A silent database delays no
// request for longer than statusPatience.
func TestStatusCacheLimitsWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := make(chan struct{})
		c := &statusCache{check: func(context.Context) error {
			<-silent // and ignores its context
			return errors.New("late")
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
		if err != nil || k.code != 503 || k.AwaySince == nil || k.Error == "" || k.Slow {
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
