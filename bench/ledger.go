package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// A ledger is a handler that only checks: the versions of each aggregate must come as 1, 2, 3 …,
// whichever worker handles them. It costs some tens of nanoseconds, the same for every
// contender.
type ledger struct {
	through int64 // events after that position don't count
	want    int64
	page    int64
	last    []atomic.Int64
	count   atomic.Int64

	first, lastPage atomic.Int64  // nanoseconds since epoch
	done            chan struct{} // closed when enough events were handled

	once  sync.Once
	wrong chan struct{} // closed when fault is set
	fault error
}

// newLedger returns a ledger for want events up to a position. page is the largest batch that a
// contender of the trial reads.
func newLedger(through, want, page int64) *ledger {
	return &ledger{
		through: through, want: want, page: page, last: make([]atomic.Int64, aggregateMax),
		done: make(chan struct{}), wrong: make(chan struct{}),
	}
}

// openLedger returns a ledger for any number of events.
func openLedger() *ledger { return newLedger(math.MaxInt64, -1, 0) }

// aggregateMax is higher than the number of any aggregate.
const aggregateMax = 20_000

func (l *ledger) note(e *orchestrator.Event) {
	if e.GlobalPosition > l.through {
		return
	}
	a, err := strconv.Atoi(strings.TrimPrefix(e.AggregateID, "a"))
	if err != nil || a >= len(l.last) || !l.last[a].CompareAndSwap(e.AggregateVersion-1, e.AggregateVersion) {
		l.once.Do(func() {
			l.fault = fmt.Errorf("event lost, repeated or out of order: version %d of aggregate %s at position %d does not follow its predecessor",
				e.AggregateVersion, e.AggregateID, e.GlobalPosition)
			close(l.wrong)
		})
	}
	n := l.count.Add(1)
	if n == 1 {
		l.first.Store(int64(time.Since(epoch)))
	}
	if n == l.want-l.page+1 {
		l.lastPage.Store(int64(time.Since(epoch)))
	}
	if n == l.want {
		close(l.done)
	}
}

// rate returns events per second for each ledger, from the first event of the first page to the
// first event of the last page that any of them got. Between the two, every ledger has got
// want-page events, whether its contender reads pages of 2000 or of 100.
func rate(ledgers []*ledger) float64 {
	first, last := int64(math.MaxInt64), int64(0)
	for _, l := range ledgers {
		first, last = min(first, l.first.Load()), max(last, l.lastPage.Load())
	}
	return float64(ledgers[0].want-ledgers[0].page) / time.Duration(last-first).Seconds()
}

var epoch = time.Now()

// rateOf runs a contender that feeds the ledgers, and returns their rate.
func rateOf(ctx context.Context, ledgers []*ledger, run func(context.Context) error) (float64, error) {
	if err := run(ctx); err != nil {
		return 0, err
	}
	for _, l := range ledgers {
		if err := l.complete(); err != nil {
			return 0, err
		}
	}
	return rate(ledgers), nil
}

// complete returns what is wrong or missing.
func (l *ledger) complete() error {
	if err := l.check(); err != nil {
		return err
	}
	select {
	case <-l.done:
		return nil
	default:
		return fmt.Errorf("events lost: %d handled, want %d", l.count.Load(), l.want)
	}
}

// wait waits for the last event, or for an error that prevents it.
func (l *ledger) wait(ctx context.Context, ended <-chan struct{}) error {
	select {
	case <-l.done:
	case <-l.wrong:
	case <-ended:
	case <-ctx.Done():
	}
	return l.complete()
}

// check returns what is wrong so far.
func (l *ledger) check() error {
	select {
	case <-l.wrong:
		return l.fault
	default:
		return nil
	}
}
